#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "conv.h"
#include "depthwise.h"
#include "direct.h"
#include "isa.h"
#include "kernels/plan.h"
#include "ops/call.h"
#include "ops/check.h"

// separable_conv and separable_conv_backward on the CPU: a depthwise convolution and a pointwise one, some images at a
// time. What lies between the two stays in the cache, takes no more memory than that, and is computed again in backward.
namespace torch_ext::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::SeparableGradients;
using ops::SeparableMask;
using Separable = ops::SeparableGeometry<int64_t>;

constexpr int64_t kChunkBytes = 2 << 20;  // of what lies between the steps

// Images first, ..., first + count - 1, and what lies between the steps for them.
struct Chunk {
  int64_t first, count;
  Separable g;

  Tensor of(const Tensor& tensor) const { return tensor.narrow(0, first, count); }
};

int64_t positions(const Separable& g) { return g.pointwise.in[0] * g.pointwise.in[1] * g.pointwise.in[2]; }

int64_t chunk_count(const Separable& g, int64_t element_bytes) {
  const int64_t image = g.pointwise.in_channels * positions(g) * element_bytes;
  return ceil_div(g.pointwise.batch, std::clamp<int64_t>(kChunkBytes / image, 1, g.pointwise.batch));
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

// Whether both steps have kernels that can take some images at a time: else the two ops run one after the other.
bool takes_chunks(const Separable& g, DType dtype) {
  for (const Pass pass : {Pass::kForward, Pass::kGradInput, Pass::kGradWeight}) {
    if (select_kernel(g.depthwise, dtype, isa(), pass) != Kernel::kDepthwise) return false;
    const bool wide = dtype == DType::kFloat32 || dtype == DType::kFloat64;
    if (!wide && select_kernel(g.pointwise, dtype, isa(), pass) == Kernel::kAten) return false;
  }
  return true;
}

// The second step. Where it is PyTorch's, it is a matrix product, of all positions if channels are adjacent, else of
// those of each image.
class Pointwise {
 public:
  Pointwise(const Tensor& weight, DType dtype, bool channels_last)
      : weight_(weight), dtype_(dtype), channels_last_(channels_last) {}

  bool is_ours(const ConvGeometry<int64_t>& g, Pass pass) const {
    return select_kernel(g, dtype_, isa(), pass) == Kernel::kDirect;
  }

  void forward(const ConvGeometry<int64_t>& g, const Tensor& hidden, const std::optional<Tensor>& bias,
               Tensor output) const {
    if (is_ours(g, Pass::kForward)) return direct_forward(g, hidden, weight_, bias, output);
    for_each_matrix(hidden, output, [&](const Tensor& h, Tensor y) {
      if (bias && bias->defined()) at::addmm_out(y, bias->unsqueeze(1), weight_.flatten(1), h);
      else at::mm_out(y, weight_.flatten(1), h);
    });
  }

  void grad_input(const ConvGeometry<int64_t>& g, const Tensor& grad_output, Tensor grad_hidden) const {
    if (is_ours(g, Pass::kGradInput)) return direct_grad_input(g, grad_output, weight_, grad_hidden);
    for_each_matrix(grad_output, grad_hidden,
                    [&](const Tensor& gy, Tensor gh) { at::mm_out(gh, weight_.flatten(1).t(), gy); });
  }

  // PyTorch's: adds to grad_weight unless this is the first chunk.
  void add_grad_weight(const Tensor& grad_output, const Tensor& hidden, bool first, Tensor& grad_weight) const {
    Tensor sum = grad_weight.flatten(1);
    for_each_matrix(grad_output, hidden, [&](const Tensor& gy, const Tensor& h) {
      if (first) at::mm_out(sum, gy, h.t());
      else at::addmm_out(sum, sum, gy, h.t());
      first = false;
    });
  }

 private:
  // Two tensors as matrices [channels, positions].
  template <class Body>
  void for_each_matrix(const Tensor& a, const Tensor& b, const Body& body) const {
    if (channels_last_) {
      const auto matrix = [](const Tensor& t) { return t.movedim(1, -1).reshape({-1, t.size(1)}).t(); };
      return body(matrix(a), matrix(b));
    }
    for (int64_t n = 0; n < a.size(0); ++n) body(a[n].flatten(1), b[n].flatten(1));
  }

  const Tensor& weight_;
  const DType dtype_;
  const bool channels_last_;
};

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

bool is_empty(const Separable& g) { return cpu::is_empty(g.depthwise) || cpu::is_empty(g.pointwise); }

// n ones or zeros: the numbers of the pointwise step.
std::vector<int64_t> repeated(int64_t number, size_t n) { return std::vector<int64_t>(n, number); }

Tensor separable_conv(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation) {
  const Separable g = ops::check_separable<int64_t>("separable_conv", input, depthwise_weight, pointwise_weight, bias,
                                                    stride, padding, dilation);
  const DType dtype = dtype_of(input);
  if (is_empty(g) || !takes_chunks(g, dtype)) {
    const Tensor hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups);
    const auto ones = repeated(1, stride.size());
    return conv(hidden, pointwise_weight, bias, ones, repeated(0, padding.size()), ones, 1);
  }
  const bool channels_last = ops::wants_channels_last(input, depthwise_weight, pointwise_weight);
  const Tensor output = ops::empty_output(input, g.pointwise, channels_last);
  const Pointwise pointwise(pointwise_weight, dtype, channels_last);
  for_each_chunk(g, chunk_count(g, input.element_size()), [&](const Chunk& chunk) {
    Tensor hidden = ops::empty_output(input, chunk.g.depthwise, channels_last);
    depthwise_forward(chunk.g.depthwise, chunk.of(input), depthwise_weight, {}, hidden);
    pointwise.forward(chunk.g.pointwise, hidden, bias, chunk.of(output));
  });
  return output;
}

