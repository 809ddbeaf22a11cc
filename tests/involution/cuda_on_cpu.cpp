// The CUDA kernels as host C++: a small shim plays blocks and threads one after the other, so that their bodies, index
// computations and dispatch are tested on machines without a GPU. Registered as torch.ops.involution_cuda_on_cpu.*.

#include <torch/library.h>

struct Index {
  int x = 0;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__

#define STRIP(...) __VA_ARGS__
#define LAUNCH(kernel, blocks, threads, ...)                                   \
  do {                                                                         \
    gridDim.x = (blocks);                                                      \
    blockDim.x = (threads);                                                    \
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)                 \
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)           \
        (STRIP kernel)(__VA_ARGS__);                                           \
  } while (false)

#include "involution2d_kernels.cuh"

TORCH_LIBRARY(involution_cuda_on_cpu, m) {
  m.def("involution2d(Tensor input, Tensor kernel, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
        &involution::forward);
  m.def("involution2d_input_grad(Tensor grad_output, Tensor kernel, int[2] input_size, int[2] stride, int[2] padding, "
        "int[2] dilation) -> Tensor",
        &involution::input_grad);
  m.def("involution2d_kernel_grad(Tensor grad_output, Tensor input, int groups, int[2] kernel_size, int[2] stride, "
        "int[2] padding, int[2] dilation) -> Tensor",
        &involution::kernel_grad);
}
