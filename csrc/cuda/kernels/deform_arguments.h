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

// [group][row][tap][channel of the group]: a row is a position of an image, in the order of images, then positions.
template <class T>
struct Columns {
  T* data;
  int64_t group, row;  // strides
};

// Sums to which the gradient of the input is added, of all images. S is Acc<T>, or unsigned long long: int64, as
// multiples of 1 / scale. These have one result for any order, if the scale is a power of two and such that no sum
// reaches 2^63; where gradients or masks are infinite or no numbers, let it be no number, and all sums will be none.
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
