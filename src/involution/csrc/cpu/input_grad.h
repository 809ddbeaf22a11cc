// The gradient of the input on the CPU.
#pragma once

#include "taps.h"

namespace involution {
namespace {

// Adds the products of T output gradients and V taps of a kernel row to the packed columns that these taps applied to.
// Each column is loaded and stored once.
template <int V, int S, int T, int N, typename acc_t, typename TapsOfTile>
INVOLUTION_INLINE inline void scatter_taps(acc_t* row, const acc_t* grad, const TapsOfTile& taps, int64_t tap) {
  constexpr int columns = (T - 1) * S + V;
  Channels<acc_t> acc[columns][N];
  INVOLUTION_UNROLL for (int q = 0; q < columns; ++q) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      acc[q][n] = load<Channels<acc_t>>(row + (q * N + n) * kLanes);
    }
  }
  INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
    Channels<acc_t> value[N];
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      value[n] = load<Channels<acc_t>>(grad + (t * N + n) * kLanes);
    }
    INVOLUTION_UNROLL for (int v = 0; v < V; ++v) {
      INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
        add_product<acc_t>(acc[t * S + v][n], value[n], taps(t, tap + v));
      }
    }
  }
  INVOLUTION_UNROLL for (int q = 0; q < columns; ++q) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      store(row + (q * N + n) * kLanes, acc[q][n]);
    }
  }
}

// Scatters T output gradients of N vectors, multiplied by the kernel row `u`, into the packed input row that this
// kernel row applied to.
template <int S, int T, int N, typename acc_t, typename TapsOfTile>
INVOLUTION_NOINLINE void input_grad_tile(const Geometry& g, const acc_t* grad, TapsOfTile taps, int64_t u,
                                         acc_t* row) {
  const int64_t tap = u * g.kernel_w;
  if constexpr (S > 0) {
    for_taps(g.kernel_w, [&](auto V, int64_t v) INVOLUTION_INLINE {
      scatter_taps<decltype(V)::value, S, T, N>(row + v * N * kLanes, grad, taps, tap + v);
    });
  } else {
    for (int t = 0; t < T; ++t) {
      for (int64_t v = 0; v < g.kernel_w; ++v) {
        scatter_taps<1, 1, 1, N>(row + (t * g.stride_w + v * g.dilation_w) * N * kLanes, grad + t * N * kLanes,
                                 taps.from(t), tap + v);
      }
    }
  }
}

// The packed input rows [first, last) of a chunk.
template <typename acc_t>
struct GradStrip {
  acc_t* data;
  int64_t row_step, first, last;
};

// Scatters the gradients of the output row `i` in a block, for which `kernels` was started. `grad` is the packed row.
template <int S, int N, typename acc_t, typename Reader>
void input_grad_row(const Geometry& g, const Block& block, int64_t i, const acc_t* grad, Reader& kernels,
                    GradStrip<acc_t> strip) {
  constexpr int64_t size = N * kLanes;
  for_tiles<N>(block.width, [&](auto T, int64_t j) {
    const auto taps = kernels.tile(i - block.i_begin, j, T);
    for (int64_t u = 0; u < g.kernel_h; ++u) {
      const int64_t y = i * g.stride_h + u * g.dilation_h - g.padding_h;
      if (y >= strip.first && y < strip.last) {
        input_grad_tile<S, decltype(T)::value, N>(
            g, grad + (block.j_begin + j) * size, taps, u,
            strip.data + (y - strip.first) * strip.row_step + (block.j_begin + j) * g.stride_w * size);
      }
    }
  });
}

// A chunk of one image, the input rows [first, last) of a strip, and the output rows [i_begin, i_end) whose windows
// reach them. Each task writes its own rows.
struct GradTask {
  Chunk chunk;
  int64_t b, first, last, i_begin, i_end;
};

inline GradTask grad_task_at(const Geometry& g, int64_t strip_rows, int64_t index) {
  const int64_t chunks = g.groups * chunks_per_group(g), strips = ceil_div(g.height, strip_rows);
  const int64_t first = index / chunks % strips * strip_rows, last = min(first + strip_rows, g.height);
  return {chunk_at(g, index % chunks),
          index / chunks / strips,
          first,
          last,
          max(ceil_div(first + g.padding_h - (g.kernel_h - 1) * g.dilation_h, g.stride_h), 0),
          min((last - 1 + g.padding_h) / g.stride_h + 1, g.out_h)};
}

template <typename scalar_t, typename acc_t, typename Reader>
void input_grad_with(const Geometry& g, const Tensor& grad_output, const Tensor& kernel, const Tensor& grad_input,
                     const Parallel& parallel) {
  const Image<const scalar_t> dy(grad_output);
  const Image<scalar_t> dx(grad_input);
  const int64_t columns = max(packed_columns(g), g.padding_w + g.width), largest = chunk_at(g, 0).size();
  const int64_t strip_rows = max(min(kStripBytes / int64_t(columns * kLanes * sizeof(acc_t)), g.height), 1);
  const int64_t tasks = g.batch * ceil_div(g.height, strip_rows) * g.groups * chunks_per_group(g);
  Blocks blocks(g);
  if (!Reader::kReadsBlocks) {
    blocks.rows = 1;  // packing a row of gradients at a time is faster
  }
  with_static_stride<acc_t, 2>(g, [&](auto S) {
    parallel_for(parallel, tasks, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strip_rows * columns * largest), grad(blocks.rows * g.out_w * largest);
      Reader kernels(kernel);
      for (int64_t index = begin; index < end; ++index) {
        const GradTask task = grad_task_at(g, strip_rows, index);
        const Chunk& chunk = task.chunk;
        const GradStrip<acc_t> strip{packed.get(), columns * chunk.size(), task.first, task.last};
        zero(packed.get(), (task.last - task.first) * strip.row_step);
        for (int64_t n = 0; n < blocks.count(task.i_end - task.i_begin); ++n) {
          const Block block = blocks.at(g, n, task.i_begin, task.i_end);
          kernels.start(task.b, chunk.group, block);
          if (n + 1 < blocks.count(task.i_end - task.i_begin)) {
            kernels.prefetch_next(task.b, chunk.group, blocks.at(g, n + 1, task.i_begin, task.i_end));
          } else if (index + 1 < end) {
            const GradTask next = grad_task_at(g, strip_rows, index + 1);
            kernels.prefetch_next(next.b, next.chunk.group, blocks.at(g, 0, next.i_begin, next.i_end));
          }
          if (block.j_begin == 0) {
            pack_rows(dy, grad.get(), {g.out_w, 0}, task.b, chunk, block.i_begin, 1, block.i_end - block.i_begin);
          }
          for (int64_t i = block.i_begin; i < block.i_end; ++i) {
            const acc_t* row = grad.get() + (i - block.i_begin) * g.out_w * chunk.size();
            with_static_count<kChunkVectors>(chunk.vectors(), [&](auto N) {
              input_grad_row<decltype(S)::value, decltype(N)::value>(g, block, i, row, kernels, strip);
            });
          }
        }
        for (int64_t y = task.first; y < task.last; ++y) {
          unpack_pixels(dx.row(task.b, chunk.first, y), dx.stride_c, dx.stride_w,
                        packed.get() + (y - task.first) * strip.row_step + g.padding_w * chunk.size(), g.width, chunk);
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
