// The tensor-core kernels: bfloat16 and half, 7 x 7 windows of stride 1, groups of 16 channels, channels-last.
//
// For one row u of taps, the outputs of 16 channels and 8 neighboring pixels are a product
//   [16 channels x 14 input columns] * [14 columns x 8 pixels],   B[q][t] = kernel(pixel t, tap (u, q - t)),
// whose right-hand side is banded: zero except for 0 <= q - t < 7. With the columns padded to 16, it is one
// mma.m16n8k16, and seven of them, one for each u, compute the window. The input gradient is the same product with
// gathered kernels (tiles.cuh). The kernel gradient is the band of [columns x 16 channels] * [16 channels x 8 pixels].
// The fused forward pass computes the kernel values by mma as well.
//
// The zeros outside of the band multiply values that the definition does not multiply. An infinite or NaN input value
// makes its channel NaN in all 8 pixels of every product that it is part of: in the same rows as in the definition,
// but up to 10 columns away instead of 3. The same applies to the output gradient in the input gradient. Other
// channels are not affected, and neither is the kernel gradient, which discards values outside of the band. For finite
// values, the results equal those of the definition up to the rounding of sums.
#pragma once

#include "mma.cuh"
#include "tiled_kernel_grad.cuh"

namespace involution {

// A tile of 16 x 8 pixels, a warp for every 4 of its rows.
struct TensorCoreLayout {
  static constexpr int kK = 7, kHeight = 16;
  static constexpr int kHiddenChannels = 16;  // of a product that generates kernel values
  // An input row is used for all rows of a warp whose windows contain it: 10 rows are loaded for the 28 products of 4
  // rows. More rows would share more, but leave fewer warps to hide the latency of staging, and need 4 accumulators
  // each.
  static constexpr int kWarpRows = 4;
  static constexpr int kThreads = kHeight / kWarpRows * kWarp;

  // The image: 14 columns and two columns of zeros. A column is two vectors of 8 channels. They are exchanged in every
  // second group of four columns, so that the 8 columns that ldmatrix reads at a time are in different banks.
  static constexpr int kRows = kHeight + kK - 1, kColumns = 16, kUsedColumns = kTileWidth + kK - 1;
  static constexpr int kColumnBytes = 32, kPitch = kColumns * kColumnBytes, kImageBytes = kRows * kPitch;

  // Kernel values: a row of taps is 8 values. A register of the band holds two taps of neighboring columns q and q + 1
  // for even q: taps (q - t, q - t + 1) of pixel t. The rows of odd pixels are shifted by one, [0, taps] instead of
  // [taps, 0], so that these two taps are in one aligned word. The words that a warp reads, 4 for each of 8 pixels
  // that are 28 words apart, are in different banks.
  static constexpr int kTapRow = 8, kPixelTaps = kK * kTapRow;
  static constexpr int kKernelBytes = kHeight * kTileWidth * kPixelTaps * 2;

  // 25 KB: 6 blocks of 4 warps on an SM of sm_80, and 8 on one of sm_90.
  static constexpr int kBytes = kKernelBytes + kImageBytes;
  // The kernel gradient: image, output gradients (8 columns) and results.
  static constexpr int kGradPitch = kTileWidth * kColumnBytes, kGradBytes = kHeight * kGradPitch;
  static constexpr int kKernelGradBytes = kImageBytes + kGradBytes + kHeight * kTileWidth * kK * kK * 2;
  static_assert(std::max(kBytes, kKernelGradBytes) <= kSharedBytes,
                "a block's tile must fit into static shared memory");

