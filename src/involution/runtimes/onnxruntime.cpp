// The operators in onnxruntime: a library for SessionOptions.register_custom_ops_library. Domain "rednet", version 1:
//
//   Involution2d       input, kernel
//                      attributes: stride, padding, dilation
//   Involution2dFused  input, features, weight, optional: bias, scale and shift (float32, for float64: float64)
//                      attributes: kernel_size, stride, padding, dilation, relu (0 or 1)
//
// Shapes and results are those of involution2d and involution2d_fused in Python. An attribute without "(...)" is a
// list of two integers.

#include "../csrc/checks.h"
#include "../csrc/cpu/kernels.h"
#include "onnxruntime_api.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using involution::Dtype;
using involution::Geometry;
using involution::Sizes;
using Ints = std::vector<int64_t>;

// Throws the error of a function of onnxruntime.
void check_status(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) {
    const std::string message = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    throw std::runtime_error(message);
  }
}

// Calls f(), and returns an exception as the error of onnxruntime.
template <typename F>
OrtStatus* catch_errors(const OrtApi& api, const F& f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "unknown error");
  }
}

// A parallel loop on the threads of the session.
class ParallelLoop {
 public:
  ParallelLoop(const OrtApi& api, const OrtKernelContext* context) : api_(api), context_(context) {}

  involution::Parallel parallel() {
    // A session does not tell its number of threads. It is at most that of the processors, except by mistake.
    return {&run, max_threads(), this};
  }

 private:
  struct Loop {
    involution::Parallel::Body body;
    const void* context;
    int64_t tasks, ranges;
    std::mutex mutex;
    char error[200];  // not std::exception_ptr, which needs a C++ library of GCC 11 or later
  };

  static int64_t max_threads() {
    static const int64_t count = std::max(std::thread::hardware_concurrency(), 1u);
    return count;
  }
  static void run(const involution::Parallel& parallel, int64_t tasks, involution::Parallel::Body body,
                  const void* context) {
    const auto& self = *static_cast<const ParallelLoop*>(parallel.host);
    // The kernels allocate their buffers once for each range. More ranges than threads balance the load, also if the
    // session has fewer threads.
    Loop loop{body, context, tasks, std::min(tasks, 4 * parallel.threads), {}, ""};
    check_status(self.api_, self.api_.KernelContext_ParallelFor(self.context_, &run_range, loop.ranges, 0, &loop));
    if (loop.error[0] != 0) {
      throw std::runtime_error(loop.error);
    }
  }
  static void run_range(void* data, size_t n) {
    Loop& loop = *static_cast<Loop*>(data);
    try {
      loop.body(loop.context, n * loop.tasks / loop.ranges, (n + 1) * loop.tasks / loop.ranges);
    } catch (const std::exception& error) {  // must not leave a thread of onnxruntime
      const std::lock_guard<std::mutex> lock(loop.mutex);
      std::snprintf(loop.error, sizeof(loop.error), "%s", error.what());
    }
  }

  const OrtApi& api_;
  const OrtKernelContext* context_;
};

// The inputs and the output of one call.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {
    check_status(api, api.KernelContext_GetInputCount(context, &inputs_));
  }

  // An input that may be missing, with its shape.
  struct Input {
    bool given = false;
    Ints sizes;
    void* data = nullptr;

    std::optional<Sizes> shape() const {
      return given ? std::optional<Sizes>(sizes) : std::nullopt;
    }
  };

  Input input(size_t index) const {
    const OrtValue* value = nullptr;
    if (index < inputs_) {
      check_status(api_, api_.KernelContext_GetInput(context_, index, &value));
    }
    if (value == nullptr) {
      return {};
    }
    Input input{true, {}, nullptr};
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check_status(api_, api_.GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api_.ReleaseTensorTypeAndShapeInfo)> owner(
        info, api_.ReleaseTensorTypeAndShapeInfo);
    size_t dimensions = 0;
    check_status(api_, api_.GetDimensionsCount(info, &dimensions));
    input.sizes.resize(dimensions);
    check_status(api_, api_.GetDimensions(info, input.sizes.data(), dimensions));
    check_status(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &input.data));
    return input;
  }

  void* output(const Ints& sizes) const {
    OrtValue* value = nullptr;
    void* data = nullptr;
    check_status(api_, api_.KernelContext_GetOutput(context_, 0, sizes.data(), sizes.size(), &value));
    check_status(api_, api_.GetTensorMutableData(value, &data));
    return data;
  }

  ParallelLoop parallel_loop() const {
    return {api_, context_};
  }

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
  size_t inputs_ = 0;
};

