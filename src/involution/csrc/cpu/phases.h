// Rows in which the columns that neighboring output pixels need for a tap are adjacent, for kernels whose lanes are
// pixels.
#pragma once

#include "packing.h"

namespace involution {
namespace {

// Packed rows of several channels, [row][channel][phase][column]. The columns of an image row are sorted by their
// remainder modulo the number of phases. If this number is the horizontal stride, the columns of neighboring output
// pixels are adjacent.
struct PhaseRows {
  int64_t channels, phases, columns, phase_step, channel_step, row_step;

  PhaseRows(const Geometry& g, int64_t channels, int64_t phases)
      : channels(channels),
        phases(phases),
        columns(packed_columns(g)),
        phase_step(ceil_div(columns, phases) + kLanes),  // Whole vectors are loaded.
        channel_step(phase_step * phases),
        row_step(channel_step * channels) {}
  int64_t at(int64_t column) const {
    return column % phases * phase_step + column / phases;
  }
};

// Packs up to `kLanes` pixels of `kLanes` adjacent channels into [channel][to_step]. The lanes after them become
// zeros.
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void pack_transposed(acc_t* to, int64_t to_step, const scalar_t* from, int64_t stride_w,
                                         int64_t pixels) {
  Channels<acc_t> rows[kLanes];
  INVOLUTION_UNROLL for (int t = 0; t < kLanes; ++t) {
    rows[t] = t < pixels ? load_lanes<acc_t>(from + t * stride_w) : Channels<acc_t>{};
  }
  transpose<acc_t>(rows);
  INVOLUTION_UNROLL for (int c = 0; c < kLanes; ++c) {
    store(to + c * to_step, rows[c]);
  }
}

// Packs pixels of a row into [channel][to_step], followed by up to `kLanes` - 1 zeros or unchanged values.
template <typename scalar_t, typename acc_t>
INVOLUTION_NOINLINE void pack_channels(acc_t* to, int64_t to_step, const scalar_t* from, int64_t stride_c,
                                       int64_t stride_w, int64_t pixels, int64_t channels) {
  const int64_t vectors = stride_c == 1 ? channels / kLanes * kLanes : 0;
  for (int64_t p = 0; p < pixels && vectors > 0; p += kLanes) {
    // All channels of a pixel are in few cache lines, which are far from those of the next pixel.
    for (int64_t n = 0; n < kLanes; ++n) {
      prefetch(from + (p + 2 * kLanes + n) * stride_w);
    }
    const int64_t first = max(min(p, pixels - kLanes), 0);  // The last vector may overlap the one before.
    for (int64_t c = 0; c < vectors; c += kLanes) {
      pack_transposed(to + c * to_step + first, to_step, from + first * stride_w + c, stride_w, pixels - first);
    }
  }
  for (int64_t c = vectors; c < channels; ++c) {
    if (stride_w == 2) {
      copy_half(to + c * to_step, from + c * stride_c, pixels);
    } else {
      copy(to + c * to_step, 1, from + c * stride_c, stride_w, pixels);
    }
  }
}

// Packs an image row of up to `rows.channels` channels. If `from` is null, all values are zeros.
template <typename scalar_t, typename acc_t>
void pack_phases(const Geometry& g, const PhaseRows& rows, acc_t* to, const scalar_t* from, int64_t stride_c,
                 int64_t stride_w, int64_t channels) {
  zero(to, rows.row_step);
  const int64_t end = from ? min(g.padding_w + g.width, rows.columns) : 0;
  for (int64_t phase = 0; phase < rows.phases; ++phase) {
    // The first column of this phase that is not padding.
    const int64_t first = phase + max(ceil_div(g.padding_w - phase, rows.phases), 0) * rows.phases;
    if (first < end) {
      pack_channels(to + rows.at(first), rows.channel_step, from + (first - g.padding_w) * stride_w, stride_c,
                    stride_w * rows.phases, ceil_div(end - first, rows.phases), channels);
    }
  }
}

// Packs the input rows that a strip of the output rows [first, last) needs, of `channels` channels from `channel` on.
template <typename scalar_t, typename acc_t>
void pack_strip(const Geometry& g, const PhaseRows& rows, acc_t* to, const Image<const scalar_t>& x, int64_t b,
                int64_t channel, int64_t channels, int64_t first, int64_t last) {
  for (int64_t q = 0; q < (last - first - 1) * g.stride_h + g.kernel_h; ++q) {
    pack_phases(g, rows, to + q * rows.row_step,
                x.row(b, channel, first * g.stride_h - g.padding_h + q * g.dilation_h), x.stride_c, x.stride_w,
                channels);
  }
}

}  // namespace
}  // namespace involution
