#pragma once

#include <cstdint>

#include "macros.h"

namespace torch_ext {

// Three values, one per spatial axis (depth, height, width).
template <class T>
struct Triple {
  T value[3];

  TORCH_EXT_HOST_DEVICE constexpr T& operator[](int axis) { return value[axis]; }
  TORCH_EXT_HOST_DEVICE constexpr const T& operator[](int axis) const { return value[axis]; }
};

// A tensor [n, c, d, h, w] as a pointer and its strides in elements. Missing leading axes have size 1 and stride 0.
// A weight is viewed the same way: n is the output channel, c the input channel within the group.
template <class T>
struct View {
  T* data;
  int64_t n;
  int64_t c;
  Triple<int64_t> spatial;

  TORCH_EXT_HOST_DEVICE T* at(int64_t batch, int64_t channel) const { return data + batch * n + channel * c; }
};

// A half-open range of work items.
struct Range {
  int64_t begin;
  int64_t end;
};

}  // namespace torch_ext
