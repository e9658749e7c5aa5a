#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "conv.h"
#include "depthwise.h"
#include "direct.h"
#include "isa.h"
#include "kernels/separable.h"
#include "launch.h"
#include "ops/aten.h"
#include "ops/call.h"
#include "ops/check.h"

// separable_conv and separable_conv_backward on the CPU. Forward goes by strips (kernels/separable.h), or in two steps,
// as backward does, with some images at a time: what lies between the steps stays in a cache, and takes no more memory
// than that. It is not kept, but computed again in backward.
namespace torch_ext::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::SeparableGradients;
using ops::SeparableMask;
using Separable = ops::SeparableGeometry<int64_t>;

// Of what lies between the steps. PyTorch's pointwise convolution prepares its weight in each call, and its results are
// copied if there are several: that is only to bound memory.
constexpr int64_t kChunkBytes = 2 << 20, kPytorchChunkBytes = 64 << 20;

// Images first, ..., first + count - 1.
struct Chunk {
  int64_t first, count;
  Separable g;

  Tensor of(const Tensor& tensor) const { return tensor.narrow(0, first, count); }
};

int64_t positions(const Separable& g) { return g.pointwise.in[0] * g.pointwise.in[1] * g.pointwise.in[2]; }

int64_t chunk_count(const Separable& g, int64_t element_bytes, int64_t chunk_bytes) {
  const int64_t image = g.pointwise.in_channels * positions(g) * element_bytes;
  return ceil_div(g.pointwise.batch, std::clamp<int64_t>(chunk_bytes / image, 1, g.pointwise.batch));
}

template <class Body>
void for_each_chunk(const Separable& g, int64_t chunks, const Body& body) {
  for (int64_t i = 0; i < chunks; ++i) {
    const Range images = part(g.pointwise.batch, chunks, i);
    Chunk chunk{images.begin, size(images), g};
    chunk.g.depthwise.batch = chunk.g.pointwise.batch = chunk.count;
    body(chunk);
  }
}

// Whether the depthwise kernels serve the first step, in all passes. Else the two ops run one after the other.
bool has_depthwise_step(const Separable& g, DType dtype) {
  for (const Pass pass : {Pass::kForward, Pass::kGradInput, Pass::kGradWeight})
    if (select_kernel(g.depthwise, dtype, isa(), pass) != Kernel::kDepthwise) return false;
  return true;
}

// The same in all passes.
bool has_direct_step(const Separable& g, DType dtype) {
  return select_kernel(g.pointwise, dtype, isa(), Pass::kForward) == Kernel::kDirect;
}

// The numbers of the pointwise step.
struct Ones {
  explicit Ones(IntArrayRef stride) : stride(stride.size(), 1), padding(2 * stride.size(), 0) {}
  const std::vector<int64_t> stride, padding;
};

c10::SymIntArrayRef symbolic(IntArrayRef list) { return c10::fromIntArrayRefSlow(list); }

// A weight gradient that chunks add to, in their order, in the type of the sums.
class GradWeight {
 public:
  GradWeight(Tensor& result, int64_t chunks) : result_(result), chunks_(chunks) {}

