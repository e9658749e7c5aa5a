#pragma once

#include <ATen/core/Tensor.h>

#include "core/geometry.h"
#include "ops/call.h"

// The depthwise kernels on tensors, which also serve groups that share vectors. No tensor is empty. A weight gradient
// may also be in the type of the sums.
namespace torch_ext::cpu {

using Geometry = ConvGeometry<int64_t>;

void depthwise_forward(const Geometry& g, const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::Tensor& output);
void depthwise_grad_input(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& weight,
                          at::Tensor& grad_input);
void depthwise_grad_weight(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                           at::Tensor& grad_weight);
// Of any convolution.
void grad_bias(const Geometry& g, const at::Tensor& grad_output, at::Tensor& grad_bias);

}  // namespace torch_ext::cpu
