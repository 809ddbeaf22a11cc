// The fused forward pass on the CPU: the kernel is generated from features, block by block.
#pragma once

#include "forward.h"

namespace involution {
namespace {

// Computes the 1x1 convolution for M taps of N * 16 pixels, from features [hidden][kSlice] to [tap][kTapStride].
template <int M, int N, typename acc_t>
__attribute__((noinline)) void generate_tile(const acc_t* weight, const acc_t* bias, const acc_t* features,
                                             int64_t hidden, acc_t* out) {
  using V = Channels<acc_t>;
  V acc[M][N];
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      acc[m][n] = V{} + bias[m];
    }
  }
  for (int64_t r = 0; r < hidden; ++r) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      const V feature = load<V>(features + r * kSlice + n * kLanes);
      INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
        acc[m][n] += feature * weight[m * hidden + r];
      }
    }
  }
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      store(out + m * kTapStride + n * kLanes, acc[m][n]);
    }
  }
}

// Computes all taps of one group for a block of pixels. 7 taps at a time divide the 49 of the paper. Two vectors of
// pixels share the broadcast weight and fill the pipeline.
template <typename acc_t>
void generate(const acc_t* weight, const acc_t* bias, const acc_t* features, int64_t hidden, int64_t taps,
              int64_t pixels, acc_t* out) {
  for (int64_t p = 0; p < pixels; p += kSlice, features += kSlice * hidden) {
    const bool two = pixels - p > kLanes;
    int64_t tap = 0;
    for (; tap + 7 <= taps; tap += 7) {
      const auto tile = two ? generate_tile<7, 2, acc_t> : generate_tile<7, 1, acc_t>;
      tile(weight + tap * hidden, bias + tap, features, hidden, out + tap * kTapStride + p);
    }
    for (; tap < taps; ++tap) {
      const auto tile = two ? generate_tile<1, 2, acc_t> : generate_tile<1, 1, acc_t>;
      tile(weight + tap * hidden, bias + tap, features, hidden, out + tap * kTapStride + p);
    }
  }
}

// The 1x1 convolution that generates the kernels.
template <typename acc_t>
struct Generator {
  const acc_t *weight, *bias;
  int64_t hidden;
};

// The blocks of pixels whose kernels are generated together: whole rows if they fit, otherwise parts of a row.
struct Blocks {
  int64_t rows, columns, per_row;

  explicit Blocks(const Geometry& g)
      : rows(g.dilation_h > 1 ? 1 : std::max<int64_t>(kBlock / g.out_w, 1)),
        columns(std::min(g.out_w, kBlock)),
        per_row((g.out_w + columns - 1) / columns) {}
  int64_t count(int64_t out_rows) const {
    return (out_rows + rows - 1) / rows * per_row;
  }
};

// Packs the features of a strip as [block][slice][hidden][kSlice], once for all groups.
template <typename scalar_t, typename acc_t>
void pack_features(const Geometry& g, const Blocks& blocks, const Image<const scalar_t>& features, acc_t* packed,
                   int64_t hidden, int64_t b, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const scalar_t* row = features.row(b, 0, i);
    for (int64_t j = 0, pixels; j < g.out_w; j += pixels) {
      const int64_t block = (i - first) / blocks.rows * blocks.per_row + j / blocks.columns;
      const int64_t pixel = (i - first) % blocks.rows * g.out_w + j % blocks.columns;
      // Up to 16 pixels of one slice.
      pixels = std::min({kLanes, kSlice - pixel % kSlice, blocks.columns - j % blocks.columns, g.out_w - j});
      acc_t* to = packed + (block * kBlock + pixel / kSlice * kSlice) * hidden + pixel % kSlice;
      for (int64_t r = 0; r < hidden; r += kLanes) {
        transpose(to + r * kSlice, kSlice, row + j * features.stride_w + r * features.stride_c, features.stride_c,
                  features.stride_w, pixels, std::min(kLanes, hidden - r));
      }
    }
  }
  // `generate` computes whole vectors. Without these zeros it would multiply uninitialized memory, which takes many
  // times as long if it contains denormal numbers.
  for (int64_t block = 0; block < blocks.count(last - first); ++block) {
    const int64_t rows = std::min(blocks.rows, last - first - block / blocks.per_row * blocks.rows);
    const int64_t pixels = rows * std::min(blocks.columns, g.out_w - block % blocks.per_row * blocks.columns);
    acc_t* to = packed + (block * kBlock + pixels / kSlice * kSlice) * hidden + pixels % kSlice;
    const int64_t missing = (kLanes - pixels % kLanes) % kLanes;
    for (int64_t r = 0; r < hidden; ++r) {
      std::fill_n(to + r * kSlice, missing, acc_t(0));
    }
  }
}

