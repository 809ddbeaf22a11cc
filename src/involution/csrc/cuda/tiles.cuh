// What all tiled kernels share: the sizes of tiles, the position of a block's tile, and the staging of images and
// kernel values in shared memory.
//
// The tiled kernels support channels-last images, channels-last kernels (the taps of a pixel and group are adjacent),
// K x K windows without dilation, and float, half or bfloat16. A block computes a tile of neighboring pixels of one
// group. One thread gathers each result in a fixed order, without atomics, so that every run gives the same bits.
//
// The sizes have not been tuned on a GPU. They follow from the reasons given with them.
#pragma once

#include "common.cuh"

namespace involution {

// 32 bytes of 16-bit channels, a memory sector; also a group of the paper.
constexpr int kTileChannels = 16;
constexpr int kThreadChannels = 8;  // channels of a thread: 16 bytes of 16-bit values, one access
constexpr int kOctets = kTileChannels / kThreadChannels;
// Tiles of 8 pixels waste little at the sizes of the stages of a ResNet: 56, 28, 14 and 7.
constexpr int kTileWidth = 8;

// The second launch bound: the number of blocks on an SM (of sm_80: 164 KB, of which 1 KB is reserved for each block)
// that the compiler reserves registers for. It is the number that fits into shared memory, up to 16 warps with 128
// registers for each thread, most of which the sums need. Without this bound, the compiler aims for more warps and
// spills registers.
constexpr int resident_blocks(int shared_bytes, int threads) {
  return std::min(164 * 1024 / (shared_bytes + 1024), 16 * 32 / threads);
}

// The tile sizes of all kernels without tensor cores. Shared memory, not registers, limits the number of warps on an
// SM, because each pixel has K * K kernel values for only 16 channels.
template <typename scalar_t, int K, int STRIDE>
struct TileSizes {
  static constexpr bool kHalf = sizeof(scalar_t) == 2;

  // Forward: the number of neighboring pixels of a thread. An input column is read from shared memory once for all of
  // them, so that with 4 pixels (10 columns for 28 taps) multiplications outweigh reads. With stride 2, neighbors
  // share less, and float needs twice the memory: 2 pixels then give twice the warps for the same shared memory.
  static constexpr int kForwardPixels = kHalf && STRIDE == 1 ? 4 : 2;
  // For a 7 x 7 window, 16 rows read their input 2.4 times and 8 rows 3.1 times (mostly from L2). Tiles with 4 pixels
  // for each thread have 16 rows, because 8 rows would be a single warp. Both heights give 64 threads. For K = 7 and
  // stride 1, a tile takes 25 KB of shared memory for 16-bit types and 28 KB for float: 6 and 5 blocks on an SM of
  // sm_80.
  static constexpr int kForwardHeight = kForwardPixels == 4 ? 16 : 8;

  // Input gradient, in pixels of one phase (the input position modulo the stride). With stride 1, it is the forward
  // pass with gathered kernels, and has its sizes. With stride 2, the four phases of a tile are computed by different
  // warps, one for 16-bit types and two for float, so that all lanes of a warp have the same taps.
  static constexpr int kInputGradPixels = STRIDE == 1 ? kForwardPixels : kHalf ? 4 : 2;
  static constexpr int kInputGradHeight = STRIDE == 1 ? kForwardHeight : 8;

  // Kernel gradient: a warp for every row of taps, whose 32 lanes are strips of neighboring pixels. 28 sums (K = 7),
  // 32 output gradients and one input column of a thread fit into the 128 registers of resident_blocks. The loads of
  // float take twice the registers, so that only those of 2 pixels fit. 15 KB for 16-bit types, K = 7 and stride 1.
  static constexpr int kKernelGradPixels = kHalf ? 4 : 2;
  static constexpr int kKernelGradHeight = 32 * kKernelGradPixels / kTileWidth;
  static constexpr int kKernelGradBytes = 32;  // of channels at a time, for all types: a sector