SeparableGradients separable_conv_backward(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                           SeparableMask mask) {
  const Separable g = ops::check_separable_backward<int64_t>("separable_conv_backward", grad_output, input,
                                                             depthwise_weight, pointwise_weight, stride, padding,
                                                             dilation);
  const DType dtype = dtype_of(input);
  if (is_empty(g) || !takes_chunks(g, dtype)) {
    const auto ones = repeated(1, stride.size());
    const Tensor hidden = conv(input, depthwise_weight, {}, stride, padding, dilation, g.depthwise.groups);
    const auto [grad_hidden, grad_pointwise, grad_bias] =
        conv_backward(grad_output, hidden, pointwise_weight, ones, repeated(0, padding.size()), ones, 1,
                      {mask[0] || mask[1], mask[2], mask[3]});
    ops::Gradients first;
    if (mask[0] || mask[1])
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
  const bool channels_last = ops::wants_channels_last(input, depthwise_weight, pointwise_weight);
  const int64_t chunks = chunk_count(g, input.element_size());
  const Pointwise pointwise(pointwise_weight, dtype, channels_last);
  GradWeight grad_depthwise(gradients[1], chunks), grad_pointwise(gradients[2], chunks);
  if (mask[0] || mask[1] || mask[2])
    for_each_chunk(g, chunks, [&](const Chunk& chunk) {
      const Tensor images = chunk.of(input), grad_images = chunk.of(grad_output);
      Tensor hidden = ops::empty_output(input, chunk.g.depthwise, channels_last);
      if (mask[2]) {
        depthwise_forward(chunk.g.depthwise, images, depthwise_weight, {}, hidden);
        if (pointwise.is_ours(chunk.g.pointwise, Pass::kGradWeight))
          grad_pointwise.add(
              [&](Tensor& sum) { direct_grad_weight(chunk.g.pointwise, grad_images, hidden, sum); });
        else
          pointwise.add_grad_weight(grad_images, hidden, chunk.first == 0, gradients[2]);
      }
      if (!mask[0] && !mask[1]) return;
      Tensor& grad_hidden = hidden;  // which is not needed any more
      pointwise.grad_input(chunk.g.pointwise, grad_images, grad_hidden);
      if (mask[0]) {
        Tensor grad_input = chunk.of(gradients[0]);
        depthwise_grad_input(chunk.g.depthwise, grad_hidden, depthwise_weight, grad_input);
      }
      if (mask[1])
        grad_depthwise.add(
            [&](Tensor& sum) { depthwise_grad_weight(chunk.g.depthwise, grad_hidden, images, sum); });
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
  const std::string first = kernel_name(select_kernel(g.depthwise, dtype, isa(), pass), padding);
  const Kernel second = select_kernel(g.pointwise, dtype, isa(), pass);
  if (second == Kernel::kAten && takes_chunks(g, dtype)) return first + " + aten::mm";
  return first + " + " + kernel_name(second, {});
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
