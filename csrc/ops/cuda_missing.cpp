#include <torch/library.h>

#include "cuda.h"

// Only in builds without CUDA: tells what to do instead of "no kernel found".
namespace torch_ext::ops {

std::string cuda_version() { return {}; }

namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      ": this build of torch_ext has no CUDA kernels; expected CPU tensors, but got CUDA ones. To build it "
      "with them, in the source tree, with nvcc on PATH: FORCE_CUDA=1 pip install --no-build-isolation .");
}

bool has_kernel(const at::Tensor&, c10::SymIntArrayRef, c10::SymInt) { return false; }

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("_has_kernel", has_kernel);
  for (const char* op : {"conv", "conv_backward", "separable_conv", "separable_conv_backward", "deform_conv",
                         "deform_conv_backward", "_which_kernel", "_which_separable_kernel"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace
}  // namespace torch_ext::ops
