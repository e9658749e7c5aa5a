#include "conv.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "core/select.h"
#include "kernels.h"
#include "ops/aten.h"
#include "ops/check.h"
#include "ops/tensors.h"

// conv and conv_backward on CUDA: check, allocate, launch on the current stream. What has no kernel here is PyTorch's.
namespace torch_ext::cuda {

using at::IntArrayRef;
using at::Tensor;
using Geometry = ConvGeometry<int64_t>;
using ops::view;

Queue current_queue() { return queue_on(c10::cuda::getCurrentCUDAStream()); }

Tensor grad_bias(const Tensor& grad_output) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  std::vector<int64_t> axes{0};
  for (int64_t axis = 2; axis < grad_output.dim(); ++axis) axes.push_back(axis);
  return at::sum(grad_output, IntArrayRef(axes));
}

namespace {

void forward(const Geometry& g, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             Tensor& output) {
  // Kernels read a bias whose numbers lie side by side.
  const Tensor dense_bias = bias && bias->defined() ? bias->contiguous() : Tensor();
  ops::dispatch(input, [&]<class T>(T*) {
    const T* numbers = dense_bias.defined() ? static_cast<const T*>(dense_bias.const_data_ptr()) : nullptr;
    ConvKernels<T>::forward(current_queue(), g, view<const T>(input), view<const T>(weight), numbers, view<T>(output));
  });
}

void grad_input(const Geometry& g, const Tensor& grad_output, const Tensor& weight, Tensor& result) {
  ops::dispatch(grad_output, [&]<class T>(T*) {
    ConvKernels<T>::grad_input(current_queue(), g, view<const T>(grad_output), view<const T>(weight), view<T>(result));
  });
}

void grad_weight(const Geometry& g, const Tensor& grad_output, const Tensor& input, Tensor& result) {
  ops::dispatch(grad_output, [&]<class T>(T*) {
    const Queue queue = current_queue();
    const auto of_output = view<const T>(grad_output), of_input = view<const T>(input);
    const auto bytes = static_cast<int64_t>(ConvKernels<T>::workspace_bytes(queue, g, of_output, of_input));
    const Tensor workspace = at::empty({bytes}, input.options().dtype(at::kByte));
    ConvKernels<T>::grad_weight(queue, g, of_output, of_input, workspace.mutable_data_ptr(), view<T>(result));
  });
}

// Of what PyTorch computes only the format is wanted.
at::TensorOptions options_for(Kernel kernel, const Tensor& like) {
  return kernel == Kernel::kAten ? like.options().device(at::kMeta) : like.options();
}

}  // namespace

Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
            IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const Geometry g = ops::check_conv<int64_t>("conv", input, weight, bias, stride, padding, dilation, groups);
  const c10::cuda::CUDAGuard device(input.device());
  const bool channels_last = ops::wants_channels_last(input, weight);
  if (ops::is_empty(g)) {
    Tensor output = ops::empty_output(input.options(), g, channels_last);
    ops::set_to_bias(output, bias);
    return output;
  }
  const Kernel kernel = select_cuda_kernel(g);
  Tensor output = ops::empty_output(options_for(kernel, input), g, channels_last);
  if (kernel != Kernel::kAten) {
    forward(g, input, weight, bias, output);
  } else {
    ops::move_into(
        output, ops::aten_conv(input, weight, bias, c10::fromIntArrayRefSlow(stride), c10::fromIntArrayRefSlow(padding),
                               c10::fromIntArrayRefSlow(dilation), groups));
  }
  return output;
}

ops::Gradients conv_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, int64_t groups, ops::Mask mask) {
  const Geometry g =
      ops::check_conv_backward<int64_t>("conv_backward", grad_output, input, weight, stride, padding, dilation, groups);
  const c10::cuda::CUDAGuard device(input.device());
  const bool empty = ops::is_empty(g);
  const Kernel kernel = empty ? Kernel::kDepthwise : select_cuda_kernel(g);
  std::array<Tensor, 3> gradients;
  if (mask[0]) gradients[0] = ops::empty_in_format_of(input, input.sym_sizes(), options_for(kernel, input));
  if (mask[1]) gradients[1] = ops::empty_in_format_of(weight, weight.sym_sizes(), options_for(kernel, weight));
  if (empty) {
    for (Tensor& gradient : gradients)
      if (gradient.defined()) gradient.zero_();
  } else if (kernel != Kernel::kAten) {
    if (mask[0]) grad_input(g, grad_output, weight, gradients[0]);
    if (mask[1]) grad_weight(g, grad_output, input, gradients[1]);
  } else if (mask[0] || mask[1]) {
    const auto computed = ops::aten_conv_backward(grad_output, input, weight, c10::fromIntArrayRefSlow(stride),
                                                  c10::fromIntArrayRefSlow(padding), c10::fromIntArrayRefSlow(dilation),
                                                  groups, {mask[0], mask[1], false});
    if (mask[0]) ops::move_into(gradients[0], std::get<0>(computed));
    if (mask[1]) ops::move_into(gradients[1], std::get<1>(computed));
  }
  if (mask[2]) gradients[2] = grad_bias(grad_output);
  return {gradients[0], gradients[1], gradients[2]};
}

std::string kernel_name(const Geometry& g, IntArrayRef padding) {
  const Kernel kernel = select_cuda_kernel(g);
  if (kernel != Kernel::kAten) return kernel == Kernel::kDepthwise ? "depthwise/cuda" : "direct/cuda";
  return ops::has_uneven_padding(padding) ? "aten::constant_pad_nd + aten::convolution" : "aten::convolution";
}

namespace {

// All passes take the same kernel.
std::string which_kernel(std::string_view op, const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                         IntArrayRef dilation, int64_t groups, std::string_view) {
  const std::string name(op);
  return kernel_name(ops::check_conv<int64_t>(name.c_str(), input, weight, bias, stride, padding, dilation, groups),
                     padding);
}

bool has_kernel(const Tensor& weight, IntArrayRef, int64_t groups) {
  if (!ops::is_served(weight.scalar_type()) || weight.dim() < 3 || weight.dim() > 5 || groups < 1) return false;
  Geometry g{};
  g.groups = groups;
  if (!detail::multiply<int64_t>(weight.size(1), groups, &g.in_channels)) return false;
  g.out_channels = weight.size(0);
  return select_cuda_kernel(g) != Kernel::kAten;
}

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("conv", conv);
  m.impl("conv_backward", conv_backward);
  m.impl("_which_kernel", which_kernel);
  m.impl("_has_kernel", has_kernel);
}

}  // namespace
}  // namespace torch_ext::cuda
