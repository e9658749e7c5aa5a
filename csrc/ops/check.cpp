#include "check.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>

namespace torch_ext::ops {

bool is_served(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

namespace {

void check_tensor(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), op, ": expected ", name, " to be a tensor, but got an undefined one");
  TORCH_CHECK(tensor.layout() == at::kStrided, op, ": expected ", name, " of strided layout, but got ",
              tensor.layout());
}

void check_device(const char* op, const at::Tensor& input, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(input.device() == tensor.device(), op, ": input device (", input.device(), ") and ", name, " device (",
              tensor.device(), ") should be the same");
}

void check_same(const char* op, const at::Tensor& input, const char* name, const at::Tensor& tensor) {
  check_device(op, input, name, tensor);
  TORCH_CHECK(input.scalar_type() == tensor.scalar_type(), op, ": input type (", input.scalar_type(), ") and ", name,
              " type (", tensor.scalar_type(), ") should be the same");
}

template <class Int>
std::span<const Int> sizes(const at::Tensor& tensor) {
  if constexpr (std::same_as<Int, int64_t>) return {tensor.sizes().data(), tensor.sizes().size()};
  else return {tensor.sym_sizes().data(), tensor.sym_sizes().size()};
}

template <class Int>
std::span<const Int> span(c10::ArrayRef<Int> list) {
  return {list.data(), list.size()};
}

bool is_channels_last(const at::Tensor& tensor) {
  const auto format = tensor.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// 1-D has no memory format of its own: its channels_last is a tensor whose channels are adjacent.
bool has_adjacent_channels(const at::Tensor& tensor) {
  return tensor.dim() == 3 && tensor.sym_size(1) > 1 && tensor.sym_size(2) > 1 && tensor.sym_stride(1) == 1;
}

at::Tensor empty(c10::SymIntArrayRef sizes, const at::TensorOptions& options, bool channels_last) {
  if (!channels_last) return at::empty_symint(sizes, options);
  if (sizes.size() == 3) return at::empty_strided_symint(sizes, {sizes[1] * sizes[2], 1, sizes[1]}, options);
  return at::empty_symint(sizes, options,
                          sizes.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d);
}

template <class Int>
void check_grad_output(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                       const ConvGeometry<Int>& g) {
  check_same(op, input, "grad_output", grad_output);
  std::vector<Int> expected{g.batch, g.out_channels};
  for (int axis = 3 - g.dims; axis < 3; ++axis) expected.push_back(g.out[axis]);
  TORCH_CHECK(sizes<Int>(grad_output).size() == expected.size() &&
                  std::equal(expected.begin(), expected.end(), sizes<Int>(grad_output).begin()),
              op, ": expected grad_output of the output's size ", detail::list<Int>(expected), ", but got ",
              detail::list(sizes<Int>(grad_output)));
}

}  // namespace

void check_tensors(const char* op, const at::Tensor& input, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias) {
  check_tensor(op, "input", input);
  check_tensor(op, "weight", weight);
  check_same(op, input, "weight", weight);
  if (bias && bias->defined()) {
    check_tensor(op, "bias", *bias);
    check_same(op, input, "bias", *bias);
  }
  TORCH_CHECK(is_served(input.scalar_type()), op, ": expected float32, float64, bfloat16 or float16, but got ",
              input.scalar_type());
}

template <class Int>
ConvGeometry<Int> check_conv(const char* op, const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, c10::ArrayRef<Int> stride,
                             c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation, const Int& groups) {
  check_tensors(op, input, weight, bias);
  ConvArguments<Int> arguments{op,           sizes<Int>(input), sizes<Int>(weight), {},
                               span(stride), span(padding),     span(dilation),     groups};
  if (bias && bias->defined()) arguments.bias = sizes<Int>(*bias);
  ConvGeometry<Int> geometry;
  const std::string error = make_geometry(arguments, &geometry);
  TORCH_CHECK(error.empty(), error);
  return geometry;
}

template <class Int>
ConvGeometry<Int> check_conv_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& weight, c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                      c10::ArrayRef<Int> dilation, const Int& groups) {
  check_tensor(op, "grad_output", grad_output);
  const auto g = check_conv<Int>(op, input, weight, {}, stride, padding, dilation, groups);
  check_grad_output(op, grad_output, input, g);
  return g;
}

