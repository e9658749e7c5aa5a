#include <ATen/Context.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "conv.h"
#include "ops/check.h"
#include "ops/tensors.h"

// deform_conv and deform_conv_backward on CUDA: columns of some images or positions at a time, and PyTorch's product of
// the weight with them. Sums are in Acc<T>, and columns and their gradient not rounded to 16 bits.
namespace torch_ext::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::DeformMask;
using ops::view;
using Deform = DeformGeometry<int64_t>;

constexpr int64_t kColumnsBytes = 64 << 20;

// In T, or in the type of its sums.
template <class V, class T>
EitherView<V> either(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {view<V>(tensor), tensor.element_size() != static_cast<int64_t>(sizeof(T))};
}

// The columns of some images, or of some positions of one.
struct Part {
  Range images, positions;

  int64_t image_count() const { return images.end - images.begin; }
  int64_t position_count() const { return positions.end - positions.begin; }
};

// With so many bytes for each image besides.
template <class T, class Body>
void for_each_part(const Deform& g, int64_t bytes_of_image, const Body& body) {
  constexpr int64_t kColumnBytes = std::max(kSplits<T> * sizeof(T), sizeof(Acc<T>));
  const int64_t positions = g.positions();
  const int64_t row = (g.taps() * g.conv.in_channels + g.conv.out_channels) * kColumnBytes;
  const int64_t most = std::max<int64_t>(kColumnsBytes / row, 1);
  const int64_t fitting = std::min(most / positions, kColumnsBytes / std::max<int64_t>(bytes_of_image, 1));
  const int64_t images = std::clamp<int64_t>(fitting, 1, g.conv.batch), step = std::min(most, positions);
  for (int64_t n = 0; n < g.conv.batch; n += images)
    for (int64_t p = 0; p < positions; p += step)
      body(Part{{n, std::min(n + images, g.conv.batch)}, {p, std::min(p + step, positions)}});
}

// Kernels count channels and taps in 32 bits.
void check_counts(const char* op, const Deform& g) {
  constexpr int64_t kMost = int64_t{1} << 30;
  TORCH_CHECK(g.taps() < kMost && g.conv.in_channels < kMost, op,
              ": expected fewer than 2^30 channels and taps, but got ", g.conv.in_channels, " channels and ", g.taps(),
              " taps");
}

Tensor narrow(const Tensor& tensor, int64_t axis, Range range) {
  return tensor.narrow(axis, range.begin, range.end - range.begin);
}

// The weight as [groups, outputs of one, tap * channel].
Tensor ordered(const Tensor& weight, int64_t groups) {
  return weight.flatten(2).transpose(1, 2).flatten(1).unflatten(0, {groups, -1});
}

Tensor largest(const Tensor& tensor) {
  return at::linalg_vector_norm(tensor, std::numeric_limits<double>::infinity()).to(at::kDouble);
}

// Products of batches of matrices, in the type of the sums; divided by the scale of columns.
Tensor product(const Tensor& a, const Tensor& b, const Tensor& scale = {}) {
  if (a.element_size() > 2) return at::bmm(a, b);
  const bool sums_in_half = a.scalar_type() == at::kHalf && at::globalContext().allowFP16AccumulationCuBLAS();
  Tensor result = sums_in_half ? at::bmm(a.to(at::kFloat), b.to(at::kFloat)) : at::bmm(a, b, at::kFloat);
  return scale.defined() ? result.div_(scale) : result;
}

// Adds products to what is there, or puts them there; rounded once.
void add_product(Tensor to, const Tensor& a, const Tensor& b, const Tensor& scale, bool adds) {
  if (a.element_size() > 2) to.baddbmm_(a, b, adds ? 1 : 0, 1);
  else if (adds) to.add_(product(a, b, scale));
  else to.copy_(product(a, b, scale));
}

// The power of two that brings the largest column near to the largest number of float16, so that the smaller number of
// a split is not lost below its range. One, where that is not known.
Tensor scale_of_columns(const Tensor& input, const Tensor& mask) {
  if (input.scalar_type() != at::kHalf) return {};
  const Tensor bound = mask.defined() ? largest(input).mul(largest(mask)) : largest(input);
  return bound.log2().ceil().neg().add(15).nan_to_num(0, 0, 0).clamp(-126, 126).exp2().to(at::kFloat);
}

