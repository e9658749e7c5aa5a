#pragma once

// The weight gradient of gradients.h for kernels of few rows. A strip of a few rows of grad_output by one vector of
// columns, or one column of a vector of channels, stays in registers, and so do the sums of all rows of the kernel by
// some of its columns: each source vector is loaded once for all rows of the kernel that meet it.
//   kColumnsInPlace   one channel after the other, images inside; loads at the edges are masked.
//   kChannelsInPlace  a few rows or images of a block of channels, one vector of them after the other; taps outside the
//                     image are left out.
//   kStagedChannels   the same, of a copy of each vector's rows in which its channels lie side by side, in Acc<T>.
// Any of them reads both tensors nearly in the order of memory. Where groups share vectors, each input of a group is a
// permutation of the source's lanes: sums are [vector][input][tap].
#include "grad_strip_tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T, Order kOrder>
class GradStrips {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kColumns = lanes_are_columns(kOrder), kStaged = is_staged(kOrder);
  using Stored = std::conditional_t<kStaged, A, T>;

 public:
  GradStrips(const GradWeightPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums, A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        sums_of_vector_(plan.terms * plan.taps()),
        permutations_(plan.terms),
        sums_(scratch),
        totals_(scratch + plan.sums_size() / 3),
        stage_(scratch + plan.sums_size()),
        factor_column_(kStaged ? L : grad_output.spatial[2]),
        source_column_(kStaged ? L : input.spatial[2]),
        factor_row_(grad_output.spatial[1]),
        source_row_(input.spatial[1]),
        prefetch_(kColumns ? what_to_prefetch(plan, input, grad_output) == Prefetch::kBlock : plan.prefetch) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.channels.blocks(), slice = index / plan_.channels.blocks();
    box_ = plan_.slice_box(slice);
    const int64_t first = block * plan_.channels.width, end = first + plan_.channels.vectors(block);
    for (vector_ = first; vector_ < end; vector_ += vectors_) {
      vectors_ = kColumns ? 1 : end - first;
      fill_zero(sums_, vectors_ * sums_of_vector_ * L);
      summed_ = 0;
      has_totals_ = false;
      sum_box();
      if (has_totals_) add_to_totals();
      for (int64_t v = 0; v < vectors_; ++v)
        store_sums(v * sums_of_vector_,
                   partial_sums_ + slice * plan_.slice_size() + (vector_ + v) * sums_of_vector_ * plan_.channels.lanes);
    }
  }

 private:
  // Strips of the same number of rows.
  struct Strips {
    int64_t rows;
    const GradRows* first;
    int64_t count;
    bool edges, insides;  // whether any tile lies at an edge, and any inside
  };
  // Some columns of the kernel, and the vectors that meet them.
  struct Taps {
    int64_t first, count;
    const GradColumns<A>* columns;
    int64_t column_count;
  };
  static constexpr int64_t kMaxStrips = 128;
  static constexpr int64_t kMaxRuns = kColumns ? 2 * kMaxEdges<A> + 1 : 4 * kMaxColumnTaps;

  void add_to_totals() {
    add_short_sums(sums_, vectors_ * sums_of_vector_, totals_, &has_totals_);
    summed_ = 0;
  }

  // The sums of a vector, from tap `first` of all on.
  void store_sums(int64_t first, A* to) const {
    const int64_t step = has_totals_ ? 2 * L : L;
    const A* const from = (has_totals_ ? totals_ : sums_) + first * step;
    if constexpr (!kColumns) {
      for (int64_t t = 0; t < sums_of_vector_; ++t) Vec<A>::load(from + t * step).store(to + t * L);
      return;
    }
    sum_lanes(from, step, plan_.taps(), to);
  }

  void set_columns(Range range) {
    if (range.begin == range_.begin && range.end == range_.end) return;
    range_ = range;
    listed_ = {};
    if constexpr (kStaged) {
      const Axis& w = plan_.axes[2];
      met_ = w.met(range);
      factor_row_ = size(range) * L;
      source_row_ = size(met_) * L;
    }
    column_count_ = taps_count_ = 0;
    if constexpr (kColumns) list_vectors(range);
    const int64_t taps = plan_.axes[2].kernel, at_once = detail::grad_taps_at_once(plan_.axes[1].kernel);
    for (int64_t first = 0; first < taps; first += at_once) {
      const Range chunk{first, std::min(taps, first + at_once)};
      if constexpr (kColumns) taps_[taps_count_++] = {first, size(chunk), columns_, column_count_};
      else list_channels(range, chunk);
    }
  }

