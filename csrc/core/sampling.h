#pragma once

#include <cstdint>

#include "macros.h"

// Where a deformable convolution reads its input.
//
//   value = sum over corners k of weight[k] * input[pixel[k]]
//
// A coordinate lies between two pixels along each axis; the weights of the 2^n corners are the products of the
// fractions. Outside the image is zero: a coordinate of at most -1 or at least the size gives none.
namespace torch_ext {

enum class SampleKind : int32_t {
  kWhole,    // all corners are pixels of the image
  kPart,     // some are
  kOutside,  // the value is zero
  kNan,      // a coordinate is no number, nor is the value
};

// A: in which coordinates are computed.
template <class A, int kDims>
struct Sample {
  static constexpr int kCorners = 1 << kDims;
  int64_t pixel[kCorners];  // counted from the first of the image; -1 where there is none
  A weight[kCorners];       // 0 where there is none
  A fraction[kDims];        // from the lower corner
  A mask;                   // a factor of the value
  SampleKind kind;
};

// Whether a corner is the higher one along an axis. They are numbered row by row.
template <int kDims>
TORCH_EXT_HOST_DEVICE constexpr bool is_high(int corner, int axis) {
  return (corner >> (kDims - 1 - axis) & 1) != 0;
}

// A coordinate is a whole number and an offset, which are kept apart: their sum has few bits left for the fraction in a
// large image.
template <class A, int kDims>
TORCH_EXT_HOST_DEVICE Sample<A, kDims> sample_at(const int64_t* whole, const A* offset, const int64_t* size, A mask) {
  constexpr A kFar = A(int64_t{1} << 40);  // outside of every image, and whole + offset fits in 64 bits
  Sample<A, kDims> s;
  s.mask = mask;
  bool is_nan = false, met = true, inside = true;
  int64_t low[kDims];
  for (int a = 0; a < kDims; ++a) {
    is_nan |= !(offset[a] == offset[a]);
    const bool near = offset[a] > -kFar && offset[a] < kFar;
    int64_t floor = near ? static_cast<int64_t>(offset[a]) : 0;
    if (near && offset[a] < static_cast<A>(floor)) --floor;
    low[a] = whole[a] + floor;
    s.fraction[a] = near ? offset[a] - static_cast<A>(floor) : 0;
    met &= near && low[a] >= -1 && low[a] < size[a];
    inside &= low[a] != -1 || s.fraction[a] > 0;
  }
  if (!met)
    for (int a = 0; a < kDims; ++a) low[a] = 0, s.fraction[a] = 0;
  bool whole_cell = inside && met;
  for (int k = 0; k < Sample<A, kDims>::kCorners; ++k) {
    bool exists = met;
    A weight = 1;
    int64_t pixel = 0;
    for (int a = 0; a < kDims; ++a) {
      const int64_t i = low[a] + (is_high<kDims>(k, a) ? 1 : 0);
      exists &= i >= 0 && i < size[a];
      weight *= is_high<kDims>(k, a) ? s.fraction[a] : 1 - s.fraction[a];
      pixel = pixel * size[a] + i;
    }
    whole_cell &= exists;
    s.pixel[k] = exists ? pixel : -1;
    s.weight[k] = exists && inside ? weight : 0;
  }
  s.kind = is_nan          ? SampleKind::kNan
           : whole_cell    ? SampleKind::kWhole
           : inside && met ? SampleKind::kPart
                           : SampleKind::kOutside;
  return s;
}

// The derivative of a corner's weight along an axis. Where a coordinate is a whole number it is that from the right:
// at -1, too, which lies outside.
template <class A, int kDims>
TORCH_EXT_HOST_DEVICE A slope(const Sample<A, kDims>& s, int corner, int axis) {
  A product = is_high<kDims>(corner, axis) ? 1 : -1;
  for (int a = 0; a < kDims; ++a)
    if (a != axis) product *= is_high<kDims>(corner, a) ? s.fraction[a] : 1 - s.fraction[a];
  return product;
}

}  // namespace torch_ext