  template <class Compute>
  void add(const Compute& compute) {
    if (chunks_ == 1) return compute(result_);
    const auto wide = result_.options().dtype(result_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    Tensor term = at::empty(result_.sizes(), wide);
    compute(term);
    if (!total_.defined()) total_ = at::zeros(result_.sizes(), result_.options().dtype(at::kDouble));
    total_.add_(term);
  }

  void finish() {
    if (total_.defined()) result_.copy_(total_);
  }

 private:
  Tensor& result_;
  const int64_t chunks_;
  Tensor total_;
};

// Forward, by strips. False, and nothing done, where chunks are better.
bool forward_by_strips(const Separable& g, const Tensor& input, const Tensor& depthwise_weight,
                       const Tensor& pointwise_weight, const Tensor& bias, bool channels_last, const Tensor& output) {
  bool done = false;
  dispatch(input, [&]<class T>(T*) {
    using A = Acc<T>;
    const auto from = view<const T>(input);
    const auto plan = plan_separable<T>(g.depthwise, g.pointwise, layout(from), channels_last);
    if (!plan) return;
    done = true;
    const int64_t image = positions(g) * g.pointwise.out_channels;
    const auto [channel, column] = plan->output();
    const View<T> to{static_cast<T*>(output.mutable_data_ptr()), image, channel, {{0, 0, column}}};
    const auto& kernels = table().of<T>();
    SeparableWeights<T> weights{};
    weights.bias = bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr;

    const auto pixels = plan_strip_pixels<T>(*plan, strip_positions(plan->strip_box(0)));
    const int64_t first = ceil_div(plan->depthwise.weight_size(), 16) * 16;
    auto* const packed =
        static_cast<A*>(Scratch::of_this_call().reserve((first + (pixels ? pixels->weight_size() : 0)) * sizeof(A)));
    kernels.depthwise.pack_weight(plan->depthwise, view<const T>(depthwise_weight), packed);
    weights.depthwise = packed;
    Tensor storage;
    if (pixels) {
      weights.pointwise_panels = packed + first;
      kernels.direct.pack_panels(*pixels, view<const T>(pointwise_weight), weights.bias, packed + first,
                                 {0, pixels->panels()});
    } else {
      weights.pointwise = wide_weight<T>(g.pointwise, pointwise_weight, &storage);
    }
    at::parallel_for(0, plan->strips(), 1, [&](int64_t begin, int64_t end) {
      SeparableStrips<T> strips(*plan, kernels, from, weights, to);
      for (int64_t strip = begin; strip < end; ++strip)
        strips.strip(strip, [](int64_t numbers) {
          return static_cast<A*>(Scratch::of_this_thread().reserve(numbers * sizeof(A)));
        });
    });
  });
  return done;
}

// Whether it would be done.
bool goes_by_strips(const Separable& g, const Tensor& input, bool channels_last) {
  bool result = false;
  dispatch(input, [&]<class T>(T*) {
    const Layout from{stride_of(input, 1), stride_of(input, -1)};  // a meta tensor has no view
    result = plan_separable<T>(g.depthwise, g.pointwise, from, channels_last).has_value();
  });
  return result;
}

bool is_empty(const Separable& g) { return cpu::is_empty(g.depthwise) || cpu::is_empty(g.pointwise); }

Tensor separable_conv(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation) {
  const Separable g = ops::check_separable<int64_t>("separable_conv", input, depthwise_weight, pointwise_weight, bias,
                                                    stride, padding, dilation);
  const DType dtype = dtype_of(input);
  const Ones ones(stride);
  if (is_empty(g) || !has_depthwise_step(g, dtype)) {
    const Tensor hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups);
    return conv(hidden, pointwise_weight, bias, ones.stride, ones.padding, ones.stride, 1);
  }
  const bool channels_last = ops::wants_channels_last(input, depthwise_weight, pointwise_weight);
  const bool direct = has_direct_step(g, dtype);
  Tensor output = ops::empty_output(input, g.pointwise, channels_last);
  const Tensor own_bias = bias && bias->defined() ? bias->contiguous() : Tensor();
  if (direct && forward_by_strips(g, input, depthwise_weight, pointwise_weight, own_bias, channels_last, output))
    return output;
  const int64_t chunks = chunk_count(g, input.element_size(), direct ? kChunkBytes : kPytorchChunkBytes);
  for_each_chunk(g, chunks, [&](const Chunk& chunk) {
    Tensor hidden = ops::empty_output(input, chunk.g.depthwise, channels_last);
    depthwise_forward(chunk.g.depthwise, chunk.of(input), depthwise_weight, {}, hidden);
    Tensor images = chunk.of(output);
    if (direct) return direct_forward(chunk.g.pointwise, hidden, pointwise_weight, bias, images);
    const Tensor computed = ops::aten_conv(hidden, pointwise_weight, bias, symbolic(ones.stride),
                                           symbolic(ones.padding), symbolic(ones.stride), 1);
    chunks == 1 ? move_into(output, computed) : void(images.copy_(computed));
  });
  return output;
}