  // Columns that share the taps which lie inside the image.
  void list_channels(Range range, Range chunk) {
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    for (int64_t j = range.begin, next; j < range.end; j = next) {
      const int64_t source = p.source(j, 0);
      const Range taps = p.clip(source, source, w.source, chunk);
      next = std::min(range.end, j + p.same_taps(source, w.source, chunk, taps));
      if (size(taps) == 0) continue;
      columns_[column_count_] = {j, next - j, false, nullptr, nullptr};
      taps_[taps_count_++] = {taps.begin, size(taps), columns_ + column_count_++, 1};
    }
  }

  // Vectors of columns; those that lie inside the image, in one run.
  void list_vectors(Range range) {
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    int64_t edges = 0;
    for (int64_t j = range.begin; j < range.end; j += L) {
      const int64_t count = std::min(L, range.end - j), source = p.source(j, 0);
      const bool inside = count == L && source >= 0 && source + (p.taps - 1) * p.step + L <= w.source;
      if (inside && column_count_ > 0 && !columns_[column_count_ - 1].edge) {
        ++columns_[column_count_ - 1].count;
        continue;
      }
      GradColumns<A>& columns = columns_[column_count_++];
      columns = {j, 1, !inside, nullptr, nullptr};
      if (inside) continue;
      Mask<A>* mask = masks_[edges++];
      columns.factor_mask = mask;
      for (int64_t i = 0; i < L; ++i) *mask++ = i < count ? -1 : 0;
      columns.source_masks = mask;
      for (int64_t t = 0; t < p.taps; ++t)
        for (int64_t i = 0; i < L; ++i) {
          const int64_t at = source + t * p.step + i;
          *mask++ = i < count && 0 <= at && at < w.source ? -1 : 0;
        }
    }
  }

  int64_t factor_channel(int64_t v) const { return plan_.output_map(plan_.channels.first(v)) * grad_output_.c; }
  int64_t source_channel(int64_t v) const { return plan_.input_map(plan_.channels.first(v)) * input_.c; }

  void sum_box() {
    const Axis& d = plan_.axes[0];
    const int64_t columns = box_.w.end - box_.w.begin, tiles = ceil_div(columns, plan_.tiling.columns);
    for (int64_t i = 0; i < tiles * d.kernel; ++i) {
      const int64_t td = i % d.kernel;
      const Range tile = part(columns, tiles, i / d.kernel);
      set_columns({box_.w.begin + tile.begin, box_.w.begin + tile.end});
      first_ = i == 0;
      plane_count_ = 0;
      const int64_t most = std::clamp<int64_t>(plan_.positions_at_once / (size(box_.h) * size(range_)), 1, kMaxPlanes);
      for (int64_t n = box_.n.begin; n < box_.n.end; ++n)
        for (int64_t id = box_.d.begin; id < box_.d.end; ++id) {
          const int64_t depth = d.phase(0).source(id, td);
          if (depth < 0 || depth >= d.source) continue;
          planes_[plane_count_++] = {grad_output_.data + n * grad_output_.n + id * grad_output_.spatial[0],
                                     input_.data + n * input_.n + depth * input_.spatial[0] -
                                         (kStaged ? 0 : plan_.axes[2].pad * source_column_)};
          if (plane_count_ == most) sum_planes(td);
        }
      if (plane_count_ > 0) sum_planes(td);
    }
  }

  void sum_planes(int64_t td) {
    const Axis& h = plan_.axes[1];
    for (int64_t first = box_.h.begin; first < std::min(box_.h.end, box_.h.begin + h.classes); ++first)
      rows(td, first, (box_.h.end - 1 - first) / h.classes + 1);
    plane_count_ = 0;
  }

