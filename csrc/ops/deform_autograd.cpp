#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scatter_add.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "call.h"
#include "check.h"
#include "node.h"

// Derivatives of deform_conv. The first ones are deform_conv_backward's. Higher orders and forward mode take both ops
// as compositions of PyTorch's own, which know their derivatives: slower, but of any order.
namespace torch_ext::ops {
namespace {

using at::Tensor;
using c10::SymInt;
using torch::autograd::variable_list;

// Names as in core/sampling.h; sizes are N, offset groups G, channels C / G, taps T and positions P.
class Composition {
 public:
  Composition(const DeformGeometry<SymInt>& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
              const std::optional<Tensor>& mask)
      : g_(g),
        dims_(g_.conv.dims),
        type_(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        input_(input),
        offset_(offset),
        weight_(weight) {
    const SymInt n = g_.conv.batch, groups = g_.offset_groups, taps = g_.taps(), positions = g_.positions();
    pixels_ = g_.conv.in[0] * g_.conv.in[1] * g_.conv.in[2];
    is_empty_ = pixels_ == 0;
    if (mask && mask->defined()) mask_ = *mask;
    const Tensor offsets = offset.to(type_).reshape_symint({n, groups, taps, dims_, positions});
    std::vector<Tensor> low;
    for (int a = 0; a < dims_; ++a) {
      constexpr double kFar = 0x1p40;
      const Tensor offset = offsets.select(3, a), value = offset.detach();
      const Tensor own = value.isnan(), near = value.abs().lt(kFar);
      nan_ = nan_.defined() ? nan_.logical_or(own) : own;
      const Tensor none = at::zeros({}, value.options());
      const Tensor floor = at::where(near, value.floor(), none);
      low.push_back(floor.to(at::kLong) + base(a));
      fraction_.push_back(offset - floor);
      const Tensor met = near.logical_and(low[a].ge(-1)).logical_and(low[a].lt(size(a)));
      met_ = met_.defined() ? met_.logical_and(met) : met;
    }
    for (int a = 0; a < dims_; ++a) fraction_[a] = at::where(met_, fraction_[a], at::zeros({}, fraction_[a].options()));
    for (int k = 0; k < corners(); ++k) {
      Tensor exists = met_, pixel;
      for (int a = 0; a < dims_; ++a) {
        const Tensor i = low[a] + (is_high(k, a) ? 1 : 0);
        exists = exists.logical_and(i.ge(0)).logical_and(i.lt(size(a)));
        pixel = pixel.defined() ? pixel * size(a) + i : i;
      }
      exists_.push_back(exists);
      pixel_.push_back(at::where(exists, pixel, at::zeros({}, pixel.options()))
                           .reshape_symint({n, groups, 1, taps * positions})
                           .expand_symint({n, groups, channels(), taps * positions}));
    }
  }

  Tensor forward(const Tensor& bias) const {
    std::vector<SymInt> sizes{g_.conv.batch, g_.conv.out_channels};
    for (int axis = 3 - dims_; axis < 3; ++axis) sizes.push_back(g_.conv.out[axis]);
    Tensor output = at::matmul(matrix(), columns(value(corner_values()))).reshape_symint(sizes);
    if (bias.defined()) {
      std::vector<int64_t> per_channel(dims_ + 1, 1);
      per_channel[0] = -1;
      output = output + bias.to(type_).view(per_channel);
    }
    return output.to(input_.scalar_type());
  }

  DeformGradients backward(const Tensor& grad_output, DeformMask wanted) const {
    const SymInt n = g_.conv.batch, groups = g_.conv.groups, positions = g_.positions();
    const Tensor gradient = grad_output.to(type_).reshape_symint({n, groups, g_.conv.out_channels / groups, positions});
    const auto corner = corner_values();
    const Tensor grad_columns = at::matmul(matrix().transpose(-1, -2), gradient)
                                    .reshape_symint({n, g_.offset_groups, channels(), g_.taps(), positions});
    const Tensor grad_value = mask_.defined() ? grad_columns * factor() : grad_columns;

    DeformGradients result;
    if (wanted[0]) {
      Tensor sum =
          at::zeros_symint({n, g_.offset_groups, channels(), is_empty_ ? SymInt(1) : pixels_}, grad_columns.options());
      for (int k = 0; k < corners(); ++k) {
        const Tensor term = grad_value * corner_weight(k).unsqueeze(2);
        const Tensor existing = at::where(exists_[k].unsqueeze(2), term, at::zeros({}, term.options()));
        sum = at::scatter_add(sum, 3, pixel_[k], existing.flatten(3));
      }
      if (is_empty_) sum = sum.narrow(3, 0, 0);
      std::get<0>(result) = sum.reshape_symint(input_.sym_sizes()).to(input_.scalar_type());
    }
    if (wanted[1]) {
      std::vector<Tensor> per_axis(dims_);
      for (int k = 0; k < corners(); ++k) {
        const Tensor dot = (grad_value * corner[k]).sum(2);
        for (int a = 0; a < dims_; ++a) {
          const Tensor term = dot * at::where(exists_[k], slope(k, a), at::zeros({}, dot.options()));
          per_axis[a] = per_axis[a].defined() ? per_axis[a] + term : term;
        }
      }
      const Tensor stacked = at::where(nan_.unsqueeze(3), nan(), at::stack(per_axis, 3));
      std::get<1>(result) = stacked.reshape_symint(offset_.sym_sizes()).to(offset_.scalar_type());
    }
    const Tensor values = value(corner);
    if (wanted[2])
      std::get<2>(result) = at::matmul(gradient, columns(values).transpose(-1, -2))
                                .sum(0)
                                .reshape_symint(weight_.sym_sizes())
                                .to(weight_.scalar_type());
    if (wanted[3] && mask_.defined())
      std::get<3>(result) = (grad_columns * values).sum(2).reshape_symint(mask_.sym_sizes()).to(mask_.scalar_type());
    if (wanted[4]) std::get<4>(result) = gradient.sum(at::IntArrayRef{0, 3}).flatten().to(input_.scalar_type());
    return result;
  }

 private:
  int corners() const { return 1 << dims_; }
  bool is_high(int corner, int axis) const { return (corner >> (dims_ - 1 - axis) & 1) != 0; }
  SymInt size(int axis) const { return g_.conv.in[3 - dims_ + axis]; }
  SymInt channels() const { return g_.conv.in_channels / g_.offset_groups; }
  Tensor nan() const { return at::full({}, std::numeric_limits<double>::quiet_NaN(), input_.options().dtype(type_)); }

  // The coordinates without offsets, [T, P]: whole numbers.
  Tensor base(int axis) const {
    const auto options = input_.options().dtype(at::kLong);
    const int a = 3 - dims_ + axis;
    std::vector<SymInt> all, taps(2 * dims_, 1), outs(2 * dims_, 1);
    for (int i = 3 - dims_; i < 3; ++i) all.push_back(g_.conv.kernel[i]);
    for (int i = 3 - dims_; i < 3; ++i) all.push_back(g_.conv.out[i]);
    taps[axis] = outs[dims_ + axis] = -1;
    const Tensor tap = at::arange(g_.conv.kernel[a], options) * g_.conv.dilation[a] - g_.conv.pad_before[a];
    const Tensor out = at::arange(g_.conv.out[a], options) * g_.conv.stride[a];
    return (tap.reshape_symint(taps) + out.reshape_symint(outs))
        .expand_symint(all)
        .reshape_symint({g_.taps(), g_.positions()});
  }

  Tensor corner_weight(int k) const {
    Tensor product;
    for (int a = 0; a < dims_; ++a) {
      const Tensor factor = is_high(k, a) ? fraction_[a] : 1 - fraction_[a];
      product = product.defined() ? product * factor : factor;
    }
    return at::where(exists_[k], product, at::zeros({}, product.options()));
  }
  Tensor slope(int k, int axis) const {
    Tensor product = at::full({}, is_high(k, axis) ? 1. : -1., fraction_[0].options());
    for (int a = 0; a < dims_; ++a)
      if (a != axis) product = product * (is_high(k, a) ? fraction_[a] : 1 - fraction_[a]);
    return product;
  }

  // Each corner's inputs, [N, G, C / G, T, P].
  std::vector<Tensor> corner_values() const {
    const SymInt n = g_.conv.batch, groups = g_.offset_groups;
    const Tensor images = is_empty_ ? at::zeros_symint({n, groups, channels(), 1}, input_.options().dtype(type_))
                                    : input_.to(type_).reshape_symint({n, groups, channels(), pixels_});
    std::vector<Tensor> values;
    for (int k = 0; k < corners(); ++k) {
      const Tensor read =
          at::gather(images, 3, pixel_[k]).reshape_symint({n, groups, channels(), g_.taps(), g_.positions()});
      values.push_back(at::where(exists_[k].unsqueeze(2), read, at::zeros({}, read.options())));
    }
    return values;
  }
  Tensor value(const std::vector<Tensor>& corner) const {
    Tensor sum;
    for (int k = 0; k < corners(); ++k) {
      const Tensor term = corner_weight(k).unsqueeze(2) * corner[k];
      sum = sum.defined() ? sum + term : term;
    }
    return at::where(nan_.unsqueeze(2), nan(), sum);
  }
  Tensor factor() const {
    return mask_.to(type_).reshape_symint({g_.conv.batch, g_.offset_groups, 1, g_.taps(), g_.positions()});
  }
  // [N, groups, terms, P], and the weight as [groups, outputs, terms].
  Tensor columns(const Tensor& value) const {
    const Tensor all = mask_.defined() ? value * factor() : value;
    return all.reshape_symint({g_.conv.batch, g_.conv.groups, g_.conv.in_per_group() * g_.taps(), g_.positions()});
  }
  Tensor matrix() const {
    const SymInt groups = g_.conv.groups;
    return weight_.to(type_).reshape_symint(
        {groups, g_.conv.out_channels / groups, g_.conv.in_per_group() * g_.taps()});
  }

  const DeformGeometry<SymInt> g_;
  const int dims_;
  const at::ScalarType type_;  // that of coordinates and sums
  const Tensor input_, offset_, weight_;
  Tensor mask_;
  SymInt pixels_;
  bool is_empty_;                          // the image: then one pixel of zero stands for it
  Tensor met_, nan_;                       // [N, G, T, P], as all below but for pixel
  std::vector<Tensor> fraction_, exists_;  // of axes, of corners
  std::vector<Tensor> pixel_;              // of corners, [N, G, C / G, T * P]
};

struct DeformDerivative {
  static constexpr const char* name = "torch_ext::DeformConvBackward";

