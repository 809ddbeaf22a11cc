// The 16-bit types, and conversions of single values. Vectors of them are converted in vectors.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace involution {
namespace {

template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

struct float16 {
  uint16_t bits;

  float16() = default;
#if defined(__F16C__)
  explicit float16(float value) : bits(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)) {}
  explicit operator float() const {
    return _cvtsh_ss(bits);
  }
#elif defined(__FLT16_MAX__)
  explicit float16(float value) : bits(bits_as<uint16_t>(static_cast<_Float16>(value))) {}
  explicit operator float() const {
    return static_cast<float>(bits_as<_Float16>(bits));
  }
#else
#error "involution requires _Float16 or F16C: compile with GCC >= 12 or Clang >= 15, or for a processor with F16C"
#endif
};

struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t exact = bits_as<uint32_t>(value);
    // Rounds to nearest, ties to even. NaN stays NaN.
    bits = value != value ? 0x7fc0 : (exact + 0x7fff + (exact >> 16 & 1)) >> 16;
  }
  explicit operator float() const {
    return bits_as<float>(static_cast<uint32_t>(bits) << 16);
  }
};

// The type that sums are computed in.
template <typename scalar_t>
using opmath_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

}  // namespace
}  // namespace involution