  // Fused: the number of hidden channels whose weights are staged together. 32 of them take 6.6 KB at K = 7 (as
  // float), less than the image that replaces them, and need 2 barriers.
  static constexpr int kHiddenChannels = 32;
};

// Images whose channels are adjacent; strides in elements. Offsets within one image fit into 32 bits.
template <typename scalar_t>
struct TiledImage {
  scalar_t* data;
  int64_t stride_b;
  int stride_h, stride_w, height, width;

  __device__ scalar_t* at(int64_t b, int y, int x) const {
    return data + b * stride_b + y * stride_h + x * stride_w;
  }
  __device__ bool holds(int y, int x) const {
    return y >= 0 && y < height && x >= 0 && x < width;
  }
};

// Kernels whose taps are adjacent.
template <typename scalar_t>
struct TiledKernels {
  scalar_t *data, *end;  // `end` is the address after the last element
  int64_t stride_b;
  int stride_g, stride_h, stride_w, height, width;

  __device__ scalar_t* at(int64_t b, int group, int y, int x) const {
    return data + b * stride_b + group * stride_g + y * stride_h + x * stride_w;
  }
  __device__ bool holds(int y, int x) const {
    return y >= 0 && y < height && x >= 0 && x < width;
  }
};

// The tiles of all images. Groups vary fastest, so that blocks that run at the same time share the cache lines of a
// pixel.
struct TileGrid {
  int groups, group_channels, tiles_w, tiles_h;
  int padding_h, padding_w;

  struct Tile {
    int b, y, x, group;  // y and x count tiles
  };
  __device__ Tile tile(int block) const {
    const int group = block % groups, x = block / groups % tiles_w, n = block / groups / tiles_w;
    return {n / tiles_h, n % tiles_h, x, group};
  }
};

constexpr int power_of_two_from(int n) {
  return n <= 1 ? 1 : 2 * power_of_two_from((n + 1) / 2);
}

// The layout in shared memory of a tile of PHASES times HEIGHT x kTileWidth pixels, each with TAPS x TAPS kernel
// values, over an image in which neighboring pixels are STEP apart.
template <typename scalar_t_, int TAPS, int STEP, int PIXELS, int HEIGHT, int PHASES>
struct TileLayout {
  using scalar_t = scalar_t_;
  static constexpr int kTaps = TAPS, kStep = STEP, kPixels = PIXELS, kHeight = HEIGHT;
  static constexpr int kStrips = kTileWidth / PIXELS;
  static constexpr int kThreads = PHASES * kOctets * HEIGHT * kStrips;

  // The image: a column holds kVectors vectors of channels. A thread reads the vectors of its parity, so that the two
  // octets read neighboring vectors. The pitch puts the 4 rows that 8 lanes read (a quarter of a warp: one pass of
  // 16-byte accesses) into different banks: the rows of lanes are an odd multiple of 32 bytes apart.
  static constexpr int kRows = (HEIGHT - 1) * STEP + TAPS, kColumns = (kTileWidth - 1) * STEP + TAPS;
  static constexpr int kVectors = kTileChannels * sizeof(scalar_t) / kVectorBytes;
  static constexpr int kColumnBytes = kVectors * kVectorBytes;
  static constexpr int pitch(int bytes) {
    return STEP * bytes % 64 == 32 ? bytes : pitch(bytes + kVectorBytes);
  }
  static constexpr int kPitch = pitch(kColumns * kColumnBytes);
  static constexpr int kImageBytes = kRows * kPitch;

  // Kernel values: rows of taps are padded to a power of two, so that a thread reads a row by one or two accesses. The
  // pitch of pixel rows is an odd number of vectors, because the lanes of a warp are 16 or 8 rows.
  static constexpr int kTapRow = power_of_two_from(TAPS);
  static constexpr int kPixelTaps = TAPS * kTapRow;
  static constexpr int kKernelPitch = kTileWidth * kPixelTaps + kVectorBytes / sizeof(scalar_t);
  static constexpr int kKernelBytes = PHASES * HEIGHT * kKernelPitch * sizeof(scalar_t);