  static variable_list gradients(const variable_list& grads, const variable_list& saved, const Numbers& numbers,
                                 const std::vector<bool>& wanted) {
    if (!grads[0].defined()) return variable_list(5);
    DeformMask mask;
    std::copy_n(wanted.begin(), mask.size(), mask.begin());
    const auto modulation = saved.size() > 3 ? std::optional(saved[3]) : std::nullopt;
    const auto [x, o, w, m, b] = deform_conv_backward(grads[0], saved[0], saved[1], saved[2], modulation,
                                                      numbers.stride, numbers.padding, numbers.dilation, mask);
    return {x, o, w, m, b};
  }
};

// A result in the format that the ops give; by moving axes, since vmap knows no copy in another memory format.
Tensor in_format(const Tensor& tensor, bool channels_last) {
  return channels_last ? tensor.movedim(1, -1).contiguous().movedim(-1, 1) : tensor.contiguous();
}

Tensor deform_conv_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& offset, const Tensor& weight,
                            const std::optional<Tensor>& mask, const std::optional<Tensor>& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), 1};
  const Tensor modulation = mask.value_or(Tensor());
  const variable_list tensors{input, offset, weight, modulation, bias.value_or(Tensor())};
  if (has_tangent(tensors)) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto g = check_deform<SymInt>("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
    const Tensor output = Composition(g, input, offset, weight, mask).forward(tensors[4]);
    return in_format(output, wants_channels_last(input, weight));
  }
  const auto node = record<DeformDerivative>(numbers, tensors, modulation.defined() ? 4 : 3);
  Tensor output = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return deform_conv_redispatch(keys & c10::after_autograd_keyset, input, offset, weight, mask, bias, stride, padding,
                                  dilation);
  }();
  if (node) torch::autograd::set_history(output, node);
  return output;
}

