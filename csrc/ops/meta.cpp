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
  const auto g = check_conv("conv", input, weight, bias, stride, padding, dilation, groups);
  return empty_output(input.options(), g, wants_channels_last(input, weight));
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

at::Tensor separable_conv_meta(const at::Tensor& input, const at::Tensor& depthwise_weight,
                               const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                               c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  const auto g =
      check_separable("separable_conv", input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation);
  return empty_output(input.options(), g.pointwise, wants_channels_last(input, depthwise_weight, pointwise_weight));
}

SeparableGradients separable_conv_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                                const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                c10::SymIntArrayRef dilation, SeparableMask output_mask) {
  const auto g = check_separable_backward("separable_conv_backward", grad_output, input, depthwise_weight,
                                          pointwise_weight, stride, padding, dilation);
  SeparableGradients gradients;
  if (output_mask[0]) std::get<0>(gradients) = empty_in_format_of(input, input.sym_sizes());
  if (output_mask[1]) std::get<1>(gradients) = empty_in_format_of(depthwise_weight, depthwise_weight.sym_sizes());
  if (output_mask[2]) std::get<2>(gradients) = empty_in_format_of(pointwise_weight, pointwise_weight.sym_sizes());
  if (output_mask[3]) std::get<3>(gradients) = at::empty_symint({g.pointwise.out_channels}, input.options());
  return gradients;
}

at::Tensor deform_conv_meta(const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                            const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  const auto g = check_deform("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
  return empty_output(input.options(), g.conv, wants_channels_last(input, weight));
}

DeformGradients deform_conv_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                          const at::Tensor& offset, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& mask, c10::SymIntArrayRef stride,
                                          c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                          DeformMask output_mask) {
  const auto g = check_deform_backward("deform_conv_backward", grad_output, input, offset, weight, mask, stride,
                                       padding, dilation);
  const auto like = [](bool wanted, const at::Tensor& tensor) {
    return wanted ? empty_in_format_of(tensor, tensor.sym_sizes()) : at::Tensor();
  };
  const bool has_mask = mask && mask->defined();
  return {like(output_mask[0], input), like(output_mask[1], offset), like(output_mask[2], weight),
          has_mask ? like(output_mask[3], *mask) : at::Tensor(),
          output_mask[4] ? at::empty_symint({g.conv.out_channels}, input.options()) : at::Tensor()};
}

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  m.impl("conv", conv_meta);
  m.impl("conv_backward", conv_backward_meta);
  m.impl("separable_conv", separable_conv_meta);
  m.impl("separable_conv_backward", separable_conv_backward_meta);
  m.impl("deform_conv", deform_conv_meta);
  m.impl("deform_conv_backward", deform_conv_backward_meta);
}

}  // namespace
}  // namespace torch_ext::ops
