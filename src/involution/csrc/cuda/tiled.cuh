// The tiled kernels of forward pass, fused forward pass and input gradient. They share one function, which applies the
// kernels of a tile to its image. The kernel gradient is in tiled_kernel_grad.cuh.
#pragma once

#include "tiles.cuh"

namespace involution {

// The taps of a row, padded to a power of two; one access reads them if they fit into 16 bytes.
template <typename scalar_t, int COUNT>
struct alignas(std::min<int>(COUNT * sizeof(scalar_t), kVectorBytes)) TapRow {
  scalar_t values[COUNT];
};

// Loads 8 channels as float, from vectors that are `step` bytes apart.
template <typename scalar_t>
__device__ inline void load_channels(const unsigned char* address, int step, float (&channels)[kThreadChannels]) {
  constexpr int kSize = Vector<scalar_t>::kSize;
#pragma unroll
  for (int n = 0; n < kThreadChannels / kSize; ++n) {
    const Vector<scalar_t> vector = load_vector<scalar_t>(address + n * step);
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      channels[n * kSize + c] = static_cast<float>(vector.values[c]);
    }
  }
}

// Adds image column * tap to sums[t][c] for the taps from (first_u, first_v) on and the pixels t and channels c of a
// thread.
template <typename L>
__device__ void accumulate(const unsigned char* image, const typename L::scalar_t* kernels, int first_u, int first_v,
                           float (&sums)[L::kPixels][kThreadChannels]) {
  using Row = TapRow<typename L::scalar_t, L::kTapRow>;
#pragma unroll 1
  for (int u = first_u; u < L::kTaps; ++u) {
    Row rows[L::kPixels];
#pragma unroll
    for (int t = 0; t < L::kPixels; ++t) {
      rows[t] = *reinterpret_cast<const Row*>(kernels + t * L::kPixelTaps + u * L::kTapRow);
    }
#pragma unroll
    for (int q = 0; q < (L::kPixels - 1) * L::kStep + L::kTaps; ++q) {
      float channels[kThreadChannels];
      load_channels<typename L::scalar_t>(image + u * L::kPitch + q * L::kColumnBytes, kOctets * kVectorBytes,
                                          channels);
#pragma unroll
      for (int t = 0; t < L::kPixels; ++t) {
        const int v = q - t * L::kStep;
        if (v >= 0 && v < L::kTaps && v >= first_v) {
          const float tap = static_cast<float>(rows[t].values[v]);
#pragma unroll
          for (int c = 0; c < kThreadChannels; ++c) {
            sums[t][c] += channels[c] * tap;
          }
        }
      }
    }
  }
}

// The position of a thread in its tile.
template <typename L>
struct Position {
  int octet, row, strip, phase;

  __device__ Position()
      : octet(threadIdx.x % kOctets),
        row(threadIdx.x / kOctets % L::kHeight),
        strip(threadIdx.x / kOctets / L::kHeight % L::kStrips),
        phase(threadIdx.x / kOctets / L::kHeight / L::kStrips) {}
};

// Applies the kernels in `memory` to the image from (y, x) on, for kTileChannels channels of the group at a time.
// Calls `store(t, channel of the group, sums)` with the channels of a vector for each pixel t of the thread.
template <typename L, typename Store>
__device__ void apply_tile(unsigned char* memory, const TiledImage<const typename L::scalar_t>& image, int b,
                           int group, int group_channels, int y, int x, const Position<L>& position, int first_u,
                           int first_v, const Store& store) {
  using scalar_t = typename L::scalar_t;
  constexpr int kSize = Vector<scalar_t>::kSize;
  const scalar_t* kernels = reinterpret_cast<const scalar_t*>(memory) +
                            L::kernel_slot(position.phase, position.row, position.strip * L::kPixels, 0, 0);
  unsigned char* staged = memory + L::kKernelBytes;
  const unsigned char* columns = staged + position.row * L::kStep * L::kPitch +
                                 position.strip * L::kPixels * L::kStep * L::kColumnBytes +
                                 position.octet * kVectorBytes;
  for (int first = 0; first < group_channels; first += kTileChannels) {
    __syncthreads();  // all threads have read the previous values
    stage_image<L::kRows, L::kColumns, L::kVectors, L::kThreads>(
        image, b, group * group_channels + first, group_channels - first, y, x, [&](int row, int column, int vector) {
          return staged + row * L::kPitch + column * L::kColumnBytes + vector * kVectorBytes;
        });
    __syncthreads();
    float sums[L::kPixels][kThreadChannels] = {};
    accumulate<L>(columns, kernels, first_u, first_v, sums);
#pragma unroll
    for (int n = 0; n < kThreadChannels / kSize; ++n) {
      const int channel = first + (n * kOctets + position.octet) * kSize;
#pragma unroll
      for (int t = 0; t < L::kPixels; ++t) {
        if (channel < group_channels) {
          store(t, channel, sums[t] + n * kSize);
        }
      }
    }
  }
}

