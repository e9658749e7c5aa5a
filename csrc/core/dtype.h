#pragma once

#include <bit>
#include <cstdint>

#include "macros.h"

// The storage types the kernels know, and what each accumulates in. The 16-bit ones are plain bits here, so that
// kernels need no torch; c10::BFloat16 and c10::Half have the same representation.
namespace torch_ext {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
// float64 accumulates in float64, everything else in float32.
template <class T>
using Acc = typename AccumulateType<T>::type;

}  // namespace torch_ext
