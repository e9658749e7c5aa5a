#pragma once

#include <cstddef>
#include <type_traits>

#include "../../core/dtype.h"
#include "../../core/macros.h"

namespace torch_ext::simt {

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;  // the only mask of a shuffle

// Three numbers of blocks or threads.
struct Dim {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

// How to launch a kernel: a plain function next to it computes this from its parameters, for launch code and tests.
struct LaunchSize {
  Dim grid;
  Dim block;
  size_t shared_bytes = 0;
};

// N numbers side by side: in memory, where one instruction loads or stores up to 16 bytes of them, or in registers.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  static_assert(N > 0 && (N & (N - 1)) == 0);
  using Element = T;
  static constexpr int kSize = N;

  TORCH_EXT_HOST_DEVICE constexpr T& operator[](int i) { return value[i]; }
  TORCH_EXT_HOST_DEVICE constexpr const T& operator[](int i) const { return value[i]; }

  T value[N];
};

// What a load or a store as V moves from or to memory of T: a vector of T, or without V one T.
template <class V, class T>
struct MovedType {
  static_assert(std::is_same_v<typename V::Element, T>, "a vector of what the pointer points to");
  static_assert(sizeof(V) <= 16, "no instruction moves more than 16 bytes");
  using type = V;
};
template <class T>
struct MovedType<T, T> {
  using type = T;
};
template <class T>
struct MovedType<void, T> {
  using type = T;
};
template <class V, class T>
using Moved = typename MovedType<V, std::remove_const_t<T>>::type;

}  // namespace torch_ext::simt
