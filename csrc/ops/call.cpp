#include "call.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace torch_ext::ops {
namespace {

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

const auto& conv_handle() {
  static const auto handle = find<decltype(conv)>("torch_ext::conv");
  return handle;
}

const auto& conv_backward_handle() {
  static const auto handle = find<decltype(conv_backward)>("torch_ext::conv_backward");
  return handle;
}

const auto& separable_conv_handle() {
  static const auto handle = find<decltype(separable_conv)>("torch_ext::separable_conv");
  return handle;
}

const auto& separable_conv_backward_handle() {
  static const auto handle = find<decltype(separable_conv_backward)>("torch_ext::separable_conv_backward");
  return handle;
}

const auto& deform_conv_handle() {
  static const auto handle = find<decltype(deform_conv)>("torch_ext::deform_conv");
  return handle;
}

const auto& deform_conv_backward_handle() {
  static const auto handle = find<decltype(deform_conv_backward)>("torch_ext::deform_conv_backward");
  return handle;
}

}  // namespace

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                c10::SymInt groups) {
  return conv_handle().call(input, weight, bias, stride, padding, dilation, std::move(groups));
}

Gradients conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        c10::SymInt groups, Mask output_mask) {
  return conv_backward_handle().call(grad_output, input, weight, stride, padding, dilation, std::move(groups),
                                     output_mask);
}

at::Tensor conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups) {
  return conv_handle().redispatch(keys, input, weight, bias, stride, padding, dilation, std::move(groups));
}

Gradients conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                   c10::SymIntArrayRef dilation, c10::SymInt groups, Mask output_mask) {
  return conv_backward_handle().redispatch(keys, grad_output, input, weight, stride, padding, dilation,
                                           std::move(groups), output_mask);
}

at::Tensor separable_conv(const at::Tensor& input, const at::Tensor& depthwise_weight,
                          const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  return separable_conv_handle().call(input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation);
}

SeparableGradients separable_conv_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                           c10::SymIntArrayRef dilation, SeparableMask output_mask) {
  return separable_conv_backward_handle().call(grad_output, input, depthwise_weight, pointwise_weight, stride, padding,
                                               dilation, output_mask);
}

at::Tensor separable_conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input,
                                     const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                     const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                     c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  return separable_conv_handle().redispatch(keys, input, depthwise_weight, pointwise_weight, bias, stride, padding,
                                            dilation);
}

SeparableGradients separable_conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                      const at::Tensor& input, const at::Tensor& depthwise_weight,
                                                      const at::Tensor& pointwise_weight, c10::SymIntArrayRef stride,
                                                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                      SeparableMask output_mask) {
  return separable_conv_backward_handle().redispatch(keys, grad_output, input, depthwise_weight, pointwise_weight,
                                                     stride, padding, dilation, output_mask);
}

at::Tensor deform_conv(const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                       const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  return deform_conv_handle().call(input, offset, weight, mask, bias, stride, padding, dilation);
}

DeformGradients deform_conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
                                     const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                     c10::SymIntArrayRef dilation, DeformMask output_mask) {
  return deform_conv_backward_handle().call(grad_output, input, offset, weight, mask, stride, padding, dilation,
                                            output_mask);
}

at::Tensor deform_conv_redispatch(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& offset,
                                  const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                  const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  return deform_conv_handle().redispatch(keys, input, offset, weight, mask, bias, stride, padding, dilation);
}

DeformGradients deform_conv_backward_redispatch(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                const at::Tensor& input, const at::Tensor& offset,
                                                const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                c10::SymIntArrayRef dilation, DeformMask output_mask) {
  return deform_conv_backward_handle().redispatch(keys, grad_output, input, offset, weight, mask, stride, padding,
                                                  dilation, output_mask);
}

}  // namespace torch_ext::ops