  static __device__ int vector_offset(int column, int vector) {
    return column * kColumnBytes + (vector ^ (column / 4 % 2)) * kVectorBytes;
  }
  static __device__ int kernel_slot(int y, int x, int u, int v) {
    return (y * kTileWidth + x) * kPixelTaps + u * kTapRow + v + x % 2;
  }
};

// Writes the zero before or after the 7 taps of every row.
template <typename scalar_t>
__device__ inline void fill_tap_rows(scalar_t* kernels) {
  using L = TensorCoreLayout;
  for (int n = threadIdx.x; n < L::kHeight * kTileWidth * L::kK; n += L::kThreads) {
    const int x = n / L::kK % kTileWidth;
    kernels[n * L::kTapRow + (x % 2 == 0 ? L::kK : 0)] = scalar_t(0);
  }
}

template <typename scalar_t>
__device__ void stage_columns(unsigned char* staged, const TiledImage<const scalar_t>& image, int b, int group, int y,
                              int x) {
  using L = TensorCoreLayout;
  stage_image<L::kRows, L::kUsedColumns, 2, L::kThreads>(
      image, b, group * kTileChannels, kTileChannels, y, x,
      [&](int row, int column, int vector) { return staged + row * L::kPitch + L::vector_offset(column, vector); });
  constexpr int kZeroVectors = (L::kColumns - L::kUsedColumns) * 2;
  for (int n = threadIdx.x; n < L::kRows * kZeroVectors; n += L::kThreads) {
    const int row = n / kZeroVectors, column = L::kUsedColumns + n % kZeroVectors / 2;
    store_vector(staged + row * L::kPitch + L::vector_offset(column, n % 2), Vector<scalar_t>{});
  }
}

// Computes the products of the rows of a warp: sums[i] is [16 channels x 8 pixels] of its i-th row.
template <typename scalar_t>
__device__ void multiply_bands(const unsigned char* staged, const scalar_t* kernels, int first_row,
                               float (&sums)[TensorCoreLayout::kWarpRows][4]) {
  using L = TensorCoreLayout;
  const int lane = threadIdx.x % kWarp;
  // A is transposed from [column][channel]; its fragments are, in order, channels and columns (0, 0), (8, 0), (0, 8),
  // (8, 8).
  const unsigned char* row = staged + first_row * L::kPitch + L::vector_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  // B: pixel t of this lane, and the element of its tap row for column 2p (and for column 2p + 8).
  const int t = lane / 4, element = lane % 4 * 2 - t + t % 2;
  const bool in_band[2] = {element >= 0 && element < L::kTapRow, element + 8 >= 0 && element + 8 < L::kTapRow};
  const scalar_t* taps = kernels + (first_row * kTileWidth + t) * L::kPixelTaps;
#pragma unroll
  for (int r = 0; r < L::kWarpRows + L::kK - 1; ++r) {
    std::uint32_t a[4], b[L::kWarpRows][2];
#pragma unroll
    for (int i = 0; i < L::kWarpRows; ++i) {
      const int u = r - i;
      if (u >= 0 && u < L::kK) {
        const scalar_t* tap_row = taps + i * kTileWidth * L::kPixelTaps + u * L::kTapRow;
        b[i][0] = in_band[0] ? *reinterpret_cast<const std::uint32_t*>(tap_row + element) : 0u;
        b[i][1] = in_band[1] ? *reinterpret_cast<const std::uint32_t*>(tap_row + element + 8) : 0u;
      }
    }
    __syncwarp();
    load_matrices_transposed(a, row + r * L::kPitch);
#pragma unroll
    for (int i = 0; i < L::kWarpRows; ++i) {
      if (r - i >= 0 && r - i < L::kK) {
        multiply_add<scalar_t>(sums[i], a, b[i]);
      }
    }
  }
}

// Writes the rows of a warp. `scratch`, in shared memory, converts its fragments (two pixels of a channel) into
// vectors of 8 channels.
template <typename scalar_t>
__device__ void write_rows(scalar_t* scratch, const float (&sums)[TensorCoreLayout::kWarpRows][4],
                           const TiledImage<scalar_t>& output, int b, int group, int y, int x,
                           const Epilogue<float>& epilogue) {
  using L = TensorCoreLayout;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < L::kWarpRows; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int channel = lane / 4 + n / 2 * 8, pixel = lane % 4 * 2 + n % 2;
      scratch[(i * kTileWidth + pixel) * kTileChannels + channel] =
          static_cast<scalar_t>(epilogue(sums[i][n], group * kTileChannels + channel));
    }
  }
  __syncwarp();
#pragma unroll
  for (int n = lane; n < L::kWarpRows * kTileWidth * 2; n += kWarp) {
    const int octet = n % 2, column = n / 2 % kTileWidth, row = n / 2 / kTileWidth;
    if (output.holds(y + row, x + column)) {
      store_vector(output.at(b, y + row, x + column) + group * kTileChannels + octet * kThreadChannels,
                   load_vector<scalar_t>(scratch + n * kThreadChannels));
    }
  }
}

