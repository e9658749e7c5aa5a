#include "composite.h"

#include <ATen/ops/add.h>
#include <ATen/ops/constant_pad_nd.h>

#include <string>
#include <vector>

#include "aten.h"
#include "autocast.h"
#include "call.h"
#include "check.h"
#include "core/select.h"

namespace torch_ext::ops {
namespace {

// A call in the form of the core ops, and whether its result has to lose the batch axis again.
struct Call {
  std::string op;
  int dims;
  bool unbatched;
  at::Tensor input, weight;
  std::optional<at::Tensor> bias;
  SymInts stride = {}, padding = {}, dilation = {};

  at::Tensor restore(const at::Tensor& output) const { return unbatched ? output.squeeze(0) : output; }
};

Call normalise(const char* family, int dims, const at::Tensor& input, const at::Tensor& weight,
               const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
               c10::SymIntArrayRef dilation) {
  Call call{family + std::to_string(dims) + "d", dims, false, input, weight, bias};
  const char* op = call.op.c_str();
  check_tensors(op, call.input, call.weight, call.bias);
  TORCH_CHECK(input.dim() == dims + 2 || input.dim() == dims + 1, op, ": expected input of ", dims + 2, " or ",
              dims + 1, " dimensions, but got input of size ", input.sym_sizes());
  TORCH_CHECK(weight.dim() == dims + 2, op, ": expected weight of ", dims + 2, " dimensions, but got weight of size ",
              weight.sym_sizes());
  call.unbatched = input.dim() == dims + 1;
  if (call.unbatched) call.input = call.input.unsqueeze(0);
  call.stride = per_axis(op, "stride", stride, dims);
  call.dilation = per_axis(op, "dilation", dilation, dims);
  call.padding = resolve_padding(op, padding, call.input.sym_sizes().slice(2), weight.sym_sizes().slice(2), call.stride,
                                 call.dilation);
  return call;
}

Call normalise_cast(const char* family, int dims, const at::Tensor& input, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                    c10::SymIntArrayRef dilation) {
  return normalise(family, dims, autocast(input), autocast(weight), autocast(bias), stride, padding, dilation);
}

// Dense and grouped convolutions that PyTorch does as well or better are handed over here, above autograd, so that
// every tool sees PyTorch's own op. Where that depends on the instruction set or on more than channels, the core op
// decides; it also takes what PyTorch gives in another memory format (1-D, 3-D in float64, all of that on a GPU, all on
// meta) than promised, or refuses (empty axes).
bool goes_to_pytorch(const ConvGeometry<c10::SymInt>& g, const at::Tensor& input, const at::Tensor& weight) {
  const auto dtype = input.scalar_type();
  if (input.is_cuda()) {
    if (select_cuda_kernel(g) != Kernel::kAten) return false;
  } else {
    if (dtype != at::kFloat && dtype != at::kDouble) return false;
    if (!belongs_to_pytorch(g, dtype == at::kFloat ? DType::kFloat32 : DType::kFloat64)) return false;
  }
  const auto is_empty = [](const c10::SymInt& size) { return detail::known(size) == 0; };
  if (is_empty(g.in_channels) || is_empty(g.in[0]) || is_empty(g.in[1]) || is_empty(g.in[2])) return false;
  const bool loses_double = g.dims == 3 || input.is_cuda();
  const bool loses_format = input.is_meta() || g.dims == 1 || (loses_double && dtype == at::kDouble);
  return !(loses_format && wants_channels_last(input, weight));
}

at::Tensor run(const Call& call, const c10::SymInt& groups) {
  const auto g = check_conv<c10::SymInt>(call.op.c_str(), call.input, call.weight, call.bias, call.stride, call.padding,
                                         call.dilation, groups);
  const auto function = goes_to_pytorch(g, call.input, call.weight) ? aten_conv : conv;
  return call.restore(function(call.input, call.weight, call.bias, call.stride, call.padding, call.dilation, groups));
}

}  // namespace

at::Tensor depthwise_conv(int dims, const at::Tensor& input, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                          c10::SymIntArrayRef dilation) {
  const Call call = normalise_cast("depthwise_conv", dims, input, weight, bias, stride, padding, dilation);
  check_depthwise_weight(call.op.c_str(), "weight", call.input, call.weight);
  return run(call, call.input.sym_size(1));
}

at::Tensor group_conv(int dims, const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                      c10::SymIntArrayRef dilation, const c10::SymInt& groups) {
  return run(normalise_cast("group_conv", dims, input, weight, bias, stride, padding, dilation), groups);
}

at::Tensor separable_conv(int dims, const at::Tensor& input, const at::Tensor& depthwise_weight,
                          const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                          c10::SymIntArrayRef stride, const Padding& padding, c10::SymIntArrayRef dilation) {
  const Call call = normalise_cast("separable_conv", dims, input, depthwise_weight, bias, stride, padding, dilation);
  const auto pointwise = autocast(pointwise_weight);
  check_separable<c10::SymInt>(call.op.c_str(), call.input, call.weight, pointwise, call.bias, call.stride,
                               call.padding, call.dilation);
  return call.restore(
      ops::separable_conv(call.input, call.weight, pointwise, call.bias, call.stride, call.padding, call.dilation));
}

at::Tensor deform_conv(int dims, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, const Padding& padding,
                       c10::SymIntArrayRef dilation, const std::optional<at::Tensor>& mask) {
  const Call call = normalise("deform_conv", dims, autocast_to_float(input), autocast_to_float(weight),
                              autocast_to_float(bias), stride, padding, dilation);
  const char* op = call.op.c_str();
  const auto batched = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK(!tensor.defined() || tensor.dim() == input.dim(), op, ": expected ", name, " of as many dimensions as ",
                "input's ", input.dim(), ", but got ", name, " of size ", tensor.sym_sizes());
    return call.unbatched && tensor.defined() ? tensor.unsqueeze(0) : tensor;
  };
  const auto wide_offset = batched("offset", autocast_to_float(offset));
  std::optional<at::Tensor> wide_mask = autocast_to_float(mask);
  if (wide_mask) wide_mask = batched("mask", *wide_mask);
  check_deform<c10::SymInt>(op, call.input, wide_offset, call.weight, wide_mask, call.bias, call.stride, call.padding,
                            call.dilation);
  const auto output = ops::deform_conv(call.input, wide_offset, call.weight, wide_mask, call.bias, call.stride,
                                       call.padding, call.dilation);
  return call.restore(output.to(input.scalar_type()));
}

