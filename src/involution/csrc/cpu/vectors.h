// Vectors, buffers and transposition: the building blocks of the CPU kernels.
//
// Everything is in anonymous namespaces, and nothing is instantiated from the standard library: a library with kernels
// for several instruction sets must not share a function between them (cpu/kernels.cpp).
#pragma once

#include "scalars.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if !defined(__GNUC__)
#error "involution requires vector extensions: compile with GCC or Clang"
#endif
#ifdef __clang__
#define INVOLUTION_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INVOLUTION_UNROLL _Pragma("GCC unroll 64")
#endif
// For long functions that several window sizes share: inlined into each, they would multiply the time of compilation.
#define INVOLUTION_NOINLINE __attribute__((noinline))
// For parts of the inner loops, whose accumulators must stay in registers.
#define INVOLUTION_INLINE __attribute__((always_inline))

namespace involution {
namespace {

// The channels that are computed together fill one register of floats, so that the accumulators of 14 pixels fit into
// the 32 registers of AVX-512 or the 16 of AVX2. Vectors of several registers spill: on AVX2, 16 channels took up to
// 18 times as long.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
// The channels of a group in the paper.
constexpr int64_t kGroupChannels = 16;

constexpr int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t max(int64_t a, int64_t b) {
  return a < b ? b : a;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

template <typename acc_t, int64_t lanes>
struct Vector {
  typedef acc_t type __attribute__((vector_size(lanes * sizeof(acc_t))));
};
template <typename acc_t>
using Channels = typename Vector<acc_t, kLanes>::type;

template <typename V, typename T>
inline V load(const T* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));  // an unaligned load
  return value;
}
template <typename V, typename T>
inline void store(T* p, const V& value) {
  std::memcpy(p, &value, sizeof(V));
}

// Loads `kLanes` adjacent values in the accumulation type.
template <typename acc_t, typename scalar_t>
inline Channels<acc_t> load_lanes(const scalar_t* p) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return load<Channels<acc_t>>(p);
  } else if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    const auto bits = load<typename Vector<uint16_t, kLanes>::type>(p);
    return (Channels<acc_t>)(__builtin_convertvector(bits, typename Vector<uint32_t, kLanes>::type) << 16);
  } else {
#if defined(__AVX512F__)
    return (Channels<acc_t>)_mm512_cvtph_ps(load<__m256i>(p));
#elif defined(__F16C__)
    return (Channels<acc_t>)_mm256_cvtph_ps(load<__m128i>(p));
#else
    Channels<acc_t> value;
    for (int n = 0; n < kLanes; ++n) {
      value[n] = static_cast<acc_t>(p[n]);
    }
    return value;
#endif
  }
}
// Stores `kLanes` values of the accumulation type.
template <typename scalar_t>
inline void store_lanes(scalar_t* p, const Channels<opmath_t<scalar_t>>& value) {
  if constexpr (std::is_same_v<scalar_t, opmath_t<scalar_t>>) {
    store(p, value);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<scalar_t, float16>) {
    store(p, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<scalar_t, float16>) {
    store(p, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    using Bits = typename Vector<uint32_t, kLanes>::type;
    const Bits exact = (Bits)value, rounded = (exact + 0x7fff + (exact >> 16 & 1)) >> 16;
    store(p, __builtin_convertvector(value != value ? Bits{} + 0x7fc0 : rounded,
                                     typename Vector<uint16_t, kLanes>::type));
  } else {
    for (int n = 0; n < kLanes; ++n) {
      p[n] = scalar_t(value[n]);
    }
  }
}

// Stores the first `count` < `kLanes` values.
template <typename scalar_t>
inline void store_first(scalar_t* p, const Channels<opmath_t<scalar_t>>& value, int64_t count) {
  scalar_t values[kLanes];
  store_lanes(values, value);
  const scalar_t* from = values;
  // Copies of constant sizes are single instructions.
  INVOLUTION_UNROLL for (int64_t size = kLanes / 2; size > 0; size /= 2) {
    if (count & size) {
      std::memcpy(p, from, size * sizeof(scalar_t));
      p += size;
      from += size;
    }
  }
}

// Copies `count` values with given strides, as another type.
template <typename To, typename From>
inline void copy(To* to, int64_t to_step, const From* from, int64_t from_step, int64_t count) {
  int64_t n = 0;
  if (to_step == 1 && from_step == 1) {
    if constexpr (std::is_same_v<To, From>) {
      std::memcpy(to, from, count * sizeof(To));
      return;
    } else if constexpr (std::is_same_v<To, opmath_t<From>>) {
      for (; n + kLanes <= count; n += kLanes) {
        store(to + n, load_lanes<To>(from + n));
      }
    } else if constexpr (std::is_same_v<From, opmath_t<To>>) {
      for (; n + kLanes <= count; n += kLanes) {
        store_lanes(to + n, load<Channels<From>>(from + n));
      }
    }
  }
  for (; n < count; ++n) {
    to[n * to_step] = static_cast<To>(from[n * from_step]);
  }
}

// Copies every second one of adjacent values, as another type: a constant step is vectorized.
template <typename To, typename From>
inline void copy_half(To* to, const From* from, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    to[n] = static_cast<To>(from[2 * n]);
  }
}

// acc += a * b with one rounding. Left to the compiler, one layout of a kernel would be rounded differently from
// another: GCC avoids chains of fused multiply-adds when it tunes for some processors.
template <typename acc_t>
inline void add_product(Channels<acc_t>& acc, const Channels<acc_t>& a, acc_t b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<acc_t, float>) {
    acc = (Channels<acc_t>)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)acc);
    return;
  }
