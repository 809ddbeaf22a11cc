// The operators on the CPU, registered through the stable ABI of PyTorch: one library serves every release of PyTorch
// from 2.11 on.

#define TORCH_TARGET_VERSION 0x020b000000000000  // 2.11

#include "checks.h"
#include "cpu/kernels.h"
#include "library.h"
#include "schemas.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using involution::Geometry;
using involution::Sizes;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType expected) {
  involution::check(tensor.scalar_type() == expected, op, ": ", name, " has dtype ",
                    torch::headeronly::toString(tensor.scalar_type()), ", expected ",
                    torch::headeronly::toString(expected));
}

involution::Dtype dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return involution::Dtype::float32;
    case ScalarType::Double:
      return involution::Dtype::float64;
    case ScalarType::Half:
      return involution::Dtype::float16;
    case ScalarType::BFloat16:
      return involution::Dtype::bfloat16;
    default:
      throw std::invalid_argument(std::string(op) + ": the dtype is " +
                                  torch::headeronly::toString(tensor.scalar_type()) +
                                  ", expected float32, float64, float16 or bfloat16");
  }
}

involution::Tensor view(const char* op, const Tensor& tensor, void* data) {
  involution::Tensor view{data, dtype_of(op, tensor), tensor.dim(), {}, {}};
  for (int64_t n = 0; n < view.dim; ++n) {
    view.sizes[n] = tensor.size(n);
    view.strides[n] = tensor.stride(n);
  }
  return view;
}
involution::Tensor read(const char* op, const Tensor& tensor) {
  return view(op, tensor, const_cast<void*>(tensor.const_data_ptr()));
}
involution::Tensor write(const char* op, const Tensor& tensor) {
  return view(op, tensor, tensor.mutable_data_ptr());
}

// A view of an optional tensor, with the address that the kernels expect.
struct OptionalView {
  std::optional<involution::Tensor> view;

  OptionalView(const char* op, const std::optional<Tensor>& tensor) {
    if (tensor) {
      view = read(op, *tensor);
    }
  }
  const involution::Tensor* get() const {
    return view ? &*view : nullptr;
  }
};

// Decides the memory format of every result, here and in the fake kernels. It compares strides because they have a
// meaning for slices, expanded tensors and sizes of 1, for which "is contiguous" is ambiguous.
bool is_channels_last(const Tensor& tensor) {
  return tensor.stride(1) < tensor.stride(3);
}

Tensor empty_image(const Tensor& like, const std::array<int64_t, 4>& sizes) {
  const auto format = is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

// torch 2.11 does not declare `torch::stable::permute`.
Tensor permuted(const Tensor& tensor, const Ints& dimensions) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(tensor), from(dimensions)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// An empty kernel in the layout of the result of a 1x1 convolution: in channels-last, the taps of a pixel are
// adjacent.
Tensor empty_kernel(const Tensor& like, const Geometry& g) {
  const auto empty = [&](const std::array<int64_t, 6>& sizes) {
    return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device());
  };
  if (is_channels_last(like)) {
    return permuted(empty({g.batch, g.out_h, g.out_w, g.groups, g.kernel_h, g.kernel_w}), {0, 3, 4, 5, 1, 2});
  }
  return empty({g.batch, g.groups, g.kernel_h, g.kernel_w, g.out_h, g.out_w});
}

