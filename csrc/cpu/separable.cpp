#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "conv.h"
#include "depthwise.h"
#include "direct.h"
#include "isa.h"
#include "kernels/pieces.h"
#include "kernels/separable.h"
#include "launch.h"
#include "ops/aten.h"
#include "ops/call.h"
#include "ops/check.h"

// separable_conv and separable_conv_backward on the CPU. Forward goes by strips (kernels/separable.h) or, as backward
// does, in two steps, a piece at a time (kernels/pieces.h), so that what lies between the steps stays in a cache. It is
// not kept, but computed again in backward. Where the first step has no kernel of ours, the two ops run one after the
// other.
namespace torch_ext::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::SeparableGradients;
using ops::SeparableMask;
using Separable = ops::SeparableGeometry<int64_t>;

// Of what lies between the steps. PyTorch's pointwise convolution prepares its weight in each call, and its results are
// copied if there are several: that is only to bound memory.
constexpr int64_t kPieceBytes = 2 << 20, kPytorchPieceBytes = 64 << 20;

// How a call goes.
struct Way {
  Way(const Separable& g, const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight)
      : channels_last(ops::wants_channels_last(input, depthwise_weight, pointwise_weight)) {
    const DType dtype = dtype_of(input);
    two_ops = is_empty(g.depthwise) || is_empty(g.pointwise);
    for (const Pass pass : {Pass::kForward, Pass::kGradInput, Pass::kGradWeight})
      two_ops |= select_kernel(g.depthwise, dtype, isa(), pass, channels_last) != Kernel::kDepthwise;
    const Kernel second =
        select_kernel(g.pointwise, dtype, isa(), Pass::kForward, channels_last);  // the same in all passes
    two_ops |= second == Kernel::kDepthwise;                                      // of one channel
    direct = second == Kernel::kDirect;
  }
  Pieces pieces(const Separable& g, const Tensor& input) const {
    return {g.depthwise, input.element_size(), direct ? kPieceBytes : kPytorchPieceBytes};
  }

  bool channels_last;
  bool two_ops;  // one after the other: there is nothing to compute, or no kernel of ours
  bool direct;   // the second step is ours, too
};

// Of images, the rows along an axis.
Tensor rows_of(const Tensor& tensor, Range images, int axis, Range rows) {
  return tensor.narrow(0, images.begin, size(images)).narrow(tensor.dim() - 3 + axis, rows.begin, size(rows));
}

// The numbers of the pointwise step.
struct Ones {
  explicit Ones(IntArrayRef stride) : stride(stride.size(), 1), padding(2 * stride.size(), 0) {}
  const std::vector<int64_t> stride, padding;
};

c10::SymIntArrayRef symbolic(IntArrayRef list) { return c10::fromIntArrayRefSlow(list); }

// A weight gradient that pieces add to, in their order, in the type of the sums.
class GradWeight {
 public:
  GradWeight(Tensor& result, int64_t pieces) : result_(result), pieces_(pieces) {}

