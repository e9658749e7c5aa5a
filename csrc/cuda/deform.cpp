#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "conv.h"
#include "ops/check.h"
#include "ops/tensors.h"

// deform_conv and deform_conv_backward on CUDA: columns of some images or positions at a time, and PyTorch's product of
// the weight with them, a batch of groups for each image.
namespace torch_ext::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::DeformMask;
using ops::view;
using Deform = DeformGeometry<int64_t>;

constexpr int64_t kColumnsBytes = 64 << 20;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// In T, or in the type of its sums.
template <class V, class T>
EitherView<V> either(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {view<V>(tensor), tensor.element_size() != static_cast<int64_t>(sizeof(T))};
}

// Columns [group][image][position][tap * channel] of some images and positions, whole images if one fits.
struct Part {
  Range images, positions;

  int64_t rows() const { return (images.end - images.begin) * (positions.end - positions.begin); }
};

template <class Body>
void for_each_part(const Deform& g, int64_t element_bytes, const Body& body) {
  const int64_t positions = g.positions(), row = g.taps() * g.conv.in_channels * element_bytes;
  const int64_t most = std::max<int64_t>(kColumnsBytes / row, 1);
  const int64_t images = std::clamp<int64_t>(most / positions, 1, g.conv.batch), step = std::min(most, positions);
  for (int64_t n = 0; n < g.conv.batch; n += images)
    for (int64_t p = 0; p < positions; p += step)
      body(Part{{n, std::min(n + images, g.conv.batch)}, {p, std::min(p + step, positions)}});
}

// [N, C, *] as [images, groups, channels of one, positions], a view where the layout allows it.
Tensor part_of(const Tensor& tensor, const Part& part, int64_t groups) {
  return tensor.flatten(2)
      .unflatten(1, {groups, -1})
      .narrow(0, part.images.begin, part.images.end - part.images.begin)
      .narrow(3, part.positions.begin, part.positions.end - part.positions.begin);
}

// The weight as [groups, outputs of one, tap * channel].
Tensor ordered(const Tensor& weight, int64_t groups) {
  return weight.flatten(2).transpose(1, 2).flatten(1).unflatten(0, {groups, -1});
}

template <class T>
struct Call {
  const Deform& g;
  const Tensor &input, &offset, &mask;
  Queue queue = current_queue();

  DeformInputs<T> inputs(const Part& part) const {
    return {g, view<const T>(input), either<const T, T>(offset), either<const T, T>(mask), part.images, part.positions};
  }
  int64_t terms() const { return g.taps() * g.conv.in_per_group(); }
  Columns<T> view_of(const Tensor& columns, const Part& part) const {
    return {static_cast<T*>(columns.mutable_data_ptr()), part.rows() * terms(), terms()};
  }
  // [groups, images, positions, terms].
  Tensor columns(const Part& part) const {
    return at::empty(
        {g.conv.groups, part.images.end - part.images.begin, part.positions.end - part.positions.begin, terms()},
        input.options());
  }
  Tensor make_columns(const Part& part) const {
    Tensor result = columns(part);
    DeformKernels<T>::make_columns(queue, inputs(part), view_of(result, part));
    return result;
  }
};

template <class T>
void forward(const Deform& g, const Tensor& input, const Tensor& offset, const Tensor& weight, const Tensor& mask,
             const Tensor& bias, Tensor& output) {
  const Call<T> call{g, input, offset, mask};
  const Tensor factors = ordered(weight, g.conv.groups);
  if (bias.defined()) ops::set_to_bias(output, bias);
  for_each_part(g, sizeof(T), [&](const Part& part) {
    const Tensor columns = call.make_columns(part);
    Tensor target = part_of(output, part, g.conv.groups);
    for (int64_t group = 0; group < g.conv.groups; ++group) {
      // [images, outputs, positions]; the product adds to the bias before it is rounded.
      Tensor to = target.select(1, group);
      const Tensor w = factors[group].expand({to.size(0), -1, -1}), c = columns[group].transpose(1, 2);
      to.baddbmm_(w, c, bias.defined() ? 1 : 0, 1);
    }
  });
}

// The largest sum of a gradient is below 2^62 of these; no number where that sum may be infinite or no number.
Tensor fixed_point_scale(const Deform& g, const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
                         at::ScalarType type) {
  const auto largest = [&](const Tensor& tensor) { return tensor.abs().amax().to(at::kDouble); };
  // Of one pixel and channel: every sample of the image at most once, with a weight of at most one.
  const double terms = static_cast<double>(g.positions()) * static_cast<double>(g.taps() * g.conv.out_per_group());
  Tensor bound = largest(grad_output).mul(largest(weight)).mul(terms);
  if (mask.defined()) bound = bound.mul(largest(mask));
  bound = bound.to(type);
  return bound.log2().ceil().neg().add(62).clamp(-126, 126).exp2().add(bound.sub(bound));
}

template <class T, class S>
struct BackwardPass {
  const Call<T> call;
  const Tensor &grad_output, &weight;
  std::array<Tensor, 4>& gradients;

