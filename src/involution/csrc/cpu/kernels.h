// The CPU kernels as their hosts see them: PyTorch, onnxruntime and OpenVINO pass pointers, sizes, strides and a
// parallel loop. Nothing here or in the headers of the kernels depends on a host.
#pragma once

#include "../geometry.h"

#include <cstdint>

namespace involution {

enum class Dtype { float32, float64, float16, bfloat16 };

// A tensor that the host owns. Strides are in elements.
struct Tensor {
  void* data;
  Dtype dtype;
  int64_t dim, sizes[6], strides[6];
};

// The host's parallel loop: `run` divides [0, tasks) into ranges, calls `body(context, begin, end)` for each of them,
// in any order and on any threads, and returns after the last one.
struct Parallel {
  using Body = void (*)(const void* context, int64_t begin, int64_t end);
  void (*run)(const Parallel&, int64_t tasks, Body body, const void* context);
  int64_t threads;  // at least 1
  void* host;       // for `run`
};

// Applied to each output channel: scale and shift, in float, or double if the input is in double, and ReLU.
struct Epilogues {
  const Tensor *scale, *shift;  // (C,), or both null
  bool relu;
};

// The 1x1 convolution that generates the kernels.
struct Generation {
  const Tensor &features, &weight;  // (B, R, H', W') and (G * Kh * Kw, R, 1, 1)
  const Tensor* bias;               // (G * Kh * Kw,), or null
};

// The gradients of an involution whose kernel is generated.
struct FusedGradients {
  const Tensor &input, &features, &weight, &bias;
};

// All tensors are of one dtype, except scale and shift, and have the sizes that `g` implies (checks.h), of which none
// is zero. Results are written completely.
struct Kernels {
  void (*involution2d)(const Geometry& g, const Tensor& input, const Tensor& kernel, const Epilogues& epilogues,
                       const Tensor& output, const Parallel& parallel);
  void (*involution2d_fused)(const Geometry& g, const Tensor& input, const Generation& generation,
                             const Epilogues& epilogues, const Tensor& output, const Parallel& parallel);
  void (*involution2d_input_grad)(const Geometry& g, const Tensor& grad_output, const Tensor& kernel,
                                  const Tensor& grad_input, const Parallel& parallel);
  void (*involution2d_kernel_grad)(const Geometry& g, const Tensor& grad_output, const Tensor& input,
                                   const Tensor& grad_kernel, const Parallel& parallel);
  void (*involution2d_fused_grad)(const Geometry& g, const Tensor& grad_output, const Tensor& input,
                                  const Generation& generation, const FusedGradients& gradients,
                                  const Parallel& parallel);
};

// The fastest kernels that this processor runs, or null if it runs none of those that were compiled. Each library in a
// process calls its own.
[[gnu::visibility("hidden")]] const Kernels* kernels();

// Whether this processor has instructions that multiply matrices of bfloat16. Without them, matrix libraries are many
// times slower in bfloat16 than the kernels, which compute in float.
bool multiplies_bfloat16();

}  // namespace involution
