#include "aten.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>

#include "check.h"

namespace torch_ext::ops {
namespace {

using SymInts = c10::SmallVector<c10::SymInt, 6>;

// Padding that is the same on both sides, and what has to be added to the input for that.
struct SplitPadding {
  SymInts symmetric;  // n numbers
  SymInts excess;     // 2n numbers in constant_pad_nd's order: last axis first
  bool has_excess = false;
};

SplitPadding split(c10::SymIntArrayRef padding) {
  SplitPadding result;
  for (size_t i = 0; i < padding.size(); i += 2) {
    const auto& before = padding[i];
    const auto& after = padding[i + 1];
    const c10::SymInt both = before.min(after);
    result.symmetric.push_back(both);
    result.excess.insert(result.excess.begin(), {before - both, after - both});
    // Symbolic sides count as different: to ask would tie a compiled graph to the answer.
    result.has_excess |= before.is_symbolic() || after.is_symbolic() || before != after;
  }
  return result;
}

// PyTorch's 1-D convolutions lose channels_last, which the same in 2-D, of height 1, keep.
bool is_better_in_2d(const at::Tensor& input, const at::Tensor& weight) {
  return input.dim() == 3 && wants_channels_last(input, weight);
}

SymInts with_height(c10::SymIntArrayRef list, std::initializer_list<c10::SymInt> of_height) {
  SymInts result(of_height);
  result.append(list.begin(), list.end());
  return result;
}

}  // namespace

bool has_uneven_padding(at::IntArrayRef padding) { return split(c10::fromIntArrayRefSlow(padding)).has_excess; }

at::Tensor aten_conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                     c10::SymInt groups) {
  if (is_better_in_2d(input, weight))
    return aten_conv(input.unsqueeze(2), weight.unsqueeze(2), bias, with_height(stride, {1}),
                     with_height(padding, {0, 0}), with_height(dilation, {1}), std::move(groups))
        .squeeze(2);
  const SplitPadding pads = split(padding);
  const auto padded = pads.has_excess ? at::constant_pad_nd_symint(input, pads.excess) : input;
  const SymInts no_output_padding(stride.size(), 0);
  return at::convolution_symint(padded, weight, bias, stride, pads.symmetric, dilation, /*transposed=*/false,
                                no_output_padding, std::move(groups));
}

Gradients aten_conv_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                             c10::SymInt groups, Mask output_mask) {
  if (is_better_in_2d(input, weight)) {
    auto gradients =
        aten_conv_backward(grad_output.unsqueeze(2), input.unsqueeze(2), weight.unsqueeze(2), with_height(stride, {1}),
                           with_height(padding, {0, 0}), with_height(dilation, {1}), std::move(groups), output_mask);
    for (auto* gradient : {&std::get<0>(gradients), &std::get<1>(gradients)})
      if (gradient->defined()) *gradient = gradient->squeeze(2);
    return gradients;
  }
  const SplitPadding pads = split(padding);
  const auto padded = pads.has_excess ? at::constant_pad_nd_symint(input, pads.excess) : input;
  const SymInts no_output_padding(stride.size(), 0);
  const c10::SymInt bias_sizes[] = {weight.sym_size(0)};
  auto gradients = at::convolution_backward_symint(grad_output, padded, weight, c10::SymIntArrayRef(bias_sizes), stride,
                                                   pads.symmetric, dilation, /*transposed=*/false, no_output_padding,
                                                   std::move(groups), output_mask);
  auto& grad_input = std::get<0>(gradients);
  if (pads.has_excess && grad_input.defined()) {
    for (int64_t axis = 2; axis < input.dim(); ++axis) {
      const auto& before = pads.excess[2 * (input.dim() - 1 - axis)];
      grad_input = grad_input.narrow_symint(axis, before, input.sym_size(axis));
    }
  }
  return gradients;
}

}  // namespace torch_ext::ops
