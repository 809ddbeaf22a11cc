// The general fused forward: any strides, dtype and geometry.
//
// A block computes neighboring output pixels of one group. It generates their kernels, the 1x1 convolution of the
// features, in shared memory, a batch of taps at a time, and applies them to the channels of the group. Therefore a
// kernel value is computed once for all channels.
#pragma once

#include "general.cuh"

namespace involution {

// The lanes of a warp are neighboring pixels, which are adjacent in one memory format and close in the other.
constexpr int kFusedPixels = 32;
constexpr int kFusedChannels = kThreads / kFusedPixels;
// Up to 64 taps are one batch: 16 KB of double. Larger kernels are generated again for every kFusedChannels channels,
// because the sums of more channels would not fit into registers.
constexpr int kFusedTaps = 64;

template <typename scalar_t, typename index_t>
struct Generation {
  Image<const scalar_t, index_t> features;
  const scalar_t* weight;
  index_t weight_stride_out, weight_stride_in, hidden_channels;
  const scalar_t* bias;  // null if there is none
};

template <typename scalar_t, typename index_t>
__device__ opmath_t<scalar_t> generated_tap(const Generation<scalar_t, index_t>& generation, index_t out_channel,
                                            const scalar_t* features) {
  using acc_t = opmath_t<scalar_t>;
  const scalar_t* weight = generation.weight + out_channel * generation.weight_stride_out;
  acc_t sum = generation.bias == nullptr ? acc_t(0) : static_cast<acc_t>(generation.bias[out_channel]);
  for (index_t r = 0; r < generation.hidden_channels; ++r) {
    sum += static_cast<acc_t>(weight[r * generation.weight_stride_in]) *
           static_cast<acc_t>(features[r * generation.features.stride_c]);
  }
  return sum;
}

template <typename scalar_t, typename index_t>
__global__ void fused_kernel(index_t tiles, index_t tiles_per_image, Window<index_t> w,
                             Image<const scalar_t, index_t> input, Generation<scalar_t, index_t> generation,
                             Epilogue<opmath_t<scalar_t>> epilogue, Image<scalar_t, index_t> output) {
  using acc_t = opmath_t<scalar_t>;
  INVOLUTION_SHARED_MEMORY(memory, kFusedTaps * kFusedPixels * sizeof(acc_t));
  acc_t* kernel = reinterpret_cast<acc_t*>(memory);  // [tap][pixel]
  const int lane = threadIdx.x % kFusedPixels, row = threadIdx.x / kFusedPixels;
  const index_t taps = w.kernel_h * w.kernel_w;
  for (index_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const index_t group = tile % w.groups, n = tile / w.groups % tiles_per_image * kFusedPixels + lane;
    const index_t b = tile / w.groups / tiles_per_image, i = n / w.out_w, j = n % w.out_w;
    const bool exists = i < w.out_h;
    // Lanes after the last row and rows of threads after the last channel compute nothing. Their offsets could be
    // beyond index_t.
    const scalar_t* features = generation.features.data + b * generation.features.stride_b +
                               (exists ? i : index_t(0)) * generation.features.stride_h +
                               j * generation.features.stride_w;
    for (index_t first_channel = 0; first_channel < w.group_channels; first_channel += kFusedChannels) {
      const index_t channel = first_channel + row;
      const bool computes = exists && channel < w.group_channels;
      const index_t c = group * w.group_channels + (computes ? channel : index_t(0));
      const scalar_t* in = input.data + b * input.stride_b + c * input.stride_c;
      acc_t sum = 0;
      for (index_t first_tap = 0; first_tap < taps; first_tap += kFusedTaps) {
        const int batch = static_cast<int>(taps - first_tap < kFusedTaps ? taps - first_tap : index_t(kFusedTaps));
        if (first_channel == 0 || taps > kFusedTaps) {
          __syncthreads();  // all threads have read the previous values
          for (int t = row; exists && t < batch; t += kFusedChannels) {
            kernel[t * kFusedPixels + lane] = generated_tap(generation, group * taps + first_tap + t, features);
          }
          __syncthreads();
        }
        for (int t = 0; computes && t < batch; ++t) {
          const index_t y = i * w.stride_h + (first_tap + t) / w.kernel_w * w.dilation_h - w.padding_h;
          const index_t x = j * w.stride_w + (first_tap + t) % w.kernel_w * w.dilation_w - w.padding_w;
          const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
          // The padding is a zero that is multiplied, as in the definition.
          sum += (inside ? static_cast<acc_t>(in[y * input.stride_h + x * input.stride_w]) : acc_t(0)) *
                 kernel[t * kFusedPixels + lane];
        }
      }
      if (computes) {
        output.data[b * output.stride_b + c * output.stride_c + i * output.stride_h + j * output.stride_w] =
            static_cast<scalar_t>(epilogue(sum, c));
      }
    }
  }
}

template <typename acc_t>
Epilogue<acc_t> epilogue(const at::Tensor& scale, const at::Tensor& shift, bool relu) {
  if (!scale.defined()) {
    return {nullptr, nullptr, relu};
  }
  return {scale.const_data_ptr<acc_t>(), shift.const_data_ptr<acc_t>(), relu};
}

// The tensors that generate the kernel, and scale, shift and ReLU. Vectors are contiguous, or undefined if there are
// none.
struct FusedArguments {
  at::Tensor features, weight, bias, scale, shift;
  bool relu;
};

inline void launch_general_fused(const Geometry& g, const at::Tensor& input, const FusedArguments& arguments,
                                 const at::Tensor& output) {
  const at::Tensor &features = arguments.features, &weight = arguments.weight, &bias = arguments.bias;
  const int64_t tiles_per_image = (g.out_h * g.out_w + kFusedPixels - 1) / kFusedPixels;
  const int64_t tiles = g.batch * g.groups * tiles_per_image;
  const auto fits = [](const at::Tensor& t) { return fits_32_bits(t); };
  const auto launch = [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    using index_t = decltype(index);
    using acc_t = opmath_t<scalar_t>;
    const Generation<scalar_t, index_t> generation{
        image<const scalar_t, index_t>(features), weight.const_data_ptr<scalar_t>(),
        static_cast<index_t>(weight.stride(0)),   static_cast<index_t>(weight.stride(1)),
        static_cast<index_t>(features.size(1)),   bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr};
    INVOLUTION_LAUNCH((fused_kernel<scalar_t, index_t>), static_cast<int>(std::min(tiles, kMaxBlocks)), kThreads,
                      static_cast<index_t>(tiles), static_cast<index_t>(tiles_per_image), Window<index_t>(g),
                      (image<const scalar_t, index_t>(input)), generation,
                      epilogue<acc_t>(arguments.scale, arguments.shift, arguments.relu),
                      (image<scalar_t, index_t>(output)));
  };
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_fused", [&] {
    if (fits_32_bits(g) && fits(input) && fits(features) && fits(weight) && fits(output)) {
      launch(scalar_t{}, int32_t{});
    } else {
      launch(scalar_t{}, int64_t{});
    }
  });
}

}  // namespace involution
