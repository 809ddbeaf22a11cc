// The conditions of the tiled and tensor-core kernels, and their launches.
#pragma once

#include "general_fused.cuh"
#include "families.cuh"
#include "tensor_cores.cuh"

#include <cstdlib>
#include <string_view>

namespace involution {

// Reads the environment once, at the first use of an operator.
inline bool uses_tensor_cores() {
  static const bool requested = [] {
    const char* value = std::getenv("INVOLUTION_TENSOR_CORES");
    return value != nullptr && std::string_view(value) == "1";
  }();
  return requested && has_tensor_cores();
}

inline bool is_aligned(const at::Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % kVectorBytes == 0;
}

// Whether the channels of every pixel are adjacent and start at an aligned address, at 32-bit offsets within an image.
// Strides of dimensions of size 1 are never used and can have any value.
inline bool is_tiled_image(const at::Tensor& t) {
  const int64_t vector = kVectorBytes / t.element_size();
  const auto fits = [&](int64_t dim) { return t.size(dim) == 1 || t.stride(dim) % vector == 0; };
  return t.size(1) % vector == 0 && t.stride(1) == 1 && fits(0) && fits(2) && fits(3) && is_aligned(t) &&
         last_offset(t, 1) < std::numeric_limits<int32_t>::max();
}

// Whether the taps of every pixel and group are adjacent. They can start at any element.
inline bool are_tiled_kernels(const at::Tensor& t) {
  return t.stride(3) == 1 && t.stride(2) == t.size(3) && last_offset(t, 1) < std::numeric_limits<int32_t>::max();
}

inline bool is_tiled_geometry(const Geometry& g, at::ScalarType dtype) {
  const bool square = g.kernel_h == g.kernel_w && g.stride_h == g.stride_w && g.dilation_h == 1 && g.dilation_w == 1;
  return square && (g.kernel_h == 3 || g.kernel_h == 7) && (g.stride_h == 1 || g.stride_h == 2) &&
         g.group_channels() % kThreadChannels == 0 && fits_32_bits(g) &&
         (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16);
}

// For a geometry that satisfies is_tiled_geometry.
inline bool is_tensor_core_geometry(Operator op, const Geometry& g, at::ScalarType dtype) {
  return uses_tensor_cores() && is_allowed(op, Family::kTensorCores) && g.kernel_h == TensorCoreLayout::kK &&
         g.stride_h == 1 && g.group_channels() == kTileChannels && dtype != at::kFloat;
}

// Whether vectors can read the features and the rows of the weight of the 1x1 convolution.
inline bool is_tiled_generation(const FusedArguments& arguments) {
  const at::Tensor& weight = arguments.weight;
  const int64_t vector = kVectorBytes / weight.element_size();
  return is_tiled_image(arguments.features) && weight.size(1) % kThreadChannels == 0 && weight.stride(1) == 1 &&
         weight.stride(0) % vector == 0 && is_aligned(weight) &&
         last_offset(weight) < std::numeric_limits<int32_t>::max();
}

// Whether is_tiled_image holds for the image that a forward pass of this input allocates.
inline bool is_tiled_result(const Geometry& g, const at::Tensor& input) {
  const int64_t pixels = g.out_h * g.out_w;
  return (is_channels_last(input) || pixels == 1) && g.channels * pixels <= std::numeric_limits<int32_t>::max();
}

inline bool is_tiled_fused(const Geometry& g, const at::Tensor& input, const FusedArguments& arguments) {
  return is_tiled_geometry(g, input.scalar_type()) && is_tiled_image(input) && is_tiled_generation(arguments) &&
         is_tiled_result(g, input);
}

// Whether tensor cores compute the fused operator. A product takes 16 hidden channels.
inline bool is_tensor_core_fused(const Geometry& g, const at::Tensor& input, const FusedArguments& arguments) {
  return is_tensor_core_geometry(Operator::kFused, g, input.scalar_type()) && is_tiled_fused(g, input, arguments) &&
         arguments.features.size(1) % TensorCoreLayout::kHiddenChannels == 0;
}

template <typename scalar_t>
TiledImage<scalar_t> tiled_image(const at::Tensor& t) {
  const Image<scalar_t, int64_t> i = image<scalar_t, int64_t>(t);
  return {i.data,
          i.stride_b,
          static_cast<int>(i.stride_h),
          static_cast<int>(i.stride_w),
          static_cast<int>(t.size(2)),
          static_cast<int>(t.size(3))};
}

template <typename scalar_t>
TiledKernels<scalar_t> tiled_kernels(const at::Tensor& t) {
  const Kernels<scalar_t, int64_t> k = kernels<scalar_t, int64_t>(t);
  return {k.data,
          k.data + last_offset(t) + 1,
          k.stride_b,
          static_cast<int>(k.stride_g),
          static_cast<int>(k.stride_h),
          static_cast<int>(k.stride_w),
          static_cast<int>(t.size(4)),
          static_cast<int>(t.size(5))};
}

template <typename scalar_t>
TiledGeneration<scalar_t> tiled_generation(const FusedArguments& arguments) {
  const at::Tensor &weight = arguments.weight, &bias = arguments.bias;
  return {tiled_image<const scalar_t>(arguments.features), weight.const_data_ptr<scalar_t>(),
          static_cast<int>(weight.stride(0)), static_cast<int>(weight.size(1)),
          bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr};
}

// Calls f(scalar, K, STRIDE) for a geometry that satisfies is_tiled_geometry.
template <typename F>
void with_tiles(const Geometry& g, at::ScalarType dtype, const F& f) {
  const auto with_sizes = [&](auto scalar) {
    const auto with_stride = [&](auto K) {
      g.stride_h == 1 ? f(scalar, K, std::integral_constant<int, 1>{})
                      : f(scalar, K, std::integral_constant<int, 2>{});
    };
    g.kernel_h == 7 ? with_stride(std::integral_constant<int, 7>{}) : with_stride(std::integral_constant<int, 3>{});
  };
  dtype == at::kFloat  ? with_sizes(float{})
  : dtype == at::kHalf ? with_sizes(c10::Half{})
                       : with_sizes(c10::BFloat16{});
}

template <typename F>
void with_16_bits(at::ScalarType dtype, const F& f) {
  dtype == at::kHalf ? f(c10::Half{}) : f(c10::BFloat16{});
}

// Calls launch(grid, blocks) for tiles of `tile_h` rows over height x width pixels, unless there are too many of them
// for one launch. Returns whether it did.
template <typename F>
bool with_grid(const Geometry& g, int64_t height, int64_t width, int tile_h, const F& launch) {
  const int64_t tiles_h = (height + tile_h - 1) / tile_h, tiles_w = (width + kTileWidth - 1) / kTileWidth;
  const int64_t blocks = g.batch * g.groups * tiles_h * tiles_w;
  if (blocks > std::numeric_limits<int32_t>::max()) {
    return false;
  }
  const TileGrid grid{static_cast<int>(g.groups), static_cast<int>(g.group_channels()), static_cast<int>(tiles_w),
                      static_cast<int>(tiles_h),  static_cast<int>(g.padding_h),        static_cast<int>(g.padding_w)};
  launch(grid, static_cast<int>(blocks));
  return true;
}

// Calls with_tensor_cores(scalar) or without_tensor_cores(scalar, K, STRIDE), which return whether they launched a
// kernel, and records the family that did.
template <typename WithTensorCores, typename WithoutTensorCores>
bool launch_tiled(Operator op, const Geometry& g, at::ScalarType dtype, bool supports_tensor_cores,
                  const WithTensorCores& with_tensor_cores, const WithoutTensorCores& without_tensor_cores) {
  bool launched = false;
  Family family = Family::kTiled;
  if (supports_tensor_cores && is_tensor_core_geometry(op, g, dtype)) {
    family = Family::kTensorCores;
    with_16_bits(dtype, [&](auto scalar) { launched = with_tensor_cores(scalar); });
  } else if (is_allowed(op, family)) {
    with_tiles(g, dtype, [&](auto... sizes) { launched = without_tensor_cores(sizes...); });
  }
  if (launched) {
    record_family(family);
  }
  return launched;
}

// The following functions launch a kernel and return true, or return false if no kernel supports the arguments.

inline bool launch_tiled_forward(const Geometry& g, const at::Tensor& input, const at::Tensor& kernel,
                                 const at::Tensor& output) {
  const auto dtype = input.scalar_type();
  if (!is_tiled_geometry(g, dtype) || !is_tiled_image(input) || !are_tiled_kernels(kernel) ||
      !is_tiled_image(output)) {
    return false;
  }
  const auto with_tensor_cores = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    return with_grid(g, g.out_h, g.out_w, TensorCoreLayout::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tensor_core_forward_kernel<scalar_t>), blocks, TensorCoreLayout::kThreads, grid,
                        tiled_image<const scalar_t>(input), tiled_kernels<const scalar_t>(kernel),
                        tiled_image<scalar_t>(output));
    });
  };
  const auto without_tensor_cores = [&](auto scalar, auto K, auto stride) {
    using scalar_t = decltype(scalar);
    using L = ForwardLayout<scalar_t, decltype(K)::value, decltype(stride)::value>;
    return with_grid(g, g.out_h, g.out_w, L::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tiled_forward_kernel<scalar_t, decltype(K)::value, decltype(stride)::value>), blocks,
                        L::kThreads, grid, tiled_image<const scalar_t>(input), tiled_kernels<const scalar_t>(kernel),
                        tiled_image<scalar_t>(output));
    });
  };
  return launch_tiled(Operator::kForward, g, dtype, true, with_tensor_cores, without_tensor_cores);
}

