#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <sstream>
#include <string>

#include "view.h"

// The one geometry of a convolution, and the one set of checks on its sizes.
//
//   out = (in + pad_before + pad_after - dilation * (kernel - 1) - 1) / stride + 1
//
// Int is int64_t (every product and sum that could overflow is checked) or c10::SymInt.
namespace torch_ext {

template <class Int>
struct ConvGeometry {
  int dims;  // 1 to 3: how many of the three axes are real; the leading ones have size 1
  Int batch, in_channels, out_channels, groups;
  Triple<Int> in, out, kernel, stride, dilation, pad_before, pad_after;

  TORCH_EXT_HOST_DEVICE Int in_per_group() const { return in_channels / groups; }
  TORCH_EXT_HOST_DEVICE Int out_per_group() const { return out_channels / groups; }
};

// What a caller passed, before anything is known to be right. Sizes are batched: [N, C, *], [O, C / groups, *].
template <class Int>
struct ConvArguments {
  const char* op;
  std::span<const Int> input, weight;
  std::optional<std::span<const Int>> bias;
  std::span<const Int> stride, padding, dilation;  // n, 2n (axis by axis: before, after), n numbers
  Int groups;
};

namespace detail {

template <class Int>
std::string list(std::span<const Int> values) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  out << "]";
  return out.str();
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// The number, unless it is symbolic: what cannot be checked is not.
template <class Int>
std::optional<int64_t> known(const Int& a) {
  if constexpr (std::same_as<Int, int64_t>) return a;
  else return a.maybe_as_int();
}

// a * b and a + b; false if the result is known not to fit in 64 bits. `result` may be one of the operands: GCC 12's
// builtins read operands again after they have stored, hence the local.
template <class Int>
bool multiply(const Int& a, const Int& b, Int* result) {
  const auto x = known(a), y = known(b);
  int64_t product;
  if (x && y && __builtin_mul_overflow(*x, *y, &product)) return false;
  *result = x && y ? Int(product) : a * b;
  return true;
}

template <class Int>
bool add(const Int& a, const Int& b, Int* result) {
  const auto x = known(a), y = known(b);
  int64_t sum;
  if (x && y && __builtin_add_overflow(*x, *y, &sum)) return false;
  *result = x && y ? Int(sum) : a + b;
  return true;
}

// max(a, 0), without a guard on a symbolic size.
template <class Int>
Int at_least_zero(const Int& a) {
  if constexpr (std::same_as<Int, int64_t>) return a < 0 ? 0 : a;
  else return a.max(Int(0));
}

// No tensor is larger than this; what kernels compute from sizes (packed weights, slices of sums) then fits in 64 bits.
constexpr int64_t kMaxElements = int64_t(1) << 50;

// Whether a tensor of these sizes has at most kMaxElements. An empty axis does not excuse the others: strides are
// products of them all the same.
template <class Int>
bool is_possible(std::span<const Int> sizes) {
  int64_t elements = 1;
  for (const Int& size : sizes) {
    const int64_t factor = known(size).value_or(1);
    if (factor > 0 && !multiply<int64_t>(elements, factor, &elements)) return false;
  }
  return elements <= kMaxElements;
}

}  // namespace detail

// Extent of a dilated kernel and of the padded input along one axis, and from them the output size.
// False when a number does not fit in Int. The output size may come out as zero or less: the caller reports it.
template <class Int>
bool output_size(const Int& in, const Int& kernel, const Int& stride, const Int& dilation, const Int& before,
                 const Int& after, Int* padded, Int* extent, Int* out) {
  using namespace detail;
  if (!add<Int>(in, before, padded) || !add<Int>(*padded, after, padded)) return false;
  if (!multiply<Int>(dilation, kernel - 1, extent) || !add<Int>(*extent, Int(1), extent)) return false;
  *out = *padded < *extent ? Int(0) : (*padded - *extent) / stride + 1;
  return true;
}

// Size of a transposed convolution's output along one axis; all numbers are known to be in range (before, after and
// output_padding at least 0). False when it does not fit in Int.
template <class Int>
bool transposed_size(const Int& in, const Int& kernel, const Int& stride, const Int& dilation, const Int& before,
                     const Int& after, const Int& output_padding, Int* out) {
  using namespace detail;
  Int steps, extent, padding;
  if (!multiply<Int>(in - 1, stride, &steps) || !multiply<Int>(kernel - 1, dilation, &extent)) return false;
  if (!add<Int>(steps, extent, out) || !add<Int>(*out, output_padding, out) || !add<Int>(*out, Int(1), out))
    return false;
  if (!add<Int>(before, after, &padding)) return false;
  *out = *out - padding;
  return true;
}

// Fills `geometry`; returns an error text, empty if all is right. Nothing is divided or multiplied before the
// numbers it depends on are checked.
template <class Int>
std::string make_geometry(const ConvArguments<Int>& a, ConvGeometry<Int>* geometry) {
  using namespace detail;
  const auto error = [&](const auto&... parts) { return text(a.op, ": ", parts...); };

  const size_t rank = a.input.size();
  if (rank < 3 || rank > 5)
    return error("expected a batched input of 3, 4 or 5 dimensions, but got input of size ", list(a.input));
  const size_t n = rank - 2;
  if (a.weight.size() < 3)
    return error("weight should have at least three dimensions, but got weight of size ", list(a.weight));
  if (a.weight.size() != rank)
    return error("expected weight and input to have the same number of dimensions, but got weight of size ",
                 list(a.weight), " and input of size ", list(a.input));
  if (a.bias && a.bias->size() != 1) return error("expected bias of 1 dimension, but got bias of size ", list(*a.bias));
  if (a.stride.size() != n) return error("expected stride to have ", n, " numbers, but got ", list(a.stride));
  if (a.padding.size() != 2 * n)
    return error("expected padding to have ", 2 * n, " numbers (axis by axis: before, after), but got ",
                 list(a.padding));
  if (a.dilation.size() != n) return error("expected dilation to have ", n, " numbers, but got ", list(a.dilation));

  for (const Int& s : a.stride)
    if (s < 1) return error("non-positive stride is not supported, but got stride ", list(a.stride));
  for (const Int& d : a.dilation)
    if (d < 1) return error("dilation should be greater than zero, but got dilation ", list(a.dilation));
  for (const Int& p : a.padding)
    if (p < 0) return error("negative padding is not supported, but got padding ", list(a.padding));
  if (a.groups < 1) return error("non-positive groups is not supported, but got groups ", a.groups);
  for (size_t i = 0; i < n; ++i)
    if (a.weight[2 + i] < 1)
      return error("expected kernel sizes of at least 1, but got weight of size ", list(a.weight));

  const auto given = [&] {
    return error("Given groups=", a.groups, ", weight of size ", list(a.weight), " and input of size ", list(a.input));
  };
  if (a.weight[0] < a.groups)
    return given() + text(": expected weight to be at least ", a.groups, " at dimension 0, but got ", a.weight[0]);
  if (a.input[1] % a.groups != 0)
    return given() + text(": expected input channels to be divisible by groups, but got ", a.input[1], " channels");
  if (a.weight[0] % a.groups != 0)
    return given() + text(": expected weight's first size to be divisible by groups, but got ", a.weight[0]);
  if (a.input[1] != a.weight[1] * a.groups)
    return given() + text(": expected input", list(a.input), " to have ", a.weight[1] * a.groups, " channels, but got ",
                          a.input[1], " channels instead");
  if (a.bias && (*a.bias)[0] != a.weight[0])
    return given() + text(": expected bias of size [", a.weight[0], "], but got bias of size ", list(*a.bias));

  ConvGeometry<Int>& g = *geometry;
  g.dims = static_cast<int>(n);
  g.batch = a.input[0];
  g.in_channels = a.input[1];
  g.out_channels = a.weight[0];
  g.groups = a.groups;
  for (int axis = 0; axis < 3; ++axis) {
    const int i = axis - (3 - g.dims);
    const bool real = i >= 0;
    g.in[axis] = real ? a.input[2 + i] : Int(1);
    g.kernel[axis] = real ? a.weight[2 + i] : Int(1);
    g.stride[axis] = real ? a.stride[i] : Int(1);
    g.dilation[axis] = real ? a.dilation[i] : Int(1);
    g.pad_before[axis] = real ? a.padding[2 * i] : Int(0);
    g.pad_after[axis] = real ? a.padding[2 * i + 1] : Int(0);
    Int padded, extent;
    if (!output_size<Int>(g.in[axis], g.kernel[axis], g.stride[axis], g.dilation[axis], g.pad_before[axis],
                          g.pad_after[axis], &padded, &extent, &g.out[axis]))
      return error("sizes do not fit in 64 bits: input ", list(a.input), ", weight ", list(a.weight), ", padding ",
                   list(a.padding), ", dilation ", list(a.dilation));
    if (g.out[axis] < 1)
      return error("Calculated padded input size per channel: ", padded, ", kernel size: ", extent,
                   " (dilated). Kernel size can't be greater than actual input size");
  }
  const Int output[] = {g.batch, g.out_channels, g.out[0], g.out[1], g.out[2]};
  if (!is_possible<Int>(output) || !is_possible<Int>(a.input) || !is_possible<Int>(a.weight))
    return error("expected tensors of at most 2^50 elements, but got input ", list(a.input), ", weight ",
                 list(a.weight), ", output ", list<Int>(output));
  return "";
}

// Padding of "same" along one axis: out = ceil(in / stride), the odd one goes after. Sizes, stride and dilation are at
// least 1. False when it does not fit in Int.
template <class Int>
bool same_padding(const Int& in, const Int& kernel, const Int& stride, const Int& dilation, Int* before, Int* after) {
  const Int out = (in - 1) / stride + 1;
  Int extent;
  if (!detail::multiply<Int>(kernel - 1, dilation, &extent)) return false;
  const Int covered = in - (out - 1) * stride;  // 1 to stride
  const Int total = detail::at_least_zero<Int>(extent - (covered - 1));
  *before = total / 2;
  *after = total - *before;
  return true;
}

// Depthwise: every group has one input channel (then out_channels / groups is the channel multiplier) or one output
// channel (the same convolution seen from its transpose). One group is depthwise only from one channel to one channel:
// else it is a dense convolution.
template <class Int>
bool is_depthwise(const ConvGeometry<Int>& g) {
  if (g.groups == 1) return g.in_channels == 1 && g.out_channels == 1;
  return g.in_channels == g.groups || g.out_channels == g.groups;
}

}  // namespace torch_ext
