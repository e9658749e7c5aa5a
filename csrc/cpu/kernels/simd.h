#pragma once

// Vec<A>: one vector of kLanes<A> numbers, 8 float or 4 double, in the namespace of the instruction set that the
// including file chose by defining TORCH_EXT_ISA as scalar or avx2. Everything that touches a vector lives in that
// namespace: a helper outside of it would become one symbol for both instruction sets.
//
//   Vec::zero, broadcast, load, store, operator+, operator-, fma(a, b, c) = a * b + c
//   opaque(v)                                         v in a register: not loaded again for each use, and a loop that
//                                                     moves it is not taken for a memcpy or memset, which cost a call
//   load_wide(p), store_rounded(p, v)                 from and to a storage type
//   load_partial(p, n), store_partial(p, v, n)        only the first n numbers are touched, the rest is zero
//   load_masked(p, mask)                              only the numbers whose mask is set are touched, the rest is zero
//   permute(v, Permutation<A>(index))                 lanes in another order, see Lanes in pack.h
//   transpose(rows)                                   a square of kLanes vectors
//   even_lanes(a, b); zip(a, b, pair)                 every second lane of both; their lanes in turn
// Loops over a register tile must be unrolled before the compiler decides what lives in registers: else GCC keeps the
// sums on the stack.
#if defined(__clang__)
#define TORCH_EXT_UNROLL _Pragma("unroll")
#else
#define TORCH_EXT_UNROLL _Pragma("GCC unroll 16")
#endif

#include "convert.h"

namespace torch_ext::cpu {

// -1: set, 0: not.
template <class A>
using Mask = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

}  // namespace torch_ext::cpu

#define TORCH_EXT_ISA_IS_avx2 1
#define TORCH_EXT_ISA_IS_scalar 0
#define TORCH_EXT_JOIN_(a, b) a##b
#define TORCH_EXT_JOIN(a, b) TORCH_EXT_JOIN_(a, b)
#if TORCH_EXT_JOIN(TORCH_EXT_ISA_IS_, TORCH_EXT_ISA)
#include "simd_avx2.h"
#else
#include "simd_scalar.h"
#endif

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Calls body.template operator()<n>() for n == count, of 1 to kMost.
template <int kMost, class Body>
void with_count(int64_t count, const Body& body) {
  if (count == kMost) body.template operator()<kMost>();
  else if constexpr (kMost > 1) with_count<kMost - 1>(count, body);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
