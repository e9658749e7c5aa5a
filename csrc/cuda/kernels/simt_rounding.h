#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "../../core/dtype.h"

// 16-bit numbers on the host, by integer arithmetic, to the bit what the toolkit's functions give, NaN included: for
// the emulator, and for tests on either side. No toolkit is needed.
namespace torch_ext::simt::host {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

inline float widen(Half x) {
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31, magnitude = x.bits & 0x7fffu;
  if (magnitude > 0x7c00) return std::bit_cast<float>(0x7fffffffu);
  if (magnitude == 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u);
  // The exponent's bias is 15 there and 127 here. The product is exact, and subnormal numbers come right, too.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

// Adds half of the last place that stays, less one if that place is even: bits that carry round up.
inline uint32_t round_off(uint32_t bits, int places) {
  return (bits + (1u << (places - 1)) - 1 + (bits >> places & 1)) >> places;
}

inline uint16_t bfloat16_bits(float x) {
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>(round_off(std::bit_cast<uint32_t>(x), 16));
}

inline uint16_t half_bits(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 31 << 15, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) half = 0x7c00;  // from 2^16; what rounds to that carries into it
  else if (magnitude >= 0x38800000u) half = round_off(magnitude, 13) - (112u << 10);          // 2^-14: normal numbers
  else half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // 0.5's last bit is 2^-24
  return static_cast<uint16_t>(sign | half);
}

template <class T>
T narrow(Acc<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>) return {bfloat16_bits(x)};
  else if constexpr (std::is_same_v<T, Half>) return {half_bits(x)};
  else return x;
}

}  // namespace torch_ext::simt::host
