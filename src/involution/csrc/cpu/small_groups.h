// The forward pass on the CPU for small groups and a kernel whose taps are adjacent (a channels-last kernel).
//
// Most of the time is that of reading the kernel. It is read in the order of memory: for each pixel, the taps of
// `kLanes` channels, which belong to several groups. They are transposed, so that lanes are channels.
#pragma once

#include "forward.h"

namespace involution {
namespace {

// Whether `forward_small_groups` is faster than `forward_kernel`, which leaves the lanes after a group unused.
template <typename scalar_t>
bool small_groups_suit(const Geometry& g, const KernelTensor<scalar_t>& kernel) {
  return kernel.has_adjacent_taps() && g.group_channels() <= min(4, g.kernel_w);
}

// The channels of a panel, whose windows and taps stay in the L1 cache.
constexpr int64_t kPanel = 4 * kLanes;

// Computes the channels of a panel, in strips of output rows.
template <typename scalar_t>
class SmallGroups {
 public:
  using acc_t = opmath_t<scalar_t>;
  using V = Channels<acc_t>;

  SmallGroups(const Geometry& g, const Strips& strips, const Tensor& input, const Tensor& kernel,
              const ChannelEpilogues<acc_t>& epilogues, const Tensor& output)
      : g_(g),
        rows_{packed_columns(g), g.padding_w},
        row_step_(rows_.columns * kLanes),
        vector_step_(strips.packed_rows(g) * row_step_),
        x_(input),
        y_(output),
        kernel_(kernel),
        epilogues_(epilogues),
        packed_(kPanel / kLanes * vector_step_),
        columns_(kernel_.taps) {
    for (int64_t tap = 0; tap < kernel_.taps; ++tap) {
      columns_.get()[tap] = tap / g.kernel_w * row_step_ + tap % g.kernel_w * g.dilation_w * kLanes;
    }
  }

  // Computes the output rows [first, last) of `count` channels.
  void operator()(int64_t b, int64_t channel, int64_t count, int64_t first, int64_t last) {
    const int64_t vectors = ceil_div(count, kLanes);
    Epilogue<acc_t> epilogues[kPanel / kLanes];
    for (int64_t n = 0; n < vectors; ++n) {
      const Chunk chunk{0, channel + n * kLanes, min(kLanes, count - n * kLanes)};
      epilogues_.of(chunk, epilogues + n);
      pack_rows(x_, packed_.get() + n * vector_step_, rows_, b, chunk, first * g_.stride_h - g_.padding_h,
                g_.dilation_h, (last - first - 1) * g_.stride_h + g_.kernel_h);
    }
    for (int64_t n = 0; n < vectors * kLanes; ++n) {  // Lanes after the last channel are computed, but not written.
      offsets_[n] = (channel + min(n, count - 1)) / g_.group_channels() * kernel_.stride_g;
    }
    for (int64_t i = first; i < last; ++i) {
      const acc_t* x = packed_.get() + (i - first) * g_.stride_h * row_step_;
      scalar_t* y = y_.row(b, channel, i);
      for (int64_t j = 0; j < g_.out_w; ++j, x += g_.stride_w * kLanes, y += y_.stride_w) {
        const scalar_t* kernel = kernel_.at(b, 0, i, j);
        for (int64_t n = 0; n < vectors; ++n) {
          V sums[1][1] = {{compute(kernel, offsets_ + n * kLanes, x + n * vector_step_)}};
          epilogues[n].apply(sums, 0);
          write(y + n * kLanes * y_.stride_c, sums[0][0], min(kLanes, count - n * kLanes));
        }
      }
    }
  }

 private:
  // The sums of one pixel. Two sums hide the latency of the additions.
  INVOLUTION_NOINLINE V compute(const scalar_t* kernel, const int64_t* offsets, const acc_t* x) {
    V sums[2] = {}, taps[kLanes];
    int64_t tap = 0;
    for (; tap + kLanes <= kernel_.taps; tap += kLanes) {
      transpose_taps(kernel + tap, offsets, taps);
      INVOLUTION_UNROLL for (int n = 0; n < kLanes; ++n) {
        add_products<acc_t>(sums[n % 2], load<V>(x + columns_.get()[tap + n]), taps[n]);
      }
    }
    const int64_t rest = kernel_.taps - tap;
    alignas(64) acc_t last[kLanes * kLanes];  // the last taps, [tap][channel]
    if (rest > kScalarTaps && tap > 0) {
      transpose_taps(kernel + kernel_.taps - kLanes, offsets, taps);
      INVOLUTION_UNROLL for (int n = 0; n < kLanes; ++n) {
        store(last + n * kLanes, taps[n]);
      }
    } else {
      for (int64_t n = 0; n < kLanes; ++n) {
        copy(last + (kLanes - rest) * kLanes + n, kLanes, kernel + offsets[n] + tap, 1, rest);
      }
    }
    for (int64_t n = kLanes - rest; tap < kernel_.taps; ++tap, ++n) {
      add_products<acc_t>(sums[0], load<V>(x + columns_.get()[tap]), load<V>(last + n * kLanes));
    }
    return sums[0] + sums[1];
  }
  // Reads `kLanes` taps of each channel. Prefetches those of the next pixel.
  INVOLUTION_INLINE void transpose_taps(const scalar_t* kernel, const int64_t* offsets, V* taps) const {
    INVOLUTION_UNROLL for (int n = 0; n < kLanes; ++n) {
      const scalar_t* from = kernel + offsets[n];
      prefetch(from + kernel_.stride_w);
      taps[n] = load_lanes<acc_t>(from);
    }
    transpose<acc_t>(taps);
  }
  void write(scalar_t* to, const V& sums, int64_t count) const {
    if (y_.stride_c != 1) {
      acc_t values[kLanes];
      store(values, sums);
      copy(to, y_.stride_c, values, 1, count);
    } else if (count == kLanes) {
      store_lanes(to, sums);
    } else {
      store_first(to, sums, count);
    }
  }

  // So few taps are copied one by one.
  static constexpr int64_t kScalarTaps = 4;

  const Geometry& g_;
  const PackedRows rows_;
  const int64_t row_step_, vector_step_;
  const Image<const scalar_t> x_;
  const Image<scalar_t> y_;
  const KernelTensor<scalar_t> kernel_;
  const ChannelEpilogues<acc_t>& epilogues_;
  Buffer<acc_t> packed_;
  Buffer<int64_t> columns_;       // of each tap, in the packed rows
  int64_t offsets_[kPanel] = {};  // of the kernel of each channel
};

template <typename scalar_t>
void forward_small_groups(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                          const Tensor& output, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const ChannelEpilogues<acc_t> epilogues_(g, epilogues);
  int64_t panel = kPanel;
  while (panel > kLanes && g.batch * ceil_div(g.channels, panel) < 2 * parallel.threads) {
    panel /= 2;
  }
  const int64_t panels = ceil_div(g.channels, panel);
  const Strips strips(g, packed_columns(g) * panel * sizeof(acc_t), 1);
  parallel_for(parallel, g.batch * strips.count * panels, [&](int64_t begin, int64_t end) {
    SmallGroups<scalar_t> compute(g, strips, input, kernel, epilogues_, output);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / panels / strips.count, first = task / panels % strips.count * strips.rows;
      const int64_t channel = task % panels * panel;
      compute(b, channel, min(panel, g.channels - channel), first, min(first + strips.rows, g.out_h));
    }
  });
}

}  // namespace
}  // namespace involution
