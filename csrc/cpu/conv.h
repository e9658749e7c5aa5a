#pragma once

#include <ATen/core/Tensor.h>

#include "core/select.h"
#include "ops/call.h"

// conv and conv_backward on CPU tensors, and how their kernels are named.
namespace torch_ext::cpu {

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);
ops::Gradients conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                             ops::Mask mask);

DType dtype_of(const at::Tensor& tensor);

// What which_kernel takes and gives.
Pass pass_of(const std::string& op, std::string_view output);
std::string kernel_name(Kernel kernel, at::IntArrayRef padding);

}  // namespace torch_ext::cpu
