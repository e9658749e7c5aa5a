#pragma once

// The inner loops, on packed rows. One vector is kLanes channels of one column; strides and steps are in elements.
#include "simd.h"

// Loops over a register tile must be unrolled before the compiler decides what lives in registers: else GCC keeps the
// sums on the stack.
#if defined(__clang__)
#define TORCH_EXT_UNROLL _Pragma("unroll")
#else
#define TORCH_EXT_UNROLL _Pragma("GCC unroll 16")
#endif

namespace torch_ext::cpu::TORCH_EXT_ISA {

// A source row and the weights of its taps.
template <class A>
struct SourceRow {
  const A* source;
  const A* weight;
};

//   out[j] = initial[j] + sum over rows and t in [0, taps) of weight[t] * source[j * source_stride + t * step]
template <class A>
struct RowSum {
  const SourceRow<A>* rows;
  int64_t row_count;
  int64_t rows_per_sum;  // sums start from zero again after these many rows: shorter sums are more exact
  int64_t source_offset, source_stride, step;
  int64_t weight_offset, weight_step;
  int64_t taps;
  const A* initial;
  int64_t initial_stride;
  A* out;
  int64_t out_stride;
};

// A register tile of 1 row by kColumns columns by 1 vector: one weight vector is loaded at a time, and the source is
// the memory operand of the multiply-add. kStride: columns between neighbours if known, else 0.
template <class A, int kColumns, int kStride>
inline __attribute__((always_inline)) void tile(const RowSum<A>& r, int64_t column) {
  constexpr int64_t L = kLanes<A>;
  const int64_t stride = kStride > 0 ? kStride * L : r.source_stride;
  const SourceRow<A>*row = r.rows, *const end = r.rows + r.row_count;
  const A* initial = r.initial;
  int64_t initial_stride = r.initial_stride;
  do {
    Vec<A> sum[kColumns];
    TORCH_EXT_UNROLL
    for (int j = 0; j < kColumns; ++j) sum[j] = Vec<A>::zero();
    for (const auto* stop = end - row > r.rows_per_sum ? row + r.rows_per_sum : end; row < stop; ++row) {
      const A* source = row->source + r.source_offset + column * stride;
      const A* weight = row->weight + r.weight_offset;
      for (int64_t t = r.taps; t > 0; --t) {
        const Vec<A> w = Vec<A>::load(weight);
        TORCH_EXT_UNROLL
        for (int j = 0; j < kColumns; ++j) sum[j] = fma(w, Vec<A>::load(source + j * stride), sum[j]);
        source += r.step;
        weight += r.weight_step;
      }
    }
    TORCH_EXT_UNROLL
    for (int j = 0; j < kColumns; ++j)
      (Vec<A>::load(initial + (column + j) * initial_stride) + sum[j]).store(r.out + (column + j) * r.out_stride);
    initial = r.out;
    initial_stride = r.out_stride;
  } while (row < end);
}

template <class A, int kColumns, int kStride>
__attribute__((noinline)) void last_tile(const RowSum<A>& r, int64_t column) {
  tile<A, kColumns, kStride>(r, column);
}

template <class A, int kStride>
__attribute__((noinline)) int64_t whole_tiles(const RowSum<A>& r, int64_t columns) {
  int64_t column = 0;
  for (; column + 8 <= columns; column += 8) tile<A, 8, kStride>(r, column);
  return column;
}

template <class A, int kStride>
void sum_row(const RowSum<A>& r, int64_t columns) {
  const int64_t column = columns >= 8 ? whole_tiles<A, kStride>(r, columns) : 0;
  switch (columns - column) {
    case 1:
      return last_tile<A, 1, kStride>(r, column);
    case 2:
      return last_tile<A, 2, kStride>(r, column);
    case 3:
      return last_tile<A, 3, kStride>(r, column);
    case 4:
      return last_tile<A, 4, kStride>(r, column);
    case 5:
      return last_tile<A, 5, kStride>(r, column);
    case 6:
      return last_tile<A, 6, kStride>(r, column);
    case 7:
      return last_tile<A, 7, kStride>(r, column);
  }
}

template <class A>
void sum_row(const RowSum<A>& r, int64_t columns) {
  if (r.source_stride == kLanes<A>) sum_row<A, 1>(r, columns);
  else if (r.source_stride == 2 * kLanes<A>) sum_row<A, 2>(r, columns);
  else sum_row<A, 0>(r, columns);
}

// Rows whose sums are added up before they go to a total.
inline constexpr int64_t kShortSum = 16;

// Moves a sum to a total that is kept with its rounding error, one vector each (Kahan's summation).
template <class A>
void add_short_sum(A* sum, A* total) {
  const Vec<A> old = Vec<A>::load(total), x = Vec<A>::load(sum) - Vec<A>::load(total + kLanes<A>), next = old + x;
  next.store(total);
  ((next - old) - x).store(total + kLanes<A>);
  Vec<A>::zero().store(sum);
}

// A source row and where its taps are summed: tap t at sums + t * lanes.
template <class A>
struct TapRow {
  const A* source;
  A* sums;
};

//   sums[t] += sum over j in [0, columns) of factor[j] * source[j * source_stride + t * step]    for t in [0, kTaps)
template <class A>
struct TapSum {
  const TapRow<A>* rows;
  int64_t source_offset, source_stride, step;
  const A* factor;
  int64_t columns;
  int64_t sums_offset;
};

// Adds the products of one column, and moves the sources on to the next.
template <class A, int kRows, int kTaps>
inline __attribute__((always_inline)) void add_column(const A* factor, int64_t stride, int64_t step,
                                                      const A* (&source)[kRows], Vec<A> (&sum)[kRows][kTaps]) {
  const Vec<A> x = Vec<A>::load(factor);
  TORCH_EXT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) sum[r][t] = fma(x, Vec<A>::load(source[r] + t * step), sum[r][t]);
    source[r] += stride;
  }
}

