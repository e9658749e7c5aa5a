#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "padding.h"

// The user's ops as compositions of core ops and of PyTorch's, one definition for 1-D, 2-D and 3-D. Every one is
// differentiable, scriptable and exportable because its parts are.
namespace torch_ext::ops {

at::Tensor depthwise_conv(int dims, const at::Tensor& input, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                          c10::SymIntArrayRef dilation);
at::Tensor group_conv(int dims, const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                      c10::SymIntArrayRef dilation, const c10::SymInt& groups);
at::Tensor depthwise_conv_transpose(int dims, const at::Tensor& input, const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                    c10::SymIntArrayRef padding, c10::SymIntArrayRef output_padding,
                                    c10::SymIntArrayRef dilation);
at::Tensor separable_conv(int dims, const at::Tensor& input, const at::Tensor& depthwise_weight,
                          const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                          c10::SymIntArrayRef stride, const Padding& padding, c10::SymIntArrayRef dilation);
at::Tensor deform_conv(int dims, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                       c10::SymIntArrayRef dilation, const std::optional<at::Tensor>& mask);

}  // namespace torch_ext::ops
