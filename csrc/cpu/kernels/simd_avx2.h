#pragma once

// AVX2 with FMA and F16C. See simd.h. Included within a target region, after <immintrin.h>. Operators are not friends:
// GCC does not apply the region to functions that a class defines as friends.

namespace torch_ext::cpu::avx2 {

template <class A>
struct Vec;

template <>
struct Vec<float> {
  __m256 v;

  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
};

template <>
struct Vec<double> {
  __m256d v;

  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }

inline Vec<float> opaque(Vec<float> x) {
  asm("" : "+x"(x.v));
  return x;
}
inline Vec<double> opaque(Vec<double> x) {
  asm("" : "+x"(x.v));
  return x;
}

inline Vec<float> load_wide(const float* p) { return Vec<float>::load(p); }
inline Vec<double> load_wide(const double* p) { return Vec<double>::load(p); }
// Eight 16-bit numbers to and from float.
inline Vec<float> widen_eight(BFloat16, __m128i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline Vec<float> widen_eight(Half, __m128i bits) { return {_mm256_cvtph_ps(bits)}; }
// In memory, where a kernel without a free register finds it.
inline constinit int32_t kBelowHalf[8] = {0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff, 0x7fff};
// To nearest even. A NaN comes from a 16-bit number or is the CPU's own: its low half is zero, and it stays a NaN.
inline __m128i round_eight(BFloat16, Vec<float> x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_srli_epi32(_mm256_slli_epi32(bits, 15), 31);
  const __m256i below_half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kBelowHalf));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), below_half);
  const __m256i high = _mm256_srli_epi32(rounded, 16);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08));
}
inline __m128i round_eight(Half, Vec<float> x) {
  return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <class T>
Vec<float> load_wide(const T* p) {
  return widen_eight(T{}, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline void store_rounded(float* p, Vec<float> x) { x.store(p); }
inline void store_rounded(double* p, Vec<double> x) { x.store(p); }
template <class T>
void store_rounded(T* p, Vec<float> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_eight(T{}, x));
}

inline __m256i first_lanes(float, int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes(double, int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline Vec<float> load_partial(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(0.f, n))}; }
inline Vec<double> load_partial(const double* p, int64_t n) { return {_mm256_maskload_pd(p, first_lanes(0., n))}; }
// Not by masked stores, which some CPUs take 20 steps for: by stores of 4, 2 or 1 numbers, which may overlap.
inline void store_partial(float* p, Vec<float> x, int64_t n) {
  __m128 low = _mm256_castps256_ps128(x.v);
  if (n >= 8) return x.store(p);
  if (n >= 4) {
    _mm_storeu_ps(p, low);
    const __m256i last =
        _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(-4, -3, -2, -1, 0, 0, 0, 0));
    if (n > 4) _mm_storeu_ps(p + n - 4, _mm256_castps256_ps128(_mm256_permutevar8x32_ps(x.v, last)));
    return;
  }
  if (n >= 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), low);
    low = _mm_movehl_ps(low, low);
  }
  if (n % 2 != 0) _mm_store_ss(p + n - 1, low);
}
inline void store_partial(double* p, Vec<double> x, int64_t n) {
  __m128d low = _mm256_castpd256_pd128(x.v);
  if (n >= 4) return x.store(p);
  if (n >= 2) {
    _mm_storeu_pd(p, low);
    low = _mm256_extractf128_pd(x.v, 1);
  }
  if (n % 2 != 0) _mm_store_sd(p + n - 1, low);
}

inline Vec<float> load_masked(const float* p, const int32_t* mask) {
  return {_mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask)))};
}
inline Vec<double> load_masked(const double* p, const int64_t* mask) {
  return {_mm256_maskload_pd(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask)))};
}

// The 16-bit types have no masked moves: two moves of 4, 2 or 1 numbers, which may overlap.
template <class Bits>
Bits load_bits(const void* p) {
  Bits bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bits;
}
template <class T>
Vec<float> load_partial(const T* p, int64_t n) {
  uint64_t low = 0, high = 0;
  if (n >= 8) return load_wide(p);
  if (n >= 4) {
    low = load_bits<uint64_t>(p);
    if (n > 4) high = load_bits<uint64_t>(p + n - 4) >> (16 * (8 - n));
  } else if (n >= 2) {
    low = load_bits<uint32_t>(p) | uint64_t{load_bits<uint32_t>(p + n - 2)} << (16 * (n - 2));
  } else if (n == 1) {
    low = p->bits;
  }
  return widen_eight(T{}, _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low)));
}
template <class T>
void store_partial(T* p, Vec<float> x, int64_t n) {
  if (n >= 8) return store_rounded(p, x);
  const __m128i bits = round_eight(T{}, x);
  const uint64_t low = static_cast<uint64_t>(_mm_cvtsi128_si64(bits));
  if (n >= 4) {
    __builtin_memcpy(p, &low, 8);
    if (n == 4) return;
    const uint64_t last = low >> (16 * (n - 4)) | static_cast<uint64_t>(_mm_extract_epi64(bits, 1)) << (16 * (8 - n));
    __builtin_memcpy(p + n - 4, &last, 8);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i].bits = static_cast<uint16_t>(low >> (16 * i));
  }
}

// Lane i becomes what the index says; the indices count 32-bit halves of a double.
template <class A>
struct Permutation {
  explicit Permutation(const int32_t* index) : v(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(index))) {}

  __m256i v;
};
inline Vec<float> permute(Vec<float> x, Permutation<float> p) { return {_mm256_permutevar8x32_ps(x.v, p.v)}; }
inline Vec<double> permute(Vec<double> x, Permutation<double> p) {
  return {_mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(x.v), p.v))};
}

inline Vec<float> even_lanes(Vec<float> a, Vec<float> b) {
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a.v, b.v, 0x88));  // in the order 0, 2, 1, 3
  return {_mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8))};
}
inline Vec<double> even_lanes(Vec<double> a, Vec<double> b) {
  return {_mm256_permute4x64_pd(_mm256_unpacklo_pd(a.v, b.v), 0xd8)};
}
inline void zip(Vec<float> a, Vec<float> b, Vec<float> (&pair)[2]) {
  const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
  pair[0].v = _mm256_permute2f128_ps(low, high, 0x20);
  pair[1].v = _mm256_permute2f128_ps(low, high, 0x31);
}
inline void zip(Vec<double> a, Vec<double> b, Vec<double> (&pair)[2]) {
  const __m256d low = _mm256_unpacklo_pd(a.v, b.v), high = _mm256_unpackhi_pd(a.v, b.v);
  pair[0].v = _mm256_permute2f128_pd(low, high, 0x20);
  pair[1].v = _mm256_permute2f128_pd(low, high, 0x31);
}

inline void transpose(Vec<float> (&r)[8]) {
  __m256 t[8], u[8];
  TORCH_EXT_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < 8; i += 4) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

inline void transpose(Vec<double> (&r)[4]) {
  __m256d t[4];
  TORCH_EXT_UNROLL
  for (int i = 0; i < 4; i += 2) {
    t[i] = _mm256_unpacklo_pd(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_pd(r[i].v, r[i + 1].v);
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < 2; ++i) {
    r[i].v = _mm256_permute2f128_pd(t[i], t[i + 2], 0x20);
    r[i + 2].v = _mm256_permute2f128_pd(t[i], t[i + 2], 0x31);
  }
}

}  // namespace torch_ext::cpu::avx2
