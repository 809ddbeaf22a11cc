// How the CPU kernels read involution kernels. A reader gives the taps of a tile of neighboring output pixels in the
// accumulation type, in one of two layouts.
#pragma once

#include "packing.h"

namespace involution {
namespace {

// [pixel][tap]
template <typename acc_t>
struct TapsByPixel {
  const acc_t* data;
  int64_t pixel_stride;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[pixel * pixel_stride + tap];
  }
  TapsByPixel from(int64_t pixel) const {
    return {data + pixel * pixel_stride, pixel_stride};
  }
};
// [tap][pixel]
template <typename acc_t>
struct PixelsByTap {
  const acc_t* data;
  int64_t tap_stride;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[tap * tap_stride + pixel];
  }
  PixelsByTap from(int64_t pixel) const {
    return {data + pixel, tap_stride};
  }
};

// Output pixels that are computed together: whole rows, or a part of one row.
struct Block {
  int64_t i_begin, i_end, j_begin, width;

  int64_t pixels() const {
    return (i_end - i_begin) * width;
  }
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

// A kernel (B, G, Kh, Kw, H', W').
template <typename scalar_t>
struct KernelTensor {
  const scalar_t *data, *last;  // the first and the last value
  int64_t stride_b, stride_g, stride_u, stride_v, stride_h, stride_w, kernel_h, kernel_w, taps;

  explicit KernelTensor(const Tensor& t)
      : data(static_cast<const scalar_t*>(t.data)),
        last(data),
        stride_b(t.strides[0]),
        stride_g(t.strides[1]),
        stride_u(t.strides[2]),
        stride_v(t.strides[3]),
        stride_h(t.strides[4]),
        stride_w(t.strides[5]),
        kernel_h(t.sizes[2]),
        kernel_w(t.sizes[3]),
        taps(kernel_h * kernel_w) {
    for (int n = 0; n < 6; ++n) {
      last += (t.sizes[n] - 1) * t.strides[n];
    }
    if (kernel_w == 1) {
      stride_v = stride_u;  // Then all taps are one stride apart.
    }
    if (kernel_h == 1) {
      stride_u = kernel_w * stride_v;
    }
  }
  bool has_adjacent_taps() const {
    return has_one_tap_stride() && (stride_v == 1 || taps == 1);
  }
  bool has_one_tap_stride() const {
    return stride_u == kernel_w * stride_v;
  }
  const scalar_t* at(int64_t b, int64_t group, int64_t i, int64_t j) const {
    return data + b * stride_b + group * stride_g + i * stride_h + j * stride_w;
  }
};

// Reads kernels of any layout as [pixel][tap]: in place if memory has this layout (a channels-last float kernel),
// otherwise from a copy of one tile.
template <typename scalar_t, typename acc_t>
class PixelKernels {
 public:
  static constexpr bool kReadsBlocks = false;

  explicit PixelKernels(const Tensor& t)
      : kernel_(t),
        in_place_(std::is_same_v<scalar_t, acc_t> && kernel_.has_adjacent_taps()),
        copy_(in_place_ ? 0 : 2 * kTile * kernel_.taps) {}

  void start(int64_t b, int64_t group, const Block& block) {
    first_ = kernel_.at(b, group, block.i_begin, block.j_begin);
  }
  void prefetch_next(int64_t, int64_t, const Block&) {}  // `tile` does it
  // The taps of `pixels` neighboring pixels in a row of the block.
  TapsByPixel<acc_t> tile(int64_t row, int64_t j, int64_t pixels) {
    const scalar_t* from = first_ + row * kernel_.stride_h + j * kernel_.stride_w;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place_) {
        if (kernel_.stride_w >= kPrefetched) {
          for (int64_t t = pixels; t < 2 * pixels; ++t) {
            prefetch(from + t * kernel_.stride_w, kernel_.taps);
          }
        }
        return {from, kernel_.stride_w};
      }
    }
    for (int64_t t = 0; t < pixels; ++t, from += kernel_.stride_w) {
      acc_t* to = copy_.get() + t * kernel_.taps;
      if (kernel_.has_one_tap_stride()) {
        copy(to, 1, from, kernel_.stride_v, kernel_.taps);
      } else {
        for (int64_t u = 0; u < kernel_.kernel_h; ++u) {
          copy(to + u * kernel_.kernel_w, 1, from + u * kernel_.stride_u, kernel_.stride_v, kernel_.kernel_w);
        }
      }
    }
    return {copy_.get(), kernel_.taps};
  }

 private:
  // From this distance of the kernels of neighboring pixels on, the next tile is prefetched.
  static constexpr int64_t kPrefetched = 64;

  const KernelTensor<scalar_t> kernel_;
  const bool in_place_;
  Buffer<acc_t> copy_;
  const scalar_t* first_ = nullptr;
};

