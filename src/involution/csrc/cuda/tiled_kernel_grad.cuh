// The tiled kernel gradient. For each pixel and tap, one thread sums the products of output gradient and input over
// the channels of the group.
#pragma once

#include "tiled.cuh"

namespace involution {

template <typename scalar_t, int K, int STRIDE>
struct KernelGradLayout {
  using Sizes = TileSizes<scalar_t, K, STRIDE>;
  static constexpr int kPixels = Sizes::kKernelGradPixels, kHeight = Sizes::kKernelGradHeight;
  static constexpr int kThreads = 32 * K;
  static constexpr int kRows = (kHeight - 1) * STRIDE + K, kColumns = (kTileWidth - 1) * STRIDE + K;
  static constexpr int kColumnBytes = Sizes::kKernelGradBytes, kVectors = kColumnBytes / kVectorBytes;
  static constexpr int kChannels = kColumnBytes / sizeof(scalar_t);
  // Lanes are rows. Pitches of an odd number of vectors put them into different banks (in pairs with stride 2). The
  // columns occupy an even number of vectors, to which one is added.
  static constexpr int kPitch = kColumns * kColumnBytes + kVectorBytes;
  static constexpr int kGradPitch = kTileWidth * kColumnBytes + kVectorBytes;
  static constexpr int kImageBytes = kRows * kPitch, kGradBytes = kHeight * kGradPitch;
  // The results overwrite both after they have been read.
  static constexpr int kResults = kHeight * kTileWidth * K * K;
  static constexpr int kBytes = std::max<int>(kImageBytes + kGradBytes, kResults * sizeof(scalar_t));
  static constexpr int kBlocks = resident_blocks(kBytes, kThreads);
  static_assert(kBytes <= kSharedBytes, "a block's tile must fit into static shared memory");
};

// Adds output gradient of pixel t * input column under tap v to sums[t][v], over the staged channels, 8 at a time.
template <typename L, typename scalar_t, int K, int STRIDE>
__device__ void accumulate_products(const unsigned char* image, const unsigned char* grads,
                                    float (&sums)[L::kPixels][K]) {
#pragma unroll 1
  for (int n = 0; n < L::kChannels / kThreadChannels; ++n) {
    const int offset = n * kThreadChannels * static_cast<int>(sizeof(scalar_t));
    float grad[L::kPixels][kThreadChannels];
#pragma unroll
    for (int t = 0; t < L::kPixels; ++t) {
      load_channels<scalar_t>(grads + t * L::kColumnBytes + offset, kVectorBytes, grad[t]);
    }
#pragma unroll
    for (int q = 0; q < (L::kPixels - 1) * STRIDE + K; ++q) {
      float channels[kThreadChannels];
      load_channels<scalar_t>(image + q * L::kColumnBytes + offset, kVectorBytes, channels);
#pragma unroll
      for (int t = 0; t < L::kPixels; ++t) {
        const int v = q - t * STRIDE;
        if (v >= 0 && v < K) {
#pragma unroll
          for (int c = 0; c < kThreadChannels; ++c) {
            sums[t][v] += channels[c] * grad[t][c];
          }
        }
      }
    }
  }
}

// Writes [row][column][tap] of a tile. Neighboring threads write neighboring taps. The taps of a pixel begin at any
// element, so that wider accesses would be aligned only in their middle. The cache combines the accesses of a warp
// into sectors.
template <int K, int HEIGHT, int THREADS, typename scalar_t>
__device__ void write_kernels(const scalar_t* results, const TiledKernels<scalar_t>& kernels, int b, int group, int y,
                              int x) {
#pragma unroll 4
  for (int n = threadIdx.x; n < HEIGHT * kTileWidth * K * K; n += THREADS) {
    const int row = y + n / (K * K) / kTileWidth, column = x + n / (K * K) % kTileWidth;
    if (kernels.holds(row, column)) {
      kernels.at(b, group, row, column)[n % (K * K)] = results[n];
    }
  }
}

// Warp u computes the taps of row u for 32 strips of neighboring pixels; each lane computes a strip in one of kHeight
// rows.
template <typename scalar_t, int K, int STRIDE>
__global__ void __launch_bounds__(KernelGradLayout<scalar_t, K, STRIDE>::kThreads,
                                  KernelGradLayout<scalar_t, K, STRIDE>::kBlocks)
    tiled_kernel_grad_kernel(TileGrid grid, TiledImage<const scalar_t> grad_output, TiledImage<const scalar_t> input,
                             TiledKernels<scalar_t> grad_kernel) {
  using L = KernelGradLayout<scalar_t, K, STRIDE>;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  unsigned char* grads = memory + L::kImageBytes;
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int tile_y = tile.y * L::kHeight, tile_x = tile.x * kTileWidth;
  const int u = threadIdx.x / 32, row = threadIdx.x % 32 % L::kHeight;
  const int first_pixel = threadIdx.x % 32 / L::kHeight * L::kPixels;

  float sums[L::kPixels][K] = {};
  for (int first = 0; first < grid.group_channels; first += L::kChannels) {
    const int channel = tile.group * grid.group_channels + first, count = grid.group_channels - first;
    __syncthreads();  // all threads have read the previous values
    stage_image<L::kRows, L::kColumns, L::kVectors, L::kThreads>(
        input, tile.b, channel, count, tile_y * STRIDE - grid.padding_h, tile_x * STRIDE - grid.padding_w,
        [&](int y, int x, int vector) {
          return memory + y * L::kPitch + x * L::kColumnBytes + vector * kVectorBytes;
        });
    stage_image<L::kHeight, kTileWidth, L::kVectors, L::kThreads>(
        grad_output, tile.b, channel, count, tile_y, tile_x, [&](int y, int x, int vector) {
          return grads + y * L::kGradPitch + x * L::kColumnBytes + vector * kVectorBytes;
        });
    __syncthreads();
    accumulate_products<L, scalar_t, K, STRIDE>(
        memory + (row * STRIDE + u) * L::kPitch + first_pixel * STRIDE * L::kColumnBytes,
        grads + row * L::kGradPitch + first_pixel * L::kColumnBytes, sums);
  }
  __syncthreads();
  scalar_t* results = reinterpret_cast<scalar_t*>(memory);
#pragma unroll
  for (int t = 0; t < L::kPixels; ++t) {
#pragma unroll
    for (int v = 0; v < K; ++v) {
      results[((row * kTileWidth + first_pixel + t) * K + u) * K + v] = static_cast<scalar_t>(sums[t][v]);
    }
  }
  __syncthreads();
  write_kernels<K, L::kHeight, L::kThreads>(results, grad_kernel, tile.b, tile.group, tile_y, tile_x);
}

}  // namespace involution