inline bool launch_tiled_input_grad(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& kernel,
                                    const at::Tensor& grad_input) {
  const auto dtype = kernel.scalar_type();
  if (!is_tiled_geometry(g, dtype) || !is_tiled_image(grad_output) || !are_tiled_kernels(kernel) ||
      !is_tiled_image(grad_input)) {
    return false;
  }
  const auto with_tensor_cores = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    return with_grid(g, g.height, g.width, TensorCoreLayout::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tensor_core_input_grad_kernel<scalar_t>), blocks, TensorCoreLayout::kThreads, grid,
                        tiled_image<const scalar_t>(grad_output), tiled_kernels<const scalar_t>(kernel),
                        tiled_image<scalar_t>(grad_input));
    });
  };
  // Positions of the padded input in units of the stride, from the first to the last that the input holds.
  const auto positions = [](int64_t size, int64_t padding, int64_t stride) {
    return (size - 1 + padding) / stride - padding / stride + 1;
  };
  const int64_t height = positions(g.height, g.padding_h, g.stride_h),
                width = positions(g.width, g.padding_w, g.stride_w);
  const auto without_tensor_cores = [&](auto scalar, auto K, auto stride) {
    using scalar_t = decltype(scalar);
    using L = InputGradLayout<scalar_t, decltype(K)::value, decltype(stride)::value>;
    return with_grid(g, height, width, L::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tiled_input_grad_kernel<scalar_t, decltype(K)::value, decltype(stride)::value>), blocks,
                        L::kThreads, grid, tiled_image<const scalar_t>(grad_output),
                        tiled_kernels<const scalar_t>(kernel), tiled_image<scalar_t>(grad_input));
    });
  };
  return launch_tiled(Operator::kInputGrad, g, dtype, true, with_tensor_cores, without_tensor_cores);
}

