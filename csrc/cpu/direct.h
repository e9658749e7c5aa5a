#pragma once

#include <ATen/core/Tensor.h>

#include "core/geometry.h"

// The direct kernels on tensors. No tensor is empty. A weight gradient
// may also be in the type of the sums.
namespace torch_ext::cpu {

void direct_forward(const ConvGeometry<int64_t>& g, const at::Tensor& input, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, at::Tensor& output);
void direct_grad_input(const ConvGeometry<int64_t>& g, const at::Tensor& grad_output, const at::Tensor& weight,
                       at::Tensor& grad_input);
void direct_grad_weight(const ConvGeometry<int64_t>& g, const at::Tensor& grad_output, const at::Tensor& input,
                        at::Tensor& grad_weight);

}  // namespace torch_ext::cpu