template <typename scalar_t>
__device__ inline Vector<scalar_t> to_vector(const float* sums) {
  Vector<scalar_t> vector;
#pragma unroll
  for (int c = 0; c < Vector<scalar_t>::kSize; ++c) {
    vector.values[c] = static_cast<scalar_t>(sums[c]);
  }
  return vector;
}

template <typename scalar_t, int K, int STRIDE>
__global__ void __launch_bounds__(ForwardLayout<scalar_t, K, STRIDE>::kThreads,
                                  ForwardLayout<scalar_t, K, STRIDE>::kBlocks)
    tiled_forward_kernel(TileGrid grid, TiledImage<const scalar_t> input, TiledKernels<const scalar_t> kernels,
                         TiledImage<scalar_t> output) {
  using L = ForwardLayout<scalar_t, K, STRIDE>;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int tile_y = tile.y * L::kHeight, tile_x = tile.x * kTileWidth;
  stage_kernels<K, L::kHeight, L::kThreads>(
      kernels, tile.b, tile.group, tile_y, tile_x,
      [&](int y, int x, int u, int v) { return reinterpret_cast<scalar_t*>(memory) + L::kernel_slot(0, y, x, u, v); });
  const Position<L> position;
  apply_tile<L>(memory, input, tile.b, tile.group, grid.group_channels, tile_y * STRIDE - grid.padding_h,
                tile_x * STRIDE - grid.padding_w, position, 0, 0, [&](int t, int channel, const float* sums) {
                  const int y = tile_y + position.row, x = tile_x + position.strip * L::kPixels + t;
                  if (output.holds(y, x)) {
                    store_vector(output.at(tile.b, y, x) + tile.group * grid.group_channels + channel,
                                 to_vector<scalar_t>(sums));
                  }
                });
}

template <typename scalar_t, int K, int STRIDE>
__global__ void __launch_bounds__(InputGradLayout<scalar_t, K, STRIDE>::kThreads,
                                  InputGradLayout<scalar_t, K, STRIDE>::kBlocks)
    tiled_input_grad_kernel(TileGrid grid, TiledImage<const scalar_t> grad_output,
                            TiledKernels<const scalar_t> kernels, TiledImage<scalar_t> grad_input) {
  using L = InputGradLayout<scalar_t, K, STRIDE>;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  // q = (y + padding) / STRIDE of the first pixel of the tile. The padding itself needs no gradient.
  const int tile_y = grid.padding_h / STRIDE + tile.y * L::kHeight,
            tile_x = grid.padding_w / STRIDE + tile.x * kTileWidth;
  stage_gathered_kernels<K, STRIDE, L::kHeight, L::kThreads>(
      kernels, tile.b, tile.group, tile_y, tile_x, [&](int phase, int y, int x, int u, int v) {
        return reinterpret_cast<scalar_t*>(memory) + L::kernel_slot(phase, y, x, u, v);
      });
  const Position<L> position;
  const int phase_y = position.phase / STRIDE, phase_x = position.phase % STRIDE;
  // In phases with fewer taps, the first of the TAPS gathered taps of a row does not exist.
  const int first_u = L::kTaps - (K - phase_y + STRIDE - 1) / STRIDE;
  const int first_v = L::kTaps - (K - phase_x + STRIDE - 1) / STRIDE;
  apply_tile<L>(memory, grad_output, tile.b, tile.group, grid.group_channels, tile_y - L::kTaps + 1,
                tile_x - L::kTaps + 1, position, first_u, first_v, [&](int t, int channel, const float* sums) {
                  const int y = (tile_y + position.row) * STRIDE + phase_y - grid.padding_h;
                  const int x = (tile_x + position.strip * L::kPixels + t) * STRIDE + phase_x - grid.padding_w;
                  if (grad_input.holds(y, x)) {
                    store_vector(grad_input.at(tile.b, y, x) + tile.group * grid.group_channels + channel,
                                 to_vector<scalar_t>(sums));
                  }
                });
}

// The 1x1 convolution that generates the kernel. Features are channels-last, and rows of the weight are contiguous.
template <typename scalar_t>
struct TiledGeneration {
  TiledImage<const scalar_t> features;
  const scalar_t* weight;
  int weight_stride, hidden_channels;
  const scalar_t* bias;  // null if there is none
};

