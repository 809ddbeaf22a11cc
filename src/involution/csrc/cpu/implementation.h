// The kernels for all dtypes, in anonymous namespaces: each file that includes this header compiles its own copy.
#pragma once

#include "small_groups.h"
#include "forward.h"
#include "fused.h"
#include "fused_grad.h"
#include "input_grad.h"
#include "kernel_grad.h"
#include "planes.h"

namespace involution {
namespace {

// Calls f with a null pointer to the scalar type of a dtype.
template <typename F>
void with_scalar_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(static_cast<float*>(nullptr));
    case Dtype::float64:
      return f(static_cast<double*>(nullptr));
    case Dtype::float16:
      return f(static_cast<float16*>(nullptr));
    case Dtype::bfloat16:
      return f(static_cast<bfloat16*>(nullptr));
  }
}

void involution2d(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                  const Tensor& output, const Parallel& parallel) {
  with_scalar_type(input.dtype, [&](auto* type) {
    using scalar_t = std::remove_pointer_t<decltype(type)>;
    const KernelTensor<scalar_t> layout(kernel);
    const auto forward = planes_suit(g, layout)         ? &forward_planes<scalar_t>
                         : small_groups_suit(g, layout) ? &forward_small_groups<scalar_t>
                                                        : &forward_kernel<scalar_t>;
    forward(g, input, kernel, epilogues, output, parallel);
  });
}

void involution2d_fused(const Geometry& g, const Tensor& input, const Generation& generation,
                        const Epilogues& epilogues, const Tensor& output, const Parallel& parallel) {
  with_scalar_type(input.dtype, [&](auto* type) {
    fused_kernel<std::remove_pointer_t<decltype(type)>>(g, input, generation, epilogues, output, parallel);
  });
}

void involution2d_input_grad(const Geometry& g, const Tensor& grad_output, const Tensor& kernel,
                             const Tensor& grad_input, const Parallel& parallel) {
  with_scalar_type(kernel.dtype, [&](auto* type) {
    input_grad_kernel<std::remove_pointer_t<decltype(type)>>(g, grad_output, kernel, grad_input, parallel);
  });
}

void involution2d_kernel_grad(const Geometry& g, const Tensor& grad_output, const Tensor& input,
                              const Tensor& grad_kernel, const Parallel& parallel) {
  with_scalar_type(input.dtype, [&](auto* type) {
    kernel_grad_kernel<std::remove_pointer_t<decltype(type)>>(g, grad_output, input, grad_kernel, parallel);
  });
}

void involution2d_fused_grad(const Geometry& g, const Tensor& grad_output, const Tensor& input,
                             const Generation& generation, const FusedGradients& gradients, const Parallel& parallel) {
  with_scalar_type(input.dtype, [&](auto* type) {
    fused_grad_kernel<std::remove_pointer_t<decltype(type)>>(g, grad_output, input, generation, gradients, parallel);
  });
}

constexpr Kernels kKernels{&involution2d, &involution2d_fused, &involution2d_input_grad, &involution2d_kernel_grad,
                           &involution2d_fused_grad};

}  // namespace
}  // namespace involution
