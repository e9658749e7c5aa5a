#pragma once

// The inner loops, on packed rows. One vector is kLanes channels of one column; strides and steps are in elements.
#include "simd.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// A source row and the weights of its taps, for each of two target rows; null if that one does not need it. T is what
// source and target are stored in: the type of the sums, unless channels are read and written in place.
template <class T>
struct SourceRow {
  const T* source;
  const Acc<T>* weight[2];
  const int32_t* permutation;  // of Weights::kOfGroup
};

//   out[i][v][j] = start[v] + sum over rows and taps t of weight[i][v][t] * source[v][j * source_stride + t * step]
//
// for target rows i and `vectors` vectors of channels v; without a start, what is in out takes its place. Where columns
// are lanes, j counts vectors of columns, and a weight is one number.
template <class T>
struct RowSum {
  const SourceRow<T>* rows;
  int64_t row_count;
  int64_t source_offset, source_stride, step;
  int64_t weight_offset, weight_step;
  int64_t taps;
  const Acc<T>* start;  // a vector for each v, or null
  T* out;
  int64_t out_stride, out_row;
  int64_t vectors;
  const int64_t* source_vectors;  // where each vector lies in a source row,
  const int64_t* out_vectors;     // and in out
  int64_t weight_vector;
  // What will be needed soon: rows of the source from there, pixels for each column, and the target's next row.
  bool prefetch;
  const T* ahead;
  int64_t ahead_rows, ahead_row_stride, ahead_pixels, pixel_stride;
  int64_t out_ahead;
};

// A weight for each lane, or one for all lanes; or one for each lane that meets another lane of its group, which the
// permutation of the source brings there.
enum class Weights { kVector, kBroadcast, kOfGroup };

// The lanes of a vector that lanes of groups of `terms` channels meet, term by term. See Lanes for what an index is.
template <class A>
struct Permutations {
  int32_t of_term[kLanes<A>][8];

  explicit Permutations(int64_t terms) {
    constexpr int64_t words = sizeof(A) / 4;
    for (int64_t r = 0; r < terms && r < kLanes<A>; ++r)
      for (int64_t i = 0; i < kLanes<A> * words; ++i)
        of_term[r][i] = static_cast<int32_t>((i / words / terms * terms + r) * words + i % words);
  }
};

// Loads a vector of the source as its weights meet it.
template <class T, Weights kWeights>
struct LoadSource {
  explicit LoadSource(const int32_t*) {}
  Vec<Acc<T>> operator()(const T* p) const { return load_wide(p); }
};
template <class T>
struct LoadSource<T, Weights::kOfGroup> {
  explicit LoadSource(const int32_t* index) : permutation(index) {}
  Vec<Acc<T>> operator()(const T* p) const { return permute(load_wide(p), permutation); }

  Permutation<Acc<T>> permutation;
};

// A pointer that the compiler takes as it is: it then steps from it by strides that it knows before the loop, and does
// not sum up an offset from elsewhere for every step.
template <class A>
inline __attribute__((always_inline)) void keep_apart(A*& pointer) {
  asm("" : "+r"(pointer));
}

template <class A, Weights kWeights>
inline __attribute__((always_inline)) Vec<A> load_weight(const A* p) {
  return kWeights == Weights::kBroadcast ? Vec<A>::broadcast(*p) : Vec<A>::load(p);
}