inline bool launch_tiled_kernel_grad(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& grad_kernel) {
  const auto dtype = input.scalar_type();
  if (!is_tiled_geometry(g, dtype) || !is_tiled_image(grad_output) || !is_tiled_image(input) ||
      !are_tiled_kernels(grad_kernel)) {
    return false;
  }
  const auto with_tensor_cores = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    return with_grid(g, g.out_h, g.out_w, TensorCoreLayout::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tensor_core_kernel_grad_kernel<scalar_t>), blocks, TensorCoreLayout::kThreads, grid,
                        tiled_image<const scalar_t>(grad_output), tiled_image<const scalar_t>(input),
                        tiled_kernels<scalar_t>(grad_kernel));
    });
  };
  const auto without_tensor_cores = [&](auto scalar, auto K, auto stride) {
    using scalar_t = decltype(scalar);
    using L = KernelGradLayout<scalar_t, decltype(K)::value, decltype(stride)::value>;
    return with_grid(g, g.out_h, g.out_w, L::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tiled_kernel_grad_kernel<scalar_t, decltype(K)::value, decltype(stride)::value>), blocks,
                        L::kThreads, grid, tiled_image<const scalar_t>(grad_output),
                        tiled_image<const scalar_t>(input), tiled_kernels<scalar_t>(grad_kernel));
    });
  };
  return launch_tiled(Operator::kKernelGrad, g, dtype, true, with_tensor_cores, without_tensor_cores);
}

inline bool launch_tiled_fused(const Geometry& g, const at::Tensor& input, const FusedArguments& arguments,
                               const at::Tensor& output) {
  const auto dtype = input.scalar_type();
  if (!is_tiled_fused(g, input, arguments)) {
    return false;
  }
  const Epilogue<float> epilogue_ = epilogue<float>(arguments.scale, arguments.shift, arguments.relu);
  const auto with_tensor_cores = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    return with_grid(g, g.out_h, g.out_w, TensorCoreLayout::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tensor_core_fused_kernel<scalar_t>), blocks, TensorCoreLayout::kThreads, grid,
                        tiled_image<const scalar_t>(input), tiled_generation<scalar_t>(arguments), epilogue_,
                        tiled_image<scalar_t>(output));
    });
  };
  const auto without_tensor_cores = [&](auto scalar, auto K, auto stride) {
    using scalar_t = decltype(scalar);
    using L = ForwardLayout<scalar_t, decltype(K)::value, decltype(stride)::value>;
    return with_grid(g, g.out_h, g.out_w, L::kHeight, [&](const TileGrid& grid, int blocks) {
      INVOLUTION_LAUNCH((tiled_fused_kernel<scalar_t, decltype(K)::value, decltype(stride)::value>), blocks,
                        L::kThreads, grid, tiled_image<const scalar_t>(input), tiled_generation<scalar_t>(arguments),
                        epilogue_, tiled_image<scalar_t>(output));
    });
  };
  const bool supports_tensor_cores = is_tensor_core_fused(g, input, arguments);
  return launch_tiled(Operator::kFused, g, dtype, supports_tensor_cores, with_tensor_cores, without_tensor_cores);
}

}  // namespace involution
