#include "check.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

namespace torch_ext::ops {
namespace {

bool is_served(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

void check_tensor(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), op, ": expected ", name, " to be a tensor, but got an undefined one");
  TORCH_CHECK(tensor.layout() == at::kStrided, op, ": expected ", name, " of strided layout, but got ",
              tensor.layout());
}

void check_same(const char* op, const at::Tensor& input, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(input.device() == tensor.device(), op, ": input device (", input.device(), ") and ", name, " device (",
              tensor.device(), ") should be the same");
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
  check_same(op, input, "grad_output", grad_output);
  std::vector<Int> expected{g.batch, g.out_channels};
  for (int axis = 3 - g.dims; axis < 3; ++axis) expected.push_back(g.out[axis]);
  TORCH_CHECK(sizes<Int>(grad_output).size() == expected.size() &&
                  std::equal(expected.begin(), expected.end(), sizes<Int>(grad_output).begin()),
              op, ": expected grad_output of the output's size ", detail::list<Int>(expected), ", but got ",
              detail::list(sizes<Int>(grad_output)));
  return g;
}

template ConvGeometry<int64_t> check_conv(const char*, const at::Tensor&, const at::Tensor&,
                                          const std::optional<at::Tensor>&, at::IntArrayRef, at::IntArrayRef,
                                          at::IntArrayRef, const int64_t&);
template ConvGeometry<c10::SymInt> check_conv(const char*, const at::Tensor&, const at::Tensor&,
                                              const std::optional<at::Tensor>&, c10::SymIntArrayRef,
                                              c10::SymIntArrayRef, c10::SymIntArrayRef, const c10::SymInt&);
template ConvGeometry<int64_t> check_conv_backward(const char*, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                   at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, const int64_t&);
template ConvGeometry<c10::SymInt> check_conv_backward(const char*, const at::Tensor&, const at::Tensor&,
                                                       const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                                       c10::SymIntArrayRef, const c10::SymInt&);

bool wants_channels_last(const at::Tensor& input, const at::Tensor& weight) {
  return has_adjacent_channels(input) || is_channels_last(input) || is_channels_last(weight);
}

template <class Int>
at::Tensor empty_output(const at::Tensor& input, const at::Tensor& weight, const ConvGeometry<Int>& g) {
  c10::SmallVector<c10::SymInt, 5> sizes{g.batch, g.out_channels};
  for (int axis = 3 - g.dims; axis < 3; ++axis) sizes.push_back(g.out[axis]);
  return empty(sizes, input.options(), wants_channels_last(input, weight));
}

template at::Tensor empty_output(const at::Tensor&, const at::Tensor&, const ConvGeometry<int64_t>&);
template at::Tensor empty_output(const at::Tensor&, const at::Tensor&, const ConvGeometry<c10::SymInt>&);

at::Tensor empty_in_format_of(const at::Tensor& tensor, c10::SymIntArrayRef sizes) {
  return empty(sizes, tensor.options(), is_channels_last(tensor) || has_adjacent_channels(tensor));
}

}  // namespace torch_ext::ops