template <typename scalar_t>
void fused_kernel(const Geometry& g, const at::Tensor& input, const at::Tensor& features_,
                  const Generator<opmath_t<scalar_t>>& generator, const Epilogues<opmath_t<scalar_t>>& epilogues,
                  const at::Tensor& output) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> x(input), features(features_);
  const int64_t columns = packed_columns(g), row_step = columns * kLanes, chunks = chunks_per_group(g),
                taps = g.taps();
  const Blocks blocks(g);
  const Strips strips(g, row_step * sizeof(acc_t) * chunks, blocks.rows);
  const int64_t strip_size = strips.packed_rows(g) * row_step;
  // The groups are divided among tasks if there are too few images and strips for all threads.
  int64_t parts = 1;
  while (parts < g.groups && g.batch * strips.count * parts < 2 * at::get_num_threads()) {
    parts *= 2;
  }
  parts = std::min(parts, g.groups);
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips.count * parts, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(chunks * strip_size), hidden(blocks.count(strips.rows) * generator.hidden * kBlock),
          kernels(taps * kTapStride);
      RowWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts / strips.count, first = task / parts % strips.count * strips.rows;
        const int64_t last = std::min(first + strips.rows, g.out_h);
        pack_features(g, blocks, features, hidden.get(), generator.hidden, b, first, last);
        for (int64_t group = task % parts * g.groups / parts; group < (task % parts + 1) * g.groups / parts; ++group) {
          for (int64_t c = 0; c < chunks; ++c) {
            pack_strip(g, x, packed.get() + c * strip_size, columns, b, chunk_at(g, group * chunks + c), first, last);
          }
          for (int64_t block = 0; block < blocks.count(last - first); ++block) {
            const int64_t i_begin = first + block / blocks.per_row * blocks.rows,
                          i_end = std::min(i_begin + blocks.rows, last);
            const int64_t j_begin = block % blocks.per_row * blocks.columns,
                          width = std::min(blocks.columns, g.out_w - j_begin);
            generate(generator.weight + group * taps * generator.hidden, generator.bias + group * taps,
                     hidden.get() + block * generator.hidden * kBlock, generator.hidden, taps,
                     (i_end - i_begin) * width, kernels.get());
            for (int64_t c = 0; c < chunks; ++c) {
              const Chunk chunk = chunk_at(g, group * chunks + c);
              const Epilogue<acc_t> epilogue = epilogues.of(chunk);
              for (int64_t i = i_begin; i < i_end; ++i) {
                const acc_t* window = packed.get() + c * strip_size + (i - first) * g.stride_h * row_step;
                const acc_t* row = kernels.get() + (i - i_begin) * width;
                const auto [out, out_step] = writer.start(b, chunk, i);
                for_tiles(width, [&, out = out, out_step = out_step](auto T, int64_t j) {
                  forward_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                      g, window + (j_begin + j) * g.stride_w * kLanes, row_step, PixelsByTap<acc_t>{row + j}, epilogue,
                      out + (j_begin + j) * out_step, out_step);
                });
                writer.finish(b, chunk, i, j_begin, j_begin + width);
              }
            }
          }
        }
      }
    });
  });
}

}  // namespace
}  // namespace involution
