// Shapes of an involution, checked once and shared by the CPU and the CUDA implementation.
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

inline int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t padded = size + 2 * padding, window = dilation * (kernel - 1) + 1;
  TORCH_CHECK_VALUE(padded >= window, "involution2d: input measures ", padded, " with its padding, expected at least the ",
                    window, " of the window");
  return (padded - window) / stride + 1;
}

// Below 2^31, so that no product of them overflows.
inline void check_parameter(const char* name, at::IntArrayRef pair, int64_t least) {
  const bool good = pair.size() == 2 && std::min(pair[0], pair[1]) >= least && std::max(pair[0], pair[1]) < (int64_t(1) << 31);
  TORCH_CHECK_VALUE(good, "involution2d: ", name, " is ", pair, ", expected two numbers >= ", least, " and below 2**31");
}

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "involution2d: ", name, " has shape ", tensor.sizes(), ", expected ", expected);
}

inline void check_pair(const char* name, const at::Tensor& a, const char* other, const at::Tensor& b) {
  TORCH_CHECK_TYPE(a.scalar_type() == b.scalar_type(), "involution2d: ", other, " has dtype ", b.scalar_type(),
                   ", expected that of ", name, ", ", a.scalar_type());
  TORCH_CHECK_VALUE(a.device() == b.device(), "involution2d: ", other, " is on ", b.device(), ", expected the device of ",
                    name, ", ", a.device());
}

// The geometry that the sizes of input and kernel and the window parameters describe. Everything that a kernel
// indexes with follows from it, so what it lets through cannot read out of bounds.
inline Geometry make_geometry(at::IntArrayRef input, int64_t groups, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(input.size() == 4, "involution2d: input has ", input.size(), " dimensions, expected 4 (B, C, H, W)");
  check_parameter("kernel_size", kernel_size, 1);
  check_parameter("stride", stride, 1);
  check_parameter("padding", padding, 0);
  check_parameter("dilation", dilation, 1);
  TORCH_CHECK_VALUE(groups > 0 && input[1] % groups == 0, "involution2d: input has ", input[1],
                    " channels, expected a multiple of the kernel's ", groups, " groups");
  return Geometry{input[0], input[1], input[2], input[3], groups, kernel_size[0], kernel_size[1],
                  output_size(input[2], kernel_size[0], stride[0], padding[0], dilation[0]),
                  output_size(input[3], kernel_size[1], stride[1], padding[1], dilation[1]),
                  stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}

inline Geometry forward_geometry(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(kernel.dim() == 6, "involution2d: kernel has ", kernel.dim(),
                    " dimensions, expected 6 (B, G, Kh, Kw, H', W')");
  check_pair("input", input, "kernel", kernel);
  const Geometry g = make_geometry(input.sizes(), kernel.size(1), kernel.sizes().slice(2, 2), stride, padding, dilation);
  check_shape("kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  return g;
}

inline Geometry input_grad_geometry(const at::Tensor& grad_output, const at::Tensor& kernel, at::IntArrayRef input_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(grad_output.dim() == 4, "involution2d: grad_output has ", grad_output.dim(), " dimensions, expected 4");
  TORCH_CHECK_VALUE(kernel.dim() == 6, "involution2d: kernel has ", kernel.dim(), " dimensions, expected 6");
  TORCH_CHECK_VALUE(input_size.size() == 2, "involution2d: input_size is ", input_size, ", expected (H, W)");
  check_pair("grad_output", grad_output, "kernel", kernel);
  const Geometry g = make_geometry({grad_output.size(0), grad_output.size(1), input_size[0], input_size[1]}, kernel.size(1),
                                   kernel.sizes().slice(2, 2), stride, padding, dilation);
  check_shape("kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  check_shape("grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

inline Geometry kernel_grad_geometry(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                                     at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation) {
  check_pair("input", input, "grad_output", grad_output);
  const Geometry g = make_geometry(input.sizes(), groups, kernel_size, stride, padding, dilation);
  check_shape("grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

// For the operator that makes its kernel itself, `conv2d(features, weight, bias)`, and applies `scale`, `shift` and ReLU.
inline Geometry fused_geometry(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                               const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                               const std::optional<at::Tensor>& shift, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(features.dim() == 4, "involution2d: features have ", features.dim(), " dimensions, expected 4 (B, R, H', W')");
  check_parameter("kernel_size", kernel_size, 1);
  check_pair("input", input, "features", features);
  check_pair("input", input, "weight", weight);
  const int64_t taps = kernel_size[0] * kernel_size[1];
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) % taps == 0, "involution2d: weight has shape ", weight.sizes(),
                    ", expected (G * ", taps, ", ", features.size(1), ", 1, 1)");
  check_shape("weight", weight, {weight.size(0), features.size(1), 1, 1});
  const Geometry g = make_geometry(input.sizes(), weight.size(0) / taps, kernel_size, stride, padding, dilation);
  check_shape("features", features, {g.batch, features.size(1), g.out_h, g.out_w});
  if (bias) {
    check_pair("input", input, "bias", *bias);
    check_shape("bias", *bias, {weight.size(0)});
  }
  TORCH_CHECK_VALUE(scale.has_value() == shift.has_value(), "involution2d: scale and shift are given together or not at all");
  for (const auto& [name, tensor] : {std::pair("scale", scale), std::pair("shift", shift)}) {
    if (tensor) {
      check_shape(name, *tensor, {g.channels});
      const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      TORCH_CHECK_TYPE(tensor->scalar_type() == dtype, "involution2d: ", name, " has dtype ", tensor->scalar_type(), ", expected ", dtype);
      TORCH_CHECK_VALUE(tensor->device() == input.device(), "involution2d: ", name, " is on ", tensor->device(),
                        ", expected the device of input, ", input.device());
    }
  }
  return g;
}

// One rule decides the memory format of every result, here and in the fake kernels: strides, which stay meaningful
// for slices, expanded tensors and sizes of 1 where "is contiguous" is ambiguous.
inline bool is_channels_last(const at::Tensor& tensor) {
  return tensor.stride(1) < tensor.stride(3);
}

inline at::Tensor empty_image(const at::Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return at::empty({batch, channels, height, width}, like.options(), is_channels_last(like) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

// A kernel in the layout that a 1x1 convolution gives it: taps of a pixel side by side in channels-last.
inline at::Tensor empty_kernel(const at::Tensor& like, const Geometry& g) {
  if (is_channels_last(like)) {
    return at::empty({g.batch, g.out_h, g.out_w, g.groups, g.kernel_h, g.kernel_w}, like.options())
        .permute({0, 3, 4, 5, 1, 2});
  }
  return at::empty({g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w}, like.options());
}

}  // namespace involution
