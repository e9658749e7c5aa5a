#include <torch/library.h>

#include <ATen/ops/empty.h>

#include "call.h"
#include "check.h"

// Shapes and strides without data, on symbolic sizes: what fake tensors, export and Inductor run.
namespace torch_ext::ops {
namespace {

at::Tensor conv_meta(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                     c10::SymInt groups) {
  return empty_output(input, weight, check_conv("conv", input, weight, bias, stride, padding, dilation, groups));
}

Gradients conv_backward_meta(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                             c10::SymInt groups, Mask output_mask) {
  const auto g = check_conv_backward("conv_backward", grad_output, input, weight, stride, padding, dilation, groups);
  Gradients gradients;
  if (output_mask[0]) std::get<0>(gradients) = empty_in_format_of(input, input.sym_sizes());
  if (output_mask[1]) std::get<1>(gradients) = empty_in_format_of(weight, weight.sym_sizes());
  if (output_mask[2]) std::get<2>(gradients) = at::empty_symint({g.out_channels}, input.options());
  return gradients;
}

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  m.impl("conv", conv_meta);
  m.impl("conv_backward", conv_backward_meta);
}

}  // namespace
}  // namespace torch_ext::ops
