#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels/simt.h"

// Launches kernels on a stream: what the kernels' host sides take as `launch`.
namespace torch_ext::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("torch_ext: ") + what + ": " + cudaGetErrorString(error));
}

struct Launch {
  cudaStream_t stream;

  template <class Params>
  void operator()(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params) const {
    constexpr size_t kSharedOfAnyKernel = 48 << 10;  // more has to be asked for
    if (size.grid.x == 0 || size.grid.y == 0 || size.grid.z == 0) return;
    if (size.shared_bytes > kSharedOfAnyKernel)
      check_kernel(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(size.shared_bytes)),
                   kernel, size);
    const dim3 grid(size.grid.x, size.grid.y, size.grid.z), block(size.block.x, size.block.y, size.block.z);
    kernel<<<grid, block, size.shared_bytes, stream>>>(params);
    check_kernel(cudaGetLastError(), kernel, size);
  }

 private:
  // The message is made where there is an error, not at every launch.
  template <class Params>
  static void check_kernel(cudaError_t error, void (*kernel)(Params), const simt::LaunchSize& size) {
    if (error == cudaSuccess) return;
    const char* name = "a kernel";
    cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel));
    const std::string bytes = std::to_string(size.shared_bytes);
    check(error, (std::string(name) + " with " + bytes + " bytes of shared memory is not launched").c_str());
  }
};

}  // namespace torch_ext::cuda
