// The geometry of an involution, checked once and shared by the CPU and the CUDA implementation.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <utility>

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

// The checks raise errors that start with `op`, the name of the operator, like those of arguments.py.

inline int64_t output_size(const char* op, int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                           int64_t dilation) {
  const int64_t padded = size + 2 * padding, window = dilation * (kernel - 1) + 1;
  TORCH_CHECK_VALUE(padded >= window, op, ": input has height or width ", padded,
                    " with its padding, expected at least ", window, ", that of the window");
  return (padded - window) / stride + 1;
}

inline void check_parameter(const char* op, const char* name, at::IntArrayRef pair, int64_t minimum) {
  // The upper bound keeps products of these numbers from overflowing.
  const bool valid =
      pair.size() == 2 && std::min(pair[0], pair[1]) >= minimum && std::max(pair[0], pair[1]) < (int64_t(1) << 31);
  TORCH_CHECK_VALUE(valid, op, ": ", name, " is ", pair, ", expected two numbers >= ", minimum, " and < 2**31");
}

inline void check_dimensions(const char* op, const char* name, const at::Tensor& tensor, int64_t expected,
                             const char* shape) {
  TORCH_CHECK_VALUE(tensor.dim() == expected, op, ": ", name, " has ", tensor.dim(), " dimensions, expected ",
                    expected, " ", shape);
}

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, op, ": ", name, " has shape ", tensor.sizes(), ", expected ",
                    expected);
}

inline void check_device(const char* op, const char* name, const at::Tensor& tensor, const char* other,
                         const at::Tensor& other_tensor) {
  TORCH_CHECK_VALUE(tensor.device() == other_tensor.device(), op, ": ", name, " is on ", tensor.device(),
                    ", expected the device of ", other, ", ", other_tensor.device());
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor, const char* other,
                       const at::Tensor& other_tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other_tensor.scalar_type(), op, ": ", name, " has dtype ",
                   tensor.scalar_type(), ", expected the dtype of ", other, ", ", other_tensor.scalar_type());
  check_device(op, name, tensor, other, other_tensor);
}

// Returns the geometry for given sizes of input and kernel and given window parameters. All indices that the kernels
// compute follow from it, so that after these checks no kernel reads or writes out of bounds.
inline Geometry make_geometry(const char* op, at::IntArrayRef input, int64_t groups, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(input.size() == 4, op, ": input has ", input.size(), " dimensions, expected 4 (B, C, H, W)");
  check_parameter(op, "kernel_size", kernel_size, 1);
  check_parameter(op, "stride", stride, 1);
  check_parameter(op, "padding", padding, 0);
  check_parameter(op, "dilation", dilation, 1);
  TORCH_CHECK_VALUE(groups > 0 && input[1] % groups == 0, op, ": input has ", input[1],
                    " channels, expected a multiple of the number of groups, ", groups);
  return Geometry{input[0],
                  input[1],
                  input[2],
                  input[3],
                  groups,
                  kernel_size[0],
                  kernel_size[1],
                  output_size(op, input[2], kernel_size[0], stride[0], padding[0], dilation[0]),
                  output_size(op, input[3], kernel_size[1], stride[1], padding[1], dilation[1]),
                  stride[0],
                  stride[1],
                  padding[0],
                  padding[1],
                  dilation[0],
                  dilation[1]};
}

inline Geometry forward_geometry(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto op = "involution2d";
  check_dimensions(op, "kernel", kernel, 6, "(B, G, Kh, Kw, H', W')");
  check_like(op, "kernel", kernel, "input", input);
  const Geometry g =
      make_geometry(op, input.sizes(), kernel.size(1), kernel.sizes().slice(2, 2), stride, padding, dilation);
  check_shape(op, "kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  return g;
}

inline Geometry input_grad_geometry(const at::Tensor& grad_output, const at::Tensor& kernel,
                                    at::IntArrayRef input_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  constexpr auto op = "involution2d_input_grad";
  check_dimensions(op, "grad_output", grad_output, 4, "(B, C, H', W')");
  check_dimensions(op, "kernel", kernel, 6, "(B, G, Kh, Kw, H', W')");
  TORCH_CHECK_VALUE(input_size.size() == 2, op, ": input_size is ", input_size, ", expected (H, W)");
  check_like(op, "kernel", kernel, "grad_output", grad_output);
  const Geometry g = make_geometry(op, {grad_output.size(0), grad_output.size(1), input_size[0], input_size[1]},
                                   kernel.size(1), kernel.sizes().slice(2, 2), stride, padding, dilation);
  check_shape(op, "kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  check_shape(op, "grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

inline Geometry kernel_grad_geometry(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                                     at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation) {
  constexpr auto op = "involution2d_kernel_grad";
  check_like(op, "grad_output", grad_output, "input", input);
  const Geometry g = make_geometry(op, input.sizes(), groups, kernel_size, stride, padding, dilation);
  check_shape(op, "grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

// The geometry of an involution whose kernel is generated, `conv2d(features, weight, bias)`, and which is followed by
// `scale`, `shift` and ReLU.
inline Geometry fused_geometry(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                               const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                               const std::optional<at::Tensor>& shift, at::IntArrayRef kernel_size,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto op = "involution2d_fused";
  check_dimensions(op, "features", features, 4, "(B, R, H', W')");
  check_parameter(op, "kernel_size", kernel_size, 1);
  check_like(op, "features", features, "input", input);
  check_like(op, "weight", weight, "input", input);
  const int64_t taps = kernel_size[0] * kernel_size[1];
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) % taps == 0, op, ": weight has shape ", weight.sizes(),
                    ", expected (G * ", taps, ", ", features.size(1), ", 1, 1)");
  check_shape(op, "weight", weight, {weight.size(0), features.size(1), 1, 1});
  const Geometry g = make_geometry(op, input.sizes(), weight.size(0) / taps, kernel_size, stride, padding, dilation);
  check_shape(op, "features", features, {g.batch, features.size(1), g.out_h, g.out_w});
  if (bias) {
    check_like(op, "bias", *bias, "input", input);
    check_shape(op, "bias", *bias, {weight.size(0)});
  }
  TORCH_CHECK_VALUE(scale.has_value() == shift.has_value(), op,
                    ": one of scale and shift is None, expected both or neither");
  for (const auto& [name, tensor] : {std::pair("scale", scale), std::pair("shift", shift)}) {
    if (tensor) {
      check_shape(op, name, *tensor, {g.channels});
      const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      TORCH_CHECK_TYPE(tensor->scalar_type() == dtype, op, ": ", name, " has dtype ", tensor->scalar_type(),
                       ", expected ", dtype);
      check_device(op, name, *tensor, "input", input);
    }
  }
  return g;
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
