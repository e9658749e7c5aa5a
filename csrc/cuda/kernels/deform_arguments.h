#pragma once

#include "../../core/deform_geometry.h"
#include "../../core/dtype.h"

// What the kernels of deformable convolution are given: pointers and integers, for the ATen side, too.
namespace torch_ext::cuda {

// An offset, a mask, or the gradient of one, [N, channels, *out]: in T, or in Acc<T> where the rest is in 16 bit.
template <class T>
struct EitherView {
  View<T> view = {};
  bool is_wide = false;  // the pointer is to Acc<T>

  TORCH_EXT_HOST_DEVICE bool exists() const { return view.data != nullptr; }
};

template <class T>
struct DeformInputs {
  DeformGeometry<int64_t> geometry;
  View<const T> input;
  EitherView<const T> offset, mask;  // without a mask its data is null
  Range images, positions;           // whose columns are made or spread
};

// As how many numbers of T columns hold one of Acc<T>, the larger ones first: matrix products of 16-bit numbers, which
// are many times faster than others, so have the accuracy of float32. Two of float16 have 22 bits, as long as columns
// are scaled to its range, three of bfloat16 have 24.
template <class T>
inline constexpr int kSplits = 1;
template <>
inline constexpr int kSplits<Half> = 2;
template <>
inline constexpr int kSplits<BFloat16> = 3;

// [group][row][split][tap][channel of the group]: a row is a position of an image, in the order of images, then
// positions. Their gradient is in Acc<T>, and not split.
template <class T>
struct Columns {
  T* data;
  int64_t group, row;                                  // strides
  const Acc<std::remove_const_t<T>>* scale = nullptr;  // what columns are multiplied with, in the GPU's memory
};

// A sum in fixed point, in units and in parts of one: int64, which have one result for any order. No sum may reach 2^62
// units, nor have more than 2^38 terms.
struct alignas(16) FixedPoint {
  static constexpr int kParts = 1 << 24;  // of a unit

  unsigned long long units, parts;
};

// Sums to which the gradient of the input is added, from the first image of the columns. S is Acc<T>, or FixedPoint
// with units of 1 / scale, a power of two; where gradients or masks are infinite or no numbers, let the scale be no
// number, and all sums will be none.
template <class T, class S>
struct InputSums {
  S* data = nullptr;  // none: not wanted
  int64_t image = 0, channel = 0, pixel = 0;
  const Acc<T>* scale = nullptr;  // in the GPU's memory, so that nobody waits for it
};

// What is wanted of the gradients; null is not.
template <class T, class S>
struct DeformGradients {
  InputSums<T, S> sums;
  EitherView<T> offset, mask;

  TORCH_EXT_HOST_DEVICE bool has_sampling() const { return offset.exists() || mask.exists(); }
};

}  // namespace torch_ext::cuda
