// The gradient of the kernel on the CPU.
//
// A tap of the gradient is a sum over the channels of a group, at one output pixel. Lanes are neighboring output
// pixels, which suits every window and every number of channels. Loads limit the speed, so that each vector of the
// input is multiplied for two output rows.
#pragma once

#include "phases.h"
#include "taps.h"

namespace involution {
namespace {

// The taps of a kernel row that are computed together. The sums of two output rows fit into the 16 registers of AVX2.
constexpr int kTapChunk = 7;

// What the taps of `kLanes` neighboring pixels are computed from: packed rows of the input, and the output gradient,
// [row][channel][pixel].
template <typename acc_t>
struct KernelGradPixels {
  const acc_t *x, *grad;
  int64_t channels, channel_step, grad_step, grad_row_step;
};

// Computes M taps of a kernel row for R output rows, [tap][kStep]. `columns` are the offsets of the taps in `x`.
template <int M, int R, int64_t kStep, typename acc_t>
INVOLUTION_NOINLINE void kernel_grad_tile(const KernelGradPixels<acc_t>& from, const int64_t* columns,
                                          acc_t* const* out) {
  using V = Channels<acc_t>;
  V acc[R][M] = {};
  int64_t column[M];
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    column[m] = columns[m];
  }
  const acc_t *x = from.x, *grad = from.grad;
  for (int64_t c = 0; c < from.channels; ++c, x += from.channel_step, grad += from.grad_step) {
    V value[R];
    INVOLUTION_UNROLL for (int r = 0; r < R; ++r) {
      value[r] = load<V>(grad + r * from.grad_row_step);
    }
    INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
      V pixels = load<V>(x + column[m]);
      keep_in_register<acc_t>(pixels);
      INVOLUTION_UNROLL for (int r = 0; r < R; ++r) {
        add_products<acc_t>(acc[r][m], pixels, value[r]);
      }
    }
  }
  INVOLUTION_UNROLL for (int r = 0; r < R; ++r) {
    INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
      store(out[r] + m * kStep, acc[r][m]);
    }
  }
}

// Calls `kernel_grad_tile` with a number of taps from 1 to `kTapChunk`.
template <int R, int64_t kStep, int M = kTapChunk, typename acc_t>
inline void kernel_grad_tiles(int64_t taps, const KernelGradPixels<acc_t>& from, const int64_t* columns,
                              acc_t* const* out) {
  if constexpr (M > 1) {
    if (taps < M) {
      return kernel_grad_tiles<R, kStep, M - 1>(taps, from, columns, out);
    }
  }
  kernel_grad_tile<M, R, kStep>(from, columns, out);
}

// Writes the taps of up to `kLanes` neighboring pixels. They are given in order, a few at a time: `next`, ...,
// `flush`.
template <typename scalar_t>
class TapWriter {
 public:
  using acc_t = opmath_t<scalar_t>;
  static constexpr int64_t kStep = kLanes;  // between the taps at the result of `next`

  // In both layouts of `empty_kernel`, the stride between all neighboring taps is the same.
  TapWriter(const Geometry& g, const Tensor& t)
      : kernel_(t), taps_(g.taps()), tap_stride_(t.strides[g.kernel_w > 1 ? 3 : 2]), pixel_stride_(t.strides[5]) {}

