// The gradient of the kernel on the CPU.
#pragma once

#include "packing.h"

namespace involution {
namespace {

// Planar packing: for each channel, a row in which the taps of a window are adjacent for every dilation, because
// columns are sorted by their phase. Each phase is followed by unused elements, so that whole vectors of taps can be
// loaded.
struct PlanarRow {
  int64_t columns, phase_length, length;

  explicit PlanarRow(const Geometry& g)
      : columns(packed_columns(g)),
        phase_length((columns + g.dilation_w - 1) / g.dilation_w + kTapLanes),
        length(phase_length * g.dilation_w) {}
  int64_t at(const Geometry& g, int64_t column) const {
    return column % g.dilation_w * phase_length + column / g.dilation_w;
  }
};

// Packs an image row of all channels of a group into [channel][plane_step]. If `from` is null, all values are zeros.
template <typename scalar_t, typename acc_t>
void pack_planar_row(const Geometry& g, const PlanarRow& layout, acc_t* to, int64_t plane_step, const scalar_t* from,
                     int64_t stride_c, int64_t stride_w) {
  const int64_t channels = g.group_channels();
  for (int64_t c = 0; c < channels; ++c) {
    zero(to + c * plane_step, layout.length);
  }
  const int64_t end = from ? min(g.padding_w + g.width, layout.columns) : 0;
  if (g.dilation_w == 1) {
    for (int64_t x = g.padding_w; x < end; x += kLanes) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        planes_from_pixels(to + c * plane_step + x, plane_step, from + (x - g.padding_w) * stride_w + c * stride_c,
                           stride_c, stride_w, min(kLanes, end - x), min(kLanes, channels - c));
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = g.padding_w; x < end; ++x) {
      to[c * plane_step + layout.at(g, x)] = static_cast<acc_t>(from[c * stride_c + (x - g.padding_w) * stride_w]);
    }
  }
}

// Computes the kernel gradient of one pixel, [tap]: for each kernel row a vector of taps, summed over the channels of
// the group.
template <int K, typename acc_t>
INVOLUTION_NOINLINE void kernel_grad_pixel(const Geometry& g, const acc_t* x, int64_t row_step, int64_t plane_step,
                                           const acc_t* grad, acc_t* out) {
  using V = Taps<acc_t>;
  const int64_t channels = g.group_channels();
  if constexpr (K > 0 && K <= kTapLanes) {
    V acc[K] = {};
    for (int64_t c = 0; c < channels; ++c, x += plane_step) {
      INVOLUTION_UNROLL for (int u = 0; u < K; ++u) {
        acc[u] += load<V>(x + u * row_step) * grad[c];
      }
    }
    // Whole vectors are stored: the next row overwrites the lanes after the K taps, and the last row's lanes are
    // unused.
    INVOLUTION_UNROLL for (int u = 0; u < K; ++u) {
      store(out + u * K, acc[u]);
    }
  } else {
    for (int64_t u = 0; u < g.kernel_h; ++u) {
      for (int64_t v = 0; v < g.kernel_w; v += kTapLanes) {
        V acc = {};
        for (int64_t c = 0; c < channels; ++c) {
          acc += load<V>(x + c * plane_step + u * row_step + v) * grad[c];
        }
        for (int64_t w = v; w < min(v + kTapLanes, g.kernel_w); ++w) {
          out[u * g.kernel_w + w] = acc[w - v];
        }
      }
    }
  }
}

template <typename scalar_t>
void kernel_grad_kernel(const Geometry& g, const Tensor& grad_output, const Tensor& input, const Tensor& grad_kernel,
                        const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> dy(grad_output), x(input);
  scalar_t* dk = static_cast<scalar_t*>(grad_kernel.data);
  const int64_t* dk_stride = grad_kernel.strides;
  const int64_t channels = g.group_channels();
  const PlanarRow layout(g);
  const Strips strips(g, channels * layout.length * sizeof(acc_t), 1);
  const int64_t plane_step = strips.packed_rows(g) * layout.length;
  with_static_window(g, [&](auto K, auto) {
    parallel_for(parallel, g.batch * strips.count * g.groups, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(channels * plane_step + kTapLanes), grad(g.out_w * channels), taps(g.taps() + kTapLanes);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % g.groups, b = task / g.groups / strips.count;
        const int64_t first = task / g.groups % strips.count * strips.rows, last = min(first + strips.rows, g.out_h);
        const int64_t rows = (last - first - 1) * g.stride_h + g.kernel_h;
        for (int64_t q = 0; q < rows; ++q) {
          pack_planar_row(g, layout, packed.get() + q * layout.length, plane_step,
                          x.row(b, group * channels, first * g.stride_h - g.padding_h + q * g.dilation_h), x.stride_c,
                          x.stride_w);
        }
        for (int64_t i = first; i < last; ++i) {
          const scalar_t* dy_row = dy.row(b, group * channels, i);
          for (int64_t j = 0; j < g.out_w; ++j) {
            copy(grad.get() + j * channels, 1, dy_row + j * dy.stride_w, dy.stride_c, channels);
          }
          const acc_t* window = packed.get() + (i - first) * g.stride_h * layout.length;
          scalar_t* dk_row = dk + b * dk_stride[0] + group * dk_stride[1] + i * dk_stride[4];
          for (int64_t j = 0; j < g.out_w; ++j) {
            kernel_grad_pixel<decltype(K)::value>(g, window + layout.at(g, j * g.stride_w), layout.length, plane_step,
                                                  grad.get() + j * channels, taps.get());
            // In both layouts of `empty_kernel`, the stride between all neighboring taps is the same.
            scalar_t* to = dk_row + j * dk_stride[5];
            copy(to, dk_stride[3], taps.get(), 1, g.taps());
          }
        }
      }
    });
  });
}

}  // namespace
}  // namespace involution
