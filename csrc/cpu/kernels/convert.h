// Storage types to and from the type they accumulate in, one number at a time, by integer arithmetic alone.
// Rounds to nearest even; a NaN stays a NaN. Included once per instruction set (see simd.h).

namespace torch_ext::cpu::TORCH_EXT_ISA {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x0400) {  // subnormal: an integer times 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t exponent_shift = magnitude >= 0x7c00 ? (255u - 31) << 23 : (127u - 15) << 23;
  return std::bit_cast<float>(sign | ((magnitude << 13) + exponent_shift));
}

inline void narrow(float x, float* y) { *y = x; }
inline void narrow(double x, double* y) { *y = x; }

inline void narrow(float x, BFloat16* y) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
  y->bits = static_cast<uint16_t>(rounded >> 16);
}

inline void narrow(float x, Half* y) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  else if (magnitude >= 0x477ff000u) half = 0x7c00;  // 65520 and more: infinity
  else if (magnitude < 0x38800000u) {                // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - ((127u - 15) << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  y->bits = static_cast<uint16_t>(bits >> 16 & 0x8000u) | static_cast<uint16_t>(half);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
