// The general kernels: any strides, dtype and geometry, with 32-bit or 64-bit indices.
//
// A thread computes single elements of the result, in a grid-stride loop over the elements in the order of memory.
// Therefore neighboring threads write, and mostly read, neighboring addresses in both memory formats. All tensors are
// read through their strides. Sums are accumulated in float, or double for double.
#pragma once

#include "common.cuh"

#include <ATen/Dispatch.h>

#include <initializer_list>

namespace involution {

// The geometry in the type of indices: 32 bits if all offsets fit, otherwise 64 bits.
template <typename index_t>
struct Window {
  index_t channels, height, width, groups, group_channels, kernel_h, kernel_w, out_h, out_w;
  index_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  explicit Window(const Geometry& g)
      : channels(g.channels),
        height(g.height),
        width(g.width),
        groups(g.groups),
        group_channels(g.group_channels()),
        kernel_h(g.kernel_h),
        kernel_w(g.kernel_w),
        out_h(g.out_h),
        out_w(g.out_w),
        stride_h(g.stride_h),
        stride_w(g.stride_w),
        padding_h(g.padding_h),
        padding_w(g.padding_w),
        dilation_h(g.dilation_h),
        dilation_w(g.dilation_w) {}
};

template <typename scalar_t, typename index_t>
struct Image {
  scalar_t* data;
  index_t stride_b, stride_c, stride_h, stride_w;
};

template <typename scalar_t, typename index_t>
struct Kernels {
  scalar_t* data;
  index_t stride_b, stride_g, stride_u, stride_v, stride_h, stride_w;
};

template <typename index_t>
struct Pixel {
  index_t b, c, y, x;
};

// Splits a linear index into an image position, in the order of the memory format.
template <typename index_t>
__device__ inline Pixel<index_t> pixel_at(index_t n, index_t channels, index_t height, index_t width,
                                          bool channels_last) {
  if (channels_last) {
    const index_t c = n % channels, x = n / channels % width, y = n / channels / width % height;
    return {n / channels / width / height, c, y, x};
  }
  const index_t x = n % width, y = n / width % height, c = n / width / height % channels;
  return {n / width / height / channels, c, y, x};
}

// K is the size of a square kernel if it is a compile-time constant, otherwise 0.
template <int K, typename scalar_t, typename index_t>
__global__ void forward_kernel(index_t elements, Window<index_t> w, bool channels_last,
                               Image<const scalar_t, index_t> input, Kernels<const scalar_t, index_t> kernel,
                               Image<scalar_t, index_t> output) {
  using acc_t = opmath_t<scalar_t>;
  const index_t kernel_h = K ? K : w.kernel_h, kernel_w = K ? K : w.kernel_w;
  const index_t step = static_cast<index_t>(blockDim.x) * gridDim.x;
  for (index_t n = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < elements; n += step) {
    const Pixel<index_t> p = pixel_at<index_t>(n, w.channels, w.out_h, w.out_w, channels_last);
    const scalar_t* in = input.data + p.b * input.stride_b + p.c * input.stride_c;
    const scalar_t* taps = kernel.data + p.b * kernel.stride_b + p.c / w.group_channels * kernel.stride_g +
                           p.y * kernel.stride_h + p.x * kernel.stride_w;
    acc_t sum = 0;
#pragma unroll
    for (index_t u = 0; u < kernel_h; ++u) {
      const index_t y = p.y * w.stride_h + u * w.dilation_h - w.padding_h;
#pragma unroll
      for (index_t v = 0; v < kernel_w; ++v) {
        const index_t x = p.x * w.stride_w + v * w.dilation_w - w.padding_w;
        const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
        // The padding is a zero that is multiplied, as in the definition: times infinity, it gives NaN.
        const acc_t value = inside ? static_cast<acc_t>(in[y * input.stride_h + x * input.stride_w]) : acc_t(0);
        sum += value * static_cast<acc_t>(taps[u * kernel.stride_u + v * kernel.stride_v]);
      }
    }
    output.data[p.b * output.stride_b + p.c * output.stride_c + p.y * output.stride_h + p.x * output.stride_w] =
        static_cast<scalar_t>(sum);
  }
}

// For each input element, gathers from all output elements whose windows contain it.
template <int K, typename scalar_t, typename index_t>
__global__ void input_grad_kernel(index_t elements, Window<index_t> w, bool channels_last,
                                  Image<const scalar_t, index_t> grad_output, Kernels<const scalar_t, index_t> kernel,
                                  Image<scalar_t, index_t> grad_input) {
  using acc_t = opmath_t<scalar_t>;
  const index_t kernel_h = K ? K : w.kernel_h, kernel_w = K ? K : w.kernel_w;
  const index_t step = static_cast<index_t>(blockDim.x) * gridDim.x;
  for (index_t n = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < elements; n += step) {
    const Pixel<index_t> p = pixel_at<index_t>(n, w.channels, w.height, w.width, channels_last);
    const scalar_t* grad = grad_output.data + p.b * grad_output.stride_b + p.c * grad_output.stride_c;
    const scalar_t* taps = kernel.data + p.b * kernel.stride_b + p.c / w.group_channels * kernel.stride_g;
    acc_t sum = 0;
#pragma unroll
    for (index_t u = 0; u < kernel_h; ++u) {
      const index_t row = p.y + w.padding_h - u * w.dilation_h, i = row / w.stride_h;
      if (row < 0 || i * w.stride_h != row || i >= w.out_h) {
        continue;
      }
#pragma unroll
      for (index_t v = 0; v < kernel_w; ++v) {
        const index_t column = p.x + w.padding_w - v * w.dilation_w, j = column / w.stride_w;
        if (column < 0 || j * w.stride_w != column || j >= w.out_w) {
          continue;
        }
        sum += static_cast<acc_t>(grad[i * grad_output.stride_h + j * grad_output.stride_w]) *
               static_cast<acc_t>(
                   taps[u * kernel.stride_u + v * kernel.stride_v + i * kernel.stride_h + j * kernel.stride_w]);
      }
    }
    grad_input.data[p.b * grad_input.stride_b + p.c * grad_input.stride_c + p.y * grad_input.stride_h +
                    p.x * grad_input.stride_w] = static_cast<scalar_t>(sum);
  }
}

// Computes a kernel element: the product of output gradient and input, summed over the channels of its group.
template <int K, typename scalar_t, typename index_t>
__global__ void kernel_grad_kernel(index_t elements, Window<index_t> w, bool channels_last,
                                   Image<const scalar_t, index_t> grad_output, Image<const scalar_t, index_t> input,
                                   Kernels<scalar_t, index_t> grad_kernel) {
  using acc_t = opmath_t<scalar_t>;
  const index_t kernel_w = K ? K : w.kernel_w, taps = K ? K * K : w.kernel_h * w.kernel_w;
  const index_t step = static_cast<index_t>(blockDim.x) * gridDim.x;
  for (index_t n = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < elements; n += step) {
    // In both layouts of the kernel tensor, the taps of all groups are its "channels".
    const Pixel<index_t> p = pixel_at<index_t>(n, w.groups * taps, w.out_h, w.out_w, channels_last);
    const index_t group = p.c / taps, u = p.c % taps / kernel_w, v = p.c % kernel_w;
    const index_t y = p.y * w.stride_h + u * w.dilation_h - w.padding_h;
    const index_t x = p.x * w.stride_w + v * w.dilation_w - w.padding_w;
    const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
    const index_t first = group * w.group_channels;
    const scalar_t* grad = grad_output.data + p.b * grad_output.stride_b + first * grad_output.stride_c +
                           p.y * grad_output.stride_h + p.x * grad_output.stride_w;
    const scalar_t* in = input.data + p.b * input.stride_b + first * input.stride_c;
    acc_t sum = 0;
    for (index_t c = 0; c < w.group_channels; ++c) {
      const acc_t value =
          inside ? static_cast<acc_t>(in[c * input.stride_c + y * input.stride_h + x * input.stride_w]) : acc_t(0);
      sum += value * static_cast<acc_t>(grad[c * grad_output.stride_c]);
    }
    grad_kernel.data[p.b * grad_kernel.stride_b + group * grad_kernel.stride_g + u * grad_kernel.stride_u +
                     v * grad_kernel.stride_v + p.y * grad_kernel.stride_h + p.x * grad_kernel.stride_w] =
        static_cast<scalar_t>(sum);
  }
}

template <typename scalar_t, typename index_t>
Image<scalar_t, index_t> image(const at::Tensor& t) {
  const auto stride = [&](int64_t dim) { return static_cast<index_t>(t.stride(dim)); };
  if constexpr (std::is_const_v<scalar_t>) {
    return {t.const_data_ptr<std::remove_const_t<scalar_t>>(), stride(0), stride(1), stride(2), stride(3)};
  } else {
    return {t.mutable_data_ptr<scalar_t>(), stride(0), stride(1), stride(2), stride(3)};
  }
}

template <typename scalar_t, typename index_t>
Kernels<scalar_t, index_t> kernels(const at::Tensor& t) {
  const auto stride = [&](int64_t dim) { return static_cast<index_t>(t.stride(dim)); };
  if constexpr (std::is_const_v<scalar_t>) {
    return {t.const_data_ptr<std::remove_const_t<scalar_t>>(),
            stride(0),
            stride(1),
            stride(2),
            stride(3),
            stride(4),
            stride(5)};
  } else {
    return {t.mutable_data_ptr<scalar_t>(), stride(0), stride(1), stride(2), stride(3), stride(4), stride(5)};
  }
}

// Whether every offset into the tensor, and a grid-stride step beyond its elements, fits into 32 bits.
inline bool fits_32_bits(const at::Tensor& t) {
  return std::max(last_offset(t), t.numel()) < std::numeric_limits<int32_t>::max() - kMaxBlocks * kThreads;
}

// Calls f(index type, K): a value of the index type and, for K, an integral constant.
template <typename F>
void with_index_and_size(const Geometry& g, std::initializer_list<at::Tensor> tensors, const F& f) {
  const auto fits = [](const at::Tensor& t) { return fits_32_bits(t); };
  const int size = g.kernel_h == g.kernel_w ? static_cast<int>(g.kernel_h) : 0;
  if (!fits_32_bits(g) || !std::all_of(tensors.begin(), tensors.end(), fits)) {
    f(int64_t{}, std::integral_constant<int, 0>{});
  } else if (size == 7) {
    f(int32_t{}, std::integral_constant<int, 7>{});
  } else if (size == 3) {
    f(int32_t{}, std::integral_constant<int, 3>{});
  } else {
    f(int32_t{}, std::integral_constant<int, 0>{});
  }
}

inline int blocks_for(int64_t elements) {
  return static_cast<int>(std::min((elements + kThreads - 1) / kThreads, kMaxBlocks));
}

inline void launch_general_forward(const Geometry& g, const at::Tensor& input, const at::Tensor& kernel,
                                   const at::Tensor& output) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d", [&] {
    with_index_and_size(g, {input, kernel, output}, [&](auto index, auto K) {
      using index_t = decltype(index);
      INVOLUTION_LAUNCH((forward_kernel<decltype(K)::value, scalar_t, index_t>), blocks_for(output.numel()), kThreads,
                        static_cast<index_t>(output.numel()), Window<index_t>(g), is_channels_last(output),
                        (image<const scalar_t, index_t>(input)), (kernels<const scalar_t, index_t>(kernel)),
                        (image<scalar_t, index_t>(output)));
    });
  });
}

