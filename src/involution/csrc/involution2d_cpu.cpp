// The operators on the CPU, and their registration.

// A library for other machines (kernel-builder defines CPU_KERNEL) is compiled for every x86-64 processor, which would
// be several times slower. Therefore it uses AVX2, and registers nothing on a processor without AVX2 (see the end of
// this file).
#if defined(CPU_KERNEL) && defined(__x86_64__)
#define INVOLUTION_NEEDS_AVX2
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#include "library.h"

#include "cpu/forward.h"
#include "cpu/fused.h"
#include "cpu/input_grad.h"
#include "cpu/kernel_grad.h"
#include "geometry.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>

namespace involution {
namespace {

at::Tensor involution2d(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = forward_geometry(input, kernel, stride, padding, dilation);
  const at::Tensor output = empty_image(input, g.batch, g.channels, g.out_h, g.out_w);
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d",
                                    [&] { forward_kernel<scalar_t>(g, input, kernel, {}, output); });
  }
  return output;
}

at::Tensor involution2d_fused(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                              const std::optional<at::Tensor>& shift, bool relu, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g =
      fused_geometry(input, features, weight, bias, scale, shift, kernel_size, stride, padding, dilation);
  const at::Tensor output = empty_image(input, g.batch, g.channels, g.out_h, g.out_w);
  if (output.numel() == 0) {
    return output;
  }
  const auto acc = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto vector = [&](const std::optional<at::Tensor>& t) { return t ? t->to(acc).contiguous() : at::Tensor(); };
  const at::Tensor scale_ = vector(scale), shift_ = vector(shift);
  // Some processors multiply 16-bit matrices many times faster than float vectors. From this number of hidden channels
  // on, the gain exceeds the cost of writing the kernel to memory (measured with AMX).
  const bool separate = input.scalar_type() == at::kBFloat16 && features.size(1) >= 64;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_fused", [&] {
    using acc_t = opmath_t<scalar_t>;
    const auto values = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<acc_t>() : nullptr; };
    const Epilogues<acc_t> epilogues{values(scale_), values(shift_), relu};
    if (separate) {
      const at::Tensor kernel = at::conv2d(features, weight, bias).unflatten(1, {g.groups, g.kernel_h, g.kernel_w});
      forward_kernel<scalar_t>(g, input, kernel, epilogues, output);
    } else {
      const at::Tensor weight_ = weight.reshape({weight.size(0), weight.size(1)}).to(acc).contiguous();
      const at::Tensor bias_ = bias ? vector(bias) : at::zeros({weight.size(0)}, input.options().dtype(acc));
      fused_kernel<scalar_t>(g, input, features, {values(weight_), values(bias_), weight.size(1)}, epilogues, output);
    }
  });
  return output;
}

at::Tensor involution2d_input_grad(const at::Tensor& grad_output, const at::Tensor& kernel, at::IntArrayRef input_size,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = input_grad_geometry(grad_output, kernel, input_size, stride, padding, dilation);
  const at::Tensor grad_input = empty_image(grad_output, g.batch, g.channels, g.height, g.width);
  if (grad_output.numel() == 0) {
    return grad_input.zero_();
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, kernel.scalar_type(), "involution2d_input_grad",
                                  [&] { input_grad_kernel<scalar_t>(g, grad_output, kernel, grad_input); });
  return grad_input;
}

at::Tensor involution2d_kernel_grad(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  const Geometry g = kernel_grad_geometry(grad_output, input, groups, kernel_size, stride, padding, dilation);
  const at::Tensor grad_kernel = empty_kernel(input, g);
  if (grad_output.numel() == 0) {
    return grad_kernel.zero_();
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_kernel_grad",
                                  [&] { kernel_grad_kernel<scalar_t>(g, grad_output, input, grad_kernel); });
  return grad_kernel;
}

}  // namespace
}  // namespace involution

INVOLUTION_LIBRARY_IMPL(CPU, m) {
#ifdef INVOLUTION_NEEDS_AVX2
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return;
  }
#endif
  m.impl("involution2d", &involution::involution2d);
  m.impl("involution2d_fused", &involution::involution2d_fused);
  m.impl("involution2d_input_grad", &involution::involution2d_input_grad);
  m.impl("involution2d_kernel_grad", &involution::involution2d_kernel_grad);
}
