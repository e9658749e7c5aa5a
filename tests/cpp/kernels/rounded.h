#pragma once

#include "kernel_case.h"

namespace torch_ext::test {

// To nearest, ties to even.
template <class T>
T rounded(double x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const auto bits = std::bit_cast<uint32_t>(static_cast<float>(x));
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
  } else {
    return from_double<T>(x);
  }
}

}  // namespace torch_ext::test
