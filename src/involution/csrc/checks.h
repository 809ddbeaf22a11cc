// Checks of arguments, in plain C++. They throw std::invalid_argument, whose message starts with the name of the
// operator, like those of arguments.py.
#pragma once

#include "geometry.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace involution {

// A list of sizes that somebody else owns.
struct Sizes {
  const int64_t* data;
  int64_t count;

  Sizes(const int64_t* data, int64_t count) : data(data), count(count) {}
  Sizes(std::initializer_list<int64_t> list) {  // which lives until the end of the call
    data = list.begin();
    count = static_cast<int64_t>(list.size());
  }
  template <typename List>
  Sizes(const List& list) : data(list.data()), count(static_cast<int64_t>(list.size())) {}

  int64_t operator[](int64_t n) const {
    return data[n];
  }
  bool operator==(const Sizes& other) const {
    return std::equal(data, data + count, other.data, other.data + other.count);
  }
};

inline std::ostream& operator<<(std::ostream& stream, const Sizes& sizes) {
  stream << "[";
  for (int64_t n = 0; n < sizes.count; ++n) {
    stream << (n > 0 ? ", " : "") << sizes[n];
  }
  return stream << "]";
}

template <typename... Parts>
void check(bool valid, const Parts&... parts) {
  if (!valid) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  }
}

inline int64_t output_size(const char* op, int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                           int64_t dilation) {
  const int64_t padded = size + 2 * padding, window = dilation * (kernel - 1) + 1;
  check(padded >= window, op, ": input has height or width ", padded, " with its padding, expected at least ", window,
        ", that of the window");
  return (padded - window) / stride + 1;
}

inline void check_parameter(const char* op, const char* name, const Sizes& pair, int64_t minimum) {
  // The upper bound keeps products of these numbers from overflowing.
  const bool valid =
      pair.count == 2 && std::min(pair[0], pair[1]) >= minimum && std::max(pair[0], pair[1]) < (int64_t(1) << 31);
  check(valid, op, ": ", name, " is ", pair, ", expected two numbers >= ", minimum, " and < 2**31");
}

inline void check_dimensions(const char* op, const char* name, const Sizes& sizes, int64_t expected,
                             const char* shape) {
  check(sizes.count == expected, op, ": ", name, " has ", sizes.count, " dimensions, expected ", expected, " ", shape);
}

inline void check_shape(const char* op, const char* name, const Sizes& sizes, const Sizes& expected) {
  check(sizes == expected, op, ": ", name, " has shape ", sizes, ", expected ", expected);
}

// Returns the geometry for given sizes of input and kernel and given window parameters. All indices that the kernels
// compute follow from it, so that after these checks no kernel reads or writes out of bounds.
inline Geometry make_geometry(const char* op, const Sizes& input, int64_t groups, const Sizes& kernel_size,
                              const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  check_dimensions(op, "input", input, 4, "(B, C, H, W)");
  check_parameter(op, "kernel_size", kernel_size, 1);
  check_parameter(op, "stride", stride, 1);
  check_parameter(op, "padding", padding, 0);
  check_parameter(op, "dilation", dilation, 1);
  check(groups > 0 && input[1] % groups == 0, op, ": input has ", input[1],
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

inline Geometry forward_geometry(const Sizes& input, const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                                 const Sizes& dilation) {
  constexpr auto op = "involution2d";
  check_dimensions(op, "kernel", kernel, 6, "(B, G, Kh, Kw, H', W')");
  const Geometry g = make_geometry(op, input, kernel[1], {kernel.data + 2, 2}, stride, padding, dilation);
  check_shape(op, "kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  return g;
}

inline Geometry input_grad_geometry(const Sizes& grad_output, const Sizes& kernel, const Sizes& input_size,
                                    const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  constexpr auto op = "involution2d_input_grad";
  check_dimensions(op, "grad_output", grad_output, 4, "(B, C, H', W')");
  check_dimensions(op, "kernel", kernel, 6, "(B, G, Kh, Kw, H', W')");
  check(input_size.count == 2, op, ": input_size is ", input_size, ", expected (H, W)");
  const Geometry g = make_geometry(op, {grad_output[0], grad_output[1], input_size[0], input_size[1]}, kernel[1],
                                   {kernel.data + 2, 2}, stride, padding, dilation);
  check_shape(op, "kernel", kernel, {g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
  check_shape(op, "grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

inline Geometry kernel_grad_geometry(const Sizes& grad_output, const Sizes& input, int64_t groups,
                                     const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                                     const Sizes& dilation) {
  constexpr auto op = "involution2d_kernel_grad";
  const Geometry g = make_geometry(op, input, groups, kernel_size, stride, padding, dilation);
  check_shape(op, "grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

// The geometry of an involution whose kernel is generated, `conv2d(features, weight, bias)`.
inline Geometry generated_geometry(const char* op, const Sizes& input, const Sizes& features, const Sizes& weight,
                                   const std::optional<Sizes>& bias, const Sizes& kernel_size, const Sizes& stride,
                                   const Sizes& padding, const Sizes& dilation) {
  check_dimensions(op, "features", features, 4, "(B, R, H', W')");
  check_parameter(op, "kernel_size", kernel_size, 1);
  const int64_t taps = kernel_size[0] * kernel_size[1];
  check(weight.count == 4 && weight[0] % taps == 0, op, ": weight has shape ", weight, ", expected (G * ", taps, ", ",
        features[1], ", 1, 1)");
  check_shape(op, "weight", weight, {weight[0], features[1], 1, 1});
  const Geometry g = make_geometry(op, input, weight[0] / taps, kernel_size, stride, padding, dilation);
  check_shape(op, "features", features, {g.batch, features[1], g.out_h, g.out_w});
  if (bias) {
    check_shape(op, "bias", *bias, {weight[0]});
  }
  return g;
}

// The same, followed by `scale`, `shift` and ReLU.
inline Geometry fused_geometry(const Sizes& input, const Sizes& features, const Sizes& weight,
                               const std::optional<Sizes>& bias, const std::optional<Sizes>& scale,
                               const std::optional<Sizes>& shift, const Sizes& kernel_size, const Sizes& stride,
                               const Sizes& padding, const Sizes& dilation) {
  constexpr auto op = "involution2d_fused";
  const Geometry g = generated_geometry(op, input, features, weight, bias, kernel_size, stride, padding, dilation);
  check(scale.has_value() == shift.has_value(), op, ": one of scale and shift is None, expected both or neither");
  if (scale) {
    check_shape(op, "scale", *scale, {g.channels});
    check_shape(op, "shift", *shift, {g.channels});
  }
  return g;
}

inline Geometry fused_grad_geometry(const Sizes& grad_output, const Sizes& input, const Sizes& features,
                                    const Sizes& weight, const std::optional<Sizes>& bias, const Sizes& kernel_size,
                                    const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  constexpr auto op = "involution2d_fused_grad";
  const Geometry g = generated_geometry(op, input, features, weight, bias, kernel_size, stride, padding, dilation);
  check_shape(op, "grad_output", grad_output, {g.batch, g.channels, g.out_h, g.out_w});
  return g;
}

}  // namespace involution
