// The gradient of the input on the CPU.
#pragma once

#include "taps.h"

namespace involution {
namespace {

// Scatters T output gradients, multiplied by one kernel row, into the packed input row that this kernel row applied
// to.
template <int K, int S, int T, typename acc_t, typename TapsOfTile>
INVOLUTION_NOINLINE void input_grad_tile(const Geometry& g, const acc_t* grad, TapsOfTile taps, int64_t u,
                                         acc_t* row) {
  using V = Channels<acc_t>;
  if constexpr (K > 0) {
    constexpr int columns = (T - 1) * S + K;
    V acc[columns];
    INVOLUTION_UNROLL for (int q = 0; q < columns; ++q) {
      acc[q] = load<V>(row + q * kLanes);
    }
    INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
      const V value = load<V>(grad + t * kLanes);
      INVOLUTION_UNROLL for (int v = 0; v < K; ++v) {
        add_product<acc_t>(acc[t * S + v], value, taps(t, u * K + v));
      }
    }
    INVOLUTION_UNROLL for (int q = 0; q < columns; ++q) {
      store(row + q * kLanes, acc[q]);
    }
  } else {
    for (int t = 0; t < T; ++t) {
      const V value = load<V>(grad + t * kLanes);
      for (int64_t v = 0; v < g.kernel_w; ++v) {
        acc_t* to = row + (t * g.stride_w + v * g.dilation_w) * kLanes;
        V sum = load<V>(to);
        add_product<acc_t>(sum, value, taps(t, u * g.kernel_w + v));
        store(to, sum);
      }
    }
  }
}

template <typename scalar_t, typename acc_t, typename Reader>
void input_grad_with(const Geometry& g, const Tensor& grad_output, const Tensor& kernel, const Tensor& grad_input,
                     const Parallel& parallel) {
  const Image<const scalar_t> dy(grad_output);
  const Image<scalar_t> dx(grad_input);
  const int64_t columns = max(packed_columns(g), g.padding_w + g.width), row_step = columns * kLanes;
  const int64_t chunks = g.groups * chunks_per_group(g);
  // Strips of input rows: each task writes its own rows, and reads all output rows whose windows reach them.
  const int64_t strip_rows = max(min(kStripBytes / (row_step * int64_t(sizeof(acc_t))), g.height), 1);
  const int64_t strips = ceil_div(g.height, strip_rows);
  with_static_window(g, [&](auto K, auto S) {
    parallel_for(parallel, g.batch * strips * chunks, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strip_rows * row_step), grad(g.out_w * kLanes);
      Reader kernels(kernel);
      for (int64_t task = begin; task < end; ++task) {
        const Chunk chunk = chunk_at(g, task % chunks);
        const int64_t b = task / chunks / strips, first = task / chunks % strips * strip_rows;
        const int64_t last = min(first + strip_rows, g.height);
        zero(packed.get(), (last - first) * row_step);
        const int64_t i_begin = max(ceil_div(first + g.padding_h - (g.kernel_h - 1) * g.dilation_h, g.stride_h), 0);
        const int64_t i_end = min((last - 1 + g.padding_h) / g.stride_h + 1, g.out_h);
        for (int64_t i = i_begin; i < i_end; ++i) {
          pack_rows(dy, grad.get(), {g.out_w, 0}, b, chunk, i, 1, 1);
          for (int64_t j_begin = 0; j_begin < g.out_w; j_begin += kBlock) {
            const Block block{i, i + 1, j_begin, min(kBlock, g.out_w - j_begin)};
            kernels.start(b, chunk.group, block);
            for_tiles(block.width, [&](auto T, int64_t j) {
              const auto taps = kernels.tile(0, j, T);
              for (int64_t u = 0; u < g.kernel_h; ++u) {
                const int64_t y = i * g.stride_h + u * g.dilation_h - g.padding_h;
                if (y >= first && y < last) {
                  input_grad_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                      g, grad.get() + (j_begin + j) * kLanes, taps, u,
                      packed.get() + (y - first) * row_step + (j_begin + j) * g.stride_w * kLanes);
                }
              }
            });
          }
        }
        for (int64_t y = first; y < last; ++y) {
          unpack_pixels(dx.row(b, chunk.first, y), dx.stride_c, dx.stride_w,
                        packed.get() + (y - first) * row_step + g.padding_w * kLanes, g.width, chunk.count);
        }
      }
    });
  });
}

template <typename scalar_t>
void input_grad_kernel(const Geometry& g, const Tensor& grad_output, const Tensor& kernel, const Tensor& grad_input,
                       const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  with_kernel_reader<scalar_t, acc_t>(g, kernel, [&](auto* reader) {
    input_grad_with<scalar_t, acc_t, std::remove_pointer_t<decltype(reader)>>(g, grad_output, kernel, grad_input,
                                                                              parallel);
  });
}

}  // namespace
}  // namespace involution