  template <class Compute>
  void add(const Compute& compute) {
    if (pieces_ == 1) return compute(result_);
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
  const int64_t pieces_;
  Tensor total_;
};

// Forward, by strips. False, and nothing done, where pieces are better.
bool forward_by_strips(const Separable& g, const Tensor& input, const Tensor& depthwise_weight,
                       const Tensor& pointwise_weight, const Tensor& bias, bool channels_last, const Tensor& output) {
  bool done = false;
  dispatch(input, [&]<class T>(T*) {
    using A = Acc<T>;
    const auto from = view<const T>(input);
    const auto plan = plan_separable<T>(g.depthwise, g.pointwise, layout(from), channels_last);
    if (!plan) return;
    done = true;
    const int64_t image = plan->positions() * g.pointwise.out_channels;
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

Tensor separable_conv(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation) {
  const Separable g = ops::check_separable<int64_t>("separable_conv", input, depthwise_weight, pointwise_weight, bias,
                                                    stride, padding, dilation);
  const Way way(g, input, depthwise_weight, pointwise_weight);
  const Ones ones(stride);
  if (way.two_ops) {
    const Tensor hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups);
    return conv(hidden, pointwise_weight, bias, ones.stride, ones.padding, ones.stride, 1);
  }
  Tensor output = ops::empty_output(input.options(), g.pointwise, way.channels_last);
  const Tensor own_bias = bias && bias->defined() ? bias->contiguous() : Tensor();
  if (way.direct &&
      forward_by_strips(g, input, depthwise_weight, pointwise_weight, own_bias, way.channels_last, output))
    return output;
  const Pieces pieces = way.pieces(g, input);
  const int axis = pieces.axis();
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const auto [images, rows, source, target, reach] = pieces.piece(i);
    const Geometry first = part_of(g.depthwise, images, axis, source, rows);
    const Geometry second = part_of(g.pointwise, images, axis, rows, rows);
    Tensor hidden = ops::empty_output(input.options(), first, way.channels_last);
    depthwise_forward(first, rows_of(input, images, axis, source), depthwise_weight, {}, hidden);
    Tensor part = rows_of(output, images, axis, rows);
    if (way.direct) {
      direct_forward(second, hidden, pointwise_weight, bias, part);
      continue;
    }
    const Tensor computed = ops::aten_conv(hidden, pointwise_weight, bias, symbolic(ones.stride),
                                           symbolic(ones.padding), symbolic(ones.stride), 1);
    pieces.count() == 1 ? move_into(output, computed) : void(part.copy_(computed));
  }
  return output;
}

SeparableGradients separable_conv_backward(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                           SeparableMask mask) {
  const Separable g = ops::check_separable_backward<int64_t>(
      "separable_conv_backward", grad_output, input, depthwise_weight, pointwise_weight, stride, padding, dilation);
  const Way way(g, input, depthwise_weight, pointwise_weight);
  const Ones ones(stride);
  const bool wants_hidden = mask[0] || mask[1];  // its gradient
  if (way.two_ops) {
    const Tensor hidden =
        mask[2] ? conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups)
                : ops::empty_output(input.options(), g.depthwise, ops::wants_channels_last(input, depthwise_weight));
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

  const Pieces pieces = way.pieces(g, input);
  const int axis = pieces.axis();
  // PyTorch's gradient of the pointwise step's input (0) or weight (1).
  const auto pointwise_backward = [&](const Tensor& grad, const Tensor& hidden, int which) {
    const auto computed =
        ops::aten_conv_backward(grad, hidden, pointwise_weight, symbolic(ones.stride), symbolic(ones.padding),
                                symbolic(ones.stride), 1, {which == 0, which == 1, false});
    return which == 0 ? std::get<0>(computed) : std::get<1>(computed);
  };
  GradWeight grad_depthwise(gradients[1], pieces.count()), grad_pointwise(gradients[2], pieces.count());
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const auto [images, rows, source, target, reach] = pieces.piece(i);
    const auto of = [axis, &images = images](const Tensor& t, Range r) { return rows_of(t, images, axis, r); };
    const Geometry first = part_of(g.depthwise, images, axis, source, rows);
    const Geometry second = part_of(g.pointwise, images, axis, rows, rows);
    const Geometry reached = part_of(g.pointwise, images, axis, reach, reach);
    const Tensor from = of(input, source), grad_rows = of(grad_output, rows), grad_reach = of(grad_output, reach);

    // In one buffer: hidden's gradient takes the place of hidden when that is not needed any more.
    Tensor grad_hidden =
        ops::empty_output(input.options(), part_of(g.depthwise, images, axis, source, reach), way.channels_last);
    const auto within = [&, &rows = rows, &reach = reach] {
      return rows_of(grad_hidden, {0, grad_hidden.size(0)}, axis, {rows.begin - reach.begin, rows.end - reach.begin});
    };
    if (mask[2]) {
      Tensor hidden = within();
      depthwise_forward(first, from, depthwise_weight, {}, hidden);
      grad_pointwise.add([&](Tensor& sum) {
        way.direct ? direct_grad_weight(second, grad_rows, hidden, sum)
                   : void(sum.copy_(pointwise_backward(grad_rows, hidden, 1)));
      });
    }
    if (!wants_hidden) continue;
    if (way.direct) direct_grad_input(reached, grad_reach, pointwise_weight, grad_hidden);
    else grad_hidden = pointwise_backward(grad_reach, grad_hidden, 0);
    if (mask[0] && size(target) > 0) {
      Tensor to = of(gradients[0], target);
      depthwise_grad_input(part_of(g.depthwise, images, axis, target, reach), grad_hidden, depthwise_weight, to);
    }
    if (mask[1]) grad_depthwise.add([&](Tensor& sum) { depthwise_grad_weight(first, within(), from, sum); });
  }
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
  const Way way(g, input, depthwise_weight, pointwise_weight);
  if (pass == Pass::kForward && !way.two_ops && way.direct && goes_by_strips(g, input, way.channels_last))
    return isa() == Isa::kScalar ? "separable/scalar" : "separable/avx2";
  const DType dtype = dtype_of(input);
  return kernel_name(select_kernel(g.depthwise, dtype, isa(), pass, way.channels_last), padding) + " + " +
         kernel_name(select_kernel(g.pointwise, dtype, isa(), pass, way.channels_last), {});
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