// Adds the taps of one source row to the sums of one target row.
//   kStride  columns from source to source if known, else 0
//   kTaps    taps if known, which then are as far apart as columns are: a source vector, loaded once, meets the weights
//            of all taps. Else 0: one weight vector is loaded at a time, and the source is an operand in memory.
template <class T, int kColumns, int kTaps, Weights kWeights>
inline __attribute__((always_inline)) void add_row(const RowSum<T>& r, const T* source, int64_t stride,
                                                   const Acc<T>* weight, LoadSource<T, kWeights> load,
                                                   Vec<Acc<T>> (&sum)[kColumns]) {
  if constexpr (kTaps > 5) {  // the weights of so many do not fit in the registers
    constexpr int kFirst = (kTaps + 1) / 2;
    add_row<T, kColumns, kFirst, kWeights>(r, source, stride, weight, load, sum);
    asm volatile("" ::: "memory");  // nothing of the second half is loaded before the first is done
    add_row<T, kColumns, kTaps - kFirst, kWeights>(r, source + kFirst * stride, stride, weight + kFirst * r.weight_step,
                                                   load, sum);
  } else if constexpr (kTaps > 0) {
    Vec<Acc<T>> w[kTaps];
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) w[t] = load_weight<Acc<T>, kWeights>(weight + t * r.weight_step);
    TORCH_EXT_UNROLL
    for (int i = 0; i < kColumns + kTaps - 1; ++i) {
      const auto x = load(source + i * stride);
      TORCH_EXT_UNROLL
      for (int t = 0; t < kTaps; ++t)
        if (i >= t && i - t < kColumns) sum[i - t] = fma(w[t], x, sum[i - t]);
    }
  } else {
    for (int64_t t = r.taps; t > 0; --t, source += r.step, weight += r.weight_step) {
      const auto w = load_weight<Acc<T>, kWeights>(weight);
      TORCH_EXT_UNROLL
      for (int j = 0; j < kColumns; ++j) sum[j] = fma(w, load(source + j * stride), sum[j]);
    }
  }
}

// Adds the taps of one source row to the sums of two target rows: a source vector is loaded once for both.
template <class T, int kColumns, Weights kWeights>
inline __attribute__((always_inline)) void add_row(const RowSum<T>& r, const T* source, int64_t stride,
                                                   const Acc<T>* weight0, const Acc<T>* weight1,
                                                   Vec<Acc<T>> (&sum)[2][kColumns]) {
  for (int64_t t = r.taps; t > 0; --t, source += r.step, weight0 += r.weight_step, weight1 += r.weight_step) {
    const auto w0 = load_weight<Acc<T>, kWeights>(weight0), w1 = load_weight<Acc<T>, kWeights>(weight1);
    TORCH_EXT_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const auto x = opaque(load_wide(source + j * stride));
      sum[0][j] = fma(w0, x, sum[0][j]);
      sum[1][j] = fma(w1, x, sum[1][j]);
    }
  }
}

// A register tile of kRows target rows by kColumns columns by 1 vector.
template <class T, int kRows, int kColumns, int kTaps, int kStride, Weights kWeights>
inline __attribute__((always_inline)) void tile(const RowSum<T>& r, int64_t source_offset, int64_t weight_offset,
                                                const Acc<T>* start, T* out) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const int64_t stride = kStride > 0 ? kStride * L : r.source_stride;
  Vec<Acc<T>> sum[kRows][kColumns];
  const auto first = start ? Vec<Acc<T>>::load(start) : Vec<Acc<T>>::zero();
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < kColumns; ++j) sum[i][j] = first;
  }
  for (const SourceRow<T>*row = r.rows, *const end = r.rows + r.row_count; row < end; ++row) {
    const T* source = row->source + source_offset;
    keep_apart(source);
    const LoadSource<T, kWeights> load(row->permutation);
    if constexpr (kRows == 1) {
      add_row<T, kColumns, kTaps, kWeights>(r, source, stride, row->weight[0] + weight_offset, load, sum[0]);
    } else if (row->weight[0] && row->weight[1]) {
      add_row<T, kColumns, kWeights>(r, source, stride, row->weight[0] + weight_offset, row->weight[1] + weight_offset,
                                     sum);
    } else if (row->weight[0]) {
      add_row<T, kColumns, kTaps, kWeights>(r, source, stride, row->weight[0] + weight_offset, load, sum[0]);
    } else {
      add_row<T, kColumns, kTaps, kWeights>(r, source, stride, row->weight[1] + weight_offset, load, sum[1]);
    }
  }
  keep_apart(out);
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows; ++i, out += r.out_row) {
    if (!start) {
      TORCH_EXT_UNROLL
      for (int j = 0; j < kColumns; ++j) sum[i][j] = load_wide(out + j * r.out_stride) + sum[i][j];
    }
    TORCH_EXT_UNROLL
    for (int j = 0; j < kColumns; ++j) store_rounded(out + j * r.out_stride, sum[i][j]);
  }
}