template <class T>
struct Call {
  const Deform& g;
  const Tensor &input, &offset, &mask;
  Tensor column_scale;  // none: one
  Queue queue = current_queue();

  DeformInputs<T> inputs(const Part& part) const {
    return {g, view<const T>(input), either<const T, T>(offset), either<const T, T>(mask), part.images, part.positions};
  }
  int64_t terms() const { return g.taps() * g.conv.in_per_group(); }
  // [groups, images * positions, splits * terms].
  Tensor make_columns(const Part& part) const {
    const int64_t rows = part.image_count() * part.position_count(), row = kSplits<T> * terms();
    Tensor columns = at::empty({g.conv.groups, rows, row}, input.options());
    const auto* factor = column_scale.defined() ? static_cast<const Acc<T>*>(column_scale.const_data_ptr()) : nullptr;
    DeformKernels<T>::make_columns(queue, inputs(part),
                                   {static_cast<T*>(columns.mutable_data_ptr()), rows * row, row, factor});
    return columns;
  }
};

template <class T>
void forward(const Deform& g, const Tensor& input, const Tensor& offset, const Tensor& weight, const Tensor& mask,
             const Tensor& bias, Tensor& output) {
  const Call<T> call{g, input, offset, mask, scale_of_columns(input, mask)};
  const Tensor factors = ordered(weight, g.conv.groups).repeat({1, 1, kSplits<T>}).unsqueeze(0);
  if (bias.defined()) ops::set_to_bias(output, bias);
  const Tensor result = output.flatten(2).unflatten(1, {g.conv.groups, -1});  // [images, groups, outputs, positions]
  for_each_part<T>(g, 0, [&](const Part& part) {
    const int64_t images = part.image_count();
    const Tensor columns = call.make_columns(part).unflatten(1, {images, -1}).permute({1, 0, 3, 2});
    const Tensor to = narrow(narrow(result, 0, part.images), 3, part.positions);
    const Tensor w = factors.expand({images, -1, -1, -1});
    // One of the two axes is the batch: the longer one, for there is a call for each of the other's.
    const int64_t axis = images < g.conv.groups ? 0 : 1;
    for (int64_t i = 0; i < to.size(axis); ++i)
      add_product(to.select(axis, i), w.select(axis, i), columns.select(axis, i), call.column_scale, bias.defined());
  });
}

// The largest sum of a gradient is below 2^62 units; no number where its terms may be infinite or no numbers.
Tensor fixed_point_scale(const Deform& g, const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
                         at::ScalarType type) {
  Tensor term = largest(grad_output).mul(largest(weight)).mul(static_cast<double>(g.conv.out_per_group()));
  if (mask.defined()) term = term.mul(largest(mask));
  // Of one pixel and channel: every sample of the image at most once, with a weight of at most one.
  const Tensor bound = term.mul(static_cast<double>(g.positions()) * static_cast<double>(g.taps()));
  const double range = type == at::kDouble ? 1022 : 126;
  const Tensor scale = bound.log2().ceil().neg().add(62).clamp(-range, range).exp2().to(type);
  return scale.add(term.to(type).mul(0));
}

template <class T, class S>
struct BackwardPass {
  const Call<T> call;
  const Tensor &grad_output, &weight;
  std::array<Tensor, 4>& gradients;
  Tensor sums = {}, scale = {};  // sums of the part's images, if not in the gradient itself

