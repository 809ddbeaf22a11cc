// The operators on CUDA, and the selection of their kernels.
//
//   general*.cuh       any strides, dtype, geometry and size
//   tiled*.cuh         channels-last float, half and bfloat16; windows of 3 x 3 and 7 x 7, strides 1 and 2
//   tensor_cores.cuh   the paper's case of these in 16 bits. Only with INVOLUTION_TENSOR_CORES=1 in the environment,
//                      because it has not been measured on a GPU and propagates infinities differently (see there)
//
// For AMD, torch translates these files to HIP. Only the general kernels run there: the others are written for the
// warps, registers and tensor cores of NVIDIA.
#pragma once

#ifndef USE_ROCM
#include "tiled_launch.cuh"
#endif
#include "families.cuh"
#include "general_fused.cuh"

#include <ATen/ops/addcmul.h>
#include <ATen/ops/conv2d.h>

namespace involution {

#ifdef USE_ROCM
#define INVOLUTION_NOT_ON_ROCM(name) \
  template <typename... Arguments>   \
  bool name(const Arguments&...) {   \
    return false;                    \
  }
INVOLUTION_NOT_ON_ROCM(launch_tiled_forward)
INVOLUTION_NOT_ON_ROCM(launch_tiled_input_grad)
INVOLUTION_NOT_ON_ROCM(launch_tiled_kernel_grad)
INVOLUTION_NOT_ON_ROCM(launch_tiled_fused)
INVOLUTION_NOT_ON_ROCM(is_tensor_core_fused)
#endif

inline at::Tensor forward(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = forward_geometry(input.sizes(), kernel.sizes(), stride, padding, dilation);
  check_like("involution2d", "kernel", kernel, "input", input);
  const at::Tensor output = empty_image(input, g.batch, g.channels, g.out_h, g.out_w);
  if (output.numel() != 0 && !launch_tiled_forward(g, input, kernel, output)) {
    launch_general_forward(g, input, kernel, output);
    record_family(Family::kGeneral);
  }
  return output;
}

inline at::Tensor input_grad(const at::Tensor& grad_output, const at::Tensor& kernel, at::IntArrayRef input_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = input_grad_geometry(grad_output.sizes(), kernel.sizes(), input_size, stride, padding, dilation);
  check_like("involution2d_input_grad", "kernel", kernel, "grad_output", grad_output);
  const at::Tensor grad_input = empty_image(grad_output, g.batch, g.channels, g.height, g.width);
  if (grad_output.numel() == 0 || grad_input.numel() == 0) {
    return grad_input.zero_();
  }
  if (!launch_tiled_input_grad(g, grad_output, kernel, grad_input)) {
    launch_general_input_grad(g, grad_output, kernel, grad_input);
    record_family(Family::kGeneral);
  }
  return grad_input;
}

inline at::Tensor kernel_grad(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                              at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation) {
  const Geometry g =
      kernel_grad_geometry(grad_output.sizes(), input.sizes(), groups, kernel_size, stride, padding, dilation);
  check_like("involution2d_kernel_grad", "grad_output", grad_output, "input", input);
  const at::Tensor grad_kernel = empty_kernel(input, g);
  if (grad_output.numel() == 0) {
    return grad_kernel.zero_();
  }
  if (!launch_tiled_kernel_grad(g, grad_output, input, grad_kernel)) {
    launch_general_kernel_grad(g, grad_output, input, grad_kernel);
    record_family(Family::kGeneral);
  }
  return grad_kernel;
}

// From this number of hidden channels on, a separate convolution generates the kernel. On FMA units, generation takes
// R / 16 times the multiplications of the involution, whereas a convolution uses tensor cores. This value was derived,
// not measured on a GPU.
constexpr int64_t kMinHiddenChannelsForConvolution = 64;

inline at::Tensor convolve_and_apply(const Geometry& g, const at::Tensor& input, const at::Tensor& features,
                                     const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                     const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& shift,
                                     bool relu, at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation) {
  const at::Tensor kernel = at::conv2d(features, weight, bias).unflatten(1, {g.groups, g.kernel_h, g.kernel_w});
  const at::Tensor output = forward(input, kernel, stride, padding, dilation);
  record_family(Family::kConvolution);
  if (scale) {
    output.copy_(at::addcmul(shift->view({-1, 1, 1}), output, scale->view({-1, 1, 1})));
  }
  return relu ? output.relu_() : output;
}

inline at::Tensor fused(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                        const std::optional<at::Tensor>& shift, bool relu, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto op = "involution2d_fused";
  const auto sizes = [](const std::optional<at::Tensor>& t) {
    return t ? std::optional<Sizes>(t->sizes()) : std::nullopt;
  };
  const Geometry g = fused_geometry(input.sizes(), features.sizes(), weight.sizes(), sizes(bias), sizes(scale),
                                    sizes(shift), kernel_size, stride, padding, dilation);
  check_like(op, "features", features, "input", input);
  check_like(op, "weight", weight, "input", input);
  if (bias) {
    check_like(op, "bias", *bias, "input", input);
  }
  if (scale) {
    check_scale(op, "scale", *scale, input);
    check_scale(op, "shift", *shift, input);
  }
  const auto allocate = [&] { return empty_image(input, g.batch, g.channels, g.out_h, g.out_w); };
  if (g.batch * g.channels * g.out_h * g.out_w == 0) {
    return allocate();
  }
  const auto vector = [](const std::optional<at::Tensor>& t) { return t ? t->contiguous() : at::Tensor(); };
  const FusedArguments arguments{features, weight, vector(bias), vector(scale), vector(shift), relu};
  if (features.size(1) >= kMinHiddenChannelsForConvolution && is_allowed(Operator::kFused, Family::kConvolution) &&
      !is_tensor_core_fused(g, input, arguments)) {
    return convolve_and_apply(g, input, features, weight, bias, scale, shift, relu, stride, padding, dilation);
  }
  const at::Tensor output = allocate();  // not before the convolution, whose form allocates its own
  if (!launch_tiled_fused(g, input, arguments, output)) {
    launch_general_fused(g, input, arguments, output);
    record_family(Family::kGeneral);
  }
  return output;
}

}  // namespace involution