// Channels as lanes: all vectors of some columns, then the next columns, for what a pixel's neighbours in memory need
// comes soon. Columns as lanes: all columns of a channel.
template <class T, int kRows, int kColumns, int kTaps, int kStride, Weights kWeights>
__attribute__((noinline)) int64_t tiles(const RowSum<T>& row_sum, int64_t column, int64_t columns) {
  const RowSum<T> r = row_sum;  // else the compiler must assume that every vector it stores changes the numbers here
  const int64_t stride = kStride > 0 ? kStride * kLanes<Acc<T>> : r.source_stride;
  if constexpr (kWeights == Weights::kBroadcast) {
    const int64_t first = column, end = first + (columns - first) / kColumns * kColumns;
    for (int64_t v = 0; v < r.vectors; ++v) {
      const int64_t source_offset = r.source_offset + r.source_vectors[v];
      const Acc<T>* start = r.start ? r.start + v * kLanes<Acc<T>> : nullptr;
      T* out = r.out + r.out_vectors[v];
      for (column = first; column < end; column += kColumns) {
        if (r.out_ahead != 0)
          for (int64_t i = 0; i < kRows; ++i)
            for (int64_t j = 0; j < kColumns; j += 2)
              __builtin_prefetch(out + i * r.out_row + (column + j) * r.out_stride + r.out_ahead, 1);
        tile<T, kRows, kColumns, kTaps, kStride, kWeights>(r, source_offset + column * stride,
                                                           r.weight_offset + v * r.weight_vector, start,
                                                           out + column * r.out_stride);
      }
    }
    return end;
  }
  // Vectors lie side by side; the last one may overlap the one before.
  const int64_t first_source = r.source_vectors[0], last = r.vectors - 1,
                source_step = last > 1 ? r.source_vectors[1] - first_source : kLanes<Acc<T>>,
                out_step = last > 1 ? r.out_vectors[1] - r.out_vectors[0] : kLanes<Acc<T>>;
  const int64_t source_shift = first_source + last * source_step - r.source_vectors[last],
                out_shift = r.out_vectors[0] + last * out_step - r.out_vectors[last];
  for (; column + kColumns <= columns; column += kColumns) {
    int64_t source_offset = r.source_offset + first_source + column * stride, weight_offset = r.weight_offset;
    const Acc<T>* start = r.start;
    T* out = r.out + r.out_vectors[0] + column * r.out_stride;
    for (int64_t v = r.vectors; v > 0; --v) {
      if (kStride == 0 && r.prefetch && v % kVectorsInLine<T> == 0) {
        for (int64_t row = 0; row < r.ahead_rows; ++row) {
          const T* line = r.ahead + row * r.ahead_row_stride + source_offset;
          for (int64_t i = kColumns * r.ahead_pixels; i > 0; --i, line += r.pixel_stride) __builtin_prefetch(line);
        }
        for (int j = 0; j < kColumns; ++j) __builtin_prefetch(out + r.out_ahead + j * r.out_stride, 1);
      }
      if (v == 1) source_offset -= source_shift, out -= out_shift;
      tile<T, kRows, kColumns, kTaps, kStride, kWeights>(r, source_offset, weight_offset, start, out);
      source_offset += source_step;
      weight_offset += r.weight_vector;
      out += out_step;
      if (start) start += kLanes<Acc<T>>;
    }
  }
  return column;
}

