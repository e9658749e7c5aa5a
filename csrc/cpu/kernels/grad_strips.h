#pragma once

// The weight gradient of gradients.h where columns are lanes and lie side by side in memory: nothing is packed. A strip
// of a few rows of grad_output by one vector of columns stays in registers, and so do the sums of all rows of the
// kernel by some of its columns: each source vector is loaded once for all rows of the kernel that meet it. Channels
// are taken one after the other, images inside: both tensors are read nearly in the order of memory.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// `count` vectors of columns one behind the other.
template <class A>
struct GradColumns {
  int64_t at, count;            // the first column
  bool edge;                    // whether they need masks
  const Mask<A>* factor_mask;   // of grad_output,
  const Mask<A>* source_masks;  // and of the source, for each column of the kernel
};

struct GradRows {
  int64_t factor, source;  // where the strip's first row lies in a plane of grad_output and, at its first tap, input
  int64_t first_row, last_row;  // source rows, counted from there, that the image has
  bool edge;                    // whether not all are
};

template <class A>
struct GradPlane {
  const A *factor, *source;
};

// sums[u][t] += sum over planes, strips, rows r and columns j of factor[r][j] * source[r + u][j + t * step]
template <class A>
struct GradStripSum {
  const GradPlane<A>* planes;
  int64_t plane_count;
  const GradRows* strips;
  int64_t strip_count;
  const GradColumns<A>* columns;
  int64_t column_count;
  int64_t factor_row, source_row;  // from row to row
  int64_t first_tap, step;
  A* sums;
  int64_t row_sums;                    // from the sums of one row of the kernel to the next
  int64_t factor_ahead, source_ahead;  // what is prefetched meanwhile, or 0
};

template <class A, int kRows, int kKernelRows, int kTaps, bool kMasked, bool kEdge>
inline __attribute__((always_inline)) void add_source_rows(const GradStripSum<A>& s, const A* source,
                                                           const GradRows& rows, const Mask<A>* masks,
                                                           const Vec<A> (&factor)[kRows],
                                                           Vec<A> (&sum)[kKernelRows][kTaps]) {
  constexpr int64_t L = kLanes<A>;
  keep_apart(masks);
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows + kKernelRows - 1; ++i, source += s.source_row) {
    keep_apart(source);
    if (kEdge && (i < rows.first_row || i >= rows.last_row)) continue;
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      Vec<A> x;
      if constexpr (kMasked) x = load_masked(source + t * s.step, masks + t * L);
      else x = opaque(Vec<A>::load(source + t * s.step));
      TORCH_EXT_UNROLL
      for (int u = 0; u < kKernelRows; ++u)
        if (i >= u && i - u < kRows) sum[u][t] = fma(factor[i - u], x, sum[u][t]);
    }
  }
}

