// Tensors of ATen: their checks, and the memory format of results.
#pragma once

#include "../checks.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

namespace involution {

inline void check_like(const char* op, const char* name, const at::Tensor& tensor, const char* other,
                       const at::Tensor& other_tensor) {
  check(tensor.scalar_type() == other_tensor.scalar_type(), op, ": ", name, " has dtype ", tensor.scalar_type(),
        ", expected the dtype of ", other, ", ", other_tensor.scalar_type());
  check(tensor.device() == other_tensor.device(), op, ": ", name, " is on ", tensor.device(),
        ", expected the device of ", other, ", ", other_tensor.device());
}

inline void check_scale(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& input) {
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  check(tensor.scalar_type() == dtype, op, ": ", name, " has dtype ", tensor.scalar_type(), ", expected ", dtype);
  check(tensor.device() == input.device(), op, ": ", name, " is on ", tensor.device(),
        ", expected the device of input, ", input.device());
}

// Decides the memory format of every result, here and in the fake kernels. It compares strides because they have a
// meaning for slices, expanded tensors and sizes of 1, for which "is contiguous" is ambiguous.
inline bool is_channels_last(const at::Tensor& tensor) {
  return tensor.stride(1) < tensor.stride(3);
}

inline at::Tensor empty_image(const at::Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const auto format = is_channels_last(like) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return at::empty({batch, channels, height, width}, like.options(), format);
}

// An empty kernel in the layout of the result of a 1x1 convolution: in channels-last, the taps of a pixel are
// adjacent.
inline at::Tensor empty_kernel(const at::Tensor& like, const Geometry& g) {
  if (is_channels_last(like)) {
    return at::empty({g.batch, g.out_h, g.out_w, g.groups, g.kernel_h, g.kernel_w}, like.options())
        .permute({0, 3, 4, 5, 1, 2});
  }
  return at::empty({g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w}, like.options());
}

}  // namespace involution