void check_depthwise_weight(const char* op, const char* name, const at::Tensor& input, const at::Tensor& weight) {
  static const char* const kernels[] = {"k", "kh, kw", "kd, kh, kw"};
  const c10::SymInt channels = input.sym_size(1);
  const auto sizes = weight.sym_sizes();
  if (weight.dim() == input.dim() && sizes[1] == 1 && channels > 0 && sizes[0] > 0 && sizes[0] % channels == 0) return;
  const bool may_be_tensorflows = weight.dim() == 4 && input.dim() == 4 && sizes[2] == channels;
  TORCH_CHECK(false, op, ": expected ", name, " of shape [C*M, 1, ", kernels[input.dim() - 3], "] with C = ", channels,
              ", but got ", sizes,
              may_be_tensorflows ? " (TensorFlow's order, [kh, kw, C, M], goes to the functions of torch_ext.tf)" : "");
}

template <class Int>
SeparableGeometry<Int> check_separable(const char* op, const at::Tensor& input, const at::Tensor& depthwise_weight,
                                       const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                                       c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                       c10::ArrayRef<Int> dilation) {
  check_tensors(op, input, depthwise_weight);
  check_tensors(op, input, pointwise_weight, bias);
  const auto rank = input.dim();
  TORCH_CHECK(rank >= 3 && rank <= 5, op, ": expected a batched input of 3, 4 or 5 dimensions, but got input of size ",
              input.sym_sizes());
  check_depthwise_weight(op, "depthwise_weight", input, depthwise_weight);
  const auto outputs = sizes<Int>(pointwise_weight);
  const Int hidden = sizes<Int>(depthwise_weight)[0];
  const bool right = pointwise_weight.dim() == rank && outputs[1] == hidden &&
                     std::all_of(outputs.begin() + 2, outputs.end(), [](const Int& size) { return size == 1; });
  const bool may_be_tensorflows = rank == 4 && outputs.size() == 4 && outputs[0] == 1 && outputs[2] == hidden;
  TORCH_CHECK(right, op, ": expected pointwise_weight of shape [O, C*M, 1, ...] with C*M = ", hidden, ", but got ",
              pointwise_weight.sym_sizes(),
              may_be_tensorflows ? " (TensorFlow's order, [1, 1, C*M, O], goes to torch_ext.tf.separable_conv2d)" : "");

  SeparableGeometry<Int> g;
  g.depthwise = check_conv<Int>(op, input, depthwise_weight, {}, stride, padding, dilation, sizes<Int>(input)[1]);
  std::vector<Int> between{g.depthwise.batch, hidden};
  for (int axis = 3 - g.depthwise.dims; axis < 3; ++axis) between.push_back(g.depthwise.out[axis]);
  const std::vector<Int> ones(rank - 2, Int(1)), zeros(2 * (rank - 2), Int(0));
  ConvArguments<Int> arguments{op, between, outputs, {}, ones, zeros, ones, Int(1)};
  if (bias && bias->defined()) arguments.bias = sizes<Int>(*bias);
  const std::string error = make_geometry(arguments, &g.pointwise);
  TORCH_CHECK(error.empty(), error);
  return g;
}

template <class Int>
SeparableGeometry<Int> check_separable_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                                const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                                c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                                c10::ArrayRef<Int> dilation) {
  check_tensor(op, "grad_output", grad_output);
  const auto g = check_separable<Int>(op, input, depthwise_weight, pointwise_weight, {}, stride, padding, dilation);
  check_grad_output(op, grad_output, input, g.pointwise);
  return g;
}

namespace {

void check_sampling(const char* op, const at::Tensor& input, const char* name, const at::Tensor& tensor) {
  const auto dtype = input.scalar_type();
  const bool may_be_wide = dtype == at::kBFloat16 || dtype == at::kHalf;
  if (!may_be_wide || tensor.scalar_type() != at::kFloat || input.device() != tensor.device())
    check_same(op, input, name, tensor);
}

}  // namespace

template <class Int>
DeformGeometry<Int> check_deform(const char* op, const at::Tensor& input, const at::Tensor& offset,
                                 const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                 const std::optional<at::Tensor>& bias, c10::ArrayRef<Int> stride,
                                 c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation) {
  const bool has_mask = mask && mask->defined(), has_bias = bias && bias->defined();
  const auto check = [&](const char* name, const at::Tensor& tensor) {
    check_tensor(op, name, tensor);
    check_device(op, input, name, tensor);
  };
  check_tensor(op, "input", input);
  check("offset", offset);
  check("weight", weight);
  if (has_mask) check("mask", *mask);
  if (has_bias) check("bias", *bias);
  ConvArguments<Int> arguments{op,           sizes<Int>(input), sizes<Int>(weight), {},
                               span(stride), span(padding),     span(dilation),     Int(1)};
  if (has_bias) arguments.bias = sizes<Int>(*bias);
  DeformGeometry<Int> geometry;
  const auto mask_sizes = has_mask ? std::optional(sizes<Int>(*mask)) : std::nullopt;
  const std::string error = make_deform_geometry<Int>(arguments, sizes<Int>(offset), mask_sizes, &geometry);
  TORCH_CHECK(error.empty(), error);
  // Dtypes after sizes, as in torchvision, whose tests ask for it.
  check_tensors(op, input, weight, bias);
  check_sampling(op, input, "offset", offset);
  if (has_mask) check_sampling(op, input, "mask", *mask);
  return geometry;
}

