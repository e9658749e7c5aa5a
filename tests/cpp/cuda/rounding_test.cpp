#include "cuda/kernels/simt_rounding.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#if defined(CUDA_TOOLKIT)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace torch_ext::test {
namespace {

using simt::host::narrow;
using simt::host::widen;

template <class T>
T from_bits(int bits) {
  return {static_cast<uint16_t>(bits)};
}

// All floats between which rounding changes its mind, a little around each, and a million others.
template <class T>
std::vector<float> inputs() {
  std::vector<float> all;
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const float low = widen(from_bits<T>(bits)), high = widen(from_bits<T>(bits + 1));
    for (float x : {low, (low + high) / 2}) {
      all.insert(all.end(), {x, std::nextafter(x, -1e38f), std::nextafter(x, 1e38f)});
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1000000; ++i) all.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  return all;
}

template <class T>
class Rounding : public ::testing::Test {};
using Types = ::testing::Types<BFloat16, Half>;
TYPED_TEST_SUITE(Rounding, Types);

TYPED_TEST(Rounding, ThereAndBack) {
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const float x = widen(from_bits<TypeParam>(bits));
    ASSERT_EQ(narrow<TypeParam>(x).bits, x == x ? bits : 0x7fff);
  }
}

// Of the two neighbours, the nearer one, else the one whose last bit is 0.
TYPED_TEST(Rounding, ToNearestEven) {
  using T = TypeParam;
  const double top = widen(from_bits<T>(std::is_same_v<T, Half> ? 0x7bff : 0x7f7f));
  for (float x : inputs<T>()) {
    if (!std::isfinite(x)) continue;
    const T y = narrow<T>(x);
    if (!std::isfinite(widen(y))) {  // from half a step above the largest number on
      const double below = widen(from_bits<T>((std::is_same_v<T, Half> ? 0x7bff : 0x7f7f) - 1));
      ASSERT_GE(std::abs(double{x}), top + (top - below) / 2);
      continue;
    }
    const double error = std::abs(double{widen(y)} - x);
    for (int step : {-1, 1}) {
      const double other = std::abs(double{widen(from_bits<T>(y.bits + step))} - x);
      if (std::isnan(other)) continue;
      ASSERT_TRUE(error < other || (error == other && y.bits % 2 == 0)) << x;
    }
  }
}

#if defined(CUDA_TOOLKIT)

float toolkit_widen(BFloat16 x) { return __bfloat162float(std::bit_cast<__nv_bfloat16>(x)); }
float toolkit_widen(Half x) { return __half2float(std::bit_cast<__half>(x)); }
void toolkit_narrow(float x, BFloat16* y) { *y = std::bit_cast<BFloat16>(__float2bfloat16_rn(x)); }
void toolkit_narrow(float x, Half* y) { *y = std::bit_cast<Half>(__float2half_rn(x)); }

TYPED_TEST(Rounding, EqualsTheToolkits) {
  using T = TypeParam;
  for (int bits = 0; bits < 1 << 16; ++bits)
    ASSERT_EQ(std::bit_cast<uint32_t>(widen(from_bits<T>(bits))),
              std::bit_cast<uint32_t>(toolkit_widen(from_bits<T>(bits))))
        << bits;
  for (float x : inputs<T>()) {
    T y;
    toolkit_narrow(x, &y);
    ASSERT_EQ(narrow<T>(x).bits, y.bits) << x;
  }
}

#endif

}  // namespace
}  // namespace torch_ext::test
