// The fused forward pass on the CPU: the kernel is generated from features, block by block.
#pragma once

#include "forward.h"

namespace involution {
namespace {

// Multiplies M rows of `weight`, [row][count], and `count` rows of N * kLanes pixels, [count][kFromStep]: a 1x1
// convolution. The products are added to `bias`, or without one to `out`, and written to `out`, [row][kOutStep].
template <int M, int N, int64_t kFromStep, int64_t kOutStep, typename acc_t>
INVOLUTION_NOINLINE void multiply_pixels(const acc_t* weight, const acc_t* bias, const acc_t* from, int64_t count,
                                         acc_t* out) {
  using V = Channels<acc_t>;
  V acc[M][N];
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      acc[m][n] = bias ? V{} + bias[m] : load<V>(out + m * kOutStep + n * kLanes);
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    V pixels[N];
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      pixels[n] = load<V>(from + k * kFromStep + n * kLanes);
    }
    INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
      INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
        add_product<acc_t>(acc[m][n], pixels[n], weight[m * count + k]);
      }
    }
  }
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      store(out + m * kOutStep + n * kLanes, acc[m][n]);
    }
  }
}

// The rows of `multiply_pixels`: the accumulators of 6 rows and two vectors of pixels fit into registers.
constexpr int kMostRows = 6;

// The 1x1 convolution that generates the kernels.
template <typename scalar_t, typename acc_t>
struct Generator {
  int64_t hidden, taps;
  Values<scalar_t, acc_t> weight, bias;

  Generator(const Geometry& g, const Generation& generation)
      : hidden(generation.weight.sizes[1]),
        taps(g.taps()),
        weight(&generation.weight, g.groups * taps * hidden),
        bias(generation.bias, g.groups * taps) {}

  // Computes all taps of one group for a block of pixels, in tiles of nearly equal numbers of taps: the 49 of the
  // paper are 4 tiles of 6 and 5 of 5.
  void operator()(int64_t group, const acc_t* features, int64_t pixels, acc_t* out) const {
    const acc_t *w = weight.get() + group * taps * hidden, *b = bias.get() + group * taps;
    const int64_t tiles = ceil_div(taps, kMostRows);
    for (int64_t n = 0; n < tiles; ++n) {
      const int64_t tap = taps * n / tiles, end = taps * (n + 1) / tiles;
      // The weights of the next tile, while those of this one are used for all pixels.
      prefetch(w + end * hidden, (end - tap) * hidden);
      for (int64_t p = 0; p < pixels; p += kSlice) {
        with_static_count<kMostRows>(end - tap, [&](auto M) {
          with_static_count<kSliceVectors>(ceil_div(pixels - p, kLanes), [&](auto N) {
            multiply_pixels<decltype(M)::value, decltype(N)::value, kSlice, kTapStride>(
                w + tap * hidden, b + tap, features + p * hidden, hidden, out + tap * kTapStride + p);
          });
        });
      }
    }
  }
};

// The generated kernels of a block, [tap][kTapStride].
template <typename acc_t>
struct GeneratedKernels {
  const acc_t* data;
  int64_t width;

  PixelsByTap<acc_t> tile(int64_t row, int64_t j, int64_t) const {
    return {data + row * width + j, kTapStride};
  }
};

// Packs the features of a strip as [block][slice][hidden][kSlice], once for all groups.
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void pack_features(const Geometry& g, const Blocks& blocks, const Image<const scalar_t>& features,
                                       acc_t* packed, int64_t hidden, int64_t b, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const scalar_t* row = features.row(b, 0, i);
    for (int64_t j = 0, pixels; j < g.out_w; j += pixels) {
      const int64_t block = (i - first) / blocks.rows * blocks.per_row + j / blocks.columns;
      const int64_t pixel = (i - first) % blocks.rows * g.out_w + j % blocks.columns;
      // Up to `kLanes` pixels of one slice.
      pixels = min(min(kLanes, kSlice - pixel % kSlice), min(blocks.columns - j % blocks.columns, g.out_w - j));
      acc_t* to = packed + (block * kBlock + pixel / kSlice * kSlice) * hidden + pixel % kSlice;
      for (int64_t r = 0; r < hidden; r += kLanes) {
        planes_from_pixels(to + r * kSlice, kSlice, row + j * features.stride_w + r * features.stride_c,
                           features.stride_c, features.stride_w, pixels, min(kLanes, hidden - r));
      }
    }
  }
  // `Generator` computes whole vectors. Without these zeros it would multiply uninitialized memory, which takes many
  // times as long if it contains denormal numbers.
  for (int64_t n = 0; n < blocks.count(last - first); ++n) {
    const int64_t pixels = blocks.at(g, n, first, last).pixels();
    acc_t* to = packed + (n * kBlock + pixels / kSlice * kSlice) * hidden + pixels % kSlice;
    const int64_t missing = (kLanes - pixels % kLanes) % kLanes;
    for (int64_t r = 0; r < hidden; ++r) {
      zero(to + r * kSlice, missing);
    }
  }
}

template <typename scalar_t>
void fused_kernel(const Geometry& g, const Tensor& input, const Generation& generation, const Epilogues& epilogues_,
                  const Tensor& output, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> x(input), features(generation.features);
  const Generator<scalar_t, acc_t> generate(g, generation);
  const ChannelEpilogues<acc_t> epilogues(g, epilogues_);
  const PackedRows rows{packed_columns(g), g.padding_w};
  const int64_t chunks = chunks_per_group(g), row_size = rows.columns * chunk_at(g, 0).size();
  const Blocks blocks(g);
  const Strips strips(g, row_size * sizeof(acc_t) * chunks, blocks.rows);
  const int64_t strip_size = strips.packed_rows(g) * row_size;
  // The groups are divided among tasks if there are too few images and strips for all threads.
  int64_t parts = 1;
  while (parts < g.groups && g.batch * strips.count * parts < 2 * parallel.threads) {
    parts *= 2;
  }
  parts = min(parts, g.groups);
  with_static_stride<acc_t, kForwardStrides>(g, [&](auto S) {
    parallel_for(parallel, g.batch * strips.count * parts, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(chunks * strip_size), hidden(blocks.count(strips.rows) * generate.hidden * kBlock),
          taps(generate.taps * kTapStride);
      BlockWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts / strips.count, first = task / parts % strips.count * strips.rows;
        const int64_t last = min(first + strips.rows, g.out_h);
        pack_features(g, blocks, features, hidden.get(), generate.hidden, b, first, last);
        for (int64_t group = task % parts * g.groups / parts; group < (task % parts + 1) * g.groups / parts; ++group) {
          for (int64_t c = 0; c < chunks; ++c) {
            pack_rows(x, packed.get() + c * strip_size, rows, b, chunk_at(g, group * chunks + c),
                      first * g.stride_h - g.padding_h, g.dilation_h, (last - first - 1) * g.stride_h + g.kernel_h);
          }
          for (int64_t n = 0; n < blocks.count(last - first); ++n) {
            const Block block = blocks.at(g, n, first, last);
            generate(group, hidden.get() + n * generate.hidden * kBlock, block.pixels(), taps.get());
            GeneratedKernels<acc_t> kernels{taps.get(), block.width};
            for (int64_t c = 0; c < chunks; ++c) {
              const Chunk chunk = chunk_at(g, group * chunks + c);
              const PackedStrip<acc_t> strip{packed.get() + c * strip_size, rows.columns * chunk.size(), first};
              compute_block<decltype(S)::value>(g, b, chunk, block, strip, kernels, epilogues, writer);
            }
          }
        }
      }
    });
  });
}

}  // namespace
}  // namespace involution
