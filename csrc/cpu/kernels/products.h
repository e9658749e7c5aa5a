#pragma once

// The inner loop of convolutions with several channels in a group: a register tile of target channels by columns.
#include "simd.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Some taps of one source line: where the first of them meets it, and where its weight lies.
template <class A>
struct TapLine {
  const A *source, *weight;
  int64_t taps;
};

//   out[m][j] = start + sum over lines and taps t of
//               line.weight[m * weight_output + t * weight_step] * line.source[j + t * step]
//
// for kOutputs target channels m and kVectors vectors of columns j, where start is start_outputs[m], start_columns[j]
// or, without either, what is in out. Offsets are added to the pointers of all lines, and again for each of `count`
// register tiles.
template <class A>
struct Products {
  const TapLine<A>* lines;
  int64_t line_count;
  int64_t source_offset, step;
  int64_t weight_offset, weight_step, weight_output;
  const A *start_outputs, *start_columns;  // or null
  A* out;
  int64_t out_pitch;
};

// Whichever is fewer stays in registers beside the sums: the weights of the outputs, or the vectors of the source.
template <class A, int kOutputs, int kVectors>
inline __attribute__((always_inline)) void add_tap(const A* source, const A* weight, int64_t weight_output,
                                                   Vec<A> (&sum)[kOutputs][kVectors]) {
  constexpr int64_t L = kLanes<A>;
  if constexpr (kVectors <= kOutputs) {
    Vec<A> x[kVectors];
    TORCH_EXT_UNROLL
    for (int v = 0; v < kVectors; ++v) x[v] = opaque(Vec<A>::load(source + v * L));
    TORCH_EXT_UNROLL
    for (int m = 0; m < kOutputs; ++m) {
      const auto w = Vec<A>::broadcast(weight[m * weight_output]);
      TORCH_EXT_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[m][v] = fma(w, x[v], sum[m][v]);
    }
  } else {
    Vec<A> w[kOutputs];
    TORCH_EXT_UNROLL
    for (int m = 0; m < kOutputs; ++m) w[m] = opaque(Vec<A>::broadcast(weight[m * weight_output]));
    TORCH_EXT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto x = kOutputs > 1 ? opaque(Vec<A>::load(source + v * L)) : Vec<A>::load(source + v * L);
      TORCH_EXT_UNROLL
      for (int m = 0; m < kOutputs; ++m) sum[m][v] = fma(w[m], x, sum[m][v]);
    }
  }
}

// From one register tile to the next.
struct TileStep {
  int64_t source, weight, out;
};

// kStep: weight_output, if it is known: then addresses take no registers.
template <class A, int kOutputs, int kVectors, int kStep = 0>
__attribute__((noinline)) void add_products(const Products<A>& products, int64_t count, TileStep step) {
  constexpr int64_t L = kLanes<A>;
  Products<A> p = products;  // else the compiler must assume that every vector it stores changes the numbers here
  for (; count > 0; --count) {
    Vec<A> sum[kOutputs][kVectors];
    TORCH_EXT_UNROLL
    for (int m = 0; m < kOutputs; ++m) {
      const auto first = p.start_outputs ? Vec<A>::broadcast(p.start_outputs[m]) : Vec<A>::zero();
      TORCH_EXT_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[m][v] = first;
    }
    if (p.start_columns) {
      TORCH_EXT_UNROLL
      for (int i = 0; i < kOutputs * kVectors; ++i)
        sum[i / kVectors][i % kVectors] = Vec<A>::load(p.start_columns + i % kVectors * L);
    }
    for (const TapLine<A>*line = p.lines, *const end = line + p.line_count; line < end; ++line) {
      const A* source = line->source + p.source_offset;
      const A* weight = line->weight + p.weight_offset;
      for (int64_t t = line->taps; t > 0; --t, source += p.step, weight += p.weight_step)
        add_tap<A, kOutputs, kVectors>(source, weight, kStep > 0 ? kStep : p.weight_output, sum);
    }
    A* out = p.out;
    TORCH_EXT_UNROLL
    for (int m = 0; m < kOutputs; ++m, out += p.out_pitch) {
      if (!p.start_outputs && !p.start_columns) {
        TORCH_EXT_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[m][v] = Vec<A>::load(out + v * L) + sum[m][v];
      }
      TORCH_EXT_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[m][v].store(out + v * L);
    }
    p.source_offset += step.source;
    p.weight_offset += step.weight;
    p.out += step.out;
  }
}

// `row_vectors` vectors of columns, in register tiles of nearly the same size.
template <class A>
void add_products(const Products<A>& p, int64_t outputs, int64_t row_vectors) {
  with_count<static_cast<int>(kMaxOutputs)>(outputs, [&]<int kOutputs>() {
    constexpr int kMost = std::min<int>(static_cast<int>(kMaxSums) / kOutputs, 8);
    const int64_t tiles = ceil_div(row_vectors, kMost), vectors = ceil_div(row_vectors, tiles);
    const int64_t whole = row_vectors - tiles * (vectors - 1);  // tiles of so many; the others have one fewer
    with_count<kMost>(vectors, [&]<int kVectors>() {
      constexpr int64_t kColumns = kVectors * kLanes<A>, kFewer = kColumns - kLanes<A>;
      add_products<A, kOutputs, kVectors>(p, whole, {kColumns, 0, kColumns});
      if constexpr (kVectors > 1) {
        Products<A> rest = p;
        rest.source_offset += whole * kColumns;
        rest.out += whole * kColumns;
        if (whole < tiles) add_products<A, kOutputs, kVectors - 1>(rest, tiles - whole, {kFewer, 0, kFewer});
      }
    });
  });
}

