#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>

#include <array>
#include <optional>
#include <tuple>

// The core ops as C++ functions that go through the dispatcher.
namespace torch_ext::ops {

using Mask = std::array<bool, 3>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of input, weight, bias; undefined where masked off

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                c10::SymInt groups);
Gradients conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        c10::SymInt groups, Mask output_mask);

using SeparableMask = std::array<bool, 4>;
// Of input, depthwise weight, pointwise weight, bias.
using SeparableGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor separable_conv(const at::Tensor& input, const at::Tensor& depthwise_weight,
                          const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation);
SeparableGradients separable_conv_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                           c10::SymIntArrayRef dilation, SeparableMask output_mask);

using DeformMask = std::array<bool, 5>;
// Of input, offset, weight, mask, bias.
using DeformGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor deform_conv(const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                       const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation);
DeformGradients deform_conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
                                     const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                     c10::SymIntArrayRef dilation, DeformMask output_mask);

// The same, going on from a kernel to the keys that are left.
at::Tensor conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups);
Gradients conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                   c10::SymIntArrayRef dilation, c10::SymInt groups, Mask output_mask);
at::Tensor separable_conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input,
                                     const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                     const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                     c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation);
SeparableGradients separable_conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                      const at::Tensor& input, const at::Tensor& depthwise_weight,
                                                      const at::Tensor& pointwise_weight, c10::SymIntArrayRef stride,
                                                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                      SeparableMask output_mask);

at::Tensor deform_conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& offset,
                                  const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                  const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation);
DeformGradients deform_conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                const at::Tensor& input, const at::Tensor& offset,
                                                const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                c10::SymIntArrayRef dilation, DeformMask output_mask);

}  // namespace torch_ext::ops