// Whole tiles of kWidest columns, then one of those that are left.
template <class T, int kRows, int kWidest, int kTaps, int kStride, Weights kWeights>
void sum_row(const RowSum<T>& r, int64_t columns) {
  int64_t column = 0;
  if (columns >= kWidest) column = tiles<T, kRows, kWidest, kTaps, kStride, kWeights>(r, 0, columns);
  const auto rest = [&]<int kColumns>(std::integral_constant<int, kColumns>) {
    if constexpr (kColumns < kWidest)
      if (columns - column == kColumns) tiles<T, kRows, kColumns, kTaps, kStride, kWeights>(r, column, columns);
  };
  rest(std::integral_constant<int, 1>());
  rest(std::integral_constant<int, 2>());
  rest(std::integral_constant<int, 3>());
  rest(std::integral_constant<int, 4>());
  rest(std::integral_constant<int, 5>());
  rest(std::integral_constant<int, 6>());
  rest(std::integral_constant<int, 7>());
}

template <class T, int kTaps, int kStride, Weights kWeights = Weights::kVector>
void sum_row_of_channels(const RowSum<T>& r, int64_t columns) {
  // What comes from memory comes better in small pieces.
  if (kStride == 0 && r.prefetch) sum_row<T, 1, 4, kTaps, kStride, kWeights>(r, columns);
  else sum_row<T, 1, 8, kTaps, kStride, kWeights>(r, columns);
}

template <class T, int kStride>
void sum_row_of_channels(const RowSum<T>& r, int64_t columns) {
  const bool dense = r.step == r.source_stride;
  if (r.row_count > 0 && r.rows->permutation) {
    if (dense && r.taps == 3) sum_row_of_channels<T, 3, kStride, Weights::kOfGroup>(r, columns);
    else if (dense && r.taps == 5) sum_row_of_channels<T, 5, kStride, Weights::kOfGroup>(r, columns);
    else sum_row_of_channels<T, 0, kStride, Weights::kOfGroup>(r, columns);
    return;
  }
  if (dense && r.taps == 2) sum_row_of_channels<T, 2, kStride>(r, columns);
  else if (dense && r.taps == 3) sum_row_of_channels<T, 3, kStride>(r, columns);
  else if (dense && r.taps == 5) sum_row_of_channels<T, 5, kStride>(r, columns);
  else if (dense && r.taps == 7) sum_row_of_channels<T, 7, kStride>(r, columns);
  else sum_row_of_channels<T, 0, kStride>(r, columns);
}

// target_rows: 1, or 2 where columns are lanes.
template <Order kOrder, class T>
void sum_row(const RowSum<T>& r, int64_t target_rows, int64_t columns) {
  if constexpr (lanes_are_columns(kOrder)) {
    const bool dense = r.step == kLanes<Acc<T>>;
    if (target_rows == 2) sum_row<T, 2, 4, 0, 1, Weights::kBroadcast>(r, columns);
    else if (dense && r.taps == 2) sum_row<T, 1, 8, 2, 1, Weights::kBroadcast>(r, columns);
    else if (dense && r.taps == 3) sum_row<T, 1, 8, 3, 1, Weights::kBroadcast>(r, columns);
    else if (dense && r.taps == 4) sum_row<T, 1, 8, 4, 1, Weights::kBroadcast>(r, columns);
    else sum_row<T, 1, 8, 0, 1, Weights::kBroadcast>(r, columns);
  } else if (kOrder == Order::kPackedChannels && r.source_stride == kLanes<Acc<T>>) {
    sum_row_of_channels<T, 1>(r, columns);
  } else {
    sum_row_of_channels<T, 0>(r, columns);
  }
}

// Moves a sum to a total that is kept with its rounding error, one vector each (Kahan's summation).
template <class A>
void add_short_sum(A* sum, A* total) {
  const Vec<A> old = Vec<A>::load(total), x = Vec<A>::load(sum) - Vec<A>::load(total + kLanes<A>), next = old + x;
  next.store(total);
  ((next - old) - x).store(total + kLanes<A>);
  Vec<A>::zero().store(sum);
}