// Tensors of onnxruntime are contiguous.
involution::Tensor contiguous(void* data, Dtype dtype, const Ints& sizes) {
  involution::Tensor tensor{data, dtype, static_cast<int64_t>(sizes.size()), {}, {}};
  int64_t stride = 1;
  for (int64_t n = tensor.dim - 1; n >= 0; --n) {
    tensor.sizes[n] = sizes[n];
    tensor.strides[n] = stride;
    stride *= sizes[n];
  }
  return tensor;
}

// Reads the attributes of a node.
class Attributes {
 public:
  Attributes(const OrtApi& api, const OrtKernelInfo* info, const char* op) : api_(api), info_(info), op_(op) {}

  Ints pair(const char* name, int64_t minimum) const {
    size_t size = 0;
    check(name, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size));
    Ints values(size);
    check(name, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
    involution::check_parameter(op_, name, values, minimum);
    return values;
  }
  bool flag(const char* name) const {
    int64_t value = 0;
    check(name, api_.KernelInfoGetAttribute_int64(info_, name, &value));
    involution::check(value == 0 || value == 1, op_, ": ", name, " is ", value, ", expected 0 or 1");
    return value == 1;
  }

 private:
  void check(const char* name, OrtStatus* status) const {
    try {
      check_status(api_, status);
    } catch (const std::runtime_error& error) {
      throw std::invalid_argument(std::string(op_) + ": the attribute " + name + " cannot be read: " + error.what());
    }
  }

  const OrtApi& api_;
  const OrtKernelInfo* info_;
  const char* op_;
};

class Involution2d {
 public:
  static constexpr const char *kName = "Involution2d", *kOp = "involution2d";
  static constexpr size_t kRequired = 2, kInputs = 2;

  explicit Involution2d(const Attributes& attributes)
      : stride_(attributes.pair("stride", 1)),
        padding_(attributes.pair("padding", 0)),
        dilation_(attributes.pair("dilation", 1)) {}

  void operator()(const Call& call, Dtype dtype) const {
    const auto input = call.input(0), kernel = call.input(1);
    const Geometry g = involution::forward_geometry(input.sizes, kernel.sizes, stride_, padding_, dilation_);
    const Ints sizes{g.batch, g.channels, g.out_h, g.out_w};
    void* const output = call.output(sizes);
    if (std::count(sizes.begin(), sizes.end(), 0) > 0) {
      return;
    }
    ParallelLoop loop = call.parallel_loop();
    involution::kernels()->involution2d(g, contiguous(input.data, dtype, input.sizes),
                                        contiguous(kernel.data, dtype, kernel.sizes), {nullptr, nullptr, false},
                                        contiguous(output, dtype, sizes), loop.parallel());
  }

 private:
  const Ints stride_, padding_, dilation_;
};

class Involution2dFused {
 public:
  static constexpr const char *kName = "Involution2dFused", *kOp = "involution2d_fused";
  static constexpr size_t kRequired = 3, kInputs = 6;

  explicit Involution2dFused(const Attributes& attributes)
      : kernel_size_(attributes.pair("kernel_size", 1)),
        stride_(attributes.pair("stride", 1)),
        padding_(attributes.pair("padding", 0)),
        dilation_(attributes.pair("dilation", 1)),
        relu_(attributes.flag("relu")) {}

