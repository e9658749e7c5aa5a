#pragma once

#include <cstdint>

#include "geometry.h"

// Which kernel serves a convolution on the CPU: a pure function of geometry, dtype, layout and instruction set.
//
//   geometry                  instruction set   float32              float64      bfloat16, float16
//   depthwise                 scalar, AVX2      depthwise            depthwise    depthwise
//     PyTorch has a kernel a  AVX-512           PyTorch              depthwise    PyTorch, float16 depthwise
//     nearly dense b          any               PyTorch              depthwise    depthwise
//   groups of 2 to 7 c        any               direct               direct       direct
//   other narrow groups d     scalar, AVX2      direct               direct       direct
//                             AVX-512           PyTorch              direct       PyTorch, float16 direct
//     strided g, contiguous,
//     grad input              any               PyTorch              direct       direct
//   wider groups              any               PyTorch              direct       as dense
//     of long rows e          scalar, AVX2      direct               direct       direct
//     of 16 to 64 h           scalar, AVX2      as pass and layout   direct       as dense
//   few channels, one tap f   scalar, AVX2      direct               PyTorch      direct
//   dense                     scalar, AVX2      PyTorch              PyTorch      direct
//     16 to 256 channels,
//     dilated or in 3-D i     scalar, AVX2      as pass and layout   PyTorch      direct
//                             AVX-512           PyTorch              PyTorch      PyTorch, float16 direct
//
//   a has_pytorch_kernel  b is_nearly_dense  c has_small_groups  d has_narrow_groups  e has_long_kernels
//   f is_narrow_pointwise; in float32 PyTorch for fewer than 32 positions  g has_strided_groups
//   h has_medium_groups, is_slow_of_medium_groups  i may_be_slow_dense, is_slow_dense
//   In float64, wider groups of 128 inputs and more are PyTorch's. What is_deadly_in_pytorch never is.
namespace torch_ext {

// kAvx512: the AVX2 kernels, on a CPU where PyTorch's own have AVX-512.
enum class Isa { kScalar, kAvx2, kAvx512 };
enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };
enum class Pass { kForward, kGradInput, kGradWeight };
enum class Kernel { kDepthwise, kDirect, kAten };

// PyTorch's AVX-512 depthwise kernels: no multiplier, no padding that differs between the sides, no gradient with
// dilation, no weight gradient wider than 3, no float16.
inline bool has_pytorch_kernel(const ConvGeometry<int64_t>& g, DType dtype, Pass pass) {
  if (dtype == DType::kFloat64 || dtype == DType::kFloat16 || g.in_channels != g.out_channels) return false;
  for (int axis = 0; axis < 3; ++axis) {
    if (g.pad_before[axis] != g.pad_after[axis]) return false;
    if (pass != Pass::kForward && g.dilation[axis] > 1) return false;
  }
  return pass != Pass::kGradWeight || g.kernel[2] <= 3;
}

// Two or three channels with eight outputs each and more, strided: a matrix product, as PyTorch computes it, reads each
// input once for all outputs; our kernels pack it again for each. Measured with multiplier_dw2_m8 of layers.csv.
inline bool is_nearly_dense(const ConvGeometry<int64_t>& g) {
  return g.groups == g.in_channels && g.in_channels < 4 && g.out_channels / g.groups >= 8 && g.stride[2] > 1 &&
         g.kernel[0] * g.kernel[1] * g.kernel[2] <= 16;
}

// Groups that are too small for matrix products to be efficient.
template <class Int>
bool has_narrow_groups(const ConvGeometry<Int>& g) {
  return g.groups > 1 && !is_depthwise(g) && (g.in_per_group() < 16 || g.out_per_group() < 16);
}

// Both in and out: too small for PyTorch's AVX-512 kernels, too.
inline bool has_small_groups(const ConvGeometry<int64_t>& g) {
  return g.groups > 1 && !is_depthwise(g) && g.in_per_group() < 8 && g.out_per_group() < 8;
}

// Of eight channels and more. Contiguous rows of the input's gradient are in phases then, which PyTorch, that orders
// whole tensors anew, need not put together again.
inline bool has_strided_groups(const ConvGeometry<int64_t>& g) {
  return has_narrow_groups(g) && g.in_per_group() >= 8 && g.out_per_group() >= 8 && g.stride[2] > 1;
}

