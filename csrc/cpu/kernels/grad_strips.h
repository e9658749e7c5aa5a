#pragma once

// The weight gradient of gradients.h for kernels of few rows. A strip of a few rows of grad_output by one vector of
// columns, or one column of a vector of channels, stays in registers, and so do the sums of all rows of the kernel by
// some of its columns: each source vector is loaded once for all rows of the kernel that meet it.
//   kColumnsInPlace   one channel after the other, images inside; loads at the edges are masked.
//   kChannelsInPlace  a few rows or images of a block of channels, one vector of them after the other; taps outside the
//                     image are left out.
//   kStagedChannels   the same, of a copy of each vector's rows in which its channels lie side by side, in Acc<T>.
// Any of them reads both tensors nearly in the order of memory.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// `count` vectors one behind the other.
template <class A>
struct GradColumns {
  int64_t at, count;            // the first one's column
  bool edge;                    // whether they need masks
  const Mask<A>* factor_mask;   // of grad_output,
  const Mask<A>* source_masks;  // and of the source, for each column of the kernel
};

struct GradRows {
  int64_t factor, source;  // where the strip's first row lies in a plane of grad_output and, at its first tap, input
  int64_t first_row, last_row;  // source rows, counted from there, that the image has
  bool edge;                    // whether not all are
};

template <class T>
struct GradPlane {
  const T *factor, *source;
};

// sums[u][t] += sum over planes, strips, rows r and columns j of
//               factor[r][j] * source[r * stride + u][j * stride + t * step]
template <class T>
struct GradStripSum {
  const GradPlane<T>* planes;
  int64_t plane_count;
  int64_t factor_offset, source_offset;  // in a plane
  const GradRows* strips;
  int64_t strip_count;
  const GradColumns<Acc<T>>* columns;
  int64_t column_count;
  int64_t factor_row, source_row;        // from row to row
  int64_t factor_column, source_column;  // from column to column; where columns are lanes, they are adjacent
  int64_t first_tap, step;
  Acc<T>* sums;
  int64_t row_sums;                    // from the sums of one row of the kernel to the next
  int64_t factor_ahead, source_ahead;  // what is prefetched meanwhile, or 0
};

template <class T, int kRows, int kStride, int kKernelRows, int kTaps, bool kMasked, bool kEdge>
inline __attribute__((always_inline)) void add_source_rows(const GradStripSum<T>& s, const T* source,
                                                           const GradRows& rows, const Mask<Acc<T>>* masks,
                                                           const Vec<Acc<T>> (&factor)[kRows],
                                                           Vec<Acc<T>> (&sum)[kKernelRows][kTaps]) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  keep_apart(masks);
  TORCH_EXT_UNROLL
  for (int i = 0; i < (kRows - 1) * kStride + kKernelRows; ++i, source += s.source_row) {
    keep_apart(source);
    if (kEdge && (i < rows.first_row || i >= rows.last_row)) continue;
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      Vec<A> x;
      if constexpr (kMasked) x = load_masked(source + t * s.step, masks + t * L);
      else x = opaque(load_wide(source + t * s.step));
      TORCH_EXT_UNROLL
      for (int u = 0; u < kKernelRows; ++u)
        if (i >= u && (i - u) % kStride == 0 && (i - u) / kStride < kRows)
          sum[u][t] = fma(factor[(i - u) / kStride], x, sum[u][t]);
    }
  }
}