// The same for `count` vectors side by side, whose totals start from zero with the first call.
template <class A>
void add_short_sums(A* sums, int64_t count, A* totals, bool* has_totals) {
  constexpr int64_t L = kLanes<A>;
  if (!*has_totals)
    for (int64_t i = 0; i < 2 * count; ++i) opaque(Vec<A>::zero()).store(totals + i * L);
  *has_totals = true;
  for (int64_t i = 0; i < count; ++i) add_short_sum(sums + i * L, totals + 2 * i * L);
}

// The sum of a vector's lanes.
template <class A>
A sum_lanes(const A* vector) {
  A sum = 0;
  for (int64_t i = 0; i < kLanes<A>; ++i) sum += vector[i];
  return sum;
}

// The same for `count` vectors, `step` numbers apart.
template <class A>
void sum_lanes(const A* vectors, int64_t step, int64_t count, A* to) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t t = 0; t < count; t += L) {
    Vec<A> square[L];
    for (int64_t i = 0; i < L; ++i) square[i] = t + i < count ? Vec<A>::load(vectors + (t + i) * step) : Vec<A>::zero();
    transpose(square);
    for (int64_t i = 1; i < L; ++i) square[0] = square[0] + square[i];
    store_partial(to + t, square[0], std::min(L, count - t));
  }
}

// sum += all of `count` vectors, in chains that hide the adder's latency.
template <class A>
__attribute__((noinline)) void add_vectors(const A* vectors, int64_t count, A* sum) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> chain[4];
  TORCH_EXT_UNROLL
  for (int c = 0; c < 4; ++c) chain[c] = Vec<A>::zero();
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    TORCH_EXT_UNROLL
    for (int c = 0; c < 4; ++c) chain[c] = chain[c] + Vec<A>::load(vectors + (j + c) * L);
  }
  for (; j < count; ++j) chain[0] = chain[0] + Vec<A>::load(vectors + j * L);
  (Vec<A>::load(sum) + ((chain[0] + chain[1]) + (chain[2] + chain[3]))).store(sum);
}

// What meets for some neighbouring rows of the kernel: either one source row, and a row of factors for each of them, or
// one row of factors, and a source row for each.
inline constexpr int kRowsAtOnce = 3;
template <class A>
struct TapRun {
  const A* factor[kRowsAtOnce];
  const A* source[kRowsAtOnce];
};

//   sums[r][t] += sum over runs and j in [0, columns) of factor[r][j] * source[r][j * source_stride + t * step]
//
// for t in [0, kTaps) and kRows rows r of the kernel. Where columns are lanes, j counts vectors of columns, and the
// last one may be a part: `rest` columns.
template <class A>
struct TapSum {
  const TapRun<A>* runs;
  int64_t run_count;
  int64_t factor_offset, factor_stride;
  int64_t source_offset, source_stride, step;
  int64_t columns, rest;
  A* sums;
  int64_t row_sums;  // from the sums of one row of the kernel to the next
};

// Adds the products of one column. load(pointer) is a vector of it.
template <class A, int kRows, int kTaps, Shared kShared, class Load>
inline __attribute__((always_inline)) void add_column(const A* const (&factor)[kRows], const A* const (&source)[kRows],
                                                      int64_t step, Vec<A> (&sum)[kRows][kTaps], const Load& load) {
  if constexpr (kShared == Shared::kSource) {
    Vec<A> x[kRows];
    TORCH_EXT_UNROLL
    for (int r = 0; r < kRows; ++r) x[r] = load(factor[r]);
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      const Vec<A> y = kRows > 1 ? opaque(load(source[0] + t * step)) : load(source[0] + t * step);
      TORCH_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) sum[r][t] = fma(x[r], y, sum[r][t]);
    }
  } else {
    const Vec<A> x = load(factor[0]);
    TORCH_EXT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      TORCH_EXT_UNROLL
      for (int t = 0; t < kTaps; ++t) sum[r][t] = fma(x, load(source[r] + t * step), sum[r][t]);
    }
  }
}

