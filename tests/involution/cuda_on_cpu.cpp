// The CUDA kernels as host C++ (cuda_shim.h), to test their bodies, index computations and dispatch on machines
// without a GPU. They are registered as torch.ops.involution_cuda_on_cpu.*.

#include "cuda_shim.h"

#include "cuda/operators.cuh"

#include <torch/library.h>

#include <string>

namespace {

// Barriers that one thread of the block does not reach.
void block_barrier_kernel() {
  if (threadIdx.x != 40) {
    __syncthreads();
  }
}
void warp_barrier_kernel() {
  if (threadIdx.x != 40) {
    __syncwarp();
  }
}

void run_broken_barrier(bool of_block) {
  if (of_block) {
    INVOLUTION_LAUNCH((block_barrier_kernel), 1, 64);
  } else {
    INVOLUTION_LAUNCH((warp_barrier_kernel), 1, 64);
  }
}

}  // namespace

TORCH_LIBRARY(involution_cuda_on_cpu, m) {
  m.def("involution2d(Tensor input, Tensor kernel, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
        &involution::forward);
  m.def(
      "involution2d_input_grad(Tensor grad_output, Tensor kernel, int[2] input_size, int[2] stride, int[2] padding, "
      "int[2] dilation) -> Tensor",
      &involution::input_grad);
  m.def(
      "involution2d_kernel_grad(Tensor grad_output, Tensor input, int groups, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation) -> Tensor",
      &involution::kernel_grad);
  m.def(
      "involution2d_fused(Tensor input, Tensor features, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "bool relu, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
      &involution::fused);
  m.def("last_launch() -> str", [] { return std::string(shim::last_launch); });
  m.def("run_broken_barrier(bool of_block) -> ()", &run_broken_barrier);
}
