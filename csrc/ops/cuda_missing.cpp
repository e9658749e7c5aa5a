#include <torch/library.h>

#include "call.h"
#include "cuda.h"

// Only in builds without CUDA: tells what to do instead of "no kernel found".
namespace torch_ext::ops {

std::string cuda_version() { return "null"; }

namespace {

[[noreturn]] void refuse(const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op,
      ": this build of torch_ext has no CUDA kernels; expected CPU tensors, but got CUDA ones. To build it "
      "with them, in the source tree, with nvcc on PATH: FORCE_CUDA=1 pip install --no-build-isolation .");
  std::abort();
}

at::Tensor conv_cuda(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, c10::SymIntArrayRef,
                     c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymInt) {
  refuse("torch_ext::conv");
}

Gradients conv_backward_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef,
                             c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymInt, Mask) {
  refuse("torch_ext::conv_backward");
}

at::Tensor separable_conv_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const std::optional<at::Tensor>&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                               c10::SymIntArrayRef) {
  refuse("torch_ext::separable_conv");
}

SeparableGradients separable_conv_backward_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                                c10::SymIntArrayRef, SeparableMask) {
  refuse("torch_ext::separable_conv_backward");
}

at::Tensor deform_conv_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            const std::optional<at::Tensor>&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                            c10::SymIntArrayRef) {
  refuse("torch_ext::deform_conv");
}

DeformGradients deform_conv_backward_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                          const std::optional<at::Tensor>&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                          c10::SymIntArrayRef, DeformMask) {
  refuse("torch_ext::deform_conv_backward");
}

bool has_kernel_cuda(const at::Tensor&, c10::SymIntArrayRef, c10::SymInt) { return false; }

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("_has_kernel", has_kernel_cuda);
  m.impl("conv", conv_cuda);
  m.impl("conv_backward", conv_backward_cuda);
  m.impl("separable_conv", separable_conv_cuda);
  m.impl("separable_conv_backward", separable_conv_backward_cuda);
  m.impl("deform_conv", deform_conv_cuda);
  m.impl("deform_conv_backward", deform_conv_backward_cuda);
}

}  // namespace
}  // namespace torch_ext::ops