// kRows * kTaps * kChains sums stay in registers: chains are every kChains-th column, to hide the adder's latency.
template <class A, int kRows, int kTaps, int kChains, Shared kShared>
__attribute__((noinline)) void sum_taps(const TapSum<A>& tap_sum) {
  constexpr int64_t L = kLanes<A>;
  constexpr int kSources = kShared == Shared::kSource ? 1 : kRows, kFactors = kShared == Shared::kSource ? kRows : 1;
  const TapSum<A> s = tap_sum;  // as in tiles()
  Vec<A> sum[kChains][kRows][kTaps];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kChains * kRows * kTaps; ++i)
    sum[i / (kRows * kTaps)][i / kTaps % kRows][i % kTaps] = Vec<A>::zero();
  for (const TapRun<A>*run = s.runs, *const end = run + s.run_count; run < end; ++run) {
    const A *source[kRows], *factor[kRows];
    TORCH_EXT_UNROLL
    for (int r = 0; r < kSources; ++r) source[r] = run->source[r] + s.source_offset;
    TORCH_EXT_UNROLL
    for (int r = 0; r < kFactors; ++r) factor[r] = run->factor[r] + s.factor_offset;
    const auto add = [&](Vec<A>(&to)[kRows][kTaps]) __attribute__((always_inline)) {
      add_column<A, kRows, kTaps, kShared>(factor, source, s.step, to, [](const A* p) { return Vec<A>::load(p); });
      TORCH_EXT_UNROLL
      for (int r = 0; r < kSources; ++r) source[r] += s.source_stride;
      TORCH_EXT_UNROLL
      for (int r = 0; r < kFactors; ++r) factor[r] += s.factor_stride;
    };
    int64_t j = s.columns;
    for (; j >= kChains; j -= kChains) {
      TORCH_EXT_UNROLL
      for (int c = 0; c < kChains; ++c) add(sum[c]);
    }
    for (; j > 0; --j) add(sum[0]);
    if (s.rest > 0)  // what lies beyond may be infinite: it is not even multiplied by zero
      add_column<A, kRows, kTaps, kShared>(factor, source, s.step, sum[0],
                                           [&](const A* p) { return load_partial(p, s.rest); });
  }
  TORCH_EXT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    A* to = s.sums + r * s.row_sums;
    TORCH_EXT_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      TORCH_EXT_UNROLL
      for (int c = 1; c < kChains; ++c) sum[0][r][t] = sum[0][r][t] + sum[c][r][t];
      (Vec<A>::load(to + t * L) + sum[0][r][t]).store(to + t * L);
    }
  }
}

// Taps whose sums fit in the registers with those of so many rows.
inline constexpr int kMaxTaps[kRowsAtOnce + 1] = {0, 8, 6, 4};

template <class A, int kRows, Shared kShared, int kTaps = 1>
void sum_taps(const TapSum<A>& s, int64_t taps) {
  constexpr int kSums = kRows * kTaps, kChains = kSums >= 6 ? 1 : kSums >= 4 ? 2 : kSums == 3 ? 3 : kSums == 2 ? 4 : 8;
  if (taps == kTaps) sum_taps<A, kRows, kTaps, kChains, kShared>(s);
  else if constexpr (kTaps < kMaxTaps[kRows]) sum_taps<A, kRows, kShared, kTaps + 1>(s, taps);
}

template <class A>
void sum_taps(const TapSum<A>& s, int64_t rows, Shared shared, int64_t taps) {
  if (rows == 1) sum_taps<A, 1, Shared::kSource>(s, taps);
  else if (rows == 2 && shared == Shared::kSource) sum_taps<A, 2, Shared::kSource>(s, taps);
  else if (rows == 2) sum_taps<A, 2, Shared::kFactor>(s, taps);
  else if (shared == Shared::kSource) sum_taps<A, 3, Shared::kSource>(s, taps);
  else sum_taps<A, 3, Shared::kFactor>(s, taps);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
