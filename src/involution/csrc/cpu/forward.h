// The forward pass on the CPU, with a given kernel.
#pragma once

#include "taps.h"

namespace involution {
namespace {

// Scale, shift and ReLU of a vector of channels, applied to the sums. NaN remains NaN.
template <typename acc_t>
struct Epilogue {
  Channels<acc_t> scale, shift;
  bool affine, relu;

  // Applies to vector `n` of each pixel.
  template <int T, int N>
  INVOLUTION_INLINE void apply(Channels<acc_t> (&pixels)[T][N], int n) const {
    if (affine) {
      INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
        pixels[t][n] = pixels[t][n] * scale + shift;
      }
    }
    if (relu) {
      INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
        pixels[t][n] = pixels[t][n] < Channels<acc_t>{} ? Channels<acc_t>{} : pixels[t][n];
      }
    }
  }
};

// A row of output pixels, with a chunk of channels in each.
template <typename acc_t>
struct OutputRow {
  acc_t* data;
  int64_t step;
};

// The largest stride with code of its own. Two vectors of a chunk share the loads of the kernel: with a stride of 2,
// sharing those of the columns as well gains nothing.
constexpr int kForwardStrides = kChunkVectors == 1 ? 2 : 1;

// Adds V taps of a kernel row for T pixels of N vectors. Each column is loaded once, for all pixels whose windows
// contain it.
template <int V, int S, int T, int N, typename acc_t, typename TapsOfTile>
INVOLUTION_INLINE inline void add_taps(Channels<acc_t> (&acc)[T][N], const acc_t* x, const TapsOfTile& taps,
                                       int64_t tap) {
  INVOLUTION_UNROLL for (int q = 0; q < (T - 1) * S + V; ++q) {
    Channels<acc_t> column[N];
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      column[n] = load<Channels<acc_t>>(x + (q * N + n) * kLanes);
    }
    INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
      if (q - t * S >= 0 && q - t * S < V) {
        INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
          add_product<acc_t>(acc[t][n], column[n], taps(t, tap + q - t * S));
        }
      }
    }
  }
}

// Computes T output pixels of N vectors. `x` points to the packed column of the first tap of the first pixel.
template <int S, int T, int N, typename acc_t, typename TapsOfTile>
INVOLUTION_NOINLINE void forward_tile(const Geometry& g, const acc_t* x, int64_t row_step, TapsOfTile taps,
                                      const Epilogue<acc_t>* epilogues, const OutputRow<acc_t>& out) {
  // The stores at the end would wait for cache lines that nothing reads.
  INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
    prefetch(out.data + t * out.step);
  }
  Channels<acc_t> acc[T][N] = {};
  for (int64_t u = 0; u < g.kernel_h; ++u, x += row_step) {
    const int64_t tap = u * g.kernel_w;
    if constexpr (S > 0) {
      for_taps(g.kernel_w, [&](auto V, int64_t v) INVOLUTION_INLINE {
        add_taps<decltype(V)::value, S>(acc, x + v * N * kLanes, taps, tap + v);
      });
    } else {
      for (int64_t v = 0; v < g.kernel_w; ++v) {
        INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
          const acc_t* column = x + (t * g.stride_w + v * g.dilation_w) * N * kLanes;
          INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
            add_product<acc_t>(acc[t][n], load<Channels<acc_t>>(column + n * kLanes), taps(t, tap + v));
          }
        }
      }
    }
  }
  INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
    epilogues[n].apply(acc, n);
  }
  INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      store(out.data + t * out.step + n * kLanes, acc[t][n]);
    }
  }
}

// Values in the accumulation type that are adjacent: in place, or a copy of a tensor (N,) or (N, M, ...) whose other
// sizes are 1. For no tensor, `count` zeros.
template <typename scalar_t, typename acc_t>
class Values {
 public:
  Values(const Tensor* t, int64_t count)
      : in_place_(std::is_same_v<scalar_t, acc_t> && t && is_adjacent(*t)), copy_(in_place_ ? 0 : count) {
    if (in_place_) {
      data_ = static_cast<const acc_t*>(t->data);
      return;
    }
    data_ = copy_.get();
    if (!t) {
      zero(copy_.get(), count);
      return;
    }
    const int64_t rows = t->sizes[0], columns = count / max(rows, 1);
    for (int64_t n = 0; n < rows; ++n) {
      const scalar_t* row = static_cast<const scalar_t*>(t->data) + n * t->strides[0];
      copy(copy_.get() + n * columns, 1, row, t->dim > 1 ? t->strides[1] : 1, columns);
    }
  }
  const acc_t* get() const {
    return data_;
  }