inline void launch_general_input_grad(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& kernel,
                                      const at::Tensor& grad_input) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, kernel.scalar_type(), "involution2d_input_grad", [&] {
    with_index_and_size(g, {grad_output, kernel, grad_input}, [&](auto index, auto K) {
      using index_t = decltype(index);
      INVOLUTION_LAUNCH((input_grad_kernel<decltype(K)::value, scalar_t, index_t>), blocks_for(grad_input.numel()),
                        kThreads, static_cast<index_t>(grad_input.numel()), Window<index_t>(g),
                        is_channels_last(grad_input), (image<const scalar_t, index_t>(grad_output)),
                        (kernels<const scalar_t, index_t>(kernel)), (image<scalar_t, index_t>(grad_input)));
    });
  });
}

inline void launch_general_kernel_grad(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& grad_kernel) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_kernel_grad", [&] {
    with_index_and_size(g, {grad_output, input, grad_kernel}, [&](auto index, auto K) {
      using index_t = decltype(index);
      INVOLUTION_LAUNCH((kernel_grad_kernel<decltype(K)::value, scalar_t, index_t>), blocks_for(grad_kernel.numel()),
                        kThreads, static_cast<index_t>(grad_kernel.numel()), Window<index_t>(g),
                        is_channels_last(input), (image<const scalar_t, index_t>(grad_output)),
                        (image<const scalar_t, index_t>(input)), (kernels<scalar_t, index_t>(grad_kernel)));
    });
  });
}

}  // namespace involution
