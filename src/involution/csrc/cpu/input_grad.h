// The gradient of the input on the CPU.
#pragma once

#include "packing.h"

namespace involution {
namespace {

// Scatters T output gradients, multiplied by one kernel row, into the packed input row that this kernel row applied
// to.
template <int K, int S, int T, typename acc_t>
__attribute__((noinline)) void input_grad_tile(const Geometry& g, const acc_t* grad, const acc_t* taps,
                                               int64_t pixel_stride, acc_t* row) {
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
        acc[t * S + v] += value * taps[t * pixel_stride + v];
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
        store(to, load<V>(to) + value * taps[t * pixel_stride + v]);
      }
    }
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

template <typename scalar_t>
void input_grad_kernel(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& kernel,
                       const at::Tensor& grad_input) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> dy(grad_output);
  const Image<scalar_t> dx(grad_input);
  const int64_t columns = std::max(packed_columns(g), g.padding_w + g.width), row_step = columns * kLanes;
  const int64_t chunks = g.groups * chunks_per_group(g);
  // Strips of input rows: each task writes its own rows, and reads all output rows whose windows reach them.
  const int64_t strip_rows =
      std::clamp<int64_t>(kStripBytes / (row_step * int64_t(sizeof(acc_t))), 1, std::max<int64_t>(g.height, 1));
  const int64_t strips = (g.height + strip_rows - 1) / strip_rows;
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips * chunks, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strip_rows * row_step), grad(g.out_w * kLanes);
      KernelReader<scalar_t, acc_t> kernels(kernel);
      for (int64_t task = begin; task < end; ++task) {
        const Chunk chunk = chunk_at(g, task % chunks);
        const int64_t b = task / chunks / strips, first = task / chunks % strips * strip_rows;
        const int64_t last = std::min(first + strip_rows, g.height);
        std::fill(packed.get(), packed.get() + (last - first) * row_step, acc_t(0));
        const int64_t i_begin =
            std::max<int64_t>(ceil_div(first + g.padding_h - (g.kernel_h - 1) * g.dilation_h, g.stride_h), 0);
        const int64_t i_end = std::min((last - 1 + g.padding_h) / g.stride_h + 1, g.out_h);
        for (int64_t i = i_begin; i < i_end; ++i) {
          pack_row(grad.get(), dy.row(b, chunk.first, i), dy.stride_c, dy.stride_w, g.out_w, 0, g.out_w, chunk.count);
          for_tiles(g.out_w, [&](auto T, int64_t j) {
            const auto tile = kernels.tile(b, chunk.group, i, j, T);
            for (int64_t u = 0; u < g.kernel_h; ++u) {
              const int64_t y = i * g.stride_h + u * g.dilation_h - g.padding_h;
              if (y >= first && y < last) {
                input_grad_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                    g, grad.get() + j * kLanes, tile.data + u * g.kernel_w, tile.pixel_stride,
                    packed.get() + (y - first) * row_step + j * g.stride_w * kLanes);
              }
            }
          });
        }
        for (int64_t y = first; y < last; ++y) {
          unpack_row(dx.row(b, chunk.first, y), dx.stride_c, dx.stride_w,
                     packed.get() + (y - first) * row_step + g.padding_w * kLanes, g.width, chunk.count);
        }
      }
    });
  });
}

}  // namespace
}  // namespace involution
