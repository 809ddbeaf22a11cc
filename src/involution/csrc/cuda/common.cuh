// What all CUDA kernels share: the accumulation type, 16-byte vectors and checks of 32-bit offsets.
//
// The headers in this folder include no CUDA headers: the tests compile them as host C++, with a small shim that
// emulates blocks, threads and warps. The file that includes them has to define
//   INVOLUTION_LAUNCH((kernel), blocks, threads, arguments...)   launches on the current stream and checks the launch,
//   INVOLUTION_SHARED_MEMORY(name, bytes)   declares an unsigned char array in shared memory, aligned to 16,
//   involution::has_tensor_cores()          whether the current device runs code with mma.m16n8k16 (for sm_80 and
//                                           later),
// and, without a CUDA compiler, the warp instructions of mma.cuh.
#pragma once

#include "tensors.cuh"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace involution {

template <typename scalar_t>
using opmath_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

constexpr int kThreads = 256;
// Enough blocks to fill any GPU several times; a grid-stride loop processes the remaining elements.
constexpr int64_t kMaxBlocks = 1 << 16;
// The static shared memory of a block on every architecture. More would have to be requested at each launch.
constexpr int kSharedBytes = 48 * 1024;

constexpr int kVectorBytes = 16;  // the widest access of a thread

template <typename scalar_t>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(scalar_t);
  scalar_t values[kSize];
};

template <typename scalar_t>
__device__ inline Vector<scalar_t> load_vector(const void* address) {
  return *static_cast<const Vector<scalar_t>*>(address);
}

template <typename scalar_t>
__device__ inline void store_vector(void* address, const Vector<scalar_t>& vector) {
  *static_cast<Vector<scalar_t>*>(address) = vector;
}

// Applied to the sum of an output element: scale and shift of its channel, if given, and ReLU.
template <typename acc_t>
struct Epilogue {
  const acc_t* scale;  // null if there is none
  const acc_t* shift;
  bool relu;

  __device__ acc_t operator()(acc_t sum, int64_t channel) const {
    if (scale != nullptr) {
      sum = sum * scale[channel] + shift[channel];
    }
    return relu && sum < acc_t(0) ? acc_t(0) : sum;  // NaN remains, because it is not less than zero
  }
};

// The largest offset into the dimensions of the tensor from `first` on, in elements.
inline int64_t last_offset(const at::Tensor& t, int64_t first = 0) {
  int64_t last = 0;
  for (int64_t dim = first; dim < t.dim(); ++dim) {
    last += std::max<int64_t>(t.size(dim) - 1, 0) * t.stride(dim);
  }
  return last;
}

// Whether positions in the padded input, which can exceed all offsets into the input, fit into 32 bits.
inline bool fits_32_bits(const Geometry& g) {
  const int64_t limit = std::numeric_limits<int32_t>::max() / 2;
  return g.out_h * g.stride_h + g.kernel_h * g.dilation_h + g.height + g.padding_h < limit &&
         g.out_w * g.stride_w + g.kernel_w * g.dilation_w + g.width + g.padding_w < limit;
}

}  // namespace involution
