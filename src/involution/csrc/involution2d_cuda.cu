// Registers the operators on CUDA. Includes only the headers of c10 for stream and device guard, because
// ATen/cuda/CUDAContext.h requires parts of the toolkit (cuSPARSE, cuSOLVER ...) that many machines lack.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

// The launch has the name of a pointer, because hipify does not understand the macro in its place.
#define INVOLUTION_STRIP(...) __VA_ARGS__
#define INVOLUTION_LAUNCH(kernel, blocks, threads, ...)                                  \
  do {                                                                                   \
    const auto pointer = INVOLUTION_STRIP kernel;                                        \
    pointer<<<(blocks), (threads), 0, c10::cuda::getCurrentCUDAStream()>>>(__VA_ARGS__); \
    C10_CUDA_KERNEL_LAUNCH_CHECK();                                                      \
  } while (false)
#define INVOLUTION_SHARED_MEMORY(name, bytes) __shared__ __align__(16) unsigned char name[bytes]

namespace involution {

static bool has_tensor_cores();

}  // namespace involution

#include "cuda/operators.cuh"
#include "library.h"
#include "schemas.h"

#include <torch/library.h>

namespace involution {

// Asks for the architecture that the code was compiled for, not for that of the GPU. From PTX for sm_75, the driver
// makes code for any later GPU, in which load_matrices and multiply_add do nothing (mma.cuh).
static bool has_tensor_cores() {
#ifdef USE_ROCM
  return false;
#else
  static thread_local int device = -1;  // of the last answer, which takes a call of the driver
  static thread_local bool answer = false;
  if (const int current = c10::cuda::current_device(); current != device) {
    cudaFuncAttributes attributes{};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, tensor_core_forward_kernel<c10::Half>);
    if (status != cudaSuccess) {
      cudaGetLastError();  // otherwise the next check of a launch would report this error
    }
    answer = status == cudaSuccess && attributes.ptxVersion >= 80;
    device = current;
  }
  return answer;
#endif
}

}  // namespace involution

namespace {

template <typename... Arguments>
at::Tensor on_device_of(at::Tensor (*f)(const at::Tensor&, const at::Tensor&, Arguments...), const at::Tensor& a,
                        const at::Tensor& b, Arguments... arguments) {
  const c10::cuda::CUDAGuard guard(a.device());
  return f(a, b, arguments...);
}

at::Tensor involution2d(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation) {
  return on_device_of(involution::forward, input, kernel, stride, padding, dilation);
}

at::Tensor involution2d_input_grad(const at::Tensor& grad_output, const at::Tensor& kernel, at::IntArrayRef input_size,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  return on_device_of(involution::input_grad, grad_output, kernel, input_size, stride, padding, dilation);
}

at::Tensor involution2d_kernel_grad(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  return on_device_of(involution::kernel_grad, grad_output, input, groups, kernel_size, stride, padding, dilation);
}

at::Tensor involution2d_fused(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                              const std::optional<at::Tensor>& shift, bool relu, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const c10::cuda::CUDAGuard guard(input.device());
  return involution::fused(input, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation);
}

const bool defined = involution::define_operators(C10_STRINGIZE(INVOLUTION_NAMESPACE));

}  // namespace

INVOLUTION_EXPAND(TORCH_LIBRARY_IMPL, INVOLUTION_NAMESPACE, CUDA, m) {
  m.impl("involution2d", &involution2d);
  m.impl("involution2d_input_grad", &involution2d_input_grad);
  m.impl("involution2d_kernel_grad", &involution2d_kernel_grad);
  m.impl("involution2d_fused", &involution2d_fused);
}