DeformGradients deform_conv_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                              const Tensor& offset, const Tensor& weight,
                                              const std::optional<Tensor>& mask, c10::SymIntArrayRef stride,
                                              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                              DeformMask output_mask) {
  const variable_list tensors{grad_output, input, offset, weight, mask.value_or(Tensor())};
  if (torch::autograd::compute_requires_grad(tensors) || has_tangent(tensors)) {
    const auto g = check_deform_backward<SymInt>("deform_conv_backward", grad_output, input, offset, weight, mask,
                                                 stride, padding, dilation);
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    auto [x, o, w, m, b] = Composition(g, input, offset, weight, mask).backward(grad_output, output_mask);
    const auto like = [](const Tensor& gradient, const Tensor& tensor) {
      return gradient.defined() ? in_format(gradient, has_channels_last(tensor)) : gradient;
    };
    return {like(x, input), like(o, offset), like(w, weight), like(m, tensors[4]), b};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return deform_conv_backward_redispatch(keys & c10::after_autograd_keyset, grad_output, input, offset, weight, mask,
                                         stride, padding, dilation, output_mask);
}

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  m.impl("deform_conv", deform_conv_autograd);
  m.impl("deform_conv_backward", deform_conv_backward_autograd);
}

}  // namespace
}  // namespace torch_ext::ops
