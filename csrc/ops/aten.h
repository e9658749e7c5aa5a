#pragma once

#include <ATen/core/Tensor.h>

#include "call.h"

// Calls handed to PyTorch. Padding has 2n numbers; where before and after differ, which PyTorch cannot express, the
// input is padded by the difference first.
namespace torch_ext::ops {

at::Tensor aten_conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                     c10::SymInt groups);
Gradients aten_conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                             c10::SymInt groups, Mask output_mask);

// Whether the input is padded first.
bool has_uneven_padding(at::IntArrayRef padding);

}  // namespace torch_ext::ops
