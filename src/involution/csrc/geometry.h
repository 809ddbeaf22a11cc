// The geometry of an involution, in plain C++: all implementations and all hosts share it.
#pragma once

#include <cstdint>

namespace involution {

struct Geometry {
  int64_t batch, channels, height, width;  // input (B, C, H, W)
  int64_t groups, kernel_h, kernel_w;      // kernel (B, G, Kh, Kw, H', W')
  int64_t out_h, out_w;                    // output (B, C, H', W')
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  int64_t group_channels() const {
    return channels / groups;
  }
  int64_t taps() const {
    return kernel_h * kernel_w;
  }
};

}  // namespace involution