// Those tiles that lie at an edge, or all others.
template <class T, bool kColumns, int kRows, int kStride, int kKernelRows, int kTaps, bool kEdge>
__attribute__((noinline)) void grad_strips(const GradStripSum<T>& strip_sum) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const GradStripSum<T> s = strip_sum;  // as in tiles()
  const int64_t factor_column = kColumns ? 1 : s.factor_column, source_column = kColumns ? 1 : s.source_column;
  const int64_t factor_vector = kColumns ? L : factor_column, source_vector = kColumns ? L : source_column;
  Vec<A> sum[kKernelRows][kTaps];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kKernelRows * kTaps; ++i) sum[i / kTaps][i % kTaps] = Vec<A>::zero();
  for (const GradPlane<T>* plane = s.planes; plane < s.planes + s.plane_count; ++plane)
    for (const GradRows* rows = s.strips; rows < s.strips + s.strip_count; ++rows) {
      if (!kEdge && rows->edge) continue;
      for (const GradColumns<Acc<T>>* columns = s.columns; columns < s.columns + s.column_count; ++columns) {
        if ((rows->edge || columns->edge) != kEdge) continue;
        const T* from = plane->factor + s.factor_offset + rows->factor + columns->at * factor_column;
        const T* source =
            plane->source + s.source_offset + rows->source + columns->at * source_column + s.first_tap * s.step;
        for (int64_t k = 0; k < columns->count; ++k, from += factor_vector, source += source_vector) {
          keep_apart(from);
          if (s.factor_ahead != 0)
            for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(from + r * s.factor_row + s.factor_ahead);
          if (s.source_ahead != 0)
            for (int64_t r = 0; r < kRows * kStride; ++r)
              for (int64_t c = 0; c < kStride; ++c)
                __builtin_prefetch(source + r * s.source_row + c * s.step + s.source_ahead);
          Vec<A> factor[kRows];
          if constexpr (kEdge && kColumns)
            if (columns->edge) {
              TORCH_EXT_UNROLL
              for (int r = 0; r < kRows; ++r) factor[r] = load_masked(from + r * s.factor_row, columns->factor_mask);
              add_source_rows<T, kRows, kStride, kKernelRows, kTaps, true, kEdge>(
                  s, source, *rows, columns->source_masks + s.first_tap * L, factor, sum);
              continue;
            }
          TORCH_EXT_UNROLL
          for (int r = 0; r < kRows; ++r) factor[r] = load_wide(from + r * s.factor_row);
          add_source_rows<T, kRows, kStride, kKernelRows, kTaps, false, kEdge>(s, source, *rows, nullptr, factor, sum);
        }
      }
    }
  TORCH_EXT_UNROLL
  for (int u = 0; u < kKernelRows; ++u) {
    A* to = s.sums + u * s.row_sums;
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) (Vec<A>::load(to + t * L) + sum[u][t]).store(to + t * L);
  }
}

template <class T, bool kColumns, int kRows, int kStride, int kKernelRows,
          int kTaps = detail::grad_taps_at_once(kKernelRows)>
void grad_strips(const GradStripSum<T>& s, int64_t taps, bool edge) {
  if constexpr (kTaps > 1)
    if (taps < kTaps) return grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps - 1>(s, taps, edge);
  edge ? grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, true>(s)
       : grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, false>(s);
}

template <class T, bool kColumns, int kKernelRows, int kStride>
void grad_strips(const GradStripSum<T>& s, int64_t rows, int64_t taps, bool edge) {
  if constexpr (kKernelRows > 1) {
    if (rows == 4) return grad_strips<T, kColumns, 4, kStride, kKernelRows>(s, taps, edge);
    if (rows == 3) return grad_strips<T, kColumns, 3, kStride, kKernelRows>(s, taps, edge);
  }
  grad_strips<T, kColumns, 1, 1, kKernelRows>(s, taps, edge);
}

