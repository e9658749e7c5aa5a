#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels/simt.h"

// What runner.h needs of a device, on a GPU.
namespace torch_ext::test::device {

inline constexpr int kOrders = 1;  // its own

inline constexpr const char* kOrderNames[] = {"the GPU's"};

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

inline bool exists() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// An allocation of its own for each buffer, so that compute-sanitizer sees overruns.
inline std::shared_ptr<char> allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes > 0 ? bytes : 1), "cudaMalloc");
  return {static_cast<char*>(p), [](char* memory) { cudaFree(memory); }};
}

// Zero, as memory is that nobody wrote to.
inline std::shared_ptr<char> reserve(size_t bytes) {
  auto memory = allocate(bytes);
  check(cudaMemset(memory.get(), 0, bytes), "cudaMemset");
  return memory;
}

inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

template <class Params>
void launch(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params, int,
            const std::vector<simt::Dim>&, void*) {
  const simt::Dim g = size.grid, b = size.block;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(size.shared_bytes)),
        "cudaFuncSetAttribute");
  kernel<<<dim3(g.x, g.y, g.z), dim3(b.x, b.y, b.z), size.shared_bytes>>>(params);
  check(cudaGetLastError(), "launch");
  check(cudaDeviceSynchronize(), "kernel");
}

// Of memory traffic, the profiler knows more.
struct Log {
  void name(const void*, size_t, const std::string&) {}
  void clear() {}
  void expect_loads(const std::string&, double, double) const {}
  void expect_stores(const std::string&, double, double) const {}
};

}  // namespace torch_ext::test::device
