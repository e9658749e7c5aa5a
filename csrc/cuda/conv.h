#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "kernels.h"
#include "ops/call.h"

// conv and conv_backward on CUDA tensors.
namespace torch_ext::cuda {

Queue current_queue();
at::Tensor grad_bias(const at::Tensor& grad_output);
std::string kernel_name(const ConvGeometry<int64_t>& g, at::IntArrayRef padding);

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);
ops::Gradients conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                             ops::Mask mask);

}  // namespace torch_ext::cuda