template <class T, bool kColumns, int kKernelRows>
void grad_strips(const GradStripSum<T>& s, int64_t rows, int64_t stride, int64_t taps, bool edge) {
  if constexpr (!kColumns)
    if (stride == 2) return grad_strips<T, kColumns, kKernelRows, 2>(s, rows, taps, edge);
  grad_strips<T, kColumns, kKernelRows, 1>(s, rows, taps, edge);
}

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
      fill_zero(sums_, vectors_ * plan_.taps() * L);
      summed_ = 0;
      has_totals_ = false;
      sum_box();
      if (has_totals_) add_to_totals();
      for (int64_t v = 0; v < vectors_; ++v)
        store_sums(v * plan_.taps(),
                   partial_sums_ + slice * plan_.slice_size() + (vector_ + v) * plan_.taps() * plan_.channels.lanes);
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
    const int64_t taps = vectors_ * plan_.taps();
    if (!has_totals_) fill_zero(totals_, 2 * taps * L);
    has_totals_ = true;
    for (int64_t t = 0; t < taps; ++t) add_short_sum(sums_ + t * L, totals_ + 2 * t * L);
    summed_ = 0;
  }

  // The sums of a vector, from tap `first` of all on.
  void store_sums(int64_t first, A* to) const {
    const int64_t step = has_totals_ ? 2 * L : L;
    const A* const from = (has_totals_ ? totals_ : sums_) + first * step;
    if constexpr (!kColumns) {
      for (int64_t t = 0; t < plan_.taps(); ++t) Vec<A>::load(from + t * step).store(to + t * L);
      return;
    }
    for (int64_t t = 0; t < plan_.taps(); t += L) {
      const int64_t count = std::min(L, plan_.taps() - t);
      Vec<A> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = i < count ? Vec<A>::load(from + (t + i) * step) : Vec<A>::zero();
      transpose(square);
      for (int64_t i = 1; i < L; ++i) square[0] = square[0] + square[i];
      store_partial(to + t, square[0], count);
    }
  }

  void set_columns(Range range) {
    if (range.begin == range_.begin && range.end == range_.end) return;
    range_ = range;
    listed_ = {};
    if constexpr (kStaged) {
      const Axis& w = plan_.axes[2];
      met_ = met(w, range);
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
          if (strips.insides) sum(td, v, strips, false);
          if (strips.edges) sum(td, v, strips, true);
        }
      }
    }
  }

  // The positions of the input that some of grad_output meet.
  static Range met(const Axis& axis, Range range) {
    const Phase p = axis.phase(0);
    return {std::max<int64_t>(0, p.source(range.begin, 0)),
            std::min(axis.source, p.source(range.end - 1, axis.kernel - 1) + 1)};
  }

  // Copies rows of grad_output, and what they meet of the input, of all planes of a vector of channels.
  void stage(int64_t v, Range rows) {
    const Axis &h = plan_.axes[1], &w = plan_.axes[2];
    const Range met_rows = met(h, rows);
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
      pack_columns(from, column, lanes, length, std::exchange(to, to + length * L), ahead);
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

  void sum(int64_t td, int64_t v, const Strips& strips, bool edge) {
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
    const int64_t at_once = detail::grad_taps_at_once(h.kernel);
    for (const Taps* taps = taps_; taps < taps_ + taps_count_; ++taps) {
      s.columns = taps->columns;
      s.column_count = taps->column_count;
      s.first_tap = taps->first;
      const bool middle = taps->first / at_once == w.kernel / 2 / at_once;  // most vectors meet these
      s.factor_ahead = middle ? factor_ahead_ : 0;
      s.source_ahead = middle ? source_ahead_ : 0;
      s.sums = sums_ + (v * plan_.taps() + td * h.kernel * w.kernel + s.first_tap) * L;
      if (h.kernel == 1) grad_strips<Stored, kColumns, 1>(s, strips.rows, h.row_step(), taps->count, edge);
      else if (h.kernel == 3) grad_strips<Stored, kColumns, 3>(s, strips.rows, h.row_step(), taps->count, edge);
      else if (h.kernel == 5) grad_strips<Stored, kColumns, 5>(s, strips.rows, h.row_step(), taps->count, edge);
      else grad_strips<Stored, kColumns, 7>(s, strips.rows, h.row_step(), taps->count, edge);
    }
  }

  const GradWeightPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
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