template <class Int>
DeformGeometry<Int> check_deform_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                          const at::Tensor& offset, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& mask, c10::ArrayRef<Int> stride,
                                          c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation) {
  check_tensor(op, "grad_output", grad_output);
  const auto g = check_deform<Int>(op, input, offset, weight, mask, {}, stride, padding, dilation);
  check_grad_output(op, grad_output, input, g.conv);
  return g;
}

#define TORCH_EXT_INSTANTIATE(Int)                                                                                     \
  template ConvGeometry<Int> check_conv(const char*, const at::Tensor&, const at::Tensor&,                             \
                                        const std::optional<at::Tensor>&, c10::ArrayRef<Int>, c10::ArrayRef<Int>,      \
                                        c10::ArrayRef<Int>, const Int&);                                               \
  template ConvGeometry<Int> check_conv_backward(const char*, const at::Tensor&, const at::Tensor&, const at::Tensor&, \
                                                 c10::ArrayRef<Int>, c10::ArrayRef<Int>, c10::ArrayRef<Int>,           \
                                                 const Int&);                                                          \
  template SeparableGeometry<Int> check_separable(const char*, const at::Tensor&, const at::Tensor&,                   \
                                                  const at::Tensor&, const std::optional<at::Tensor>&,                 \
                                                  c10::ArrayRef<Int>, c10::ArrayRef<Int>, c10::ArrayRef<Int>);         \
  template SeparableGeometry<Int> check_separable_backward(const char*, const at::Tensor&, const at::Tensor&,          \
                                                           const at::Tensor&, const at::Tensor&, c10::ArrayRef<Int>,   \
                                                           c10::ArrayRef<Int>, c10::ArrayRef<Int>);                    \
  template DeformGeometry<Int> check_deform(const char*, const at::Tensor&, const at::Tensor&, const at::Tensor&,      \
                                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,        \
                                            c10::ArrayRef<Int>, c10::ArrayRef<Int>, c10::ArrayRef<Int>);               \
  template DeformGeometry<Int> check_deform_backward(                                                                  \
      const char*, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,                         \
      const std::optional<at::Tensor>&, c10::ArrayRef<Int>, c10::ArrayRef<Int>, c10::ArrayRef<Int>);                   \
  template at::Tensor empty_output(const at::TensorOptions&, const ConvGeometry<Int>&, bool)

bool wants_channels_last(const at::Tensor& input, const at::Tensor& weight) {
  return has_adjacent_channels(input) || is_channels_last(input) || is_channels_last(weight);
}

bool wants_channels_last(const at::Tensor& input, const at::Tensor& depthwise_weight,
                         const at::Tensor& pointwise_weight) {
  return wants_channels_last(input, depthwise_weight) || is_channels_last(pointwise_weight);
}

template <class Int>
at::Tensor empty_output(const at::TensorOptions& options, const ConvGeometry<Int>& g, bool channels_last) {
  c10::SmallVector<c10::SymInt, 5> sizes{g.batch, g.out_channels};
  for (int axis = 3 - g.dims; axis < 3; ++axis) sizes.push_back(g.out[axis]);
  return empty(sizes, options, channels_last);
}

TORCH_EXT_INSTANTIATE(int64_t);
TORCH_EXT_INSTANTIATE(c10::SymInt);

#undef TORCH_EXT_INSTANTIATE

bool has_channels_last(const at::Tensor& tensor) { return is_channels_last(tensor) || has_adjacent_channels(tensor); }

at::Tensor empty_in_format_of(const at::Tensor& tensor, c10::SymIntArrayRef sizes) {
  return empty_in_format_of(tensor, sizes, tensor.options());
}

at::Tensor empty_in_format_of(const at::Tensor& tensor, c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return empty(sizes, options, has_channels_last(tensor));
}

}  // namespace torch_ext::ops
