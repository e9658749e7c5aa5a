#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include "cuda/kernels.h"

// What the ops for CUDA need of CUDA and of PyTorch's GPU build, on the CPU.
namespace torch_ext::cuda {

Queue queue_on(CUstream_st* stream) { return {stream, 4}; }

namespace {

at::Tensor bmm(const at::Tensor& a, const at::Tensor& b, at::ScalarType type) {
  return at::bmm(a.to(type), b.to(type));
}

TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("bmm.dtype", bmm); }

}  // namespace
}  // namespace torch_ext::cuda