  void run() {
    const auto& [g, input, offset, mask, queue] = call;
    const auto& [grad_input, grad_offset, grad_weight, grad_mask] = gradients;
    const int64_t channels = g.conv.in_channels, pixels = g.conv.in[0] * g.conv.in[1] * g.conv.in[2];
    const at::ScalarType sums_type = std::same_as<S, Acc<T>> ? ops::sum_type<T>() : at::kLong;
    const bool spreads = grad_input.defined() || grad_offset.defined() || grad_mask.defined();
    const Tensor factors = spreads ? ordered(weight, g.conv.groups) : Tensor();
    Tensor sums, scale, of_weight;
    DeformGradients<T, S> to{{}, either<T, T>(grad_offset), either<T, T>(grad_mask)};
    if (grad_input.defined()) {
      sums = at::zeros({g.conv.batch, pixels, channels}, input.options().dtype(sums_type));
      if (!std::same_as<S, Acc<T>>) scale = fixed_point_scale(g, grad_output, weight, mask, ops::sum_type<T>());
      to.sums = {static_cast<S*>(sums.mutable_data_ptr()), pixels * channels, 1, channels,
                 scale.defined() ? static_cast<const Acc<T>*>(scale.const_data_ptr()) : nullptr};
    }
    if (grad_weight.defined())
      of_weight =
          at::zeros({g.conv.groups, g.conv.out_per_group(), call.terms()}, weight.options().dtype(ops::sum_type<T>()));
    for_each_part(g, sizeof(T), [&](const Part& part) {
      const Tensor gradient = part_of(grad_output, part, g.conv.groups);
      if (grad_weight.defined()) {
        const Tensor columns = call.make_columns(part);
        for (int64_t group = 0; group < g.conv.groups; ++group)
          of_weight[group].add_(gradient.select(1, group).matmul(columns[group]).sum(0, false, ops::sum_type<T>()));
      }
      if (!spreads) return;
      const Tensor columns = call.columns(part);
      for (int64_t group = 0; group < g.conv.groups; ++group) {
        const Tensor d = gradient.select(1, group).transpose(1, 2);
        columns[group].copy_(d.matmul(factors[group]));
      }
      if (scale.defined()) scale.masked_fill_(columns.isfinite().all().logical_not(), kNone);
      DeformKernels<T>::spread_columns(queue, call.inputs(part), as_const(call.view_of(columns, part)), to);
    });
    if (grad_input.defined())
      DeformKernels<T>::round_sums(queue, g.conv, {0, g.conv.batch}, to.sums, view<T>(grad_input));
    if (grad_weight.defined())
      gradients[2].flatten(2).copy_(
          of_weight.flatten(0, 1).unflatten(1, {g.taps(), g.conv.in_per_group()}).transpose(1, 2));
  }

  static Columns<const T> as_const(const Columns<T>& columns) { return {columns.data, columns.group, columns.row}; }
};

template <class T, class S>
void backward(const Call<T>& call, const Tensor& grad_output, const Tensor& weight, std::array<Tensor, 4>& gradients) {
  BackwardPass<T, S>{call, grad_output, weight, gradients}.run();
}

Tensor deform_conv(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  const Deform g =
      ops::check_deform<int64_t>("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
  const c10::cuda::CUDAGuard device(input.device());
  Tensor output = ops::empty_output(input.options(), g.conv, ops::wants_channels_last(input, weight));
  if (ops::is_empty(g.conv)) {
    ops::set_to_bias(output, bias);
    return output;
  }
  ops::dispatch(input, [&]<class T>(T*) {
    forward<T>(g, input, offset, weight, mask.value_or(Tensor()), bias.value_or(Tensor()), output);
  });
  return output;
}

ops::DeformGradients deform_conv_backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                          const Tensor& weight, const std::optional<Tensor>& mask, IntArrayRef stride,
                                          IntArrayRef padding, IntArrayRef dilation, DeformMask output_mask) {
  const Deform g = ops::check_deform_backward<int64_t>("deform_conv_backward", grad_output, input, offset, weight, mask,
                                                       stride, padding, dilation);
  const c10::cuda::CUDAGuard device(input.device());
  const Tensor modulation = mask.value_or(Tensor());
  std::array<Tensor, 4> gradients;
  const std::array<const Tensor*, 4> tensors{&input, &offset, &weight, &modulation};
  bool wanted = false;
  for (int i = 0; i < 4; ++i) {
    if (!output_mask[i] || !tensors[i]->defined()) continue;
    gradients[i] = ops::empty_in_format_of(*tensors[i], tensors[i]->sym_sizes());
    if (ops::is_empty(g.conv)) gradients[i].zero_();
    wanted = true;
  }
  if (wanted && !ops::is_empty(g.conv))
    ops::dispatch(input, [&]<class T>(T*) {
      const Call<T> call{g, input, offset, modulation};
      if (at::globalContext().deterministicAlgorithms()) backward<T, FixedPoint>(call, grad_output, weight, gradients);
      else backward<T, Acc<T>>(call, grad_output, weight, gradients);
    });
  const Tensor to_bias = output_mask[4] ? grad_bias(grad_output) : Tensor();
  return {gradients[0], gradients[1], gradients[2], gradients[3], to_bias};
}

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  m.impl("deform_conv", deform_conv);
  m.impl("deform_conv_backward", deform_conv_backward);
}

}  // namespace
}  // namespace torch_ext::cuda
