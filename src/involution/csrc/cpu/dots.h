// The forward pass on the CPU for small groups and a kernel whose taps are adjacent (a channels-last kernel).
//
// Most of the time is that of reading the kernel. It is read in the order of memory: for each pixel, the taps of many
// channels. Lanes are the taps of a kernel row.
#pragma once

#include "forward.h"
#include "phases.h"

namespace involution {
namespace {

// The channels of a panel, whose windows stay in the L1 cache.
constexpr int64_t kPanel = 32;

// Whether `forward_dots` is faster than `forward_kernel`: more lanes are of use.
template <typename scalar_t>
bool dots_suit(const Geometry& g, const KernelTensor<scalar_t>& kernel) {
  return kernel.has_adjacent_taps() && g.group_channels() <= min(4, g.kernel_w);
}

// Computes the channels of a panel, in strips of output rows.
template <typename scalar_t>
class DotsStrip {
 public:
  using acc_t = opmath_t<scalar_t>;
  using V = Channels<acc_t>;

  DotsStrip(const Geometry& g, const PhaseRows& layout, const Strips& strips, const Tensor& input,
            const Tensor& kernel, const ChannelEpilogues<acc_t>& epilogues, const Tensor& output)
      : g_(g),
        layout_(layout),
        x_(input),
        y_(output),
        kernel_(kernel),
        epilogues_(epilogues),
        packed_(strips.packed_rows(g) * layout.row_step),
        taps_step_(kernel_.taps + kLanes),
        taps_(kLanes * taps_step_) {
    zero(taps_.get(), kLanes * taps_step_);
    for (int64_t v = 0; v < g.kernel_w % kLanes; ++v) {
      rest_[v] = -1;
    }
  }

  // Computes the output rows [first, last) of `count` channels.
  void operator()(int64_t b, int64_t channel, int64_t count, int64_t first, int64_t last) {
    Epilogue<acc_t> epilogues[kPanel / kLanes];
    epilogues_.of({0, channel, count}, epilogues);
    for (int64_t c = 0; c < count; ++c) {
      offsets_[c] = (channel + c) / g_.group_channels() * kernel_.stride_g;
    }
    pack_strip(g_, layout_, packed_.get(), x_, b, channel, count, first, last);
    for (int64_t i = first; i < last; ++i) {
      const acc_t* row = packed_.get() + (i - first) * g_.stride_h * layout_.row_step;
      scalar_t* y = y_.row(b, channel, i);
      for (int64_t j = 0; j < g_.out_w; ++j, y += y_.stride_w) {
        const acc_t* x = row + layout_.at(j * g_.stride_w);
        for (int64_t c = 0; c < count; c += kLanes, x += kLanes * layout_.channel_step) {
          const int64_t channels = min(kLanes, count - c);
          V sums[1][1] = {{compute(kernel_.at(b, 0, i, j), offsets_ + c, x, channels)}};
          epilogues[c / kLanes].apply(sums, 0);
          write(y + c * y_.stride_c, sums[0][0], channels);
        }
      }
    }
  }

 private:
  // Computes up to `kLanes` channels of one pixel.
  INVOLUTION_NOINLINE V compute(const scalar_t* pixel, const int64_t* offsets, const acc_t* x, int64_t count) {
    const scalar_t* taps[kLanes];
    for (int64_t n = 0; n < kLanes; ++n) {
      const bool same = n > 0 && (n >= count || offsets[n] == offsets[n - 1]);
      taps[n] = same ? taps[n - 1] : read(pixel + offsets[n], taps_.get() + n * taps_step_);
    }
    V sums[kLanes] = {};
    for (int64_t v = 0; v < g_.kernel_w; v += kLanes) {
      V products[kLanes] = {};
      for (int64_t u = 0; u < g_.kernel_h; ++u) {
        const acc_t* row = x + u * layout_.row_step + v;
        INVOLUTION_UNROLL for (int n = 0; n < kLanes; ++n, row += layout_.channel_step) {
          add_products<acc_t>(products[n], load_lanes<acc_t>(taps[n] + u * g_.kernel_w + v), load<V>(row));
        }
      }
      INVOLUTION_UNROLL for (int n = 0; n < kLanes; ++n) {
        // The lanes after the last taps of a row are taps of the next one.
        sums[n] += v + kLanes <= g_.kernel_w ? products[n] : (rest_ ? products[n] : V{});
      }
    }
    return sum_lanes<acc_t>(sums);
  }
  // The taps of a kernel, in place or, at the end of the tensor, a copy: whole vectors are loaded.
  const scalar_t* read(const scalar_t* from, scalar_t* to) const {
    if (from + taps_step_ - 1 <= kernel_.last) {
      for (int64_t tap = 0; tap < kernel_.taps; tap += 64 / int64_t(sizeof(scalar_t))) {
        __builtin_prefetch(from + kernel_.stride_w + tap);
      }
      return from;
    }
    copy(to, 1, from, 1, kernel_.taps);
    return to;
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

  const Geometry& g_;
  const PhaseRows& layout_;
  const Image<const scalar_t> x_;
  const Image<scalar_t> y_;
  const KernelTensor<scalar_t> kernel_;
  const ChannelEpilogues<acc_t>& epilogues_;
  Buffer<acc_t> packed_;
  const int64_t taps_step_;
  Buffer<scalar_t> taps_;
  int64_t offsets_[kPanel] = {};  // of the kernel of each channel
  // A mask for the last vector of a kernel row: -1 in the lanes of its taps, 0 in the lanes after them.
  typename Vector<std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>, kLanes>::type rest_ = {};
};

template <typename scalar_t>
void forward_dots(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                  const Tensor& output, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const ChannelEpilogues<acc_t> epilogues_(g, epilogues);
  int64_t panel = kPanel;
  while (panel > kLanes && g.batch * ceil_div(g.channels, panel) < 2 * parallel.threads) {
    panel /= 2;
  }
  const int64_t panels = ceil_div(g.channels, panel);
  // The columns of a window are adjacent in a phase of the dilation.
  const PhaseRows layout(g, panel, g.dilation_w);
  const Strips strips(g, layout.row_step * sizeof(acc_t), 1);
  parallel_for(parallel, g.batch * strips.count * panels, [&](int64_t begin, int64_t end) {
    DotsStrip<scalar_t> compute(g, layout, strips, input, kernel, epilogues_, output);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / panels / strips.count, first = task / panels % strips.count * strips.rows;
      const int64_t channel = task % panels * panel;
      compute(b, channel, min(panel, g.channels - channel), first, min(first + strips.rows, g.out_h));
    }
  });
}

}  // namespace
}  // namespace involution
