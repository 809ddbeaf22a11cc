// Packing: how the CPU kernels read images and kernels, and how they divide the work.
//
// The kernels compute from small packed buffers in the accumulation type (float, or double for double). A buffer holds
// the input rows that a strip of output rows needs, with their border of zeros, and 16 adjacent channels. Because
// packing reads any strides and any dtype, one code path supports both memory formats, slices, 16-bit types and every
// geometry. The inner loops need no bounds checks. Padding is a zero that is multiplied, as in the definition: an
// infinite kernel value over the padding gives NaN.
#pragma once

#include "vectors.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <utility>

namespace involution {
namespace {

// The accumulators of a tile of 7 or 14 output pixels fit into registers; 56, 28, 14 and 7 are multiples of 7.
constexpr int kTile = 7;
// The fused kernel generates the kernels of up to 128 output pixels at a time, as [tap][pixel]. The stride between
// taps is not a power of two, which would map the taps of a pixel to a few cache sets. 49 taps occupy 28 KB and stay
// in the L1 cache. Features are packed as [slice][hidden][32 pixels], so that a slice streams through the L1 cache as
// well.
constexpr int64_t kBlock = 128, kTapStride = kBlock + kLanes, kSlice = 2 * kLanes;
// The packed rows of a strip should stay in the L2 cache while the kernels stream through it.
constexpr int64_t kStripBytes = 128 * 1024;

// Up to 16 channels of one group.
struct Chunk {
  int64_t group, first, count;
};

inline int64_t chunks_per_group(const Geometry& g) {
  return (g.group_channels() + kLanes - 1) / kLanes;
}

inline Chunk chunk_at(const Geometry& g, int64_t index) {
  const int64_t per_group = chunks_per_group(g), group = index / per_group, offset = index % per_group * kLanes;
  return {group, group * g.group_channels() + offset, std::min(kLanes, g.group_channels() - offset)};
}

// The division of the output rows into strips, each of which is a multiple of `multiple` rows. Rows between dilated
// taps are not packed: with a vertical dilation, a strip is one output row, and its packed rows are the kernel_h rows
// of its window.
struct Strips {
  int64_t rows, count;

  Strips(const Geometry& g, int64_t bytes_per_input_row, int64_t multiple) {
    const int64_t fitting = (kStripBytes / std::max<int64_t>(bytes_per_input_row, 1) - g.kernel_h) / g.stride_h + 1;
    const int64_t most = g.dilation_h > 1 ? 1 : std::clamp<int64_t>(fitting, 1, std::max<int64_t>(g.out_h, 1));
    count = (g.out_h + most - 1) / most;
    rows = count > 0 ? (g.out_h + count - 1) / count : 1;
    rows = (rows + multiple - 1) / multiple * multiple;
    count = (g.out_h + rows - 1) / rows;
  }
  int64_t packed_rows(const Geometry& g) const {
    return (rows - 1) * g.stride_h + g.kernel_h;
  }
};

// The number of columns that the windows of all output columns span.
inline int64_t packed_columns(const Geometry& g) {
  return (g.out_w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
}

// Packs an image row of up to 16 channels into [columns][16], after `left` columns of zeros. If `from` is null, all
// columns are zeros.
template <typename scalar_t, typename acc_t>
void pack_row(acc_t* to, const scalar_t* from, int64_t stride_c, int64_t stride_w, int64_t width, int64_t left,
              int64_t columns, int64_t channels) {
  const int64_t begin = from ? std::min(left, columns) : columns;
  const int64_t end = from ? std::min(left + width, columns) : columns;
  std::fill(to, to + begin * kLanes, acc_t(0));
  std::fill(to + end * kLanes, to + columns * kLanes, acc_t(0));
  if (channels == kLanes && stride_c == 1) {
    for (int64_t x = begin; x < end; ++x) {
      const scalar_t* pixel = from + (x - left) * stride_w;
      for (int64_t c = 0; c < kLanes; ++c) {
        to[x * kLanes + c] = static_cast<acc_t>(pixel[c]);
      }
    }
    return;
  }
  if (channels < kLanes) {
    std::fill(to + begin * kLanes, to + end * kLanes, acc_t(0));
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = begin; x < end; ++x) {
      to[x * kLanes + c] = static_cast<acc_t>(from[c * stride_c + (x - left) * stride_w]);
    }
  }
}

// The reverse: writes `width` columns of [16] to an image row.
template <typename scalar_t, typename acc_t>
void unpack_row(scalar_t* to, int64_t stride_c, int64_t stride_w, const acc_t* from, int64_t width, int64_t channels) {
  if (channels == kLanes && stride_c == 1) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < kLanes; ++c) {
        to[x * stride_w + c] = static_cast<scalar_t>(from[x * kLanes + c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < width; ++x) {
      to[c * stride_c + x * stride_w] = static_cast<scalar_t>(from[x * kLanes + c]);
    }
  }
}

// A tensor (B, C, H, W) with access to single rows.
template <typename scalar_t>
struct Image {
  scalar_t* data;
  int64_t stride_b, stride_c, stride_h, stride_w, height, width;

  explicit Image(const at::Tensor& t)
      : data(involution::data<scalar_t>(t)),
        stride_b(t.stride(0)),
        stride_c(t.stride(1)),
        stride_h(t.stride(2)),
        stride_w(t.stride(3)),
        height(t.size(2)),
        width(t.size(3)) {}