  void start(int64_t b, int64_t group, int64_t i, int64_t j, int64_t pixels) {
    scalar_t* const to = static_cast<scalar_t*>(kernel_.data) + b * kernel_.strides[0] + group * kernel_.strides[1] +
                         i * kernel_.strides[4] + j * kernel_.strides[5];
    to_ = to;
    pixels_ = pixels;
    tap_ = count_ = 0;
    // Without prefetching, most of the time is spent on waiting for the cache lines that are written.
    if (tap_stride_ == 1) {
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t tap = 0; tap < taps_; tap += 64 / int64_t(sizeof(scalar_t))) {
          prefetch(to + p * pixel_stride_ + tap);
        }
      }
    } else {
      for (int64_t tap = 0; tap < taps_; ++tap) {
        prefetch(to + tap * tap_stride_ + 64 / int64_t(sizeof(scalar_t)));
      }
    }
  }
  // Where the next taps have to be stored, [tap][kLanes].
  acc_t* next(int64_t taps) {
    if (count_ + taps > kLanes) {
      flush();
    }
    count_ += taps;
    return tile_ + (kLanes + count_ - taps) * kLanes;
  }
  void flush() {
    if (tap_stride_ != 1) {
      write_planes();
    } else if (tap_ + kLanes <= taps_) {
      // The next taps overwrite the lanes after these.
      write_pixels(tile_ + kLanes * kLanes, tap_);
    } else if (taps_ >= kLanes) {
      write_pixels(tile_ + count_ * kLanes, taps_ - kLanes);
    } else {
      for (int64_t p = 0; p < pixels_; ++p) {
        copy(to_ + p * pixel_stride_, 1, tile_ + kLanes * kLanes + p, kLanes, count_);
      }
    }
    tap_ += count_;
    // The last taps of a pixel are written together with some before them, as a whole vector.
    for (int64_t m = 0; m < count_ && tap_ + kLanes > taps_; ++m) {
      store(tile_ + (kLanes - count_ + m) * kLanes, load<Channels<acc_t>>(tile_ + (kLanes + m) * kLanes));
    }
    count_ = 0;
  }

 private:
  // Writes `kLanes` taps of each pixel, from the tap `first` on.
  INVOLUTION_NOINLINE void write_pixels(const acc_t* tile, int64_t first) {
    Channels<acc_t> rows[kLanes];
    INVOLUTION_UNROLL for (int m = 0; m < kLanes; ++m) {
      rows[m] = load<Channels<acc_t>>(tile + m * kLanes);
    }
    transpose<acc_t>(rows);
    // Copies of the members: the compiler would read them again after each store.
    scalar_t* to = to_ + first;
    const int64_t stride = pixel_stride_, pixels = pixels_;
    INVOLUTION_UNROLL for (int p = 0; p < kLanes; ++p) {
      if (p < pixels) {
        store_lanes(to + p * stride, rows[p]);
      }
    }
  }
  void write_planes() {
    for (int64_t m = 0; m < count_; ++m) {
      scalar_t* to = to_ + (tap_ + m) * tap_stride_;
      const acc_t* from = tile_ + (kLanes + m) * kLanes;
      if (pixel_stride_ != 1) {
        copy(to, pixel_stride_, from, 1, pixels_);
      } else if (pixels_ == kLanes) {
        store_lanes(to, load<Channels<acc_t>>(from));
      } else {
        store_first(to, load<Channels<acc_t>>(from), pixels_);
      }
    }
  }

  const Tensor& kernel_;
  const int64_t taps_, tap_stride_, pixel_stride_;
  scalar_t* to_ = nullptr;
  int64_t pixels_ = 0, tap_ = 0, count_ = 0;
  alignas(64) acc_t tile_[2 * kLanes * kLanes] = {};  // the taps before, and those to be written
};

// Computes the kernel gradient of one group, in strips of output rows. A `Writer` takes the taps.
template <typename scalar_t, typename Writer>
class KernelGradStrip {
 public:
  using acc_t = opmath_t<scalar_t>;

  // Two writers of the same kernel, because two output rows are computed together.
  KernelGradStrip(const Geometry& g, const PhaseRows& layout, int64_t packed_rows, const Tensor& grad_output,
                  const Tensor& input, const Writer& first, const Writer& second)
      : g_(g),
        layout_(layout),
        dy_(grad_output),
        x_(input),
        grad_step_(ceil_div(g.out_w, kLanes) * kLanes),
        grad_row_step_(g.group_channels() * grad_step_),
        parts_(ceil_div(g.kernel_w, kTapChunk)),
        packed_(packed_rows * layout.row_step),
        grad_(2 * grad_row_step_),
        columns_(g.kernel_w),
        part_begin_(parts_ + 1),
        writers_{first, second} {
    zero(grad_.get(), 2 * grad_row_step_);
    for (int64_t v = 0; v < g.kernel_w; ++v) {
      columns_.get()[v] = layout.at(v * g.dilation_w);
    }
    for (int64_t n = 0; n <= parts_; ++n) {
      part_begin_.get()[n] = n * g.kernel_w / parts_;
    }
  }