// Applies the kernels in `memory` to the image from (y, x) on, and writes the tile from (out_y, out_x) on.
template <typename scalar_t>
__device__ void apply_bands(unsigned char* memory, const TiledImage<const scalar_t>& image, int b, int group, int y,
                            int x, const TiledImage<scalar_t>& output, int out_y, int out_x,
                            const Epilogue<float>& epilogue) {
  using L = TensorCoreLayout;
  scalar_t* kernels = reinterpret_cast<scalar_t*>(memory);
  unsigned char* staged = memory + L::kKernelBytes;
  fill_tap_rows(kernels);
  stage_columns(staged, image, b, group, y, x);
  __syncthreads();
  const int first_row = threadIdx.x / kWarp * L::kWarpRows;
  float sums[L::kWarpRows][4] = {};
  multiply_bands(staged, kernels, first_row, sums);
  __syncwarp();  // only this warp reads the kernels of these rows, and it has read them
  write_rows(kernels + first_row * kTileWidth * L::kPixelTaps, sums, output, b, group, out_y + first_row, out_x,
             epilogue);
}

template <typename scalar_t>
__global__ void __launch_bounds__(TensorCoreLayout::kThreads)
    tensor_core_forward_kernel(TileGrid grid, TiledImage<const scalar_t> input, TiledKernels<const scalar_t> kernels,
                               TiledImage<scalar_t> output) {
  using L = TensorCoreLayout;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int y = tile.y * L::kHeight, x = tile.x * kTileWidth;
  stage_kernels<L::kK, L::kHeight, L::kThreads>(
      kernels, tile.b, tile.group, y, x, [&](int row, int column, int u, int v) {
        return reinterpret_cast<scalar_t*>(memory) + L::kernel_slot(row, column, u, v);
      });
  apply_bands(memory, input, tile.b, tile.group, y - grid.padding_h, x - grid.padding_w, output, y, x,
              Epilogue<float>{nullptr, nullptr, false});
}

template <typename scalar_t>
__global__ void __launch_bounds__(TensorCoreLayout::kThreads)
    tensor_core_input_grad_kernel(TileGrid grid, TiledImage<const scalar_t> grad_output,
                                  TiledKernels<const scalar_t> kernels, TiledImage<scalar_t> grad_input) {
  using L = TensorCoreLayout;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int y = tile.y * L::kHeight, x = tile.x * kTileWidth;
  stage_gathered_kernels<L::kK, 1, L::kHeight, L::kThreads>(
      kernels, tile.b, tile.group, y + grid.padding_h, x + grid.padding_w,
      [&](int, int row, int column, int u, int v) {
        return reinterpret_cast<scalar_t*>(memory) + L::kernel_slot(row, column, u, v);
      });
  apply_bands(memory, grad_output, tile.b, tile.group, y + grid.padding_h - L::kK + 1, x + grid.padding_w - L::kK + 1,
              grad_input, y, x, Epilogue<float>{nullptr, nullptr, false});
}

// Computes [16 columns x 16 channels] * [16 channels x 8 pixels] for every input row and every output row whose
// windows contain it. The result for column q and pixel t is the gradient of tap q - t.
template <typename scalar_t>
__global__ void __launch_bounds__(TensorCoreLayout::kThreads)
    tensor_core_kernel_grad_kernel(TileGrid grid, TiledImage<const scalar_t> grad_output,
                                   TiledImage<const scalar_t> input, TiledKernels<scalar_t> grad_kernel) {
  using L = TensorCoreLayout;
  constexpr int K = L::kK;
  INVOLUTION_SHARED_MEMORY(memory, L::kKernelGradBytes);
  unsigned char* grads = memory + L::kImageBytes;
  scalar_t* results = reinterpret_cast<scalar_t*>(grads + L::kGradBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int y = tile.y * L::kHeight, x = tile.x * kTileWidth;
  stage_columns(memory, input, tile.b, tile.group, y - grid.padding_h, x - grid.padding_w);
  stage_image<L::kHeight, kTileWidth, 2, L::kThreads>(
      grad_output, tile.b, tile.group * kTileChannels, kTileChannels, y, x,
      [&](int row, int column, int vector) { return grads + row * L::kGradPitch + L::vector_offset(column, vector); });
  __syncthreads();

  const int lane = threadIdx.x % kWarp, first_row = threadIdx.x / kWarp * L::kWarpRows;
  // B for two rows at a time: the fragments are channels 0 and 8 of the first row, then of the second row.
  std::uint32_t b[L::kWarpRows / 2][4];
#pragma unroll
  for (int i = 0; i < L::kWarpRows / 2; ++i) {
    load_matrices(b[i],
                  grads + (first_row + 2 * i + lane / 16) * L::kGradPitch + L::vector_offset(lane % 8, lane / 8 % 2));
  }
  // A's fragments are, in order, columns and channels (0, 0), (8, 0), (0, 8), (8, 8).
  const unsigned char* row = memory + first_row * L::kPitch + L::vector_offset(lane % 16, lane / 16);
#pragma unroll
  for (int r = 0; r < L::kWarpRows + K - 1; ++r) {
    std::uint32_t a[4];
    load_matrices(a, row + r * L::kPitch);
#pragma unroll
    for (int i = 0; i < L::kWarpRows; ++i) {
      const int u = r - i;
      if (u >= 0 && u < K) {
        float products[4] = {};
        multiply_add<scalar_t>(products, a, {b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]});
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int pixel = lane % 4 * 2 + n % 2, v = lane / 4 + n / 2 * 8 - pixel;
          if (v >= 0 && v < K) {
            results[(((first_row + i) * kTileWidth + pixel) * K + u) * K + v] = static_cast<scalar_t>(products[n]);
          }
        }
        __syncwarp();
      }
    }
  }
  __syncthreads();
  write_kernels<K, L::kHeight, L::kThreads>(results, grad_kernel, tile.b, tile.group, y, x);
}