 private:
  static bool is_adjacent(const Tensor& t) {
    return t.dim == 1 ? t.strides[0] == 1 : t.strides[1] == 1 && t.strides[0] == t.sizes[1];
  }
  const bool in_place_;
  Buffer<acc_t> copy_;
  const acc_t* data_;
};

// Scale, shift and ReLU of all channels.
template <typename acc_t>
class ChannelEpilogues {
 public:
  ChannelEpilogues(const Geometry& g, const Epilogues& epilogues)
      : affine_(epilogues.scale != nullptr),
        relu_(epilogues.relu),
        scale_(epilogues.scale, affine_ ? g.channels : 0),
        shift_(epilogues.shift, affine_ ? g.channels : 0) {}

  // Writes the epilogue of each vector of a chunk.
  void of(const Chunk& chunk, Epilogue<acc_t>* vectors) const {
    for (int64_t n = 0; n < chunk.vectors(); ++n) {
      vectors[n] = Epilogue<acc_t>{{}, {}, affine_, relu_};
    }
    for (int64_t c = 0; affine_ && c < chunk.count; ++c) {
      vectors[c / kLanes].scale[c % kLanes] = scale_.get()[chunk.first + c];
      vectors[c / kLanes].shift[c % kLanes] = shift_.get()[chunk.first + c];
    }
  }

 private:
  const bool affine_, relu_;
  const Values<acc_t, acc_t> scale_, shift_;
};

// Writes the blocks of an output: in place if the channels of a chunk are adjacent in memory, otherwise into a buffer
// that `finish` unpacks.
template <typename scalar_t, typename acc_t>
class BlockWriter {
 public:
  explicit BlockWriter(const Tensor& t) : image_(t), buffer_(kBlock * kChunk) {}

  void start(int64_t b, const Chunk& chunk, const Block& block) {
    in_place_ = std::is_same_v<scalar_t, acc_t> && image_.stride_c == 1 && chunk.count == chunk.size();
    first_ = image_.row(b, chunk.first, block.i_begin) + block.j_begin * image_.stride_w;
  }
  OutputRow<acc_t> row(const Chunk& chunk, const Block& block, int64_t row) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place_) {
        return {first_ + row * image_.stride_h, image_.stride_w};
      }
    }
    return {buffer_.get() + row * block.width * chunk.size(), chunk.size()};
  }
  void finish(const Chunk& chunk, const Block& block) {
    if (in_place_) {
      return;
    }
    if (image_.has_planes()) {
      unpack_pixels(first_, image_.stride_c, 1, buffer_.get(), block.pixels(), chunk);
      return;
    }
    for (int64_t row = 0; row < block.i_end - block.i_begin; ++row) {
      unpack_pixels(first_ + row * image_.stride_h, image_.stride_c, image_.stride_w,
                    buffer_.get() + row * block.width * chunk.size(), block.width, chunk);
    }
  }

 private:
  const Image<scalar_t> image_;
  Buffer<acc_t> buffer_;
  bool in_place_ = false;
  scalar_t* first_ = nullptr;
};

// The packed input rows of a chunk, for a strip that starts at the output row `first`.
template <typename acc_t>
struct PackedStrip {
  const acc_t* data;
  int64_t row_step, first;
};

