// The forward pass on the CPU for small groups and a kernel whose pixels are adjacent (a contiguous kernel).
//
// Most of the time is that of reading the kernel. It is read nearly in the order of memory, a few planes of taps at a
// time, while the sums stay in the cache. Lanes are neighboring output pixels.
#pragma once

#include "forward.h"
#include "phases.h"

namespace involution {
namespace {

// Rows of the kernel, the packed input and the sums.
template <typename scalar_t, typename acc_t>
struct PlaneRows {
  const scalar_t* kernel;
  const acc_t* x;
  acc_t* sums;
  int64_t kernel_step, x_step, sums_step;
};

// Adds V taps of a kernel row, planes of `tap_stride`, to the sums of one channel. `columns` are the offsets of the
// taps in packed rows. The taps that are used next, `next_taps` further, are prefetched. The sums are whole vectors;
// of the kernel, nothing after `last` is read.
template <int V, typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void add_planes(PlaneRows<scalar_t, acc_t> at, const int64_t* columns, int64_t tap_stride,
                                    int64_t next_taps, int64_t rows, int64_t pixels, const scalar_t* last) {
  int64_t column[V];
  INVOLUTION_UNROLL for (int v = 0; v < V; ++v) {
    column[v] = columns[v];
  }
  for (int64_t row = 0; row < rows; ++row, at.kernel += at.kernel_step, at.x += at.x_step, at.sums += at.sums_step) {
    for (int64_t p = 0; p < pixels; p += kLanes) {
      Channels<acc_t> acc = load<Channels<acc_t>>(at.sums + p), taps[V];
      const scalar_t* from = at.kernel + p;
      if (from + (V - 1) * tap_stride + kLanes - 1 <= last) {
        INVOLUTION_UNROLL for (int v = 0; v < V; ++v) {
          prefetch(from + v * tap_stride + next_taps);
          taps[v] = load_lanes<acc_t>(from + v * tap_stride);
        }
      } else {
        for (int v = 0; v < V; ++v) {
          taps[v] = Channels<acc_t>{};
          for (int64_t n = 0; n < min(kLanes, pixels - p); ++n) {
            taps[v][n] = static_cast<acc_t>(from[v * tap_stride + n]);
          }
        }
      }
      INVOLUTION_UNROLL for (int v = 0; v < V; ++v) {
        add_products<acc_t>(acc, load<Channels<acc_t>>(at.x + column[v] + p), taps[v]);
      }
      store(at.sums + p, acc);
    }
  }
}

// Whether `forward_planes` is faster than `forward_kernel`: more lanes are of use.
template <typename scalar_t>
bool planes_suit(const Geometry& g, const KernelTensor<scalar_t>& kernel) {
  return kernel.stride_w == 1 && g.group_channels() <= min(4, g.out_w / 2);
}

// Computes one group, in strips of output rows.
template <typename scalar_t>
class PlanesStrip {
 public:
  using acc_t = opmath_t<scalar_t>;

  PlanesStrip(const Geometry& g, const PhaseRows& layout, const Strips& strips, const Tensor& input,
              const Tensor& kernel, const ChannelEpilogues<acc_t>& epilogues, const Tensor& output)
      : g_(g),
        layout_(layout),
        x_(input),
        y_(output),
        kernel_(kernel),
        epilogues_(epilogues),
        channel_step_(ceil_div(g.out_w, kLanes) * kLanes),
        row_step_(g.group_channels() * channel_step_),
        packed_(strips.packed_rows(g) * layout.row_step),
        sums_(strips.rows * row_step_),
        columns_(g.kernel_w) {
    for (int64_t v = 0; v < g.kernel_w; ++v) {
      columns_.get()[v] = layout.at(v * g.dilation_w);
    }
  }

  // Computes the output rows [first, last).
  void operator()(int64_t b, int64_t group, int64_t first, int64_t last) {
    const int64_t channels = g_.group_channels();
    pack_strip(g_, layout_, packed_.get(), x_, b, group * channels, channels, first, last);
    zero(sums_.get(), (last - first) * row_step_);
    for (int64_t u = 0; u < g_.kernel_h; ++u) {
      for_taps(g_.kernel_w, [&](auto V, int64_t v) {
        const scalar_t* kernel = kernel_.at(b, group, first, 0) + u * kernel_.stride_u + v * kernel_.stride_v;
        for (int64_t c = 0; c < channels; ++c) {
          const PlaneRows<scalar_t, acc_t> rows{kernel,
                                                packed_.get() + u * layout_.row_step + c * layout_.channel_step,
                                                sums_.get() + c * channel_step_,
                                                kernel_.stride_h,
                                                g_.stride_h * layout_.row_step,
                                                row_step_};
          add_planes<decltype(V)::value>(rows, columns_.get() + v, kernel_.stride_v, kernel_.stride_u, last - first,
                                         g_.out_w, kernel_.last);
        }
      });
    }
    write({group, group * channels, channels}, b, first, last);
  }

 private:
  void write(const Chunk& chunk, int64_t b, int64_t first, int64_t last) {
    Epilogue<acc_t> of_lanes[kChunkVectors];
    epilogues_.of(chunk, of_lanes);
    acc_t* sums = sums_.get();
    for (int64_t i = first; i < last; ++i) {
      for (int64_t c = 0; c < chunk.count; ++c, sums += channel_step_) {
        Epilogue<acc_t> epilogue = of_lanes[c / kLanes];
        epilogue.scale = Channels<acc_t>{} + epilogue.scale[c % kLanes];
        epilogue.shift = Channels<acc_t>{} + epilogue.shift[c % kLanes];
        for (int64_t p = 0; p < channel_step_; p += kLanes) {
          Channels<acc_t> pixels[1][1] = {{load<Channels<acc_t>>(sums + p)}};
          epilogue.apply(pixels, 0);
          store(sums + p, pixels[0][0]);
        }
        copy(y_.row(b, chunk.first + c, i), y_.stride_w, sums, 1, g_.out_w);
      }
    }
  }

  const Geometry& g_;
  const PhaseRows& layout_;
  const Image<const scalar_t> x_;
  const Image<scalar_t> y_;
  const KernelTensor<scalar_t> kernel_;
  const ChannelEpilogues<acc_t>& epilogues_;
  const int64_t channel_step_, row_step_;  // of the sums, [row][channel][pixel]
  Buffer<acc_t> packed_, sums_;
  Buffer<int64_t> columns_;
};

template <typename scalar_t>
void forward_planes(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                    const Tensor& output, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const ChannelEpilogues<acc_t> epilogues_(g, epilogues);
  const PhaseRows layout(g, g.group_channels(), g.stride_w);
  const Strips strips(g, layout.row_step * sizeof(acc_t), 1);
  parallel_for(parallel, g.batch * strips.count * g.groups, [&](int64_t begin, int64_t end) {
    PlanesStrip<scalar_t> compute(g, layout, strips, input, kernel, epilogues_, output);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / g.groups / strips.count, first = task / g.groups % strips.count * strips.rows;
      compute(b, task % g.groups, first, min(first + strips.rows, g.out_h));
    }
  });
}

}  // namespace
}  // namespace involution