// Generates the kernels of the rows of a warp: [taps, padded to 64, x R] * [R x 8 pixels] for each row. The hidden
// channels of both operands are adjacent in memory, as fragments require. The weights of a group are the same for all
// warps and are read from the cache.
//
// The results are exchanged through shared memory, not between registers: a lane holds the taps of fixed rows of D for
// two pixels, whereas the band requires tap q - t of column q. Therefore nearly every value is used by another lane,
// which would take 64 shuffles. A warp reads only the pixels that it writes.
template <typename scalar_t>
__device__ void multiply_kernels(scalar_t* kernels, const TiledGeneration<scalar_t>& generation, int b, int group,
                                 int first_row, int tile_y, int x) {
  using L = TensorCoreLayout;
  constexpr int kTaps = L::kK * L::kK, kTapTiles = (kTaps + 15) / 16;
  const int lane = threadIdx.x % kWarp, pair = lane % 4 * 2;
  const auto word = [](const scalar_t* values) { return *reinterpret_cast<const std::uint32_t*>(values); };
  float taps[kTapTiles][L::kWarpRows][4] = {};
#pragma unroll 1
  for (int r = 0; r < generation.hidden_channels; r += L::kHiddenChannels) {
    std::uint32_t features[L::kWarpRows][2] = {};
#pragma unroll
    for (int i = 0; i < L::kWarpRows; ++i) {
      const int y = tile_y + first_row + i;
      if (generation.features.holds(y, x + lane / 4)) {
        const scalar_t* values = generation.features.at(b, y, x + lane / 4) + r + pair;
        features[i][0] = word(values);
        features[i][1] = word(values + 8);
      }
    }
#pragma unroll
    for (int m = 0; m < kTapTiles; ++m) {
      std::uint32_t a[4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tap = m * 16 + half * 8 + lane / 4;
        if (tap < kTaps) {
          const scalar_t* values = generation.weight + (group * kTaps + tap) * generation.weight_stride + r + pair;
          a[half] = word(values);
          a[half + 2] = word(values + 8);
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < L::kWarpRows; ++i) {
        multiply_add<scalar_t>(taps[m][i], a, features[i]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kTapTiles; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int tap = m * 16 + n / 2 * 8 + lane / 4;
      if (tap < kTaps) {
        const float bias = generation.bias == nullptr ? 0.f : static_cast<float>(generation.bias[group * kTaps + tap]);
#pragma unroll
        for (int i = 0; i < L::kWarpRows; ++i) {
          kernels[L::kernel_slot(first_row + i, pair + n % 2, tap / L::kK, tap % L::kK)] =
              static_cast<scalar_t>(taps[m][i][n] + bias);
        }
      }
    }
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(TensorCoreLayout::kThreads)
    tensor_core_fused_kernel(TileGrid grid, TiledImage<const scalar_t> input, TiledGeneration<scalar_t> generation,
                             Epilogue<float> epilogue, TiledImage<scalar_t> output) {
  using L = TensorCoreLayout;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int y = tile.y * L::kHeight, x = tile.x * kTileWidth;
  multiply_kernels(reinterpret_cast<scalar_t*>(memory), generation, tile.b, tile.group,
                   static_cast<int>(threadIdx.x) / kWarp * L::kWarpRows, y, x);
  apply_bands(memory, input, tile.b, tile.group, y - grid.padding_h, x - grid.padding_w, output, y, x, epilogue);
}

}  // namespace involution
