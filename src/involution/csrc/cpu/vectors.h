// Vectors of channels and taps, buffers, and transposition: the building blocks of the CPU kernels.
#pragma once

#include "../geometry.h"

#include <algorithm>
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

namespace involution {
namespace {

// 16 channels: a group of the paper; one AVX-512 register of floats, or two AVX2 registers.
constexpr int64_t kLanes = 16;
// The kernel gradient computes 8 taps of a kernel row at a time: 7 taps, and one unused lane, fill one AVX2 register.
constexpr int64_t kTapLanes = 8;

template <typename scalar_t>
using opmath_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename acc_t, int64_t lanes>
struct Vector {
  typedef acc_t type __attribute__((vector_size(lanes * sizeof(acc_t))));
};
template <typename acc_t>
using Channels = typename Vector<acc_t, kLanes>::type;
template <typename acc_t>
using Taps = typename Vector<acc_t, kTapLanes>::type;

template <typename scalar_t>
scalar_t* data(const at::Tensor& t) {
  if constexpr (std::is_const_v<scalar_t>) {
    return t.const_data_ptr<std::remove_const_t<scalar_t>>();
  } else {
    return t.mutable_data_ptr<scalar_t>();
  }
}

template <typename V, typename acc_t>
inline V load(const acc_t* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));  // an unaligned load
  return value;
}
template <typename V, typename acc_t>
inline void store(acc_t* p, const V& value) {
  std::memcpy(p, &value, sizeof(V));
}

// One step of the transposition of 16 x 16 values: exchanges the off-diagonal quarters of blocks of size 2 * width.
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

// Transposes up to 16 pixels of up to 16 channels into [channel][to_step].
template <typename scalar_t, typename acc_t>
void transpose(acc_t* to, int64_t to_step, const scalar_t* from, int64_t stride_c, int64_t stride_w, int64_t pixels,
               int64_t channels) {
  if (pixels < kLanes || channels < kLanes || stride_c != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < pixels; ++t) {
        to[c * to_step + t] = static_cast<acc_t>(from[c * stride_c + t * stride_w]);
      }
    }
    return;
  }
  Channels<acc_t> rows[kLanes];
  INVOLUTION_UNROLL for (int t = 0; t < kLanes; ++t) {
    for (int c = 0; c < kLanes; ++c) {
      rows[t][c] = static_cast<acc_t>(from[t * stride_w + c]);
    }
  }
  constexpr std::make_integer_sequence<int, kLanes> lanes;
  exchange<8, acc_t>(rows, lanes);
  exchange<4, acc_t>(rows, lanes);
  exchange<2, acc_t>(rows, lanes);
  exchange<1, acc_t>(rows, lanes);
  INVOLUTION_UNROLL for (int c = 0; c < kLanes; ++c) {
    store(to + c * to_step, rows[c]);
  }
}

template <typename acc_t>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<acc_t*>(::operator new(std::max<int64_t>(size, 1) * sizeof(acc_t), kAlign))) {}
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
