#include "autocast.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "call.h"

namespace torch_ext::ops {

namespace {

bool is_on(const at::Tensor& tensor) {
  if (!tensor.defined()) return false;
  const auto device = tensor.device().type();
  return at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
}

}  // namespace

at::Tensor autocast(const at::Tensor& tensor) {
  if (!is_on(tensor)) return tensor;
  const auto device = tensor.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

at::Tensor autocast_to_float(const at::Tensor& tensor) {
  if (!is_on(tensor)) return tensor;
  return at::autocast::cached_cast(at::kFloat, tensor, tensor.device().type());
}

std::optional<at::Tensor> autocast_to_float(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return tensor;
  return autocast_to_float(*tensor);
}

std::optional<at::Tensor> autocast(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return tensor;
  return autocast(*tensor);
}

namespace {

// Under autocast conv takes its tensors in the autocast dtype, as torch's convolutions do.
template <c10::DispatchKey key>
at::Tensor conv_autocast(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                         c10::SymInt groups) {
  const auto cast_input = autocast(input);
  const auto cast_weight = autocast(weight);
  const auto cast_bias = autocast(bias);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return conv(cast_input, cast_weight, cast_bias, stride, padding, dilation, std::move(groups));
}

template <c10::DispatchKey key>
at::Tensor separable_conv_autocast(const at::Tensor& input, const at::Tensor& depthwise_weight,
                                   const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                   c10::SymIntArrayRef dilation) {
  const auto cast_input = autocast(input);
  const auto cast_depthwise = autocast(depthwise_weight);
  const auto cast_pointwise = autocast(pointwise_weight);
  const auto cast_bias = autocast(bias);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return separable_conv(cast_input, cast_depthwise, cast_pointwise, cast_bias, stride, padding, dilation);
}

// In float32 inside, and given back in the input's dtype, as torchvision's.
template <c10::DispatchKey key>
at::Tensor deform_conv_autocast(const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                                const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  const auto cast_input = autocast_to_float(input), cast_offset = autocast_to_float(offset);
  const auto cast_weight = autocast_to_float(weight);
  const auto cast_mask = autocast_to_float(mask), cast_bias = autocast_to_float(bias);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return deform_conv(cast_input, cast_offset, cast_weight, cast_mask, cast_bias, stride, padding, dilation)
      .to(input.scalar_type());
}

TORCH_LIBRARY_IMPL(torch_ext, AutocastCPU, m) {
  m.impl("conv", conv_autocast<c10::DispatchKey::AutocastCPU>);
  m.impl("separable_conv", separable_conv_autocast<c10::DispatchKey::AutocastCPU>);
  m.impl("deform_conv", deform_conv_autocast<c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(torch_ext, AutocastCUDA, m) {
  m.impl("conv", conv_autocast<c10::DispatchKey::AutocastCUDA>);
  m.impl("separable_conv", separable_conv_autocast<c10::DispatchKey::AutocastCUDA>);
  m.impl("deform_conv", deform_conv_autocast<c10::DispatchKey::AutocastCUDA>);
}

}  // namespace
}  // namespace torch_ext::ops
