// The forward pass on the CPU, with a given kernel.
#pragma once

#include "packing.h"

#include <type_traits>
#include <utility>

namespace involution {
namespace {

// Scale, shift and ReLU of up to 16 channels, applied to the sums. NaN remains NaN.
template <typename acc_t>
struct Epilogue {
  Channels<acc_t> scale, shift;
  bool affine, relu;

  Channels<acc_t> operator()(Channels<acc_t> value) const {
    if (affine) {
      value = value * scale + shift;
    }
    if (relu) {
      value = value < Channels<acc_t>{} ? Channels<acc_t>{} : value;
    }
    return value;
  }
};

// Computes T output pixels. `x` points to the packed column of the first tap of the first pixel.
template <int K, int S, int T, typename acc_t, typename TapsOfTile>
__attribute__((noinline)) void forward_tile(const Geometry& g, const acc_t* x, int64_t row_step, TapsOfTile taps,
                                            const Epilogue<acc_t>& epilogue, acc_t* out, int64_t out_step) {
  using V = Channels<acc_t>;
  V acc[T] = {};
  if constexpr (K > 0) {
    for (int u = 0; u < K; ++u, x += row_step) {
      // Each column is loaded once, for all pixels whose windows contain it.
      INVOLUTION_UNROLL for (int q = 0; q < (T - 1) * S + K; ++q) {
        const V column = load<V>(x + q * kLanes);
        INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
          if (q - t * S >= 0 && q - t * S < K) {
            acc[t] += column * taps(t, u * K + q - t * S);
          }
        }
      }
    }
  } else {
    for (int64_t u = 0, tap = 0; u < g.kernel_h; ++u, x += row_step) {
      for (int64_t v = 0; v < g.kernel_w; ++v, ++tap) {
        INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
          acc[t] += load<V>(x + (t * g.stride_w + v * g.dilation_w) * kLanes) * taps(t, tap);
        }
      }
    }
  }
  INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
    store(out + t * out_step, epilogue(acc[t]));
  }
}

// Scale, shift and ReLU of all channels. Scale and shift are null if there are none.
template <typename acc_t>
struct Epilogues {
  const acc_t *scale = nullptr, *shift = nullptr;
  bool relu = false;

  Epilogue<acc_t> of(const Chunk& chunk) const {
    Epilogue<acc_t> result{{}, {}, scale != nullptr, relu};
    for (int64_t c = 0; scale != nullptr && c < chunk.count; ++c) {
      result.scale[c] = scale[chunk.first + c];
      result.shift[c] = shift[chunk.first + c];
    }
    return result;
  }
};

// Writes the tiles of an output row: in place if 16 channels are adjacent in memory, otherwise into a buffer that
// `finish` unpacks.
template <typename scalar_t, typename acc_t>
struct RowWriter {
  const Image<scalar_t> image;
  Buffer<acc_t> buffer;

  RowWriter(const at::Tensor& t) : image(t), buffer(t.size(3) * kLanes) {}

  bool in_place(const Chunk& chunk) const {
    return std::is_same_v<scalar_t, acc_t> && image.stride_c == 1 && chunk.count == kLanes;
  }
  std::pair<acc_t*, int64_t> start(int64_t b, const Chunk& chunk, int64_t i) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place(chunk)) {
        return {image.row(b, chunk.first, i), image.stride_w};
      }
    }
    return {buffer.get(), kLanes};
  }
  void finish(int64_t b, const Chunk& chunk, int64_t i, int64_t begin, int64_t end) {
    if (!in_place(chunk)) {
      unpack_row(image.row(b, chunk.first, i) + begin * image.stride_w, image.stride_c, image.stride_w,
                 buffer.get() + begin * kLanes, end - begin, chunk.count);
    }
  }
};

template <typename scalar_t>
void forward_kernel(const Geometry& g, const at::Tensor& input, const at::Tensor& kernel,
                    const Epilogues<opmath_t<scalar_t>>& epilogues, const at::Tensor& output) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> x(input);
  const int64_t columns = packed_columns(g), row_step = columns * kLanes, chunks = g.groups * chunks_per_group(g);
  const Strips strips(g, row_step * sizeof(acc_t), 1);
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips.count * chunks, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strips.packed_rows(g) * row_step);
      KernelReader<scalar_t, acc_t> kernels(kernel);
      RowWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const Chunk chunk = chunk_at(g, task % chunks);
        const int64_t b = task / chunks / strips.count, first = task / chunks % strips.count * strips.rows;
        const int64_t last = std::min(first + strips.rows, g.out_h);
        const Epilogue<acc_t> epilogue = epilogues.of(chunk);
        pack_strip(g, x, packed.get(), columns, b, chunk, first, last);
        for (int64_t i = first; i < last; ++i) {
          const acc_t* window = packed.get() + (i - first) * g.stride_h * row_step;
          const auto [out, out_step] = writer.start(b, chunk, i);
          for_tiles(g.out_w, [&, out = out, out_step = out_step](auto T, int64_t j) {
            forward_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                g, window + j * g.stride_w * kLanes, row_step, kernels.tile(b, chunk.group, i, j, T), epilogue,
                out + j * out_step, out_step);
          });
          writer.finish(b, chunk, i, 0, g.out_w);
        }
      }
    });
  });
}

}  // namespace
}  // namespace involution