  void run() {
    const auto& [g, input, offset, mask, column_scale, queue] = call;
    const auto& [grad_input, grad_offset, grad_weight, grad_mask] = gradients;
    const bool spreads = grad_input.defined() || grad_offset.defined() || grad_mask.defined();
    const Tensor factors = spreads ? ordered(weight, g.conv.groups) : Tensor();
    DeformGradients<T, S> to{{}, either<T, T>(grad_offset), either<T, T>(grad_mask)};
    if (grad_input.defined() && !std::same_as<S, Acc<T>>)
      scale = fixed_point_scale(g, grad_output, weight, mask, ops::sum_type<T>());
    Tensor of_weight, of_images;
    if (grad_weight.defined())
      of_weight =
          at::zeros({g.conv.groups, g.conv.out_per_group(), call.terms()}, weight.options().dtype(ops::sum_type<T>()));
    const int64_t pixels = g.conv.in[0] * g.conv.in[1] * g.conv.in[2];
    const int64_t sums_of_image =
        grad_input.defined() ? g.conv.in_channels * pixels * static_cast<int64_t>(sizeof(S)) : 0;
    for_each_part<T>(g, sums_of_image, [&](const Part& part) {
      const bool begins = part.positions.begin == 0, ends = part.positions.end == g.positions();
      // [images, positions, outputs]: no copy of what is channels_last.
      if (begins) {
        of_images = Tensor();  // frees those before
        of_images = narrow(grad_output, 0, part.images).movedim(1, -1).contiguous().flatten(1, -2);
      }
      const Tensor gradient = narrow(of_images, 1, part.positions)
                                  .reshape({-1, g.conv.groups, g.conv.out_per_group()})
                                  .transpose(0, 1);  // [groups, images * positions, outputs]
      if (grad_weight.defined()) add_to_weight(of_weight, gradient.transpose(1, 2), call.make_columns(part));
      if (!spreads) return;
      if (begins && grad_input.defined()) to.sums = make_sums(part);
      const Tensor columns = product(gradient, factors);
      const auto* data = static_cast<const Acc<T>*>(columns.const_data_ptr());
      DeformKernels<T>::spread_columns(queue, call.inputs(part), {data, columns.stride(0), columns.stride(1)}, to);
      if (ends && sums.defined())
        DeformKernels<T>::round_sums(queue, g.conv, part.images, to.sums, view<T>(grad_input));
    });
    if (grad_weight.defined())
      gradients[2].flatten(2).copy_(
          of_weight.flatten(0, 1).unflatten(1, {g.taps(), g.conv.in_per_group()}).transpose(1, 2));
  }

  void add_to_weight(const Tensor& of_weight, const Tensor& gradient, const Tensor& columns) const {
    if (kSplits<T> == 1) add_product(of_weight, gradient, columns, {}, true);
    else of_weight.add_(product(gradient, columns, call.column_scale).unflatten(2, {kSplits<T>, -1}).sum(2));
  }

  // The gradient itself, set to zero, if it is of the type of the sums and has evenly spaced pixels; else numbers that
  // are rounded to it, laid out like the input, so that neighbouring threads add to neighbours.
  InputSums<T, S> make_sums(const Part& part) {
    const ConvGeometry<int64_t>& g = call.g.conv;
    Tensor& grad_input = gradients[0];
    const Tensor images = narrow(grad_input, 0, part.images), flat = images.flatten(2);
    if constexpr (std::same_as<S, T>)
      if (flat.is_alias_of(images)) {
        flat.zero_();
        return {static_cast<S*>(flat.mutable_data_ptr()), flat.stride(0), flat.stride(1), flat.stride(2), nullptr};
      }
    const int64_t pixels = flat.size(2), channels = g.in_channels;
    const bool by_pixels = call.input.stride(1) == 1;
    sums = Tensor();  // frees those of the images before
    sums = at::zeros({part.image_count() * pixels * channels * static_cast<int64_t>(sizeof(S))},
                     grad_input.options().dtype(at::kByte));
    return {static_cast<S*>(sums.mutable_data_ptr()), pixels * channels, by_pixels ? 1 : pixels,
            by_pixels ? channels : 1, scale.defined() ? static_cast<const Acc<T>*>(scale.const_data_ptr()) : nullptr};
  }
};

template <class T, class S>
void backward(const Call<T>& call, const Tensor& grad_output, const Tensor& weight, std::array<Tensor, 4>& gradients) {
  BackwardPass<T, S>{call, grad_output, weight, gradients}.run();
}

Tensor deform_conv(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  const Deform g =
      ops::check_deform<int64_t>("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
  check_counts("deform_conv", g);
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
  check_counts("deform_conv_backward", g);
  const c10::cuda::CUDAGuard device(input.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
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
      const Call<T> call{g, input, offset, modulation,
                         gradients[2].defined() ? scale_of_columns(input, modulation) : Tensor()};
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
