// The forward pass on the CPU, with a given kernel.
#pragma once

#include "taps.h"

namespace involution {
namespace {

// Scale, shift and ReLU of up to `kLanes` channels, applied to the sums. NaN remains NaN.
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
INVOLUTION_NOINLINE void forward_tile(const Geometry& g, const acc_t* x, int64_t row_step, TapsOfTile taps,
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
            add_product<acc_t>(acc[t], column, taps(t, u * K + q - t * S));
          }
        }
      }
    }
  } else {
    for (int64_t u = 0, tap = 0; u < g.kernel_h; ++u, x += row_step) {
      for (int64_t v = 0; v < g.kernel_w; ++v, ++tap) {
        INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
          add_product<acc_t>(acc[t], load<V>(x + (t * g.stride_w + v * g.dilation_w) * kLanes), taps(t, tap));
        }
      }
    }
  }
  INVOLUTION_UNROLL for (int t = 0; t < T; ++t) {
    store(out + t * out_step, epilogue(acc[t]));
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

  Epilogue<acc_t> of(const Chunk& chunk) const {
    Epilogue<acc_t> result{{}, {}, affine_, relu_};
    for (int64_t c = 0; affine_ && c < chunk.count; ++c) {
      result.scale[c] = scale_.get()[chunk.first + c];
      result.shift[c] = shift_.get()[chunk.first + c];
    }
    return result;
  }

 private:
  const bool affine_, relu_;
  const Values<acc_t, acc_t> scale_, shift_;
};

// The division of a strip into blocks: whole rows if they fit, otherwise parts of a row.
struct Blocks {
  int64_t rows, columns, per_row;

  explicit Blocks(const Geometry& g)
      : rows(g.dilation_h > 1 ? 1 : max(kBlock / g.out_w, 1)),
        columns(min(g.out_w, kBlock)),
        per_row(ceil_div(g.out_w, columns)) {}
  int64_t count(int64_t out_rows) const {
    return ceil_div(out_rows, rows) * per_row;
  }
  // The block at an index, of a strip with the output rows [first, last).
  Block at(const Geometry& g, int64_t index, int64_t first, int64_t last) const {
    const int64_t i = first + index / per_row * rows, j = index % per_row * columns;
    return {i, min(i + rows, last), j, min(columns, g.out_w - j)};
  }
};

// Writes the blocks of an output: in place if `kLanes` channels are adjacent in memory, otherwise into a buffer that `finish`
// unpacks.
template <typename scalar_t, typename acc_t>
class BlockWriter {
 public:
  struct Row {
    acc_t* data;
    int64_t step;
  };

  explicit BlockWriter(const Tensor& t) : image_(t), buffer_(kBlock * kLanes) {}

  void start(int64_t b, const Chunk& chunk, const Block& block) {
    in_place_ = std::is_same_v<scalar_t, acc_t> && image_.stride_c == 1 && chunk.count == kLanes;
    first_ = image_.row(b, chunk.first, block.i_begin) + block.j_begin * image_.stride_w;
  }
  Row row(const Block& block, int64_t row) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place_) {
        return {first_ + row * image_.stride_h, image_.stride_w};
      }
    }
    return {buffer_.get() + row * block.width * kLanes, kLanes};
  }
  void finish(const Chunk& chunk, const Block& block) {
    if (in_place_) {
      return;
    }
    if (image_.has_planes()) {
      unpack_pixels(first_, image_.stride_c, 1, buffer_.get(), block.pixels(), chunk.count);
      return;
    }
    for (int64_t row = 0; row < block.i_end - block.i_begin; ++row) {
      unpack_pixels(first_ + row * image_.stride_h, image_.stride_c, image_.stride_w,
                    buffer_.get() + row * block.width * kLanes, block.width, chunk.count);
    }
  }

 private:
  const Image<scalar_t> image_;
  Buffer<acc_t> buffer_;
  bool in_place_ = false;
  scalar_t* first_ = nullptr;
};

// Computes a block of one chunk of channels. `packed` holds the input rows of a strip that starts at the output row
// `first`; `kernels` and `writer` were started for the block.
template <int K, int S, typename acc_t, typename Reader, typename Writer>
void compute_block(const Geometry& g, const Block& block, const acc_t* packed, int64_t row_step, int64_t first,
                   Reader& kernels, const Epilogue<acc_t>& epilogue, Writer& writer) {
  for (int64_t i = block.i_begin; i < block.i_end; ++i) {
    const int64_t row = i - block.i_begin;
    const acc_t* window = packed + (i - first) * g.stride_h * row_step + block.j_begin * g.stride_w * kLanes;
    const auto out = writer.row(block, row);
    for_tiles(block.width, [&](auto T, int64_t j) {
      forward_tile<K, S, decltype(T)::value>(g, window + j * g.stride_w * kLanes, row_step, kernels.tile(row, j, T),
                                             epilogue, out.data + j * out.step, out.step);
    });
  }
}

template <typename scalar_t, typename acc_t, typename Reader>
void forward_with(const Geometry& g, const Tensor& input, const Tensor& kernel,
                  const ChannelEpilogues<acc_t>& epilogues, const Tensor& output, const Parallel& parallel) {
  const Image<const scalar_t> x(input);
  const PackedRows rows{packed_columns(g), g.padding_w};
  const int64_t row_step = rows.columns * kLanes, chunks = chunks_per_group(g);
  // The chunks of a group that are computed together, so that a kernel is read once for them.
  const int64_t together = min(chunks, kGroupChannels / kLanes), parts = ceil_div(chunks, together);
  const Blocks blocks(g);
  const Strips strips(g, together * row_step * sizeof(acc_t), 1);
  const int64_t strip_size = strips.packed_rows(g) * row_step;
  with_static_window(g, [&](auto K, auto S) {
    parallel_for(parallel, g.batch * strips.count * g.groups * parts, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(together * strip_size);
      Reader kernels(kernel);
      BlockWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / parts % g.groups, strip = task / parts / g.groups % strips.count;
        const int64_t b = task / parts / g.groups / strips.count, part = task % parts;
        const int64_t first = strip * strips.rows, last = min(first + strips.rows, g.out_h);
        const int64_t first_chunk = group * chunks + part * together, count = min(together, chunks - part * together);
        for (int64_t c = 0; c < count; ++c) {
          pack_rows(x, packed.get() + c * strip_size, rows, b, chunk_at(g, first_chunk + c),
                    first * g.stride_h - g.padding_h, g.dilation_h, (last - first - 1) * g.stride_h + g.kernel_h);
        }
        for (int64_t n = 0; n < blocks.count(last - first); ++n) {
          const Block block = blocks.at(g, n, first, last);
          kernels.start(b, group, block);
          for (int64_t c = 0; c < count; ++c) {
            const Chunk chunk = chunk_at(g, first_chunk + c);
            writer.start(b, chunk, block);
            compute_block<decltype(K)::value, decltype(S)::value>(g, block, packed.get() + c * strip_size, row_step,
                                                                  first, kernels, epilogues.of(chunk), writer);
            writer.finish(chunk, block);
          }
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
