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

// A value of 16 bits that counts its copies from addresses after an allocation.
struct Watched {
  static const void* end;
  static int64_t reads_after_end;
  std::uint16_t bits;

  explicit Watched(int value) : bits(static_cast<std::uint16_t>(value)) {}
  Watched(const Watched& other) : bits(other.bits) {
    const auto address = reinterpret_cast<std::uintptr_t>(&other), last = reinterpret_cast<std::uintptr_t>(end);
    reads_after_end += address >= last && address < last + involution::kVectorBytes;
  }
  Watched& operator=(const Watched&) = default;
};
const void* Watched::end = nullptr;
int64_t Watched::reads_after_end = 0;

// Stages 7 x 7 kernels as the forward pass and the input gradient do, and returns how many elements that reads after
// the end of their memory. No guard page could tell: an aligned vector is in one page.
int64_t reads_after_end(const at::Tensor& kernel) {
  constexpr int K = 7, HEIGHT = 8;
  const auto k = involution::tiled_kernels<const at::BFloat16>(kernel);
  const auto watched = [](const at::BFloat16* address) { return reinterpret_cast<const Watched*>(address); };
  const involution::TiledKernels<const Watched> kernels{watched(k.data), watched(k.end), k.stride_b, k.stride_g,
                                                        k.stride_h,      k.stride_w,     k.height,   k.width};
  Watched::end = static_cast<const char*>(kernel.storage().data()) + kernel.storage().nbytes();
  Watched::reads_after_end = 0;
  threadIdx.x = 0;
  Watched staged(0);
  const auto slot = [&](auto...) { return &staged; };
  for (int64_t b = 0; b < kernel.size(0); ++b) {
    for (int group = 0; group < kernel.size(1); ++group) {
      for (int y = 0; y < k.height; y += HEIGHT) {
        for (int x = 0; x < k.width; x += involution::kTileWidth) {
          involution::stage_kernels<K, HEIGHT, 1>(kernels, b, group, y, x, slot);
          involution::stage_gathered_kernels<K, 1, HEIGHT, 1>(kernels, b, group, y, x, slot);
        }
      }
    }
  }
  return Watched::reads_after_end;
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
  m.def("reads_after_end(Tensor kernel) -> int", &reads_after_end);
  m.def("run_broken_barrier(bool of_block) -> ()", &run_broken_barrier);
}
