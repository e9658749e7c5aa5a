#pragma once

// The inner loops of grad_strips.h.
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
  const int32_t* permutation;          // of Weights::kOfGroup
};

template <class T, int kRows, int kStride, int kKernelRows, int kTaps, bool kMasked, bool kEdge, Weights kWeights>
inline __attribute__((always_inline)) void add_source_rows(const GradStripSum<T>& s, const T* source,
                                                           const GradRows& rows, const Mask<Acc<T>>* masks,
                                                           LoadSource<T, kWeights> load,
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
      else x = opaque(load(source + t * s.step));
      TORCH_EXT_UNROLL
      for (int u = 0; u < kKernelRows; ++u)
        if (i >= u && (i - u) % kStride == 0 && (i - u) / kStride < kRows)
          sum[u][t] = fma(factor[(i - u) / kStride], x, sum[u][t]);
    }
  }
}

// Those tiles that lie at an edge, or all others.
template <class T, bool kColumns, int kRows, int kStride, int kKernelRows, int kTaps, bool kEdge, Weights kWeights>
__attribute__((noinline)) void grad_strips(const GradStripSum<T>& strip_sum) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const GradStripSum<T> s = strip_sum;  // as in tiles()
  const int64_t factor_column = kColumns ? 1 : s.factor_column, source_column = kColumns ? 1 : s.source_column;
  const int64_t factor_vector = kColumns ? L : factor_column, source_vector = kColumns ? L : source_column;
  const LoadSource<T, kWeights> load(s.permutation);
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
              add_source_rows<T, kRows, kStride, kKernelRows, kTaps, true, kEdge, kWeights>(
                  s, source, *rows, columns->source_masks + s.first_tap * L, load, factor, sum);
              continue;
            }
          TORCH_EXT_UNROLL
          for (int r = 0; r < kRows; ++r) factor[r] = load_wide(from + r * s.factor_row);
          add_source_rows<T, kRows, kStride, kKernelRows, kTaps, false, kEdge, kWeights>(s, source, *rows, nullptr,
                                                                                         load, factor, sum);
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
  if constexpr (!kColumns && kKernelRows == 3)
    if (s.permutation)
      return edge ? grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, true, Weights::kOfGroup>(s)
                  : grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, false, Weights::kOfGroup>(s);
  edge ? grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, true, Weights::kVector>(s)
       : grad_strips<T, kColumns, kRows, kStride, kKernelRows, kTaps, false, Weights::kVector>(s);
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

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
