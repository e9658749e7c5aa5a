#pragma once

#include <cstdint>

#include "geometry.h"

// Which kernel serves a convolution on the CPU: a pure function of geometry, dtype and instruction set.
//
//   geometry               instruction set   float64     float32               bfloat16, float16
//   depthwise              scalar, AVX2      ours        ours                  ours
//                          AVX-512           ours        PyTorch's or ours *   PyTorch's or ours *
//   nearly dense **        any               ours        PyTorch's             as depthwise
//   narrow groups ***      scalar, AVX2      ours        ours                  ours
//                          AVX-512           ours        PyTorch's             PyTorch's, float16 ours
//   other groups, dense    scalar, AVX2      PyTorch's   PyTorch's             PyTorch's in float32, rounded once
//                          AVX-512           PyTorch's   PyTorch's             PyTorch's, float16 in float32
//
//   *  PyTorch's where it has a kernel made for the case: see has_pytorch_kernel.
//   ** depthwise, but with few channels and many outputs of each: see is_nearly_dense.
//   *** 2 to 15 channels: see has_narrow_groups.
namespace torch_ext {

// kAvx512: the AVX2 kernels, on a CPU where PyTorch's own have AVX-512.
enum class Isa { kScalar, kAvx2, kAvx512 };
enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };
enum class Pass { kForward, kGradInput, kGradWeight };
enum class Kernel { kDepthwise, kGrouped, kAten, kAtenFloat32 };

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

inline Kernel select_kernel(const ConvGeometry<int64_t>& g, DType dtype, Isa isa, Pass pass) {
  if (is_depthwise(g) && dtype == DType::kFloat32 && is_nearly_dense(g)) return Kernel::kAten;
  if (is_depthwise(g))
    return isa == Isa::kAvx512 && has_pytorch_kernel(g, dtype, pass) ? Kernel::kAten : Kernel::kDepthwise;
  if (has_narrow_groups(g) && (isa != Isa::kAvx512 || dtype == DType::kFloat64 || dtype == DType::kFloat16))
    return Kernel::kGrouped;
  if (dtype == DType::kFloat16 || (dtype == DType::kBFloat16 && isa != Isa::kAvx512)) return Kernel::kAtenFloat32;
  return Kernel::kAten;
}

}  // namespace torch_ext