// Reads kernels whose pixels are adjacent (a contiguous kernel) as [tap][pixel]: in place, or 16-bit ones from a copy
// of a block in the accumulation type.
template <typename scalar_t, typename acc_t>
class PlanarKernels {
 public:
  static constexpr bool kReadsBlocks = true;

  explicit PlanarKernels(const Tensor& t) : kernel_(t), copy_(kInPlace ? 0 : kernel_.taps * kTapStride) {}

  static bool reads(const Geometry& g, const Tensor& t) {
    const KernelTensor<scalar_t> kernel(t);
    return kernel.stride_w == 1 && kernel.taps > 1 && kernel.has_one_tap_stride() &&
           (kernel.stride_h == g.out_w || g.out_h == 1);
  }
  void start(int64_t b, int64_t group, const Block& block) {
    const scalar_t* from = kernel_.at(b, group, block.i_begin, block.j_begin);
    width_ = block.width;
    tiles_ = (block.i_end - block.i_begin) * ceil_div(width_, 2 * kTile);
    if (from != next_) {
      prefetch_next(b, group, block);
    }
    prefetch_taps(kernel_.taps);
    if constexpr (kInPlace) {
      pixels_ = {from, kernel_.stride_v};
    } else {
      for (int64_t tap = 0; tap < kernel_.taps; ++tap) {
        copy(copy_.get() + tap * kTapStride, 1, from + tap * kernel_.stride_v, 1, block.pixels());
      }
      pixels_ = {copy_.get(), kTapStride};
    }
  }
  // Prefetches the block that will be started next, a part with each tile of the current one.
  void prefetch_next(int64_t b, int64_t group, const Block& block) {
    next_ = kernel_.at(b, group, block.i_begin, block.j_begin);
    next_pixels_ = block.pixels();
    next_tap_ = 0;
  }
  PixelsByTap<acc_t> tile(int64_t row, int64_t j, int64_t) {
    prefetch_taps(ceil_div(kernel_.taps, tiles_));
    return {pixels_.data + row * width_ + j, pixels_.tap_stride};
  }

 private:
  // There are more taps than streams that the prefetcher of the processor follows.
  void prefetch_taps(int64_t count) {
    for (const int64_t end = min(next_tap_ + count, kernel_.taps); next_tap_ < end; ++next_tap_) {
      prefetch(next_ + next_tap_ * kernel_.stride_v, next_pixels_);
    }
  }

  static constexpr bool kInPlace = std::is_same_v<scalar_t, acc_t>;
  const KernelTensor<scalar_t> kernel_;
  Buffer<acc_t> copy_;
  PixelsByTap<acc_t> pixels_{};
  int64_t width_ = 0, tiles_ = 1;  // of the current block
  const scalar_t* next_ = nullptr;
  int64_t next_pixels_ = 0, next_tap_ = 0;  // the first tap that is not prefetched
};

// Calls f(reader type) for the reader that suits a kernel.
template <typename scalar_t, typename acc_t, typename F>
void with_kernel_reader(const Geometry& g, const Tensor& kernel, const F& f) {
  if (PlanarKernels<scalar_t, acc_t>::reads(g, kernel)) {
    f(static_cast<PlanarKernels<scalar_t, acc_t>*>(nullptr));
  } else {
    f(static_cast<PixelKernels<scalar_t, acc_t>*>(nullptr));
  }
}

}  // namespace
}  // namespace involution
