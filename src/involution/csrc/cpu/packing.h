// Packing: how the CPU kernels read images, and how they divide the work.
//
// The kernels compute from small packed buffers in the accumulation type (float, or double for double). A buffer holds
// the input rows that a strip of output rows needs, with their border of zeros, and up to `kChunk` adjacent channels.
// Because packing reads any strides and any dtype, one code path supports both memory formats, slices, 16-bit types
// and every geometry. The inner loops need no bounds checks. Padding is a zero that is multiplied, as in the
// definition: an infinite kernel value over the padding gives NaN.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace involution {
namespace {

// The channels of a chunk, and the vectors that they are on AVX2 and on AVX-512.
constexpr int64_t kChunk = kGroupChannels, kChunkVectors = kChunk / kLanes;
// The accumulators of a tile fit into registers: those of 14 output pixels and one vector of channels, or of 5 pixels
// and two vectors. Two vectors share the loads of the kernel. 56, 28, 14 and 7 are multiples of 7.
constexpr int kTile = 7, kPairTile = 5;
// Up to 128 output pixels are computed at a time. The fused kernel generates their kernels as [tap][pixel]. The stride
// between taps is not a power of two, which would map the taps of a pixel to a few cache sets. 49 taps occupy 28 KB
// and stay in the L1 cache. Features are packed as [slice][hidden][kSlice pixels], so that a slice streams through the
// L1 cache as well.
constexpr int64_t kBlock = 128, kTapStride = kBlock + kLanes;
// Two vectors of pixels share each broadcast weight of the generation.
constexpr int kSliceVectors = 2;
constexpr int64_t kSlice = kSliceVectors * kLanes;
// The packed rows of a strip should stay in the L2 cache while the kernels stream through it.
constexpr int64_t kStripBytes = 128 * 1024;

// Calls f(begin, end) for ranges of the tasks, in parallel.
template <typename F>
void parallel_for(const Parallel& parallel, int64_t tasks, const F& f) {
  const auto body = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const F*>(context))(begin, end);
  };
  parallel.run(parallel, tasks, body, &f);
}

// Calls f(n) with n, from 1 to `most`, as a compile-time constant.
template <int most, typename F>
inline void with_static_count(int64_t n, const F& f) {
  if constexpr (most > 1) {
    if (n < most) {
      return with_static_count<most - 1>(n, f);
    }
  }
  f(std::integral_constant<int, most>{});
}

// Up to `kChunk` channels of one group.
struct Chunk {
  int64_t group, first, count;

  int64_t vectors() const {
    return ceil_div(count, kLanes);
  }
  // The values of a packed pixel.
  int64_t size() const {
    return vectors() * kLanes;
  }
};

inline int64_t chunks_per_group(const Geometry& g) {
  return ceil_div(g.group_channels(), kChunk);
}

inline Chunk chunk_at(const Geometry& g, int64_t index) {
  const int64_t per_group = chunks_per_group(g), group = index / per_group, offset = index % per_group * kChunk;
  return {group, group * g.group_channels() + offset, min(kChunk, g.group_channels() - offset)};
}

// The division of the output rows into strips, each of which is a multiple of `multiple` rows. Rows between dilated
// taps are not packed: with a vertical dilation, a strip is one output row, and its packed rows are the kernel_h rows
// of its window.
struct Strips {
  int64_t rows, count;

  Strips(const Geometry& g, int64_t bytes_per_input_row, int64_t multiple) {
    const int64_t fitting = (kStripBytes / max(bytes_per_input_row, 1) - g.kernel_h) / g.stride_h + 1;
    const int64_t most = g.dilation_h > 1 ? 1 : max(min(fitting, g.out_h), 1);
    count = ceil_div(g.out_h, most);
    rows = count > 0 ? ceil_div(g.out_h, count) : 1;
    rows = ceil_div(rows, multiple) * multiple;
    count = ceil_div(g.out_h, rows);
  }
  int64_t packed_rows(const Geometry& g) const {
    return (rows - 1) * g.stride_h + g.kernel_h;
  }
};