// Generates the kernels of the pixels of a tile from weights that are staged as float. One thread computes all taps of
// a pixel. Only this thread reads the features of the pixel, so they are loaded from global memory into registers.
template <typename L, int K>
__device__ void generate_kernels(unsigned char* memory, const TiledGeneration<typename L::scalar_t>& generation, int b,
                                 int group, int tile_y, int tile_x) {
  using scalar_t = typename L::scalar_t;
  constexpr int kHidden = TileSizes<scalar_t, K, L::kStep>::kHiddenChannels;
  constexpr int kPixels = L::kHeight * kTileWidth / L::kThreads;
  constexpr int kTapsPitch = (K * K + 3) / 4 * 4;  // of float vectors
  static_assert(L::kHeight * kTileWidth % L::kThreads == 0);
  static_assert(kHidden * kTapsPitch * sizeof(float) <= L::kImageBytes, "the weights take the place of the image");
  float* weights = reinterpret_cast<float*>(memory + L::kKernelBytes);  // [hidden channel][tap]

  float taps[kPixels][K * K];
#pragma unroll
  for (int tap = 0; tap < K * K; ++tap) {
    const float bias = generation.bias == nullptr ? 0.f : static_cast<float>(generation.bias[group * K * K + tap]);
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      taps[p][tap] = bias;
    }
  }
  for (int first = 0; first < generation.hidden_channels; first += kHidden) {
    const int left = generation.hidden_channels - first, count = left < kHidden ? left : kHidden;
    __syncthreads();
    for (int n = threadIdx.x; n < K * K * (kHidden / kThreadChannels); n += L::kThreads) {
      const int tap = n % (K * K), r = n / (K * K) * kThreadChannels;
      if (r < count) {
        float values[kThreadChannels];
        const scalar_t* row = generation.weight + (group * K * K + tap) * generation.weight_stride;
        load_channels<scalar_t>(reinterpret_cast<const unsigned char*>(row + first + r), kVectorBytes, values);
#pragma unroll
        for (int e = 0; e < kThreadChannels; ++e) {
          weights[(r + e) * kTapsPitch + tap] = values[e];
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int r = 0; r < count; r += kThreadChannels) {
      float features[kPixels][kThreadChannels] = {};
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int n = threadIdx.x + p * L::kThreads, y = tile_y + n / kTileWidth, x = tile_x + n % kTileWidth;
        if (generation.features.holds(y, x)) {
          load_channels<scalar_t>(reinterpret_cast<const unsigned char*>(generation.features.at(b, y, x) + first + r),
                                  kVectorBytes, features[p]);
        }
      }
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) {
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap) {
          const float weight = load_vector<float>(weights + (r + e) * kTapsPitch + tap / 4 * 4).values[tap % 4];
#pragma unroll
          for (int p = 0; p < kPixels; ++p) {
            taps[p][tap] += features[p][e] * weight;
          }
        }
      }
    }
  }
  scalar_t* kernels = reinterpret_cast<scalar_t*>(memory);
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const int n = threadIdx.x + p * L::kThreads;
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap) {
      kernels[L::kernel_slot(0, n / kTileWidth, n % kTileWidth, tap / K, tap % K)] =
          static_cast<scalar_t>(taps[p][tap]);
    }
  }
}

template <typename scalar_t, int K, int STRIDE>
__global__ void __launch_bounds__(ForwardLayout<scalar_t, K, STRIDE>::kThreads,
                                  ForwardLayout<scalar_t, K, STRIDE>::kBlocks)
    tiled_fused_kernel(TileGrid grid, TiledImage<const scalar_t> input, TiledGeneration<scalar_t> generation,
                       Epilogue<float> epilogue, TiledImage<scalar_t> output) {
  using L = ForwardLayout<scalar_t, K, STRIDE>;
  INVOLUTION_SHARED_MEMORY(memory, L::kBytes);
  const TileGrid::Tile tile = grid.tile(blockIdx.x);
  const int tile_y = tile.y * L::kHeight, tile_x = tile.x * kTileWidth;
  generate_kernels<L, K>(memory, generation, tile.b, tile.group, tile_y, tile_x);
  const Position<L> position;
  apply_tile<L>(memory, input, tile.b, tile.group, grid.group_channels, tile_y * STRIDE - grid.padding_h,
                tile_x * STRIDE - grid.padding_w, position, 0, 0, [&](int t, int group_channel, const float* sums) {
                  const int y = tile_y + position.row, x = tile_x + position.strip * L::kPixels + t;
                  const int channel = tile.group * grid.group_channels + group_channel;
                  if (output.holds(y, x)) {
                    float results[Vector<scalar_t>::kSize];
#pragma unroll
                    for (int c = 0; c < Vector<scalar_t>::kSize; ++c) {
                      results[c] = epilogue(sums[c], channel + c);
                    }
                    store_vector(output.at(tile.b, y, x) + channel, to_vector<scalar_t>(results));
                  }
                });
}

}  // namespace involution