  void operator()(const Call& call, Dtype dtype) const {
    const auto input = call.input(0), features = call.input(1), weight = call.input(2), bias = call.input(3),
               scale = call.input(4), shift = call.input(5);
    const Geometry g =
        involution::fused_geometry(input.sizes, features.sizes, weight.sizes, bias.shape(), scale.shape(),
                                   shift.shape(), kernel_size_, stride_, padding_, dilation_);
    const Ints sizes{g.batch, g.channels, g.out_h, g.out_w};
    void* const output = call.output(sizes);
    if (std::count(sizes.begin(), sizes.end(), 0) > 0) {
      return;
    }
    const Dtype accumulation = dtype == Dtype::float64 ? dtype : Dtype::float32;
    const auto features_ = contiguous(features.data, dtype, features.sizes),
               weight_ = contiguous(weight.data, dtype, weight.sizes),
               bias_ = contiguous(bias.data, dtype, bias.sizes),
               scale_ = contiguous(scale.data, accumulation, scale.sizes),
               shift_ = contiguous(shift.data, accumulation, shift.sizes);
    const involution::Epilogues epilogues{scale.given ? &scale_ : nullptr, shift.given ? &shift_ : nullptr, relu_};
    ParallelLoop loop = call.parallel_loop();
    involution::kernels()->involution2d_fused(g, contiguous(input.data, dtype, input.sizes),
                                              {features_, weight_, bias.given ? &bias_ : nullptr}, epilogues,
                                              contiguous(output, dtype, sizes), loop.parallel());
  }

 private:
  const Ints kernel_size_, stride_, padding_, dilation_;
  const bool relu_;
};

// A node of a session.
template <typename Operator>
struct Node {
  const OrtApi& api;
  const Dtype dtype;
  const Operator compute;
};

constexpr ONNXTensorElementDataType onnx_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case Dtype::float16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Dtype::bfloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

// What onnxruntime asks about an operator for one dtype.
template <typename Operator, Dtype dtype>
constexpr OrtCustomOp custom_op() {
  OrtCustomOp op{};
  op.version = kOrtApiVersion;
  op.GetName = [](const OrtCustomOp*) { return Operator::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Operator::kInputs; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) {
    const bool accumulation = index >= 4;  // scale and shift
    return onnx_dtype(accumulation && dtype != Dtype::float64 ? Dtype::float32 : dtype);
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index < Operator::kRequired ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return onnx_dtype(dtype); };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return catch_errors(*api, [&] {
      if (involution::kernels() == nullptr) {
        throw std::runtime_error(std::string(Operator::kOp) +
                                 ": this processor has neither AVX2 nor AVX-512, for which the library was compiled");
      }
      *kernel = new Node<Operator>{*api, dtype, Operator({*api, info, Operator::kOp})};
    });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& node = *static_cast<const Node<Operator>*>(kernel);
    return catch_errors(node.api, [&] { node.compute(Call(node.api, context), node.dtype); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node<Operator>*>(kernel); };
  return op;
}

template <typename Operator>
constexpr std::array<OrtCustomOp, 4> kCustomOps{
    custom_op<Operator, Dtype::float32>(), custom_op<Operator, Dtype::float64>(),
    custom_op<Operator, Dtype::float16>(), custom_op<Operator, Dtype::bfloat16>()};

using Domain = std::unique_ptr<OrtCustomOpDomain, void (*)(OrtCustomOpDomain*)>;

Domain make_domain(const OrtApi& api) {
  OrtCustomOpDomain* created = nullptr;
  check_status(api, api.CreateCustomOpDomain("rednet", &created));
  Domain domain(created, api.ReleaseCustomOpDomain);
  for (const auto* ops : {&kCustomOps<Involution2d>, &kCustomOps<Involution2dFused>}) {
    for (const OrtCustomOp& op : *ops) {
      check_status(api, api.CustomOpDomain_Add(created, &op));
    }
  }
  return domain;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    const std::string message =
        std::string("rednet: this is onnxruntime ") + base->GetVersionString() + ", expected 1.17 or later";
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return catch_errors(*api, [&] {
    // Shared by all sessions. onnxruntime unloads the library after the last one.
    static const Domain domain = make_domain(*api);
    check_status(*api, api->AddCustomOpDomain(options, domain.get()));
  });
}