// The number of columns that the windows of all output columns span.
inline int64_t packed_columns(const Geometry& g) {
  return (g.out_w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
}

// A tensor (B, C, H, W) with access to single rows.
template <typename scalar_t>
struct Image {
  scalar_t* data;
  int64_t stride_b, stride_c, stride_h, stride_w, height, width;

  explicit Image(const Tensor& t)
      : data(static_cast<scalar_t*>(t.data)),
        stride_b(t.strides[0]),
        stride_c(t.strides[1]),
        stride_h(t.strides[2]),
        stride_w(t.strides[3]),
        height(t.sizes[2]),
        width(t.sizes[3]) {}

  scalar_t* row(int64_t b, int64_t c, int64_t y) const {
    return y >= 0 && y < height ? data + b * stride_b + c * stride_c + y * stride_h : nullptr;
  }
  // Whether pixels of neighboring rows are adjacent: the planes of a contiguous image.
  bool has_planes() const {
    return stride_w == 1 && (stride_h == width || height == 1);
  }
};

// Where the pixels of an image are in packed rows: `columns` pixels each, of which the first `left` are padding.
struct PackedRows {
  int64_t columns, left;

  // The number of pixels of an image row that are packed.
  int64_t used(int64_t width) const {
    return max(min(width, columns - left), 0);
  }
};

// The pixels between those that are packed and those that are prefetched.
constexpr int64_t kAhead = 64;

// Packs `pixels` >= `kLanes` pixels that are adjacent in each of up to `kLanes` planes into [pixel][size].
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void pack_planes(acc_t* to, int64_t size, const PackedRows& rows, const scalar_t* from,
                                     int64_t stride_c, int64_t width, int64_t pixels, int64_t channels) {
  const int64_t used = rows.used(width);
  int64_t x = 0;
  acc_t* row = to + rows.left * size;
  for (int64_t p = 0; p < pixels; p += kLanes) {
    if (p > pixels - kLanes) {  // The last vector overlaps the one before.
      p = pixels - kLanes;
      x = p % width;
      row = to + (p / width * rows.columns + rows.left) * size;
    }
    Channels<acc_t> values[kLanes] = {};
    if (channels == kLanes) {
      INVOLUTION_UNROLL for (int c = 0; c < kLanes; ++c) {
        prefetch(from + c * stride_c + p + kAhead);  // one line of many planes each
        values[c] = load_lanes<acc_t>(from + c * stride_c + p);
      }
    } else {
      for (int c = 0; c < channels; ++c) {
        values[c] = load_lanes<acc_t>(from + c * stride_c + p);
      }
    }
    transpose<acc_t>(values);
    INVOLUTION_UNROLL for (int t = 0; t < kLanes; ++t) {
      if (x < used) {
        store(row + x * size, values[t]);
      }
      if (++x == width) {
        x = 0;
        row += rows.columns * size;
      }
    }
  }
}

// Packs pixels of a row with any strides into [pixel][size], where size is a multiple of `kLanes`. Lanes without a
// channel are zeros.
template <typename scalar_t, typename acc_t>
void pack_pixels(acc_t* to, int64_t size, const scalar_t* from, int64_t stride_c, int64_t stride_w, int64_t pixels,
                 int64_t channels) {
  if (channels == size && stride_c == 1) {
    with_static_count<kChunkVectors>(size / kLanes, [&](auto N) {
      for (int64_t x = 0; x < pixels; ++x) {
        INVOLUTION_UNROLL for (int n = 0; n < decltype(N)::value; ++n) {
          store(to + (x * N + n) * kLanes, load_lanes<acc_t>(from + x * stride_w + n * kLanes));
        }
      }
    });
    return;
  }
  if (channels < size) {
    zero(to, pixels * size);
  }
  for (int64_t c = 0; c < channels; ++c) {
    copy(to + c, size, from + c * stride_c, stride_w, pixels);
  }
}

// Writes up to `kLanes` channels of pixels of [size] to planes, or to a row with any strides.
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void unpack_planes(scalar_t* to, int64_t stride_c, int64_t stride_w, const acc_t* from,
                                       int64_t size, int64_t pixels, int64_t channels) {
  if (stride_w == 1 && pixels >= kLanes / 2) {
    for (int64_t p = 0; p < pixels; p += kLanes) {
      const int64_t first = max(min(p, pixels - kLanes), 0);  // The last vector may overlap the one before.
      Channels<acc_t> values[kLanes];
      INVOLUTION_UNROLL for (int t = 0; t < kLanes; ++t) {
        values[t] = t < pixels ? load<Channels<acc_t>>(from + (first + t) * size) : Channels<acc_t>{};
      }
      transpose<acc_t>(values);
      for (int c = 0; c < channels; ++c) {
        if (pixels >= kLanes) {
          store_lanes(to + c * stride_c + first, values[c]);
        } else {
          store_first(to + c * stride_c, values[c], pixels);
        }
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    copy(to + c * stride_c, stride_w, from + c, size, pixels);
  }
}

// The reverse of `pack_pixels`, for a chunk.
template <typename scalar_t, typename acc_t>
void unpack_pixels(scalar_t* to, int64_t stride_c, int64_t stride_w, const acc_t* from, int64_t pixels,
                   const Chunk& chunk) {
  if (chunk.count == chunk.size() && stride_c == 1) {
    with_static_count<kChunkVectors>(chunk.vectors(), [&](auto N) {
      for (int64_t x = 0; x < pixels; ++x) {
        prefetch(to + (x + kLanes) * stride_w);  // Stores would wait for cache lines that nothing reads.
        INVOLUTION_UNROLL for (int n = 0; n < decltype(N)::value; ++n) {
          store_lanes(to + x * stride_w + n * kLanes, load<Channels<acc_t>>(from + (x * N + n) * kLanes));
        }
      }
    });
    return;
  }
  for (int64_t c = 0; c < chunk.count; c += kLanes) {
    unpack_planes(to + c * stride_c, stride_c, stride_w, from + c, chunk.size(), pixels, min(kLanes, chunk.count - c));
  }
}

// Packs `count` image rows from `y` on, `step` rows apart, for one chunk of channels, as [row][column][chunk.size()].
// Rows outside the image are zeros.
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void pack_rows(const Image<const scalar_t>& x, acc_t* packed, const PackedRows& rows, int64_t b,
                                   const Chunk& chunk, int64_t y, int64_t step, int64_t count) {
  const int64_t size = chunk.size(), row_size = rows.columns * size;
  const int64_t used = rows.used(x.width), left = min(rows.left, rows.columns);
  for (int64_t q = 0; q < count; ++q) {
    if (x.row(b, chunk.first, y + q * step) == nullptr) {
      zero(packed + q * row_size, row_size);
    } else {
      zero(packed + q * row_size, left * size);
      zero(packed + q * row_size + (left + used) * size, row_size - (left + used) * size);
    }
  }
  // Rows whose pixels are adjacent are packed together.
  const bool planes = x.stride_w == 1 && !(x.stride_c == 1 && chunk.count == size);
  const bool adjacent = planes && x.has_planes() && step == 1;
  for (int64_t q = 0, together; q < count; q += together) {
    together = 1;
    const scalar_t* from = x.row(b, chunk.first, y + q * step);
    if (from == nullptr) {
      continue;
    }
    if (adjacent) {
      together = min(count - q, x.height - (y + q));
    }
    acc_t* to = packed + q * row_size;
    if (planes && together * x.width >= kLanes) {
      for (int64_t c = 0; c < chunk.count; c += kLanes) {
        pack_planes(to + c, size, rows, from + c * x.stride_c, x.stride_c, x.width, together * x.width,
                    min(kLanes, chunk.count - c));
      }
    } else {
      for (int64_t n = 0; n < together; ++n) {
        pack_pixels(to + n * row_size + left * size, size, from + n * x.stride_h, x.stride_c, x.stride_w, used,
                    chunk.count);
      }
    }
  }
}

// Calls f(S) with the horizontal stride as a compile-time constant if it is at most `most` and windows are not
// dilated, otherwise f(0).
template <typename acc_t, int most, typename F>
void with_static_stride(const Geometry& g, const F& f) {
  using std::integral_constant;
  if constexpr (std::is_same_v<acc_t, float>) {  // Double is mostly used in tests, and needs no such code.
    if (g.dilation_w == 1 && g.stride_w == 1) {
      return f(integral_constant<int, 1>{});
    }
    if constexpr (most == 2) {
      if (g.dilation_w == 1 && g.stride_w == 2) {
        return f(integral_constant<int, 2>{});
      }
    }
  }
  f(integral_constant<int, 0>{});
}

// Calls f(V, v) for the taps of a kernel row, V taps from v on at a time: 7, 5, 3 and 1, so that any width has few
// steps.
template <typename F>
INVOLUTION_INLINE inline void for_taps(int64_t width, const F& f) {
  using std::integral_constant;
  int64_t v = 0;
  for (; v + 7 <= width; v += 7) {
    f(integral_constant<int, 7>{}, v);
  }
  if (v + 5 <= width) {
    f(integral_constant<int, 5>{}, v);
    v += 5;
  }
  if (v + 3 <= width) {
    f(integral_constant<int, 3>{}, v);
    v += 3;
  }
  for (; v < width; ++v) {
    f(integral_constant<int, 1>{}, v);
  }
}

// Calls f(tile width, first pixel) for each tile of a row of `width` pixels and N vectors of channels. For two
// vectors: tiles of 5 or less, of nearly equal width. For one: tiles of 7, 4, 2 and 1, and of 14 where it is the usual
// number.
template <int N, typename F>
inline void for_tiles(int64_t width, const F& f) {
  if constexpr (N > 1) {
    const int64_t tiles = ceil_div(width, kPairTile), least = width / tiles, wider = (least + 1) * (width % tiles);
    int64_t j = 0;
    if (wider > 0) {
      with_static_count<kPairTile>(least + 1, [&](auto T) {
        for (; j < wider; j += T) {
          f(T, j);
        }
      });
    }
    with_static_count<kPairTile>(least, [&](auto T) {
      for (; j < width; j += T) {
        f(T, j);
      }
    });
  } else {
    using std::integral_constant;
    int64_t j = 0;
    if constexpr (kChunkVectors == 1) {
      for (; j + 2 * kTile <= width; j += 2 * kTile) {
        f(integral_constant<int, 2 * kTile>{}, j);
      }
    }
    for (; j + kTile <= width; j += kTile) {
      f(integral_constant<int, kTile>{}, j);
    }
    if (j + 4 <= width) {
      f(integral_constant<int, 4>{}, j);
      j += 4;
    }
    if (j + 2 <= width) {
      f(integral_constant<int, 2>{}, j);
      j += 2;
    }
    if (j < width) {
      f(integral_constant<int, 1>{}, j);
    }
  }
}

}  // namespace
}  // namespace involution