#elif defined(__FMA__)
  if constexpr (std::is_same_v<acc_t, float>) {
    acc = (Channels<acc_t>)_mm256_fmadd_ps((__m256)a, _mm256_set1_ps(b), (__m256)acc);
    return;
  }
#endif
  acc += a * b;
}

// The same for two vectors.
template <typename acc_t>
inline void add_products(Channels<acc_t>& acc, const Channels<acc_t>& a, const Channels<acc_t>& b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<acc_t, float>) {
    acc = (Channels<acc_t>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)acc);
    return;
  }
#elif defined(__FMA__)
  if constexpr (std::is_same_v<acc_t, float>) {
    acc = (Channels<acc_t>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)acc);
    return;
  }
#endif
  acc += a * b;
}

// Makes the compiler load a value once. GCC repeats the load in every multiplication, to use it as an operand in memory.
template <typename acc_t>
INVOLUTION_INLINE inline void keep_in_register(Channels<acc_t>& value) {
#if defined(__AVX__)
  if constexpr (std::is_same_v<acc_t, float>) {  // A vector of doubles takes two registers.
    __asm__("" : "+v"(value));
  }
#endif
}

template <typename acc_t>
inline void zero(acc_t* to, int64_t count) {
  std::memset(to, 0, count * sizeof(acc_t));
}

// Asks for the cache line of a value, which need not exist. For memory that the prefetcher of the processor does not
// expect: it follows neither short runs nor long strides. The line is brought into the L2 cache only. The L1 cache can
// wait for too few lines: with lines for it, whether to be read or written, the operator took 1.1 to 1.4 times as long.
INVOLUTION_INLINE inline void prefetch(const void* from) {
  __builtin_prefetch(from, 0, 2);
}
// The same for the lines of `count` values.
template <typename T>
inline void prefetch(const T* from, int64_t count) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(from), last = first + count * sizeof(T);
  for (uintptr_t line = first / 64 * 64; line < last; line += 64) {
    prefetch(reinterpret_cast<const void*>(line));
  }
}

// One step of the transposition of kLanes x kLanes values: exchanges the off-diagonal quarters of blocks of size
// 2 * width.
template <int width, typename acc_t, int... lane>
inline void exchange(Channels<acc_t>* rows, std::integer_sequence<int, lane...>) {
  INVOLUTION_UNROLL for (int r = 0; r < kLanes; ++r) {
    if ((r & width) == 0) {
      const Channels<acc_t> a = rows[r], b = rows[r | width];
#ifdef __clang__
      rows[r] = __builtin_shufflevector(a, b, (lane & width ? kLanes + (lane ^ width) : lane)...);
      rows[r | width] = __builtin_shufflevector(a, b, (lane & width ? kLanes + lane : lane ^ width)...);
#else
      using Lane = typename Vector<std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>, kLanes>::type;
      rows[r] = __builtin_shuffle(a, b, Lane{(lane & width ? kLanes + (lane ^ width) : lane)...});
      rows[r | width] = __builtin_shuffle(a, b, Lane{(lane & width ? kLanes + lane : lane ^ width)...});
#endif
    }
  }
}

// Transposes kLanes x kLanes values in place.
template <typename acc_t, int width = kLanes / 2>
inline void transpose(Channels<acc_t>* rows) {
  exchange<width, acc_t>(rows, std::make_integer_sequence<int, kLanes>{});
  if constexpr (width > 1) {
    transpose<acc_t, width / 2>(rows);
  }
}

// Writes up to `kLanes` pixels of up to `kLanes` channels to [channel][to_step].
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void planes_from_pixels(acc_t* to, int64_t to_step, const scalar_t* from, int64_t stride_c,
                                            int64_t stride_w, int64_t pixels, int64_t channels) {
  if (pixels < kLanes || channels < kLanes || stride_c != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      copy(to + c * to_step, 1, from + c * stride_c, stride_w, pixels);
    }
    return;
  }
  Channels<acc_t> rows[kLanes];
  INVOLUTION_UNROLL for (int t = 0; t < kLanes; ++t) {
    rows[t] = load_lanes<acc_t>(from + t * stride_w);
  }
  transpose<acc_t>(rows);
  INVOLUTION_UNROLL for (int c = 0; c < kLanes; ++c) {
    store(to + c * to_step, rows[c]);
  }
}

// The sums of the lanes of `kLanes` vectors. Overwrites them.
template <typename acc_t, int width = kLanes / 2>
inline Channels<acc_t> sum_lanes(Channels<acc_t>* rows) {
  exchange<width, acc_t>(rows, std::make_integer_sequence<int, kLanes>{});
  INVOLUTION_UNROLL for (int r = 0; r < width; ++r) {
    rows[r] += rows[r + width];
  }
  if constexpr (width > 1) {
    return sum_lanes<acc_t, width / 2>(rows);
  } else {
    return rows[0];
  }
}

template <typename acc_t>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<acc_t*>(::operator new(max(size, 1) * sizeof(acc_t), kAlign))) {}
  ~Buffer() {
    ::operator delete(data_, kAlign);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  acc_t* get() {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  acc_t* data_;
};

}  // namespace
}  // namespace involution
