// Multiply-adds as fast as the CPU can do them: what machine.py calls the peak.
#include <immintrin.h>

#include <cstdint>

template <class V, V (*kFma)(V, V, V)>
static V chains(int64_t rounds, V factor) {
  V sum[12];
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) sum[j] = factor;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = kFma(sum[j], factor, factor);
      asm volatile("" : "+x"(sum[j]));  // each must be computed
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) factor += sum[j];
  return factor;
}

// Each round is 12 multiply-adds of a vector of 8 floats or 4 doubles.
extern "C" float fma_float32(int64_t rounds) {
  return chains<__m256, _mm256_fmadd_ps>(rounds, _mm256_set1_ps(0.5f))[0];
}
extern "C" double fma_float64(int64_t rounds) {
  return chains<__m256d, _mm256_fmadd_pd>(rounds, _mm256_set1_pd(0.5))[0];
}