// kRows * kTaps * kChains sums stay in registers: chains are every kChains-th column, to hide the adder's latency.
template <class A, int kRows, int kTaps, int kChains>
__attribute__((noinline)) void sum_taps(const TapSum<A>& s, int64_t first_row) {
  constexpr int64_t L = kLanes<A>;
  const int64_t stride = s.source_stride, step = s.step;
  Vec<A> sum[kChains][kRows][kTaps];
  const A* source[kRows];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kChains * kRows * kTaps; ++i)
    sum[i / (kRows * kTaps)][i / kTaps % kRows][i % kTaps] = Vec<A>::zero();
  TORCH_EXT_UNROLL
  for (int r = 0; r < kRows; ++r) source[r] = s.rows[first_row + r].source + s.source_offset;
  const A* factor = s.factor;
  int64_t j = s.columns;
  for (; j >= kChains; j -= kChains) {
    TORCH_EXT_UNROLL
    for (int c = 0; c < kChains; ++c, factor += L) add_column<A, kRows, kTaps>(factor, stride, step, source, sum[c]);
  }
  for (; j > 0; --j, factor += L) add_column<A, kRows, kTaps>(factor, stride, step, source, sum[0]);
  TORCH_EXT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    A* to = s.rows[first_row + r].sums + s.sums_offset;
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      TORCH_EXT_UNROLL
      for (int c = 1; c < kChains; ++c) sum[0][r][t] = sum[0][r][t] + sum[c][r][t];
      (Vec<A>::load(to + t * L) + sum[0][r][t]).store(to + t * L);
    }
  }
}

// All rows for a chunk of kTaps taps: kRows at a time, then one by one.
template <class A, int kTaps, int kRows, int kChains>
void sum_chunk(const TapSum<A>& s, int64_t rows) {
  int64_t row = 0;
  if constexpr (kRows > 1)
    for (; row + kRows <= rows; row += kRows) sum_taps<A, kRows, kTaps, 1>(s, row);
  for (; row < rows; ++row) sum_taps<A, 1, kTaps, kChains>(s, row);
}

template <class A>
void sum_chunk(const TapSum<A>& s, int64_t rows, int64_t taps) {
  switch (taps) {
    case 1:
      return sum_chunk<A, 1, 5, 8>(s, rows);
    case 2:
      return sum_chunk<A, 2, 3, 4>(s, rows);
    case 3:
      return sum_chunk<A, 3, 3, 3>(s, rows);
    case 4:
      return sum_chunk<A, 4, 2, 2>(s, rows);
    case 5:
      return sum_chunk<A, 5, 1, 2>(s, rows);
    case 6:
      return sum_chunk<A, 6, 1, 1>(s, rows);
    case 7:
      return sum_chunk<A, 7, 1, 1>(s, rows);
    case 8:
      return sum_chunk<A, 8, 1, 1>(s, rows);
  }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