// Groups with long rows of taps, as HuBERT's 128: PyTorch's kernels, above all of the gradients, are far from the peak.
template <class Int>
bool has_long_kernels(const ConvGeometry<Int>& g) {
  return g.groups > 1 && g.kernel[2] >= 64;
}

// Dense, of one tap and few channels.
template <class Int>
bool is_narrow_pointwise(const ConvGeometry<Int>& g) {
  if (g.groups != 1 || g.kernel[0] != 1 || g.kernel[1] != 1 || g.kernel[2] != 1) return false;
  return g.in_channels <= 64 || g.out_channels >= g.in_channels * 6;
}

// A dilation that is not known may be one.
template <class Int>
bool is_dilated(const ConvGeometry<Int>& g) {
  for (int axis = 0; axis < 3; ++axis)
    if (g.kernel[axis] > 1 && detail::known(g.dilation[axis]).value_or(2) > 1) return true;
  return false;
}

inline bool is_strided(const ConvGeometry<int64_t>& g) { return g.stride[0] > 1 || g.stride[1] > 1 || g.stride[2] > 1; }

// Shorter rows have taps that lie in the padding for the most part, which PyTorch leaves out.
inline bool has_long_rows(const ConvGeometry<int64_t>& g) { return g.in[2] >= 14; }

// As in RegNets. Some of their passes are slow in PyTorch: what "slow" means here is measured in
// benchmarks/ladder/README.md, "PyTorch's cliffs".
template <class Int>
bool has_medium_groups(const ConvGeometry<Int>& g) {
  return g.groups > 1 && !is_depthwise(g) && !has_narrow_groups(g) && g.in_per_group() <= 64 && g.out_per_group() <= 64;
}

inline bool is_slow_of_medium_groups(const ConvGeometry<int64_t>& g, Pass pass, bool channels_last) {
  const bool strided = is_strided(g), dilated = is_dilated(g);
  const int64_t columns = g.kernel[2],
                channels = g.in_per_group() > g.out_per_group() ? g.in_per_group() : g.out_per_group();
  if (g.dims == 1) return has_long_rows(g);
  if (pass == Pass::kGradWeight) return channels_last || dilated || !strided || columns == 2 || columns == 3;
  if (g.dims == 3 && !has_long_rows(g)) return false;
  if (pass == Pass::kGradInput && strided && columns > 1 && columns <= 7) return true;
  if (channels_last) return channels <= 16 || (channels <= 32 && columns <= 3);
  return dilated && has_long_rows(g) && g.in[2] > 2 * g.dilation[2] * (columns - 1);
}

// Dense layers of 16 to 256 channels.
template <class Int>
bool may_be_slow_dense(const ConvGeometry<Int>& g) {
  if (g.groups != 1 || g.dims == 1 || g.in_channels < 16 || g.out_channels < 16) return false;
  const bool has_taps = g.kernel[0] > 1 || g.kernel[1] > 1 || g.kernel[2] > 1;
  return has_taps && g.in_channels <= 256 && g.out_channels <= 256 && (g.dims == 3 || is_dilated(g));
}

inline bool is_slow_dense(const ConvGeometry<int64_t>& g, Pass pass, bool channels_last) {
  if (!may_be_slow_dense(g) || !has_long_rows(g)) return false;
  const bool dilated = is_dilated(g), strided = is_strided(g), few = g.in_channels <= 128 && g.out_channels <= 128;
  const bool slow_weight = dilated ? channels_last || g.dims == 3 || (few && !strided) : !strided;
  if (pass == Pass::kGradWeight && slow_weight) return true;
  // PyTorch does not call its library for those, but copies columns, one thread for all.
  const bool is_small =
      g.batch == 1 && g.in_channels * g.in[0] * g.in[1] <= 20480 && few && (g.kernel[1] <= 3 || g.kernel[2] <= 3);
  return g.dims == 3 && is_small && (dilated || !strided || channels_last);
}