  scalar_t* row(int64_t b, int64_t c, int64_t y) const {
    return y >= 0 && y < height ? data + b * stride_b + c * stride_c + y * stride_h : nullptr;
  }
};

// The kernels of neighboring output pixels, in one of two layouts: [pixel][tap] ...
template <typename acc_t>
struct TapsByPixel {
  const acc_t* data;
  int64_t pixel_stride;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[pixel * pixel_stride + tap];
  }
};
// ... or [tap][pixel], which the fused kernel generates.
template <typename acc_t>
struct PixelsByTap {
  const acc_t* data;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[tap * kTapStride + pixel];
  }
};

// Reads the kernels of neighboring output pixels as [pixel][tap] in the accumulation type: in place if memory has this
// layout (a channels-last float kernel), otherwise from a copy of one tile.
template <typename scalar_t, typename acc_t>
struct KernelReader {
  const scalar_t* data;
  int64_t stride_b, stride_g, stride_u, stride_v, stride_h, stride_w, kernel_h, kernel_w;
  bool in_place;
  Buffer<acc_t> copy;

  explicit KernelReader(const at::Tensor& t)
      : data(involution::data<const scalar_t>(t)),
        stride_b(t.stride(0)),
        stride_g(t.stride(1)),
        stride_u(t.stride(2)),
        stride_v(t.stride(3)),
        stride_h(t.stride(4)),
        stride_w(t.stride(5)),
        kernel_h(t.size(2)),
        kernel_w(t.size(3)),
        in_place(std::is_same_v<scalar_t, acc_t> && (stride_v == 1 || kernel_w == 1) &&
                 (stride_u == kernel_w || kernel_h == 1)),
        copy(in_place ? 0 : 2 * kTile * kernel_h * kernel_w) {}

  TapsByPixel<acc_t> tile(int64_t b, int64_t group, int64_t i, int64_t j, int64_t pixels) {
    const scalar_t* first = data + b * stride_b + group * stride_g + i * stride_h + j * stride_w;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place) {
        return {first, stride_w};
      }
    }
    acc_t* to = copy.get();
    const int64_t taps = kernel_h * kernel_w;
    if (stride_v == 1 && stride_u == kernel_w) {
      for (int64_t t = 0; t < pixels; ++t) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          to[t * taps + tap] = static_cast<acc_t>(first[t * stride_w + tap]);
        }
      }
      return {to, taps};
    }
    for (int64_t u = 0; u < kernel_h; ++u) {
      for (int64_t v = 0; v < kernel_w; ++v) {
        for (int64_t t = 0; t < pixels; ++t) {
          to[t * taps + u * kernel_w + v] = static_cast<acc_t>(first[t * stride_w + u * stride_u + v * stride_v]);
        }
      }
    }
    return {to, taps};
  }
};

// Calls f(K, S) with the size of a square kernel and the stride as compile-time constants if the inner loops are
// specialized for them, otherwise f(0, 0).
template <typename F>
void with_static_window(const Geometry& g, const F& f) {
  const bool square = g.kernel_h == g.kernel_w && g.stride_h == g.stride_w && g.dilation_w == 1;
  using std::integral_constant;
  if (square && g.kernel_w == 7 && g.stride_w == 1) {
    f(integral_constant<int, 7>{}, integral_constant<int, 1>{});
  } else if (square && g.kernel_w == 7 && g.stride_w == 2) {
    f(integral_constant<int, 7>{}, integral_constant<int, 2>{});
  } else if (square && g.kernel_w == 3 && g.stride_w == 1) {
    f(integral_constant<int, 3>{}, integral_constant<int, 1>{});
  } else if (square && g.kernel_w == 3 && g.stride_w == 2) {
    f(integral_constant<int, 3>{}, integral_constant<int, 2>{});
  } else {
    f(integral_constant<int, 0>{}, integral_constant<int, 0>{});
  }
}

// Calls f(tile width, first pixel) for each tile of a row of `width` pixels: tiles of 14, then of 7, 4, 2 and 1.
template <typename F>
inline void for_tiles(int64_t width, const F& f) {
  using std::integral_constant;
  int64_t j = 0;
  for (; j + 2 * kTile <= width; j += 2 * kTile) {
    f(integral_constant<int, 2 * kTile>{}, j);
  }
  if (j + kTile <= width) {
    f(integral_constant<int, kTile>{}, j);
    j += kTile;
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

// Packs the input rows of the output rows [first, last), for one chunk of channels.
template <typename scalar_t, typename acc_t>
void pack_strip(const Geometry& g, const Image<const scalar_t>& x, acc_t* packed, int64_t columns, int64_t b,
                const Chunk& chunk, int64_t first, int64_t last) {
  const int64_t rows = (last - first - 1) * g.stride_h + g.kernel_h;
  for (int64_t q = 0; q < rows; ++q) {
    pack_row(packed + q * columns * kLanes, x.row(b, chunk.first, first * g.stride_h - g.padding_h + q * g.dilation_h),
             x.stride_c, x.stride_w, g.width, g.padding_w, columns, chunk.count);
  }
}

}  // namespace
}  // namespace involution
