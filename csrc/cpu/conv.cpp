#include "conv.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "depthwise.h"
#include "direct.h"
#include "isa.h"
#include "ops/aten.h"
#include "ops/check.h"
#include "ops/tensors.h"

// conv and conv_backward on the CPU: check, allocate, choose a kernel, run it.
namespace torch_ext::cpu {

using at::IntArrayRef;
using at::Tensor;
using ops::Gradients;
using ops::is_empty;
using ops::Mask;
using ops::move_into;

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat16;
  }
}

namespace {

// Of what PyTorch computes only the format is wanted: on the device meta, that takes no memory.
at::TensorOptions options_for(Kernel kernel, const Tensor& like) {
  return kernel == Kernel::kAten ? like.options().device(at::kMeta) : like.options();
}

}  // namespace

Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
            IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const Geometry g = ops::check_conv<int64_t>("conv", input, weight, bias, stride, padding, dilation, groups);
  const bool channels_last = ops::wants_channels_last(input, weight);
  if (is_empty(g)) {
    Tensor output = ops::empty_output(input.options(), g, channels_last);
    ops::set_to_bias(output, bias);
    return output;
  }
  const Kernel kernel = select_kernel(g, dtype_of(input), isa(), Pass::kForward, channels_last);
  Tensor output = ops::empty_output(options_for(kernel, input), g, channels_last);
  if (kernel == Kernel::kDepthwise) {
    depthwise_forward(g, input, weight, bias, output);
  } else if (kernel == Kernel::kDirect) {
    direct_forward(g, input, weight, bias, output);
  } else {
    move_into(output, ops::aten_conv(input, weight, bias, c10::fromIntArrayRefSlow(stride),
                                     c10::fromIntArrayRefSlow(padding), c10::fromIntArrayRefSlow(dilation), groups));
  }
  return output;
}

Gradients conv_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, IntArrayRef stride,
                        IntArrayRef padding, IntArrayRef dilation, int64_t groups, Mask mask) {
  const Geometry g =
      ops::check_conv_backward<int64_t>("conv_backward", grad_output, input, weight, stride, padding, dilation, groups);
  std::array<Tensor, 3> gradients;
  if (mask[2]) gradients[2] = at::empty({g.out_channels}, input.options());
  if (is_empty(g)) {
    if (mask[0]) gradients[0] = ops::empty_in_format_of(input, input.sym_sizes());
    if (mask[1]) gradients[1] = ops::empty_in_format_of(weight, weight.sym_sizes());
    for (auto& gradient : gradients)
      if (gradient.defined()) gradient.zero_();
  }

  // Each gradient takes its own kernel; what is left to PyTorch is computed in one call.
  const bool channels_last = ops::wants_channels_last(input, weight);
  const Kernel kernels[] = {select_kernel(g, dtype_of(input), isa(), Pass::kGradInput, channels_last),
                            select_kernel(g, dtype_of(input), isa(), Pass::kGradWeight, channels_last)};
  Mask to_pytorch = {false, false, false};
  if (!is_empty(g)) {
    if (mask[0]) gradients[0] = ops::empty_in_format_of(input, input.sym_sizes(), options_for(kernels[0], input));
    if (mask[1]) gradients[1] = ops::empty_in_format_of(weight, weight.sym_sizes(), options_for(kernels[1], weight));
    const auto takes = [&](int i, Kernel kernel) { return mask[i] && kernels[i] == kernel; };
    for (int i : {0, 1}) to_pytorch[i] = takes(i, Kernel::kAten);
    if (takes(0, Kernel::kDepthwise)) depthwise_grad_input(g, grad_output, weight, gradients[0]);
    if (takes(1, Kernel::kDepthwise)) depthwise_grad_weight(g, grad_output, input, gradients[1]);
    if (takes(0, Kernel::kDirect)) direct_grad_input(g, grad_output, weight, gradients[0]);
    if (takes(1, Kernel::kDirect)) direct_grad_weight(g, grad_output, input, gradients[1]);
  }
  if (mask[2] && grad_output.numel() > 0) grad_bias(g, grad_output, gradients[2]);
  if (to_pytorch[0] || to_pytorch[1]) {
    const auto [grad_input, grad_weight, grad_bias] = ops::aten_conv_backward(
        grad_output, input, weight, c10::fromIntArrayRefSlow(stride), c10::fromIntArrayRefSlow(padding),
        c10::fromIntArrayRefSlow(dilation), groups, to_pytorch);
    if (to_pytorch[0]) move_into(gradients[0], grad_input);
    if (to_pytorch[1]) move_into(gradients[1], grad_weight);
  }
  return {gradients[0], gradients[1], gradients[2]};
}

Pass pass_of(const std::string& op, std::string_view output) {
  const bool forward = output == "forward", grad_input = output == "grad_input";
  TORCH_CHECK(forward || grad_input || output == "grad_weight", op,
              ": expected output 'forward', 'grad_input' or 'grad_weight', but got '", output, "'");
  return forward ? Pass::kForward : grad_input ? Pass::kGradInput : Pass::kGradWeight;
}

std::string kernel_name(Kernel kernel, IntArrayRef padding) {
  if (kernel == Kernel::kAten)
    return ops::has_uneven_padding(padding) ? "aten::constant_pad_nd + aten::convolution" : "aten::convolution";
  const std::string name = kernel == Kernel::kDepthwise ? "depthwise/" : "direct/";
  return name + (isa() == Isa::kScalar ? "scalar" : "avx2");
}

namespace {

std::string which_kernel(std::string_view op, const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                         IntArrayRef dilation, int64_t groups, std::string_view output) {
  const std::string name(op);
  const Geometry g = ops::check_conv<int64_t>(name.c_str(), input, weight, bias, stride, padding, dilation, groups);
  const bool channels_last = ops::wants_channels_last(input, weight);
  return kernel_name(select_kernel(g, dtype_of(input), isa(), pass_of(name, output), channels_last), padding);
}

// Whether a layer of this weight may run on a kernel of ours. Dilation: one number, or one for each axis.
bool has_kernel(const Tensor& weight, IntArrayRef dilation, int64_t groups) {
  const auto dtype = weight.scalar_type();
  if (dtype == at::kBFloat16 || dtype == at::kHalf) return true;
  if ((dtype != at::kFloat && dtype != at::kDouble) || weight.dim() < 3 || weight.dim() > 5 || groups < 1) return false;
  Geometry g{};
  g.groups = groups;
  if (!detail::multiply<int64_t>(weight.size(1), groups, &g.in_channels)) return false;
  g.out_channels = weight.size(0);
  g.dims = static_cast<int>(weight.dim()) - 2;
  g.in = g.out = g.kernel = g.dilation = g.stride = {{1, 1, 1}};
  for (int i = 0; i < g.dims; ++i) {
    g.kernel[3 - g.dims + i] = weight.size(2 + i);
    if (!dilation.empty()) g.dilation[3 - g.dims + i] = dilation[std::min<size_t>(i, dilation.size() - 1)];
  }
  return !belongs_to_pytorch(g, dtype_of(weight));
}

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("conv", conv);
  m.impl("conv_backward", conv_backward);
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeExplicitAutograd, m) {
  m.impl("_which_kernel", which_kernel);
  m.impl("_has_kernel", has_kernel);
}

}  // namespace
}  // namespace torch_ext::cpu
