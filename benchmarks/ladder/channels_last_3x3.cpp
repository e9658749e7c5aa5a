// 3x3, stride 1, padding 1, channels_last, float32, one thread: ways to sweep over the pixels.
//
//   g++ -O3 -mavx2 -mfma -std=c++20 -ffp-contract=off benchmarks/ladder/channels_last_3x3.cpp -o /tmp/ladder &&
//   /tmp/ladder
//
// Columns at the edges and rows at the border go the same way in every variant, so that only the interior differs.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

struct Problem {
  int64_t batch, size, channels;
  int64_t row() const { return size * channels; }
  int64_t elements() const { return batch * size * row(); }
};

static __m256 load(const float* p) { return _mm256_loadu_ps(p); }

// kRows rows of kColumns outputs, all channels, kVectors vectors at a time; taps [first, first + taps) of each kernel
// row.
template <int kRows, int kColumns, int kVectors, bool kPrefetch>
static void patch(const Problem& p, const float* x, const float* w, float* y, int top, int bottom, int first,
                  int taps) {
  const int64_t c = p.channels, row = p.row();
  for (int64_t v = 0; v < c; v += 8 * kVectors) {
    if (kPrefetch && v % 16 == 0)  // the row after next; two vectors are a cache line
      for (int j = 0; j < kColumns; ++j) {
        _mm_prefetch(reinterpret_cast<const char*>(x + (kRows + 1) * row + j * c + v), _MM_HINT_T0);
        __builtin_prefetch(y + kRows * row + j * c + v, 1);
      }
    __m256 sum[kRows][kColumns][kVectors] = {};
#pragma GCC unroll 8
    for (int kh = 0; kh < kRows + 2; ++kh) {
      if (kh < top || kh >= kRows + 2 - bottom) continue;
#pragma GCC unroll 16
      for (int j = 0; j < kColumns + 2; ++j) {
        if (j < first || j >= kColumns + first + taps - 1) continue;
#pragma GCC unroll 2
        for (int u = 0; u < kVectors; ++u) {
          __m256 source = load(x + (kh - 1) * row + (j - 1) * c + v + 8 * u);
          asm("" : "+x"(source));
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            if (kRows > 1 && (kh < r || kh - r > 2)) continue;
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t)
              if (t >= first && t < first + taps && j >= t && j - t < kColumns)
                sum[r][j - t][u] =
                    _mm256_fmadd_ps(source, load(w + ((kh - r) * 3 + t) * c + v + 8 * u), sum[r][j - t][u]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kColumns * kVectors; ++i)
      _mm256_storeu_ps(y + i / (kColumns * kVectors) * row + i / kVectors % kColumns * c + v + i % kVectors * 8,
                       sum[i / (kColumns * kVectors)][i / kVectors % kColumns][i % kVectors]);
  }
}

template <int kRows, int kColumns, int kVectors, bool kPrefetch>
static void sweep(const Problem& p, const float* x, const float* w, float* y) {
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t h = 0; h < p.size;) {
      const bool border = kRows > 1 && (h == 0 || h + kRows >= p.size);
      const float* from = x + (n * p.size + h) * p.row();
      float* to = y + (n * p.size + h) * p.row();
      const int top = h == 0, bottom = h + 1 == p.size;
      const auto one = [&](int64_t j, int64_t i, int first, int taps) {
        const int t = h + i == 0, b = h + i + 1 == p.size;
        patch<1, 1, 1, false>(p, from + i * p.row() + j * p.channels, w, to + i * p.row() + j * p.channels, t, b, first,
                              taps);
      };
      const int64_t rows = border ? 1 : kRows;
      int64_t j = 1;
      for (int64_t i = 0; i < rows; ++i) one(0, i, 1, 2);
      if (!border)
        for (; j + kColumns < p.size; j += kColumns)
          patch<kRows, kColumns, kVectors, kPrefetch>(p, from + j * p.channels, w, to + j * p.channels,
                                                      kRows == 1 ? top : 0, kRows == 1 ? bottom : 0, 0, 3);
      for (; j + 1 < p.size; ++j)
        for (int64_t i = 0; i < rows; ++i) one(j, i, 0, 3);
      for (int64_t i = 0; i < rows; ++i) one(p.size - 1, i, 0, 2);
      h += rows;
    }
}

static void copy(const Problem& p, const float* x, const float*, float* y) {
  std::memcpy(y, x, sizeof(float) * p.elements());
}

int main() {
  const struct {
    const char* name;
    void (*run)(const Problem&, const float*, const float*, float*);
  } variants[] = {
      {"1x8", sweep<1, 8, 1, false>},
      {"1x8 prefetch", sweep<1, 8, 1, true>},
      {"1x4", sweep<1, 4, 1, false>},
      {"1x4 prefetch", sweep<1, 4, 1, true>},
      {"1x4 lines prefetch", sweep<1, 4, 2, true>},
      {"2x2", sweep<2, 2, 1, false>},
      {"2x2 prefetch", sweep<2, 2, 1, true>},
      {"4x2", sweep<4, 2, 1, false>},
      {"copy", copy},
  };
  for (const Problem& p : {Problem{1, 56, 144}, {8, 56, 144}, {8, 56, 128}, {8, 112, 32}, {8, 14, 512}, {8, 7, 960}}) {
    std::vector<float> x(p.elements() + 64), y(p.elements() + 64), expected, w(9 * p.channels);
    for (auto& e : x) e = static_cast<float>(rand() % 9 - 4);
    for (auto& e : w) e = static_cast<float>(rand() % 9 - 4);
    std::printf("N %ld, %ld ch, %ld^2, %.1f MB:", p.batch, p.channels, p.size, 8e-6 * p.elements());
    double least[16];
    std::fill_n(least, 16, 1e9);
    for (int round = 0; round < 15; ++round)
      for (int i = 0; const auto& variant : variants) {
        const auto start = std::chrono::steady_clock::now();
        variant.run(p, x.data(), w.data(), y.data());
        least[i] = std::min(least[i], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        if (round == 0 && i == 0) expected = y;
        if (round == 0 && variant.run != copy && y != expected) std::printf(" WRONG(%s)", variant.name);
        ++i;
      }
    for (int i = 0; const auto& variant : variants) std::printf("  %s %.3f ms", variant.name, 1e3 * least[i++]);
    std::printf("\n");
  }
}
