#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "conv.h"
#include "ops/check.h"
#include "ops/tensors.h"

// separable_conv and separable_conv_backward on CUDA: two convolutions one after the other. What lies between them is
// not kept for backward, but computed again.
namespace torch_ext::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::SeparableGradients;
using ops::SeparableMask;

// The numbers of a pointwise convolution.
struct Ones {
  explicit Ones(int dims) : stride(dims, 1), padding(2 * dims, 0) {}

  std::vector<int64_t> stride, padding;  // dilation: as stride
};

Tensor separable_conv(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation) {
  const auto g = ops::check_separable<int64_t>("separable_conv", input, depthwise_weight, pointwise_weight, bias,
                                               stride, padding, dilation);
  const c10::cuda::CUDAGuard device(input.device());
  const Ones ones(g.depthwise.dims);
  const Tensor hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups);
  Tensor output = ops::empty_output(input.options().device(at::kMeta), g.pointwise,
                                    ops::wants_channels_last(input, depthwise_weight, pointwise_weight));
  ops::move_into(output, conv(hidden, pointwise_weight, bias, ones.stride, ones.padding, ones.stride, 1));
  return output;
}

SeparableGradients separable_conv_backward(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                           SeparableMask mask) {
  const auto g = ops::check_separable_backward<int64_t>("separable_conv_backward", grad_output, input, depthwise_weight,
                                                        pointwise_weight, stride, padding, dilation);
  const c10::cuda::CUDAGuard device(input.device());
  const Ones ones(g.depthwise.dims);
  const int64_t groups = g.depthwise.groups;
  // Of a weight that needs no gradient, only the size and format of what it meets is used.
  Tensor hidden;
  if (mask[2]) hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, groups);
  else hidden = ops::empty_output(input.options(), g.depthwise, ops::wants_channels_last(input, depthwise_weight));
  const auto [grad_hidden, grad_pointwise, grad_bias] =
      conv_backward(grad_output, hidden, pointwise_weight, ones.stride, ones.padding, ones.stride, 1,
                    {mask[0] || mask[1], mask[2], mask[3]});
  Tensor grad_input, grad_depthwise;
  if (mask[0] || mask[1])
    std::tie(grad_input, grad_depthwise, std::ignore) = conv_backward(
        grad_hidden, input, depthwise_weight, stride, padding, dilation, groups, {mask[0], mask[1], false});
  return {grad_input, grad_depthwise, grad_pointwise, grad_bias};
}

std::string which_kernel(std::string_view op, const Tensor& input, const Tensor& depthwise_weight,
                         const Tensor& pointwise_weight, const std::optional<Tensor>& bias, IntArrayRef stride,
                         IntArrayRef padding, IntArrayRef dilation, std::string_view) {
  const std::string name(op);
  const auto g = ops::check_separable<int64_t>(name.c_str(), input, depthwise_weight, pointwise_weight, bias, stride,
                                               padding, dilation);
  return kernel_name(g.depthwise, padding) + " + " + kernel_name(g.pointwise, {});
}

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("_which_separable_kernel", which_kernel);
  m.impl("separable_conv", separable_conv);
  m.impl("separable_conv_backward", separable_conv_backward);
}

}  // namespace
}  // namespace torch_ext::cuda