  // Starts a strip of the output rows [first, last).
  void start(int64_t b, int64_t group, int64_t first, int64_t last) {
    b_ = b;
    group_ = group;
    first_ = first;
    pack_strip(g_, layout_, packed_.get(), x_, b, group * g_.group_channels(), g_.group_channels(), first, last);
  }

  // Computes a block of the strip.
  void compute(const Block& block) {
    const int64_t channel = group_ * g_.group_channels(), end = block.j_begin + block.width;
    for (int64_t i = block.i_begin, count; i < block.i_end; i += count) {
      count = min(block.i_end - i, 2);
      for (int64_t r = 0; r < count; ++r) {
        pack_channels(grad_.get() + r * grad_row_step_, grad_step_, dy_.row(b_, channel, i + r), dy_.stride_c,
                      dy_.stride_w, g_.out_w, g_.group_channels());
      }
      const acc_t* window = packed_.get() + (i - first_) * g_.stride_h * layout_.row_step;
      for (int64_t p = block.j_begin; p < end; p += kLanes) {
        const int64_t j = max(min(p, end - kLanes), block.j_begin);  // The last vector may overlap the one before.
        for (int64_t r = 0; r < count; ++r) {
          writers_[r].start(b_, group_, i + r, j, min(kLanes, block.width));
        }
        compute_pixels(window + j, grad_.get() + j, count);
      }
    }
  }

 private:
  // Computes `kLanes` pixels in each of `count` <= 2 output rows.
  void compute_pixels(const acc_t* window, const acc_t* grad, int64_t count) {
    for (int64_t q = 0; q < g_.kernel_h + (count - 1) * g_.stride_h; ++q) {
      // Packed row q is in the windows of the first output row, of the second, of both, or between them.
      const bool in_first = q < g_.kernel_h, in_second = count > 1 && q >= g_.stride_h;
      const KernelGradPixels<acc_t> from{window + q * layout_.row_step,
                                         grad + (in_first ? 0 : grad_row_step_),
                                         g_.group_channels(),
                                         layout_.channel_step,
                                         grad_step_,
                                         grad_row_step_};
      for (int64_t n = 0; n < parts_ && (in_first || in_second); ++n) {
        const int64_t v = part_begin_.get()[n], taps = part_begin_.get()[n + 1] - v;
        acc_t* out[2] = {writers_[in_first ? 0 : 1].next(taps), nullptr};
        if (in_first && in_second) {
          out[1] = writers_[1].next(taps);
          kernel_grad_tiles<2, Writer::kStep>(taps, from, columns_.get() + v, out);
        } else {
          kernel_grad_tiles<1, Writer::kStep>(taps, from, columns_.get() + v, out);
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      writers_[r].flush();
    }
  }

  const Geometry& g_;
  const PhaseRows& layout_;
  const Image<const scalar_t> dy_, x_;
  const int64_t grad_step_, grad_row_step_, parts_;
  Buffer<acc_t> packed_, grad_;
  // The offsets of the taps of a kernel row in packed rows, and its parts of up to `kTapChunk` taps.
  Buffer<int64_t> columns_, part_begin_;
  Writer writers_[2];                      // for each output row
  int64_t b_ = 0, group_ = 0, first_ = 0;  // of the strip
};

template <typename scalar_t>
void kernel_grad_kernel(const Geometry& g, const Tensor& grad_output, const Tensor& input, const Tensor& grad_kernel,
                        const Parallel& parallel) {
  const PhaseRows layout(g, g.group_channels(), g.stride_w);
  const Strips strips(g, layout.row_step * sizeof(opmath_t<scalar_t>), 1);
  parallel_for(parallel, g.batch * strips.count * g.groups, [&](int64_t begin, int64_t end) {
    const TapWriter<scalar_t> writer(g, grad_kernel);
    KernelGradStrip<scalar_t, TapWriter<scalar_t>> strip(g, layout, strips.packed_rows(g), grad_output, input, writer,
                                                         writer);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / g.groups / strips.count, first = task / g.groups % strips.count * strips.rows;
      const int64_t last = min(first + strips.rows, g.out_h);
      strip.start(b, task % g.groups, first, last);
      strip.compute({first, last, 0, g.out_w});
    }
  });
}

}  // namespace
}  // namespace involution