// Whether no output along an axis reads any of the image. Sizes that are not known are taken to be others.
template <class Int>
bool sees_only_padding(const ConvGeometry<Int>& g, int axis) {
  const auto in = detail::known(g.in[axis]), out = detail::known(g.out[axis]), stride = detail::known(g.stride[axis]);
  const auto kernel = detail::known(g.kernel[axis]), dilation = detail::known(g.dilation[axis]);
  const auto before = detail::known(g.pad_before[axis]);
  if (!in || !out || !stride || !kernel || !dilation || !before) return false;
  constexpr int64_t kMostTaps = 1 << 16;  // nobody waits for longer kernels
  for (int64_t tap = 0; tap < *kernel && tap < kMostTaps; ++tap) {
    const int64_t first = tap * *dilation - *before;  // what the first output reads
    const int64_t output = first >= 0 ? 0 : (-first + *stride - 1) / *stride;
    if (output < *out && output * *stride + first < *in) return false;
  }
  return true;
}

// oneDNN dies, or does not come back, of some strides of 70000 and more, which nobody has on purpose, and of some calls
// whose outputs along an axis read padding alone.
template <class Int>
bool is_deadly_in_pytorch(const ConvGeometry<Int>& g) {
  for (int axis = 0; axis < 3; ++axis)
    if (detail::known(g.stride[axis]).value_or(1) > 1000 || sees_only_padding(g, axis)) return true;
  return false;
}

// Whether PyTorch's kernel is the one for sure, as far as channels, kernel and dilation tell: in 16 bit that depends on
// the instruction set.
template <class Int>
bool belongs_to_pytorch(const ConvGeometry<Int>& g, DType dtype) {
  if (is_depthwise(g) || has_narrow_groups(g) || has_long_kernels(g) || is_deadly_in_pytorch(g)) return false;
  // PyTorch calls a matrix product for each group, which pays where it is large.
  if (dtype == DType::kFloat64) return g.groups == 1 || g.in_per_group() >= 128;
  return dtype == DType::kFloat32 && !is_narrow_pointwise(g) && !has_medium_groups(g) && !may_be_slow_dense(g);
}

inline Kernel select_kernel(const ConvGeometry<int64_t>& g, DType dtype, Isa isa, Pass pass, bool channels_last) {
  const bool avx512 = isa == Isa::kAvx512;
  if (is_deadly_in_pytorch(g)) return is_depthwise(g) ? Kernel::kDepthwise : Kernel::kDirect;
  if (is_depthwise(g)) {
    const bool nearly_dense = dtype == DType::kFloat32 && is_nearly_dense(g);
    return nearly_dense || (avx512 && has_pytorch_kernel(g, dtype, pass)) ? Kernel::kAten : Kernel::kDepthwise;
  }
  const bool fast_in_pytorch = avx512 && (dtype == DType::kFloat32 || dtype == DType::kBFloat16);
  if (fast_in_pytorch && !has_small_groups(g)) return Kernel::kAten;
  if (belongs_to_pytorch(g, dtype)) return Kernel::kAten;
  if (dtype == DType::kFloat32 && pass == Pass::kGradInput && !channels_last && has_strided_groups(g))
    return Kernel::kAten;
  if (dtype == DType::kFloat32 && has_medium_groups(g) && !has_long_kernels(g))
    return is_slow_of_medium_groups(g, pass, channels_last) ? Kernel::kDirect : Kernel::kAten;
  if (dtype == DType::kFloat32 && may_be_slow_dense(g))
    return is_slow_dense(g, pass, channels_last) ? Kernel::kDirect : Kernel::kAten;
  // Columns are lanes: a matrix product of few of them is PyTorch's.
  const bool few_columns = g.in[0] * g.in[1] * g.in[2] < 32;
  return dtype == DType::kFloat32 && g.groups == 1 && few_columns ? Kernel::kAten : Kernel::kDirect;
}

// On CUDA: what PyTorch has no good kernel for. A function of channels alone.
template <class Int>
Kernel select_cuda_kernel(const ConvGeometry<Int>& g) {
  if (is_depthwise(g)) return Kernel::kDepthwise;
  return has_narrow_groups(g) ? Kernel::kDirect : Kernel::kAten;
}

}  // namespace torch_ext
