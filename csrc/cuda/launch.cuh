#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels/simt.h"

// Launches kernels on a stream: what the kernels' host sides take as `launch`.
namespace torch_ext::cuda {

inline void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error("torch_ext: " + what + ": " + cudaGetErrorString(error));
}

struct Launch {
  cudaStream_t stream;

  template <class Params>
  void operator()(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params) const {
    constexpr size_t kSharedOfAnyKernel = 48 << 10;  // more has to be asked for
    if (size.grid.x == 0 || size.grid.y == 0 || size.grid.z == 0) return;
    if (size.shared_bytes > kSharedOfAnyKernel)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(size.shared_bytes)),
            name_of(kernel) + " does not get " + std::to_string(size.shared_bytes) + " bytes of shared memory");
    const dim3 grid(size.grid.x, size.grid.y, size.grid.z), block(size.block.x, size.block.y, size.block.z);
    kernel<<<grid, block, size.shared_bytes, stream>>>(params);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) check(error, name_of(kernel) + " is not launched");
  }

 private:
  template <class Params>
  static std::string name_of(void (*kernel)(Params)) {
    const char* name = nullptr;
    return cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel)) == cudaSuccess ? name : "a kernel";
  }
};

}  // namespace torch_ext::cuda