// The transpose of a convolution is its gradient with respect to the input, here of the convolution with C*M input
// channels in C groups whose output is as large as `input`.
at::Tensor depthwise_conv_transpose(int dims, const at::Tensor& input, const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                                    c10::SymIntArrayRef padding, c10::SymIntArrayRef output_padding,
                                    c10::SymIntArrayRef dilation) {
  const Call call = normalise_cast("depthwise_conv_transpose", dims, input, weight, bias, stride, padding, dilation);
  const SymInts extra = per_axis(call.op.c_str(), "output_padding", output_padding, dims);
  const bool has_bias = call.bias && call.bias->defined();

  const c10::SymInt channels = call.input.sym_size(1), outputs = channels * weight.sym_size(1);
  TORCH_CHECK(outputs > 0 && weight.sym_size(0) == channels, call.op,
              ": expected weight of shape [C, M, *kernel] with C = ", channels, ", but got ", weight.sym_sizes());
  TORCH_CHECK(!has_bias || (bias->dim() == 1 && bias->sym_size(0) == outputs), call.op,
              ": expected bias of shape [C*M] with C*M = ", outputs, ", but got ",
              bias ? bias->sym_sizes() : c10::SymIntArrayRef());

  SymInts sizes{call.input.sym_size(0), outputs};
  SymInts unreached;  // for constant_pad_nd: last axis first
  bool has_unreached = false;
  for (int axis = 0; axis < dims; ++axis) {
    const auto& s = call.stride[axis];
    const auto& d = call.dilation[axis];
    const auto& before = call.padding[2 * axis];
    const auto& after = call.padding[2 * axis + 1];
    TORCH_CHECK(s > 0, call.op, ": non-positive stride is not supported, but got stride ", stride);
    TORCH_CHECK(d > 0, call.op, ": dilation should be greater than zero, but got dilation ", dilation);
    TORCH_CHECK(before >= 0 && after >= 0, call.op, ": negative padding is not supported, but got padding ", padding);
    TORCH_CHECK(extra[axis] >= 0 && (extra[axis] < s || extra[axis] < d), call.op,
                ": output padding must be smaller than either stride or dilation, but got output_padding ",
                output_padding);
    TORCH_CHECK(call.input.sym_size(2 + axis) > 0, call.op,
                ": expected input sizes of at least 1, but got input of size ", call.input.sym_sizes());
    // Output padding below the stride adds positions that the convolution drops by rounding down; the rest of it adds
    // positions that no input reaches.
    const c10::SymInt reached = extra[axis] < s ? extra[axis] : s - 1;
    has_unreached |= reached != extra[axis];
    unreached.insert(unreached.begin(), {0, extra[axis] - reached});
    c10::SymInt size;
    const bool fits = transposed_size<c10::SymInt>(call.input.sym_size(2 + axis), weight.sym_size(2 + axis), s, d,
                                                   before, after, reached, &size);
    TORCH_CHECK(fits && size > 0, call.op, ": expected a positive output size that fits in 64 bits, but got input ",
                call.input.sym_sizes(), ", weight ", weight.sym_sizes(), ", stride ", stride, ", padding ", padding,
                ", dilation ", dilation);
    sizes.push_back(size);
  }

  TORCH_CHECK(detail::is_possible<c10::SymInt>({sizes.data(), sizes.size()}), call.op,
              ": expected tensors of at most 2^50 elements, but got output ", c10::SymIntArrayRef(sizes));

  // In 16 bit a bias is added before rounding, so both steps run in float32.
  const auto dtype = call.input.scalar_type();
  const bool widen = has_bias && (dtype == at::kBFloat16 || dtype == at::kHalf);
  const auto wide = [&](const at::Tensor& tensor) { return widen ? tensor.to(at::kFloat) : tensor; };
  const auto source = wide(call.input);
  // Only its size and format are used: its memory is never touched.
  const auto like = empty_in_format_of(source, sizes);
  auto output = std::get<0>(conv_backward(source, like, wide(call.weight), call.stride, call.padding, call.dilation,
                                          channels, {true, false, false}));
  if (has_unreached) output = at::constant_pad_nd_symint(output, unreached);
  if (has_bias) {
    std::vector<int64_t> per_channel(dims + 1, 1);
    per_channel[0] = -1;
    output = at::add(output, wide(*call.bias).view(per_channel));
  }
  if (widen) output = output.to(dtype);
  return call.restore(output);
}

}  // namespace torch_ext::ops
