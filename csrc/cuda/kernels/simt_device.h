#pragma once

// simt.h for nvcc: names of CUDA's own are left as they are.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt_types.h"

#define SIMT_GLOBAL __global__
#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define SIMT_UNROLL _Pragma("unroll")

namespace torch_ext::simt {

template <class T>
SIMT_DEVICE T* shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// The types that load and store instructions take, by their size.
template <size_t kBytes>
struct WordType;
template <>
struct WordType<1> {
  using type = unsigned char;
};
template <>
struct WordType<2> {
  using type = unsigned short;
};
template <>
struct WordType<4> {
  using type = unsigned;
};
template <>
struct WordType<8> {
  using type = uint2;
};
template <>
struct WordType<16> {
  using type = uint4;
};
template <class T>
using Word = typename WordType<sizeof(T)>::type;

template <class To, class From>
SIMT_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class W>
SIMT_DEVICE W load_word(const W* p, const void*) {
  return __ldg(p);
}
template <class W>
SIMT_DEVICE W load_word(const W* p, void*) {  // not through a pointer to const: the launch may write here
  return *p;
}

template <class V = void, class T>
SIMT_DEVICE Moved<V, T> ld(T* p) {
  using W = Word<Moved<V, T>>;
  return bits_as<Moved<V, T>>(load_word(reinterpret_cast<const W*>(p), p));
}

// The compiler chooses between what is loaded and zero for words as they are here, not for each 16 bits of them.
SIMT_DEVICE void keep_whole(unsigned& w) { asm("" : "+r"(w)); }
SIMT_DEVICE void keep_whole(uint2& w) { asm("" : "+r"(w.x), "+r"(w.y)); }
SIMT_DEVICE void keep_whole(uint4& w) { asm("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w)); }

template <class V = void, class T>
SIMT_DEVICE Moved<V, T> ld(T* p, bool inside) {
  using W = Word<Moved<V, T>>;
  W word{};
  if (inside) word = load_word(reinterpret_cast<const W*>(p), p);
  if constexpr (sizeof(W) >= 4) keep_whole(word);
  return bits_as<Moved<V, T>>(word);
}

template <class T, class V>
SIMT_DEVICE void st(T* p, const V& value, bool inside = true) {
  if (inside) *reinterpret_cast<Word<Moved<V, T>>*>(p) = bits_as<Word<V>>(value);
}

SIMT_DEVICE float widen(float x) { return x; }
SIMT_DEVICE double widen(double x) { return x; }
SIMT_DEVICE float widen(BFloat16 x) { return __bfloat162float(bits_as<__nv_bfloat16>(x)); }
SIMT_DEVICE float widen(Half x) { return __half2float(bits_as<__half>(x)); }

// A shift or a mask for each number, where taking it out of its word first would be one instruction more.
template <int N>
requires(N > 1) SIMT_DEVICE Vector<float, N> widen(const Vector<BFloat16, N>& x) {
  const auto pairs = bits_as<Vector<unsigned, N / 2>>(x);
  Vector<float, N> y;
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) y[i] = __uint_as_float(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
  return y;
}

template <class T>
SIMT_DEVICE T narrow(Acc<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>) return bits_as<T>(__float2bfloat16_rn(x));
  else if constexpr (std::is_same_v<T, Half>) return bits_as<T>(__float2half_rn(x));
  else return x;
}

SIMT_DEVICE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
SIMT_DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }

}  // namespace torch_ext::simt