template <class A, int kMost, int kVectors, int kStep = 0>
void add_product_rows(const Products<A>& p, int64_t rows) {
  const int64_t tiles = ceil_div(rows, kMost), in_tile = ceil_div(rows, tiles);
  const int64_t whole = rows - tiles * (in_tile - 1);  // tiles of so many; the others have one fewer
  with_count<kMost>(in_tile, [&]<int kRows>() {
    add_products<A, kRows, kVectors, kStep>(p, whole, {0, kRows * p.weight_output, kRows * p.out_pitch});
    if constexpr (kRows > 1) {
      if (whole == tiles) return;
      Products<A> rest = p;
      rest.weight_offset += whole * kRows * p.weight_output;
      rest.out += whole * kRows * p.out_pitch;
      const TileStep step{0, (kRows - 1) * p.weight_output, (kRows - 1) * p.out_pitch};
      add_products<A, kRows - 1, kVectors, kStep>(rest, tiles - whole, step);
    }
  });
}

// `rows` rows of `vectors` vectors that all have the same source, in register tiles of nearly the same size.
template <class A>
void add_product_rows(const Products<A>& p, int64_t rows, int64_t vectors) {
  constexpr int kSums = static_cast<int>(kMaxSums), kRows = static_cast<int>(kMaxOutputs);
  constexpr int kRowSums = static_cast<int>(kMaxRowSums);
  constexpr int64_t L = kLanes<A>;
  if (vectors == 4) add_product_rows<A, kSums / 4, 4>(p, rows);
  else if (vectors == 3) add_product_rows<A, kSums / 3, 3>(p, rows);
  else if (vectors == 2) add_product_rows<A, kSums / 2, 2>(p, rows);
  else if (p.weight_output == 1) add_product_rows<A, kRowSums, 1, 1>(p, rows);
  // A group is half a vector to two, and every position is met, or every second.
  else if (p.weight_output == L / 2) add_product_rows<A, kRowSums, 1, L / 2>(p, rows);
  else if (p.weight_output == L) add_product_rows<A, kRowSums, 1, L>(p, rows);
  else if (p.weight_output == 2 * L) add_product_rows<A, kRowSums, 1, 2 * L>(p, rows);
  else if (p.weight_output == 4 * L) add_product_rows<A, kRowSums, 1, 4 * L>(p, rows);
  else add_product_rows<A, kRows, 1>(p, rows);
}

// A row of grad_output and one of the input that meet.
template <class A>
struct MetRows {
  const A *factor, *source;
};

//   sums[m * factor_sums + t * source_sums] += sum over rows and columns j of
//                                              factor[m * factor_pitch + j] * source[t * source_step + j]
//
// a vector of columns at a time; the last one may be a part, `rest` columns.
template <class A>
struct DotProducts {
  const MetRows<A>* rows;
  int64_t row_count;
  int64_t vectors, rest;
  int64_t factor_pitch, source_step;
  int64_t factor_sums, source_sums;
};

template <class A, int kFactors, int kSources>
__attribute__((noinline)) void add_dot_products(const DotProducts<A>& products, int64_t factor_offset,
                                                int64_t source_offset, A* sums) {
  constexpr int64_t L = kLanes<A>;
  const DotProducts<A> p = products;  // as in add_products
  Vec<A> sum[kFactors][kSources];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kFactors * kSources; ++i) sum[i / kSources][i % kSources] = Vec<A>::zero();
  for (const MetRows<A>*row = p.rows, *const end = row + p.row_count; row < end; ++row) {
    const A *factor = row->factor + factor_offset, *source = row->source + source_offset;
    const auto add = [&](const auto& load) __attribute__((always_inline)) {
      Vec<A> y[kSources];
      TORCH_EXT_UNROLL
      for (int t = 0; t < kSources; ++t) y[t] = opaque(load(source + t * p.source_step));
      TORCH_EXT_UNROLL
      for (int m = 0; m < kFactors; ++m) {
        const Vec<A> x = opaque(load(factor + m * p.factor_pitch));
        TORCH_EXT_UNROLL
        for (int t = 0; t < kSources; ++t) sum[m][t] = fma(x, y[t], sum[m][t]);
      }
      factor += L;
      source += L;
    };
    for (int64_t v = p.vectors; v > 0; --v) add([](const A* at) { return Vec<A>::load(at); });
    if (p.rest > 0) add([&](const A* at) { return load_partial(at, p.rest); });  // what lies beyond may be infinite
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < kFactors * kSources; ++i) {
    A* const to = sums + i / kSources * p.factor_sums + i % kSources * p.source_sums;
    (Vec<A>::load(to) + sum[i / kSources][i % kSources]).store(to);
  }
}

inline constexpr int64_t kMaxSources = 4;

// In register tiles of nearly the same size.
template <class A>
void add_dot_products(const DotProducts<A>& p, int64_t factor, int64_t source, A* sums, int64_t factors,
                      int64_t sources) {
  const int64_t source_tiles = ceil_div(sources, kMaxSources);
  for (int64_t i = 0; i < source_tiles; ++i) {
    const Range t = part(sources, source_tiles, i);
    with_count<static_cast<int>(kMaxSources)>(size(t), [&]<int kSources>() {
      constexpr int kMost = std::min(static_cast<int>(kMaxOutputs), static_cast<int>(kMaxSums) / kSources);
      const int64_t tiles = ceil_div(factors, kMost);
      for (int64_t k = 0; k < tiles; ++k) {
        const Range m = part(factors, tiles, k);
        with_count<kMost>(size(m), [&]<int kFactors>() {
          add_dot_products<A, kFactors, kSources>(p, factor + m.begin * p.factor_pitch,
                                                  source + t.begin * p.source_step,
                                                  sums + m.begin * p.factor_sums + t.begin * p.source_sums);
        });
      }
    });
  }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