  static constexpr int kBytes = kKernelBytes + kImageBytes;
  static constexpr int kBlocks = resident_blocks(kBytes, kThreads);
  static_assert(kBytes <= kSharedBytes, "a block's tile must fit into static shared memory");

  static __device__ int kernel_slot(int phase, int y, int x, int u, int v) {
    return (phase * HEIGHT + y) * kKernelPitch + x * kPixelTaps + u * kTapRow + v;
  }
};

template <typename scalar_t, int K, int STRIDE>
using ForwardLayout = TileLayout<scalar_t, K, STRIDE, TileSizes<scalar_t, K, STRIDE>::kForwardPixels,
                                 TileSizes<scalar_t, K, STRIDE>::kForwardHeight, 1>;

// At most ceil(K / STRIDE) of the K taps of a row reach an input position: those of its phase.
template <typename scalar_t, int K, int STRIDE>
using InputGradLayout =
    TileLayout<scalar_t, (K + STRIDE - 1) / STRIDE, 1, TileSizes<scalar_t, K, STRIDE>::kInputGradPixels,
               TileSizes<scalar_t, K, STRIDE>::kInputGradHeight, STRIDE * STRIDE>;

// Copies `channels` channels of ROWS x COLUMNS pixels from (y, x) on into `slot(row, column, vector)`. Values outside
// of the image and after the last channel become zero.
template <int ROWS, int COLUMNS, int VECTORS, int THREADS, typename scalar_t, typename Slot>
__device__ void stage_image(const TiledImage<const scalar_t>& image, int64_t b, int first_channel, int channels, int y,
                            int x, const Slot& slot) {
#pragma unroll 4
  for (int n = threadIdx.x; n < ROWS * COLUMNS * VECTORS; n += THREADS) {
    const int vector = n % VECTORS, column = n / VECTORS % COLUMNS, row = n / VECTORS / COLUMNS;
    const int channel = vector * Vector<scalar_t>::kSize;
    Vector<scalar_t> values{};
    if (channel < channels && image.holds(y + row, x + column)) {
      values = load_vector<scalar_t>(image.at(b, y + row, x + column) + first_channel + channel);
    }
    store_vector(slot(row, column, vector), values);
  }
}

// The K * K taps of a pixel, an odd number of elements, begin at any element of an aligned vector. They always overlap
// the same number of vectors, because K * K is 1 modulo 8.
template <typename scalar_t, int K>
struct TapVectors {
  static constexpr int kSize = Vector<scalar_t>::kSize;
  static constexpr int kCount = (K * K + kSize - 1) / kSize;
  static_assert(K * K % kSize == 1, "holds for odd K");
};

// Calls f(tap, value) for the taps in the n-th aligned vector that the taps from `taps` on overlap. Neighboring
// elements in the vector are discarded. Those before the tensor exist, because allocations are aligned. Those after
// `end` may not: a vector that extends beyond it is read by elements.
template <int K, typename scalar_t, typename F>
__device__ inline void for_taps_of_vector(const scalar_t* taps, const scalar_t* end, int n, const F& f) {
  constexpr int kSize = TapVectors<scalar_t, K>::kSize;
  const auto address = reinterpret_cast<std::uintptr_t>(taps);
  const int offset = static_cast<int>(address % kVectorBytes / sizeof(scalar_t));
  const auto first = address - address % kVectorBytes + n * kVectorBytes;
  if (first + kVectorBytes > reinterpret_cast<std::uintptr_t>(end)) {  // it holds the last taps of this pixel
#pragma unroll 1
    for (int tap = n == 0 ? 0 : n * kSize - offset; tap < K * K; ++tap) {
      f(tap, taps[tap]);
    }
    return;
  }
  const auto vector = load_vector<scalar_t>(reinterpret_cast<const void*>(first));
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const int tap = n * kSize + e - offset;
    if (tap >= 0 && tap < K * K) {
      f(tap, vector.values[e]);
    }
  }
}

