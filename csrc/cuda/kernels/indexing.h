#pragma once

#include <cstdint>

#include "simt.h"

// Which part of the work is a block's, and where in it a thread stands.
namespace torch_ext::cuda {

// x / d and x % d by a multiplication, for x * d below 2^32.
struct Divisor {
  uint32_t d;
  uint64_t reciprocal;

  Divisor() = default;
  explicit Divisor(int divisor) : d(static_cast<uint32_t>(divisor)), reciprocal(((uint64_t{1} << 32) + d - 1) / d) {}

  // Returns x / d, and leaves x % d.
  SIMT_DEVICE int divide(int* x) const {
    const auto quotient = static_cast<uint32_t>(static_cast<uint32_t>(*x) * reciprocal >> 32);
    *x -= static_cast<int>(quotient * d);
    return static_cast<int>(quotient);
  }
};

// More blocks than a grid has in x go on in y. The last blocks may have no work.
inline simt::Dim grid_of(int64_t blocks) {
  constexpr int64_t kMost = 1 << 30;
  return {static_cast<unsigned>(simt::min(blocks, kMost)), static_cast<unsigned>(simt::ceil_div(blocks, kMost)), 1};
}
SIMT_DEVICE int64_t block_index() { return blockIdx.x + static_cast<int64_t>(blockIdx.y) * gridDim.x; }

inline int round_up(int a, int b) { return static_cast<int>(simt::ceil_div(a, b) * b); }

// Cuts `size` into as few pieces as possible of at most `most`, and those into equal ones.
inline int equal_pieces(int size, int most) {
  return static_cast<int>(simt::ceil_div(size, simt::ceil_div(size, most)));
}

template <int N>
struct Constant {
  static constexpr int kValue = N;
};

// Calls body(Constant<count>()), for a count from 1 to kMost that is the same in all threads of a warp.
template <int kMost, class Body>
SIMT_DEVICE void with_constant(int count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, body);
  }
  body(Constant<kMost>());
}

}  // namespace torch_ext::cuda