// Computes a block of a chunk of N vectors. `kernels` and `writer` were started for the block. Tiles follow each other
// downwards, because the windows of neighboring rows share most of their pixels, which then are in the L1 cache.
template <int S, int N, typename acc_t, typename Reader, typename Writer>
void compute_tiles(const Geometry& g, const Chunk& chunk, const Block& block, const PackedStrip<acc_t>& x,
                   Reader& kernels, const Epilogue<acc_t>* epilogues, Writer& writer) {
  const acc_t* first = x.data + (block.i_begin - x.first) * g.stride_h * x.row_step;
  for_tiles<N>(block.width, [&](auto T, int64_t j) {
    const acc_t* window = first + (block.j_begin + j) * g.stride_w * N * kLanes;
    for (int64_t row = 0; row < block.i_end - block.i_begin; ++row, window += g.stride_h * x.row_step) {
      const OutputRow<acc_t> out = writer.row(chunk, block, row);
      forward_tile<S, decltype(T)::value, N>(g, window, x.row_step, kernels.tile(row, j, T), epilogues,
                                             {out.data + j * out.step, out.step});
    }
  });
}

template <int S, typename acc_t, typename Reader, typename Writer>
void compute_block(const Geometry& g, int64_t b, const Chunk& chunk, const Block& block, const PackedStrip<acc_t>& x,
                   Reader& kernels, const ChannelEpilogues<acc_t>& epilogues, Writer& writer) {
  Epilogue<acc_t> of_vectors[kChunkVectors];
  epilogues.of(chunk, of_vectors);
  writer.start(b, chunk, block);
  with_static_count<kChunkVectors>(chunk.vectors(), [&](auto N) {
    compute_tiles<S, decltype(N)::value>(g, chunk, block, x, kernels, of_vectors, writer);
  });
  writer.finish(chunk, block);
}

// A chunk of one image, and the output rows [first, last) of a strip.
struct Task {
  Chunk chunk;
  int64_t b, first, last;
};

inline Task task_at(const Geometry& g, const Strips& strips, int64_t index) {
  const int64_t chunks = g.groups * chunks_per_group(g), first = index / chunks % strips.count * strips.rows;
  return {chunk_at(g, index % chunks), index / chunks / strips.count, first, min(first + strips.rows, g.out_h)};
}

template <typename scalar_t, typename acc_t, typename Reader>
void forward_with(const Geometry& g, const Tensor& input, const Tensor& kernel,
                  const ChannelEpilogues<acc_t>& epilogues, const Tensor& output, const Parallel& parallel) {
  const Image<const scalar_t> x(input);
  const PackedRows rows{packed_columns(g), g.padding_w};
  const int64_t chunks = g.groups * chunks_per_group(g), row_size = rows.columns * chunk_at(g, 0).size();
  const Blocks blocks(g);
  const Strips strips(g, row_size * sizeof(acc_t), 1);
  with_static_stride<acc_t, kForwardStrides>(g, [&](auto S) {
    parallel_for(parallel, g.batch * strips.count * chunks, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strips.packed_rows(g) * row_size);
      Reader kernels(kernel);
      BlockWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const auto [chunk, b, first, last] = task_at(g, strips, task);
        pack_rows(x, packed.get(), rows, b, chunk, first * g.stride_h - g.padding_h, g.dilation_h,
                  (last - first - 1) * g.stride_h + g.kernel_h);
        const PackedStrip<acc_t> strip_of_chunk{packed.get(), rows.columns * chunk.size(), first};
        for (int64_t n = 0; n < blocks.count(last - first); ++n) {
          const Block block = blocks.at(g, n, first, last);
          kernels.start(b, chunk.group, block);
          if (n + 1 < blocks.count(last - first)) {
            kernels.prefetch_next(b, chunk.group, blocks.at(g, n + 1, first, last));
          } else if (task + 1 < end) {
            const Task next = task_at(g, strips, task + 1);
            kernels.prefetch_next(next.b, next.chunk.group, blocks.at(g, 0, next.first, next.last));
          }
          compute_block<decltype(S)::value>(g, b, chunk, block, strip_of_chunk, kernels, epilogues, writer);
        }
      }
    });
  });
}

template <typename scalar_t>
void forward_kernel(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                    const Tensor& output, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const ChannelEpilogues<acc_t> epilogues_(g, epilogues);
  with_kernel_reader<scalar_t, acc_t>(g, kernel, [&](auto* reader) {
    forward_with<scalar_t, acc_t, std::remove_pointer_t<decltype(reader)>>(g, input, kernel, epilogues_, output,
                                                                           parallel);
  });
}

}  // namespace
}  // namespace involution