  // The rows first, first + classes, ... of all planes.
  void rows(int64_t td, int64_t first, int64_t count) {
    for (int64_t begin = 0; begin < count; begin = end_) {
      const Range strips{first + begin * plan_.axes[1].classes, box_.h.end};
      if (strips.begin != listed_.begin || strips.end != listed_.end) {
        listed_ = strips;
        list_strips(first, begin, count);
      }
      summed_ += (end_ - begin) * size(range_) * plane_count_;
      if (summed_ > kShortSum) add_to_totals();
      for (int64_t v = 0; v < vectors_; ++v) {
        set_prefetch(v, begin == 0 && end_ == count ? 0 : end_ - begin);
        if constexpr (kStaged) stage(v, {first + begin, first + end_});
        for (const Strips& strips : groups_) {
          for (int64_t r = 0; r < plan_.terms; ++r) {
            if (strips.insides) sum(td, v, r, strips, false);
            if (strips.edges) sum(td, v, r, strips, true);
          }
        }
      }
    }
  }

  // Copies rows of grad_output, and what they meet of the input, of all planes of a vector of channels.
  void stage(int64_t v, Range rows) {
    const Axis &h = plan_.axes[1], &w = plan_.axes[2];
    const Range met_rows = h.met(rows);
    A* to = stage_;
    for (int64_t p = 0; p < plane_count_; ++p) {
      staged_[p].factor = to - rows.begin * factor_row_ - range_.begin * L;
      to = stage(planes_[p].factor, grad_output_, plan_.output_map, vector_ + v, rows, range_, factor_ahead_, to);
      staged_[p].source = to - met_rows.begin * source_row_ - (met_.begin + w.pad) * L;
      to = stage(planes_[p].source, input_, plan_.input_map, vector_ + v, met_rows, met_, source_ahead_, to);
    }
  }
  A* stage(const T* plane, const View<const T>& view, ChannelMap map, int64_t v, Range rows, Range columns,
           int64_t ahead, A* to) const {
    const Lanes<A> lanes(v * L, plan_.channels.channels, map, view.c);
    const int64_t row = view.spatial[1], column = view.spatial[2];
    int64_t count = size(rows), length = size(columns);
    if (row == length * column) length *= count, count = std::min<int64_t>(1, count);  // one run
    for (const T* from = plane + rows.begin * row + columns.begin * column; count > 0; --count, from += row)
      pack_columns(from, column, lanes, length, std::exchange(to, to + length * L), L, ahead);
    return to;
  }

  // What comes next: the next channel; or the next `rows` rows of a block of channels, else its next images, or else
  // the next block.
  void set_prefetch(int64_t v, int64_t rows) {
    factor_ahead_ = source_ahead_ = 0;
    if (!prefetch_ || !first_) return;
    if (kColumns) {
      factor_ahead_ = factor_channel(vector_ + 1) - factor_channel(vector_);
      source_ahead_ = source_channel(vector_ + 1) - source_channel(vector_);
    } else if (kStaged || v % kVectorsInLine<T> == 0) {
      const Axis& h = plan_.axes[1];
      const auto ahead = [&](const View<const T>& view, int64_t row) {
        if (rows > 0) return rows * row * view.spatial[1];
        if (kStaged) return L * view.c;
        return plane_count_ < size(box_.n) ? plane_count_ * view.n : vectors_ * L;
      };
      factor_ahead_ = ahead(grad_output_, h.classes);
      source_ahead_ = ahead(input_, h.classes * h.stride);
    }
  }

  // Strips of 4 and 3 rows from row `begin` on; of single rows, where these do not divide, or rows have nothing in
  // common.
  void list_strips(int64_t first, int64_t begin, int64_t count) {
    const Axis& h = plan_.axes[1];
    const Phase p = h.phase(0);
    const int64_t rows =
        std::min(count - begin, std::clamp<int64_t>(plan_.positions_at_once / size(range_), 4, kMaxStrips) / 4 * 4);
    int64_t of_three = std::min(rows % 4 == 0 ? 0 : 4 - rows % 4, rows / 3);
    int64_t of_four = (rows - 3 * of_three) / 4;
    if (h.kernel == 1) of_three = of_four = 0;
    const int64_t counts[] = {of_four, of_three, rows - 4 * of_four - 3 * of_three}, sizes[] = {4, 3, 1};
    const bool first_edge = kColumns && columns_[0].edge, last_edge = kColumns && columns_[column_count_ - 1].edge;
    const bool edge_columns = first_edge || last_edge, inside_columns = column_count_ > 2 || !first_edge || !last_edge;
    int64_t row = begin, listed = 0;
    for (int i = 0; i < 3; ++i) {
      groups_[i] = {sizes[i], strips_ + listed, counts[i], counts[i] > 0 && edge_columns, false};
      for (int64_t k = 0; k < counts[i]; ++k, ++listed, row += sizes[i]) {
        const int64_t at = first + row * h.classes, source = p.source(at, 0);
        GradRows& strip = strips_[listed];
        strip.factor = at * factor_row_;
        strip.source = source * source_row_;
        const Range inside = positions_inside(source, h.dilation, h.source);
        strip.first_row = inside.begin;
        strip.last_row = inside.end;
        strip.edge = strip.first_row > 0 || strip.last_row < (sizes[i] - 1) * h.row_step() + h.kernel;
        groups_[i].edges |= strip.edge;
        groups_[i].insides |= !strip.edge && inside_columns;
      }
    }
    end_ = row;
  }