// Those tiles that lie at an edge, or all others.
template <class A, int kRows, int kKernelRows, int kTaps, bool kEdge>
__attribute__((noinline)) void grad_strips(const GradStripSum<A>& strip_sum) {
  constexpr int64_t L = kLanes<A>;
  const GradStripSum<A> s = strip_sum;  // as in tiles()
  Vec<A> sum[kKernelRows][kTaps];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kKernelRows * kTaps; ++i) sum[i / kTaps][i % kTaps] = Vec<A>::zero();
  for (const GradPlane<A>* plane = s.planes; plane < s.planes + s.plane_count; ++plane)
    for (const GradRows* rows = s.strips; rows < s.strips + s.strip_count; ++rows) {
      if (!kEdge && rows->edge) continue;
      for (const GradColumns<A>* columns = s.columns; columns < s.columns + s.column_count; ++columns) {
        if ((rows->edge || columns->edge) != kEdge) continue;
        const A* from = plane->factor + rows->factor + columns->at;
        const A* source = plane->source + rows->source + columns->at + s.first_tap * s.step;
        for (int64_t k = 0; k < columns->count; ++k, from += L, source += L) {
          keep_apart(from);
          if (s.factor_ahead != 0)
            for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(from + r * s.factor_row + s.factor_ahead);
          if (s.source_ahead != 0)
            for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(source + r * s.source_row + s.source_ahead);
          Vec<A> factor[kRows];
          if (kEdge && columns->edge) {
            TORCH_EXT_UNROLL
            for (int r = 0; r < kRows; ++r) factor[r] = load_masked(from + r * s.factor_row, columns->factor_mask);
            add_source_rows<A, kRows, kKernelRows, kTaps, true, kEdge>(
                s, source, *rows, columns->source_masks + s.first_tap * L, factor, sum);
          } else {
            TORCH_EXT_UNROLL
            for (int r = 0; r < kRows; ++r) factor[r] = Vec<A>::load(from + r * s.factor_row);
            add_source_rows<A, kRows, kKernelRows, kTaps, false, kEdge>(s, source, *rows, nullptr, factor, sum);
          }
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

// Columns of the kernel whose sums fit in the registers.
inline constexpr int grad_taps_at_once(int kernel_rows) {
  return kernel_rows == 1 ? 8 : kernel_rows == 3 ? 3 : kernel_rows == 5 ? 2 : 1;
}

template <class A, int kRows, int kKernelRows, int kTaps = grad_taps_at_once(kKernelRows)>
void grad_strips(const GradStripSum<A>& s, int64_t taps, bool edge) {
  if constexpr (kTaps > 1)
    if (taps < kTaps) return grad_strips<A, kRows, kKernelRows, kTaps - 1>(s, taps, edge);
  edge ? grad_strips<A, kRows, kKernelRows, kTaps, true>(s) : grad_strips<A, kRows, kKernelRows, kTaps, false>(s);
}

template <class A, int kKernelRows>
void grad_strips(const GradStripSum<A>& s, int64_t rows, int64_t taps, bool edge) {
  if constexpr (kKernelRows > 1) {
    if (rows == 4) return grad_strips<A, 4, kKernelRows>(s, taps, edge);
    if (rows == 3) return grad_strips<A, 3, kKernelRows>(s, taps, edge);
  }
  grad_strips<A, 1, kKernelRows>(s, taps, edge);
}

template <class A>
class GradStrips {
  static constexpr int64_t L = kLanes<A>;

 public:
  GradStrips(const GradWeightPlan& plan, View<const A> grad_output, View<const A> input, A* partial_sums, A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        sums_(scratch),
        totals_(scratch + plan.taps() * L),
        prefetch_(what_to_prefetch(plan, input, grad_output) == Prefetch::kBlock) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.channels.blocks(), slice = index / plan_.channels.blocks();
    box_ = plan_.slice_box(slice);
    for (int64_t v = 0; v < plan_.channels.vectors(block); ++v) {
      const int64_t c = block * plan_.channels.width + v;
      fill_zero(sums_, plan_.taps() * L);
      summed_ = 0;
      has_totals_ = false;
      channel(c);
      if (has_totals_) add_to_totals();
      store_sums(partial_sums_ + slice * plan_.slice_size() + c * plan_.taps());
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
  static constexpr int64_t kMaxPlanes = 64, kMaxStrips = 128;
  static constexpr int64_t kMaxStripColumns = kShortSum / 4;  // 4 rows of them are a short sum

  void add_to_totals() {
    if (!has_totals_) fill_zero(totals_, 2 * plan_.taps() * L);
    has_totals_ = true;
    for (int64_t t = 0; t < plan_.taps(); ++t) add_short_sum(sums_ + t * L, totals_ + 2 * t * L);
    summed_ = 0;
  }

  void store_sums(A* to) const {
    const A* const from = has_totals_ ? totals_ : sums_;
    const int64_t step = has_totals_ ? 2 * L : L;
    for (int64_t t = 0; t < plan_.taps(); t += L) {
      const int64_t count = std::min(L, plan_.taps() - t);
      Vec<A> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = i < count ? Vec<A>::load(from + (t + i) * step) : Vec<A>::zero();
      transpose(square);
      for (int64_t i = 1; i < L; ++i) square[0] = square[0] + square[i];
      store_partial(to + t, square[0], count);
    }
  }

  // Vectors of columns; those that lie inside the image, in one run.
  void set_columns(Range range) {
    if (range.begin == range_.begin && range.end == range_.end) return;
    range_ = range;
    listed_ = {};
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    int64_t edges = 0;
    column_count_ = 0;
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

  void channel(int64_t c) {
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const A* const factor = grad_output_.data + plan_.output_map(c) * grad_output_.c;
    const A* const source = input_.data + plan_.input_map(c) * input_.c;
    factor_ahead_ = source_ahead_ = 0;
    if (prefetch_) {
      factor_ahead_ = (plan_.output_map(c + 1) - plan_.output_map(c)) * grad_output_.c;
      source_ahead_ = (plan_.input_map(c + 1) - plan_.input_map(c)) * input_.c;
    }
    const int64_t columns = box_.w.end - box_.w.begin, tiles = ceil_div(columns, kMaxStripColumns);
    for (int64_t i = 0; i < tiles * d.kernel; ++i) {
      const int64_t td = i % d.kernel;
      const Range tile = part(columns, tiles, i / d.kernel);
      set_columns({box_.w.begin + tile.begin, box_.w.begin + tile.end});
      plane_count_ = 0;
      const auto flush = [&] {
        if (plane_count_ == 0) return;
        for (int64_t first = box_.h.begin; first < std::min(box_.h.end, box_.h.begin + h.classes); ++first)
          rows(td, first, (box_.h.end - 1 - first) / h.classes + 1);
        plane_count_ = 0;
      };
      // Planes whose sums are short.
      const int64_t most = std::clamp<int64_t>(kShortSum / (size(box_.h) * size(range_)), 1, kMaxPlanes);
      for (int64_t n = box_.n.begin; n < box_.n.end; ++n)
        for (int64_t id = box_.d.begin; id < box_.d.end; ++id) {
          const int64_t depth = d.phase(0).source(id, td);
          if (depth < 0 || depth >= d.source) continue;
          planes_[plane_count_++] = {factor + n * grad_output_.n + id * grad_output_.spatial[0],
                                     source + n * input_.n + depth * input_.spatial[0]};
          if (plane_count_ == most) flush();
        }
      flush();
      factor_ahead_ = source_ahead_ = 0;
    }
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
      for (const Strips& strips : groups_) {
        if (strips.insides) sum(td, strips, false);
        if (strips.edges) sum(td, strips, true);
      }
    }
  }

  // Strips of 4 and 3 rows from row `begin` on, so many that their sums are short; of single rows, where these do not
  // divide, or rows have nothing in common.
  void list_strips(int64_t first, int64_t begin, int64_t count) {
    const Axis& h = plan_.axes[1];
    const Phase p = h.phase(0);
    const int64_t rows = std::min(count - begin, std::clamp<int64_t>(kShortSum / size(range_), 4, kMaxStrips) / 4 * 4);
    int64_t of_three = std::min(rows % 4 == 0 ? 0 : 4 - rows % 4, rows / 3);
    int64_t of_four = (rows - 3 * of_three) / 4;
    if (h.kernel == 1) of_three = of_four = 0;
    const int64_t counts[] = {of_four, of_three, rows - 4 * of_four - 3 * of_three}, sizes[] = {4, 3, 1};
    const bool edge_columns = columns_[0].edge || columns_[column_count_ - 1].edge;
    const bool inside_columns = column_count_ > 2 || !columns_[0].edge || !columns_[column_count_ - 1].edge;
    int64_t row = begin, listed = 0;
    for (int i = 0; i < 3; ++i) {
      groups_[i] = {sizes[i], strips_ + listed, counts[i], counts[i] > 0 && edge_columns, false};
      for (int64_t k = 0; k < counts[i]; ++k, ++listed, row += sizes[i]) {
        const int64_t at = first + row * h.classes, source = p.source(at, 0);
        GradRows& strip = strips_[listed];
        strip.factor = at * grad_output_.spatial[1];
        strip.source = source * input_.spatial[1] - plan_.axes[2].pad * input_.spatial[2];
        const Range inside = positions_inside(source, h.dilation, h.source);
        strip.first_row = inside.begin;
        strip.last_row = inside.end;
        strip.edge = strip.first_row > 0 || strip.last_row < sizes[i] + h.kernel - 1;
        groups_[i].edges |= strip.edge;
        groups_[i].insides |= !strip.edge && inside_columns;
      }
    }
    end_ = row;
  }

  void sum(int64_t td, const Strips& strips, bool edge) {
    const Axis &h = plan_.axes[1], &w = plan_.axes[2];
    GradStripSum<A> s{};
    s.planes = planes_;
    s.plane_count = plane_count_;
    s.strips = strips.first;
    s.strip_count = strips.count;
    s.columns = columns_;
    s.column_count = column_count_;
    s.factor_row = h.classes * grad_output_.spatial[1];
    s.source_row = h.kernel > 1 ? h.dilation * input_.spatial[1] : 0;
    s.step = w.dilation * input_.spatial[2];
    s.row_sums = w.kernel * L;
    s.factor_ahead = factor_ahead_;
    s.source_ahead = source_ahead_;
    for (s.first_tap = 0; s.first_tap < w.kernel; s.first_tap += grad_taps_at_once(h.kernel)) {
      const int64_t taps = w.kernel - s.first_tap;
      s.sums = sums_ + (td * h.kernel * w.kernel + s.first_tap) * L;
      if (h.kernel == 1) grad_strips<A, 1>(s, strips.rows, taps, edge);
      else if (h.kernel == 3) grad_strips<A, 3>(s, strips.rows, taps, edge);
      else if (h.kernel == 5) grad_strips<A, 5>(s, strips.rows, taps, edge);
      else grad_strips<A, 7>(s, strips.rows, taps, edge);
      s.factor_ahead = s.source_ahead = 0;
    }
  }

  const GradWeightPlan& plan_;
  const View<const A> grad_output_, input_;
  A* const partial_sums_;
  A* const sums_;    // of about kShortSum positions
  A* const totals_;  // of sums, with the rounding error so far
  const bool prefetch_;

  Box box_;
  int64_t summed_;   // positions since the sums were last added to the totals
  bool has_totals_;  // else they never were
  int64_t factor_ahead_, source_ahead_;
  GradPlane<A> planes_[kMaxPlanes];
  int64_t plane_count_;
  Range listed_{};  // the rows from which the current strips are listed,
  int64_t end_;     // and the row behind them, counted in its class
  GradRows strips_[kMaxStrips];
  Strips groups_[3];
  GradColumns<A> columns_[2 * kMaxEdges<A> + 1];
  int64_t column_count_;
  Range range_{};  // of columns
  Mask<A> masks_[kMaxEdges<A>][(1 + kMaxColumnTaps) * L];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