SeparableGradients separable_conv_backward(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                           SeparableMask mask) {
  const Separable g = ops::check_separable_backward<int64_t>(
      "separable_conv_backward", grad_output, input, depthwise_weight, pointwise_weight, stride, padding, dilation);
  const DType dtype = dtype_of(input);
  const Ones ones(stride);
  const bool wants_hidden = mask[0] || mask[1];  // its gradient
  if (is_empty(g) || !has_depthwise_step(g, dtype)) {
    const Tensor hidden =
        mask[2] ? conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups)
                : ops::empty_output(input, g.depthwise, ops::wants_channels_last(input, depthwise_weight));
    const auto [grad_hidden, grad_pointwise, grad_bias] =
        conv_backward(grad_output, hidden, pointwise_weight, ones.stride, ones.padding, ones.stride, 1,
                      {wants_hidden, mask[2], mask[3]});
    ops::Gradients first;
    if (wants_hidden)
      first = conv_backward(grad_hidden, input, depthwise_weight, stride, padding, dilation, g.depthwise.groups,
                            {mask[0], mask[1], false});
    return {std::get<0>(first), std::get<1>(first), grad_pointwise, grad_bias};
  }

  std::array<Tensor, 4> gradients;
  const std::array<const Tensor*, 3> factors{&input, &depthwise_weight, &pointwise_weight};
  for (int i = 0; i < 3; ++i)
    if (mask[i]) gradients[i] = ops::empty_in_format_of(*factors[i], factors[i]->sym_sizes());
  if (mask[3]) {
    gradients[3] = at::empty({g.pointwise.out_channels}, input.options());
    grad_bias(g.pointwise, grad_output, gradients[3]);
  }
  if (!wants_hidden && !mask[2]) return {gradients[0], gradients[1], gradients[2], gradients[3]};

  const bool channels_last = ops::wants_channels_last(input, depthwise_weight, pointwise_weight);
  const bool direct = has_direct_step(g, dtype);
  const int64_t chunks = chunk_count(g, input.element_size(), direct ? kChunkBytes : kPytorchChunkBytes);
  GradWeight grad_depthwise(gradients[1], chunks), grad_pointwise(gradients[2], chunks);
  for_each_chunk(g, chunks, [&](const Chunk& chunk) {
    const Tensor images = chunk.of(input), grad_images = chunk.of(grad_output);
    Tensor hidden = ops::empty_output(input, chunk.g.depthwise, channels_last), grad_hidden = hidden;
    if (mask[2]) depthwise_forward(chunk.g.depthwise, images, depthwise_weight, {}, hidden);
    if (direct) {
      if (mask[2])
        grad_pointwise.add([&](Tensor& sum) { direct_grad_weight(chunk.g.pointwise, grad_images, hidden, sum); });
      if (wants_hidden)  // in the place of what is not needed any more
        direct_grad_input(chunk.g.pointwise, grad_images, pointwise_weight, grad_hidden);
    } else {
      const auto [to_hidden, to_weight, _] =
          ops::aten_conv_backward(grad_images, hidden, pointwise_weight, symbolic(ones.stride), symbolic(ones.padding),
                                  symbolic(ones.stride), 1, {wants_hidden, mask[2], false});
      if (mask[2]) grad_pointwise.add([&, &computed = to_weight](Tensor& sum) { sum.copy_(computed); });
      grad_hidden = to_hidden;
    }
    if (mask[0]) {
      Tensor grad_input = chunk.of(gradients[0]);
      depthwise_grad_input(chunk.g.depthwise, grad_hidden, depthwise_weight, grad_input);
    }
    if (mask[1])
      grad_depthwise.add([&](Tensor& sum) { depthwise_grad_weight(chunk.g.depthwise, grad_hidden, images, sum); });
  });
  grad_depthwise.finish();
  grad_pointwise.finish();
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

std::string which_separable_kernel(std::string_view op, const Tensor& input, const Tensor& depthwise_weight,
                                   const Tensor& pointwise_weight, const std::optional<Tensor>& bias,
                                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                   std::string_view output) {
  const std::string name(op);
  const Separable g = ops::check_separable<int64_t>(name.c_str(), input, depthwise_weight, pointwise_weight, bias,
                                                    stride, padding, dilation);
  const Pass pass = pass_of(name, output);
  const DType dtype = dtype_of(input);
  if (pass == Pass::kForward && !is_empty(g) && has_depthwise_step(g, dtype) && has_direct_step(g, dtype) &&
      goes_by_strips(g, input, ops::wants_channels_last(input, depthwise_weight, pointwise_weight)))
    return isa() == Isa::kScalar ? "separable/scalar" : "separable/avx2";
  return kernel_name(select_kernel(g.depthwise, dtype, isa(), pass), padding) + " + " +
         kernel_name(select_kernel(g.pointwise, dtype, isa(), pass), {});
}

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("separable_conv", separable_conv);
  m.impl("separable_conv_backward", separable_conv_backward);
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeExplicitAutograd, m) {
  m.impl("_which_separable_kernel", which_separable_kernel);
}

}  // namespace
}  // namespace torch_ext::cpu
