#pragma once

// What a CUDA kernel is written with. It includes this file, core headers and other kernels' headers, and nothing else:
// nvcc compiles it for a GPU, and any C++20 compiler for the emulator of the tests (tests/cpp/cuda/emulator.h):
//
//   SIMT_GLOBAL, SIMT_DEVICE            a kernel, a function that kernels call
//   SIMT_LAUNCH_BOUNDS(…), SIMT_UNROLL  __launch_bounds__ and #pragma unroll
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), __syncwarp(),
//   __shfl_sync, __shfl_xor_sync, __shfl_down_sync, atomicAdd          as in CUDA; masks are always kFullMask
//   simt::shared<T>()                   the block's shared memory, LaunchSize::shared_bytes of it
//   simt::ld<V>(p), simt::st(p, v)      global memory, one number (without V) or a Vector at a time
//   simt::widen(x), simt::narrow<T>(x)  from what is stored to what is summed, and back, rounded to nearest even
//   simt::fma(a, b, c)                  rounded once, on either side
//
// ld takes the read-only path through a pointer to const: no thread of the launch may write what such a pointer reads.
// ld<V>(p, inside) is zero, and st(p, v, inside) nothing, unless `inside`; the emulator then still counts the lane's
// turn, so that it does not take the lane's next access for this one.
#include <cstdint>

#include "simt_types.h"

#if defined(__CUDACC__)
#include "simt_device.h"
#else
#include "simt_host.h"
#endif

namespace torch_ext::simt {

template <class T, int N>
SIMT_DEVICE Vector<Acc<T>, N> widen(const Vector<T, N>& x) {
  Vector<Acc<T>, N> y;
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) y[i] = widen(x[i]);
  return y;
}

template <class T, class A, int N>
SIMT_DEVICE Vector<T, N> narrow(const Vector<A, N>& x) {
  Vector<T, N> y;
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) y[i] = narrow<T>(x[i]);
  return y;
}

TORCH_EXT_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
TORCH_EXT_HOST_DEVICE constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
TORCH_EXT_HOST_DEVICE constexpr T max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace torch_ext::simt