  void sum(int64_t td, int64_t v, int64_t r, const Strips& strips, bool edge) {
    const Axis &h = plan_.axes[1], &w = plan_.axes[2];
    GradStripSum<Stored> s{};
    if constexpr (kStaged) {
      s.planes = staged_;
    } else {
      s.planes = planes_;
      s.factor_offset = factor_channel(vector_ + v);
      s.source_offset = source_channel(vector_ + v);
    }
    s.plane_count = plane_count_;
    s.strips = strips.first;
    s.strip_count = strips.count;
    s.factor_row = h.classes * factor_row_;
    s.source_row = h.kernel > 1 ? h.dilation * source_row_ : 0;
    s.factor_column = factor_column_;
    s.source_column = w.stride * source_column_;
    s.step = w.dilation * source_column_;
    s.row_sums = w.kernel * L;
    s.permutation = plan_.terms > 1 ? permutations_.of_term[r] : nullptr;
    const int64_t at_once = detail::grad_taps_at_once(h.kernel);
    for (const Taps* taps = taps_; taps < taps_ + taps_count_; ++taps) {
      s.columns = taps->columns;
      s.column_count = taps->column_count;
      s.first_tap = taps->first;
      const bool middle = taps->first / at_once == w.kernel / 2 / at_once;  // most vectors meet these
      s.factor_ahead = middle && r == 0 ? factor_ahead_ : 0;
      s.source_ahead = middle && r == 0 ? source_ahead_ : 0;
      s.sums = sums_ + (v * sums_of_vector_ + r * plan_.taps() + td * h.kernel * w.kernel + s.first_tap) * L;
      if (h.kernel == 1) grad_strips<Stored, kColumns, 1>(s, strips.rows, h.row_step(), taps->count, edge);
      else if (h.kernel == 3) grad_strips<Stored, kColumns, 3>(s, strips.rows, h.row_step(), taps->count, edge);
      else if (h.kernel == 5) grad_strips<Stored, kColumns, 5>(s, strips.rows, h.row_step(), taps->count, edge);
      else grad_strips<Stored, kColumns, 7>(s, strips.rows, h.row_step(), taps->count, edge);
    }
  }

  const GradWeightPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
  const int64_t sums_of_vector_;
  const Permutations<A> permutations_;
  A* const sums_;                                // of about kShortSum positions
  A* const totals_;                              // of sums, with the rounding error so far
  A* const stage_;                               // copies of rows
  const int64_t factor_column_, source_column_;  // from column to column, where they are read
  int64_t factor_row_, source_row_;
  const bool prefetch_;

  Box box_;
  int64_t vector_, vectors_;  // the first one of those that are summed side by side
  int64_t summed_;            // positions since the sums were last added to the totals
  bool has_totals_;           // else they never were
  bool first_;  // whether these are the first tile and depth of the kernel: later ones find all in a cache
  int64_t factor_ahead_, source_ahead_;
  GradPlane<T> planes_[kMaxPlanes];
  GradPlane<Stored> staged_[kStaged ? kMaxPlanes : 1];
  int64_t plane_count_;
  Range listed_{};  // the rows from which the current strips are listed,
  int64_t end_;     // and the row behind them, counted in its class
  GradRows strips_[kMaxStrips];
  Strips groups_[3];
  GradColumns<A> columns_[kMaxRuns];
  int64_t column_count_;
  Taps taps_[kMaxRuns];
  int64_t taps_count_;
  Range range_{}, met_{};  // of columns, and of those of the input that they meet
  Mask<A> masks_[kMaxEdges<A>][(1 + kMaxColumnTaps) * L];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