// Copies the kernels of HEIGHT x kTileWidth pixels from (y, x) on into `slot(y, x, u, v)`. The kernels of pixels
// outside of the output are not initialized, because their results are not written.
template <int K, int HEIGHT, int THREADS, typename scalar_t, typename Slot>
__device__ void stage_kernels(const TiledKernels<const scalar_t>& kernels, int64_t b, int group, int y, int x,
                              const Slot& slot) {
  constexpr int kCount = TapVectors<scalar_t, K>::kCount;
#pragma unroll 4
  for (int n = threadIdx.x; n < HEIGHT * kTileWidth * kCount; n += THREADS) {
    const int column = n / kCount % kTileWidth, row = n / kCount / kTileWidth;
    if (kernels.holds(y + row, x + column)) {
      for_taps_of_vector<K>(kernels.at(b, group, y + row, x + column), kernels.end, n % kCount,
                            [&](int tap, scalar_t value) { *slot(row, column, tap / K, tap % K) = value; });
    }
  }
}

// For the input gradient: copies every tap that reaches a pixel of the tile, from the kernels of all output pixels,
// into `slot(phase, y, x, u, v)` of the pixel that it reaches.
//
// With q = (y + padding) / STRIDE and the phase a = (y + padding) % STRIDE, tap u = STRIDE * (q - i) + a of output row
// i reaches input row y. The gathered taps are in reverse order, m = TAPS - 1 - (q - i), so that tap m is multiplied
// by the output gradient of row q - (TAPS - 1) + m, as in a forward pass with stride 1. (y, x) is q of the tile's
// first pixel.
template <int K, int STRIDE, int HEIGHT, int THREADS, typename scalar_t, typename Slot>
__device__ void stage_gathered_kernels(const TiledKernels<const scalar_t>& kernels, int64_t b, int group, int y, int x,
                                       const Slot& slot) {
  constexpr int kCount = TapVectors<scalar_t, K>::kCount, kSize = TapVectors<scalar_t, K>::kSize;
  constexpr int kReach = (K + STRIDE - 1) / STRIDE - 1;
  constexpr int kRows = HEIGHT + kReach, kColumns = kTileWidth + kReach;
  for (int n = threadIdx.x; n < kRows * kColumns * kCount; n += THREADS) {
    const int column = n / kCount % kColumns, row = n / kCount / kColumns, vector = n % kCount;
    // Vectors whose rows of taps reach no row of the tile are skipped.
    const int first_u = (vector - 1) * kSize / K, last_u = (vector * kSize + kSize - 1) / K;
    if (row - kReach + last_u / STRIDE < 0 || row - kReach + first_u / STRIDE >= HEIGHT) {
      continue;
    }
    const auto put = [&](int tap, scalar_t value) {
      const int u = tap / K, v = tap % K;
      const int tile_y = row - kReach + u / STRIDE, tile_x = column - kReach + v / STRIDE;
      if (tile_y >= 0 && tile_y < HEIGHT && tile_x >= 0 && tile_x < kTileWidth) {
        *slot(u % STRIDE * STRIDE + v % STRIDE, tile_y, tile_x, kReach - u / STRIDE, kReach - v / STRIDE) = value;
      }
    };
    const int i = y - kReach + row, j = x - kReach + column;
    if (kernels.holds(i, j)) {
      for_taps_of_vector<K>(kernels.at(b, group, i, j), kernels.end, vector, put);
    } else {  // multiplied by a zero of the output gradient: must not be NaN
      for (int tap = vector * kSize; tap < K * K && tap < (vector + 1) * kSize; ++tap) {
        put(tap, scalar_t(0));
      }
    }
  }
}

}  // namespace involution