// PyTorch's parallel loop and threads.
involution::Parallel parallel() {
  const auto run = [](const involution::Parallel&, int64_t tasks, involution::Parallel::Body body,
                      const void* context) {
    torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  return {run, torch::stable::get_num_threads(), nullptr};
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  const Ints ones{1, 1}, zeros{0, 0};
  std::array<StableIValue, 7> stack{from(input), from(weight), from(bias),      from(ones),
                                    from(zeros), from(ones),   from(int64_t(1))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor involution2d(const Tensor& input, const Tensor& kernel, const Ints& stride, const Ints& padding,
                    const Ints& dilation) {
  constexpr auto op = "involution2d";
  const Geometry g = involution::forward_geometry(input.sizes(), kernel.sizes(), stride, padding, dilation);
  check_dtype(op, "kernel", kernel, input.scalar_type());
  const Tensor output = empty_image(input, {g.batch, g.channels, g.out_h, g.out_w});
  if (output.numel() > 0) {
    involution::kernels()->involution2d(g, read(op, input), read(op, kernel), {nullptr, nullptr, false},
                                        write(op, output), parallel());
  }
  return output;
}

std::optional<Sizes> sizes_of(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Sizes>(tensor->sizes()) : std::nullopt;
}

Tensor involution2d_fused(const Tensor& input, const Tensor& features, const Tensor& weight,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                          const std::optional<Tensor>& shift, bool relu, const Ints& kernel_size, const Ints& stride,
                          const Ints& padding, const Ints& dilation) {
  constexpr auto op = "involution2d_fused";
  const Geometry g =
      involution::fused_geometry(input.sizes(), features.sizes(), weight.sizes(), sizes_of(bias), sizes_of(scale),
                                 sizes_of(shift), kernel_size, stride, padding, dilation);
  const ScalarType dtype = input.scalar_type();
  const ScalarType accumulation = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check_dtype(op, "features", features, dtype);
  check_dtype(op, "weight", weight, dtype);
  if (bias) {
    check_dtype(op, "bias", *bias, dtype);
  }
  if (scale) {
    check_dtype(op, "scale", *scale, accumulation);
    check_dtype(op, "shift", *shift, accumulation);
  }
  const Tensor output = empty_image(input, {g.batch, g.channels, g.out_h, g.out_w});
  if (output.numel() == 0) {
    return output;
  }
  const OptionalView scale_(op, scale), shift_(op, shift);
  const involution::Epilogues epilogues{scale_.get(), shift_.get(), relu};
  // Some processors multiply matrices of bfloat16 many times faster than float vectors. From this number of hidden
  // channels on, the gain exceeds the cost of writing the kernel to memory (measured with AMX).
  if (dtype == ScalarType::BFloat16 && features.size(1) >= 64 && involution::multiplies_bfloat16()) {
    const Tensor taps = conv2d(features, weight, bias);
    involution::Tensor kernel = read(op, taps);
    const int64_t *sizes = taps.sizes().data(), *strides = taps.strides().data();
    kernel.dim = 6;
    std::copy_n(std::array{g.batch, g.groups, g.kernel_h, g.kernel_w, sizes[2], sizes[3]}.data(), 6, kernel.sizes);
    std::copy_n(
        std::array{strides[0], strides[1] * g.taps(), strides[1] * g.kernel_w, strides[1], strides[2], strides[3]}
            .data(),
        6, kernel.strides);
    involution::kernels()->involution2d(g, read(op, input), kernel, epilogues, write(op, output), parallel());
  } else {
    const OptionalView bias_(op, bias);
    const involution::Tensor features_ = read(op, features), weight_ = read(op, weight);
    involution::kernels()->involution2d_fused(g, read(op, input), {features_, weight_, bias_.get()}, epilogues,
                                              write(op, output), parallel());
  }
  return output;
}

Tensor involution2d_input_grad(const Tensor& grad_output, const Tensor& kernel, const Ints& input_size,
                               const Ints& stride, const Ints& padding, const Ints& dilation) {
  constexpr auto op = "involution2d_input_grad";
  const Geometry g =
      involution::input_grad_geometry(grad_output.sizes(), kernel.sizes(), input_size, stride, padding, dilation);
  check_dtype(op, "kernel", kernel, grad_output.scalar_type());
  Tensor grad_input = empty_image(grad_output, {g.batch, g.channels, g.height, g.width});
  if (grad_output.numel() == 0) {
    return torch::stable::zero_(grad_input);
  }
  if (grad_input.numel() > 0) {
    involution::kernels()->involution2d_input_grad(g, read(op, grad_output), read(op, kernel), write(op, grad_input),
                                                   parallel());
  }
  return grad_input;
}

Tensor involution2d_kernel_grad(const Tensor& grad_output, const Tensor& input, int64_t groups,
                                const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                const Ints& dilation) {
  constexpr auto op = "involution2d_kernel_grad";
  const Geometry g = involution::kernel_grad_geometry(grad_output.sizes(), input.sizes(), groups, kernel_size, stride,
                                                      padding, dilation);
  check_dtype(op, "grad_output", grad_output, input.scalar_type());
  Tensor grad_kernel = empty_kernel(input, g);
  if (grad_output.numel() == 0) {
    return torch::stable::zero_(grad_kernel);
  }
  involution::kernels()->involution2d_kernel_grad(g, read(op, grad_output), read(op, input), write(op, grad_kernel),
                                                  parallel());
  return grad_kernel;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> involution2d_fused_grad(const Tensor& grad_output, const Tensor& input,
                                                                   const Tensor& features, const Tensor& weight,
                                                                   const std::optional<Tensor>& bias,
                                                                   const Ints& kernel_size, const Ints& stride,
                                                                   const Ints& padding, const Ints& dilation) {
  constexpr auto op = "involution2d_fused_grad";
  const Geometry g =
      involution::fused_grad_geometry(grad_output.sizes(), input.sizes(), features.sizes(), weight.sizes(),
                                      sizes_of(bias), kernel_size, stride, padding, dilation);
  const ScalarType dtype = input.scalar_type();
  check_dtype(op, "grad_output", grad_output, dtype);
  check_dtype(op, "features", features, dtype);
  check_dtype(op, "weight", weight, dtype);
  if (bias) {
    check_dtype(op, "bias", *bias, dtype);
  }
  const auto empty = [&](const Ints& sizes) {
    return torch::stable::empty(sizes, dtype, std::nullopt, input.device());
  };
  const int64_t taps = g.groups * g.taps(), hidden = features.size(1);
  Tensor grad_input = empty_image(grad_output, {g.batch, g.channels, g.height, g.width});
  Tensor grad_features = empty_image(features, {g.batch, hidden, g.out_h, g.out_w});
  Tensor grad_weight = empty({taps, hidden, 1, 1}), grad_bias = empty({taps});
  if (grad_output.numel() == 0 || grad_input.numel() == 0) {
    for (Tensor* grad : {&grad_input, &grad_features, &grad_weight, &grad_bias}) {
      torch::stable::zero_(*grad);
    }
  } else {
    const OptionalView bias_(op, bias);
    const involution::Tensor features_ = read(op, features), weight_ = read(op, weight);
    const involution::Tensor dx = write(op, grad_input), df = write(op, grad_features), dw = write(op, grad_weight),
                             db = write(op, grad_bias);
    involution::kernels()->involution2d_fused_grad(g, read(op, grad_output), read(op, input),
                                                   {features_, weight_, bias_.get()}, {dx, df, dw, db}, parallel());
  }
  return {grad_input, grad_features, grad_weight, grad_bias};
}

const bool defined = involution::define_operators(C10_STRINGIZE(INVOLUTION_NAMESPACE));

}  // namespace

INVOLUTION_EXPAND(STABLE_TORCH_LIBRARY_IMPL, INVOLUTION_NAMESPACE, CPU, m) {
  if (involution::kernels() == nullptr) {
    return;  // No kernel runs on this processor: the composite kernels in Python do.
  }
  m.impl("involution2d", TORCH_BOX(&involution2d));
  m.impl("involution2d_fused", TORCH_BOX(&involution2d_fused));
  m.impl("involution2d_input_grad", TORCH_BOX(&involution2d_input_grad));
  m.impl("involution2d_kernel_grad", TORCH_BOX(&involution2d_kernel_grad));
  m.impl("involution2d_fused_grad", TORCH_BOX(&involution2d_fused_grad));
}
