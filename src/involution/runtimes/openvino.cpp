// The operators in OpenVINO: a library for `ov::Core::add_extension`. It also converts the nodes of ONNX files.
//
// The CPU plugin's convolutions compute in channels-last, but the plugin passes only contiguous tensors to other
// libraries, so it would copy every image. Therefore the operators also take images as contiguous tensors (B, H, W,
// C), between transpositions that the plugin drops where the convolutions have that layout. It drops them only if it
// knows the shapes; otherwise they are copies as well, slower ones. The conversion from ONNX chooses.

#include "../csrc/checks.h"
#include "../csrc/cpu/kernels.h"

#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>
#include <openvino/op/transpose.hpp>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace involution {
namespace {

using Ints = std::vector<int64_t>;
using ov::element::Type;

bool is_supported(const Type& type) {
  return type == ov::element::f32 || type == ov::element::f64 || type == ov::element::f16 || type == ov::element::bf16;
}

Dtype dtype_of(const Type& type) {
  return type == ov::element::f32   ? Dtype::float32
         : type == ov::element::f64 ? Dtype::float64
         : type == ov::element::f16 ? Dtype::float16
                                    : Dtype::bfloat16;
}

Ints ints(const ov::Shape& shape) {
  return Ints(shape.begin(), shape.end());
}

// A tensor (B, H, W, C) becomes a view (B, C, H, W).
Tensor view(const ov::Tensor& tensor, bool channels_last) {
  const ov::Shape sizes = tensor.get_shape();
  const ov::Strides strides = tensor.get_strides();  // in bytes
  Tensor view{const_cast<void*>(tensor.data()), dtype_of(tensor.get_element_type()), int64_t(sizes.size()), {}, {}};
  for (size_t n = 0; n < sizes.size(); ++n) {
    const size_t from = !channels_last || n == 0 ? n : n == 1 ? 3 : n - 1;
    view.sizes[n] = int64_t(sizes[from]);
    view.strides[n] = int64_t(strides[from] / tensor.get_element_type().size());
  }
  return view;
}

// The threads of the inference: the CPU plugin calls `evaluate` in the TBB arena of its stream.
Parallel parallel() {
  const auto run = [](const Parallel&, int64_t tasks, Parallel::Body body, const void* context) {
    tbb::parallel_for(tbb::blocked_range<int64_t>(0, tasks),
                      [=](const auto& range) { body(context, range.begin(), range.end()); });
  };
  return {run, tbb::this_task_arena::max_concurrency(), nullptr};
}

// A dimension, unknown if the rank is unknown or too small.
ov::Dimension dimension(const ov::PartialShape& shape, size_t n) {
  return shape.rank().is_static() && n < shape.size() ? shape[n] : ov::Dimension();
}

struct Attributes {
  Ints kernel_size, stride, padding, dilation;  // kernel_size and relu: of the fused operator only
  bool relu = false;
  bool channels_last = false;  // images are (B, H, W, C), in input and output
};

// What the operators have in common.
class Operator : public ov::op::Op {
 public:
  using Op::evaluate;

  void validate_and_infer_types() override {
    with_own_errors([&] {
      check_input_count();
      check_attributes();
      std::vector<Type> types;
      for (size_t n = 0; n < get_input_size(); ++n) {
        types.push_back(get_input_element_type(n));
      }
      check_types(types, types[0]);
      const ov::PartialShape& image = get_input_partial_shape(0);
      const ov::Dimension batch =
          dimension(image, 0).is_static() ? dimension(image, 0) : dimension(get_input_partial_shape(1), 0);
      const auto [height, width] = output_size();
      ov::PartialShape output = output_shape(batch, dimension(image, attributes.channels_last ? 3 : 1), height, width);
      if (const auto sizes = known_sizes(batch)) {
        const Geometry g = geometry(*sizes);
        output = output_shape(batch, g.channels, g.out_h, g.out_w);
      }
      set_output_type(0, types[0], output);
    });
  }

  bool has_evaluate() const override {
    return true;
  }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    with_own_errors([&] {
      check(inputs.size() == get_input_size(), name(), ": ", inputs.size(), " tensors, expected ", get_input_size());
      std::vector<Type> types;
      std::vector<Ints> sizes;
      for (const ov::Tensor& input : inputs) {
        types.push_back(input.get_element_type());
        sizes.push_back(ints(input.get_shape()));
      }
      check_types(types, outputs[0].get_element_type());
      const Geometry g = geometry(sizes);
      outputs[0].set_shape(output_shape(g.batch, g.channels, g.out_h, g.out_w).to_shape());
      check(kernels() != nullptr, name(), ": this library has no kernels for this processor");
      if (outputs[0].get_size() == 0) {
        return;
      }
      std::vector<Tensor> views;
      for (size_t n = 0; n < inputs.size(); ++n) {
        views.push_back(view(inputs[n], is_channels_last(n)));
      }
      compute(*kernels(), g, views, view(outputs[0], attributes.channels_last));
    });
    return true;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("stride", attributes.stride);
    visitor.on_attribute("padding", attributes.padding);
    visitor.on_attribute("dilation", attributes.dilation);
    visitor.on_attribute("channels_last", attributes.channels_last);
    return true;
  }

  Attributes attributes;

 protected:
  // The name that messages start with.
  virtual std::string name() const = 0;
  virtual void check_input_count() const = 0;
  virtual const char* input_name(size_t n) const = 0;
  // The inputs [0, images()) are images, the inputs [0, of_one_type()) have the type of the output. The others
  // have the type that sums are accumulated in.
  virtual size_t images() const = 0;
  virtual size_t of_one_type() const = 0;
  // The height and the width of the output according to input 1.
  virtual std::pair<ov::Dimension, ov::Dimension> output_size() const = 0;
  // Also before sizes are known. `checked_geometry` checks the same.
  virtual void check_attributes() const {
    check_parameter(name().c_str(), "stride", attributes.stride, 1);
    check_parameter(name().c_str(), "padding", attributes.padding, 0);
    check_parameter(name().c_str(), "dilation", attributes.dilation, 1);
  }
  // Checks sizes, those of images as (B, C, H, W).
  virtual Geometry checked_geometry(const std::vector<Ints>& sizes) const = 0;
  virtual void compute(const Kernels& kernels, const Geometry& g, const std::vector<Tensor>& inputs,
                       const Tensor& output) const = 0;

 private:
  // Reports errors in OpenVINO's way, with the name of the node.
  template <typename F>
  void with_own_errors(const F& f) const {
    try {
      f();
    } catch (const std::invalid_argument& error) {
      NODE_VALIDATION_CHECK(this, false, error.what());
    }
  }

  void check_types(const std::vector<Type>& types, const Type& output) const {
    for (size_t n = 0; n < types.size(); ++n) {
      const Type accumulation = output == ov::element::f64 ? ov::element::f64 : ov::element::f32;
      const Type expected = n < of_one_type() ? output : accumulation;
      check(types[n].is_dynamic() || is_supported(types[n]), name(), ": ", input_name(n), " has element type ",
            types[n], ", expected f32, f64, f16 or bf16");
      check(types[n].is_dynamic() || output.is_dynamic() || types[n] == expected, name(), ": ", input_name(n),
            " has element type ", types[n], ", expected ", expected);
    }
  }

  bool is_channels_last(size_t input) const {
    return attributes.channels_last && input < images();
  }

  Geometry geometry(std::vector<Ints> sizes) const {
    for (size_t n = 0; n < sizes.size(); ++n) {
      if (is_channels_last(n)) {
        check_dimensions(name().c_str(), input_name(n), sizes[n], 4, "(B, H, W, C)");
        sizes[n] = {sizes[n][0], sizes[n][3], sizes[n][1], sizes[n][2]};
      }
    }
    return checked_geometry(sizes);
  }

  ov::PartialShape output_shape(const ov::Dimension& batch, const ov::Dimension& channels, const ov::Dimension& height,
                                const ov::Dimension& width) const {
    return attributes.channels_last ? ov::PartialShape{batch, height, width, channels}
                                    : ov::PartialShape{batch, channels, height, width};
  }

  // The sizes of all inputs, or nothing if some are unknown. If only the batch is unknown, it is taken from the other
  // input, or is 1, so that everything else is checked before inference.
  std::optional<std::vector<Ints>> known_sizes(const ov::Dimension& batch) const {
    std::vector<Ints> result;
    for (size_t n = 0; n < get_input_size(); ++n) {
      ov::PartialShape shape = get_input_partial_shape(n);
      if (n < 2 && shape.rank().is_static() && shape.size() > 0 && shape[0].is_dynamic()) {
        shape[0] = batch.is_static() ? batch : ov::Dimension(1);
      }
      if (shape.is_dynamic()) {
        return std::nullopt;
      }
      result.push_back(ints(shape.to_shape()));
    }
    return result;
  }
};

template <typename Self>
std::shared_ptr<ov::Node> make_node(const ov::OutputVector& inputs, const Attributes& attributes) {
  const auto node = std::make_shared<Self>();
  node->attributes = attributes;
  node->set_arguments(inputs);
  node->validate_and_infer_types();
  return node;
}

class Involution2d : public Operator {
 public:
  OPENVINO_OP("Involution2d", "rednet");

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return make_node<Involution2d>(inputs, attributes);
  }

 protected:
  std::string name() const override {
    return "involution2d";
  }
  void check_input_count() const override {
    check(get_input_size() == 2, name(), ": ", get_input_size(), " inputs, expected input and kernel");
  }
  const char* input_name(size_t n) const override {
    return n == 0 ? "input" : "kernel";
  }
  size_t images() const override {
    return 1;
  }
  size_t of_one_type() const override {
    return 2;
  }
  std::pair<ov::Dimension, ov::Dimension> output_size() const override {
    const ov::PartialShape& kernel = get_input_partial_shape(1);
    return {dimension(kernel, 4), dimension(kernel, 5)};
  }
  Geometry checked_geometry(const std::vector<Ints>& sizes) const override {
    return forward_geometry(sizes[0], sizes[1], attributes.stride, attributes.padding, attributes.dilation);
  }
  void compute(const Kernels& kernels, const Geometry& g, const std::vector<Tensor>& inputs,
               const Tensor& output) const override {
    kernels.involution2d(g, inputs[0], inputs[1], {nullptr, nullptr, false}, output, parallel());
  }
};

// The number of inputs tells which of the optional ones are present: 3, with bias 4, with scale and shift 5, with all
// of them 6.
class Involution2dFused : public Operator {
 public:
  OPENVINO_OP("Involution2dFused", "rednet");

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return make_node<Involution2dFused>(inputs, attributes);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("kernel_size", attributes.kernel_size);
    visitor.on_attribute("relu", attributes.relu);
    return Operator::visit_attributes(visitor);
  }

 protected:
  std::string name() const override {
    return "involution2d_fused";
  }
  void check_input_count() const override {
    check(get_input_size() >= 3 && get_input_size() <= 6, name(), ": ", get_input_size(),
          " inputs, expected input, features, weight and optionally bias, or scale and shift, or all of them");
  }
  void check_attributes() const override {
    check_parameter(name().c_str(), "kernel_size", attributes.kernel_size, 1);
    Operator::check_attributes();
  }
  const char* input_name(size_t n) const override {
    constexpr const char* names[] = {"input", "features", "weight", "bias", "scale", "shift"};
    return names[n < 3 || has_bias() ? n : n + 1];
  }
  size_t images() const override {
    return 2;
  }
  size_t of_one_type() const override {
    return has_bias() ? 4 : 3;
  }
  std::pair<ov::Dimension, ov::Dimension> output_size() const override {
    const ov::PartialShape& features = get_input_partial_shape(1);
    const size_t height = attributes.channels_last ? 1 : 2;
    return {dimension(features, height), dimension(features, height + 1)};
  }
  Geometry checked_geometry(const std::vector<Ints>& sizes) const override {
    std::optional<Sizes> bias, scale, shift;
    if (has_bias()) {
      bias = sizes[3];
    }
    if (is_affine()) {
      scale = sizes[sizes.size() - 2];
      shift = sizes[sizes.size() - 1];
    }
    return fused_geometry(sizes[0], sizes[1], sizes[2], bias, scale, shift, attributes.kernel_size, attributes.stride,
                          attributes.padding, attributes.dilation);
  }
  void compute(const Kernels& kernels, const Geometry& g, const std::vector<Tensor>& inputs,
               const Tensor& output) const override {
    const Tensor* end = inputs.data() + inputs.size();
    const Generation generation{inputs[1], inputs[2], has_bias() ? &inputs[3] : nullptr};
    const Epilogues epilogues{is_affine() ? end - 2 : nullptr, is_affine() ? end - 1 : nullptr, attributes.relu};
    kernels.involution2d_fused(g, inputs[0], generation, epilogues, output, parallel());
  }

 private:
  bool has_bias() const {
    return get_input_size() == 4 || get_input_size() == 6;
  }
  bool is_affine() const {
    return get_input_size() >= 5;
  }
};

// Conversion of ONNX nodes.

ov::Output<ov::Node> transposed(const ov::Output<ov::Node>& image, const Ints& order) {
  const auto constant = ov::op::v0::Constant::create(ov::element::i64, {order.size()}, order);
  return std::make_shared<ov::op::v1::Transpose>(image, constant);
}

// Makes a node of which the first `images` inputs are images, in the faster layout.
template <typename Self>
ov::OutputVector convert_images(ov::OutputVector inputs, size_t images, Attributes attributes) {
  const auto is_known = [](const auto& image) {
    return image.get_partial_shape().is_static() && image.get_partial_shape().size() == 4;
  };
  attributes.channels_last = std::all_of(inputs.begin(), inputs.begin() + images, is_known);
  if (!attributes.channels_last) {
    return make_node<Self>(inputs, attributes)->outputs();
  }
  for (size_t n = 0; n < images; ++n) {
    inputs[n] = transposed(inputs[n], {0, 2, 3, 1});
  }
  return {transposed(make_node<Self>(inputs, attributes), {0, 3, 1, 2})};
}

// The inputs of an ONNX node. Optional ones can be omitted at the end of the list, or by an empty name, which gives an
// input of this type. Omitted ones are empty here.
std::vector<ov::Output<ov::Node>> inputs_of(const char* op, const ov::frontend::NodeContext& node, size_t required,
                                            size_t all) {
  OPENVINO_ASSERT(node.get_input_size() >= required && node.get_input_size() <= all, op, ": ", node.get_input_size(),
                  " inputs, expected ", required, " to ", all);
  std::vector<ov::Output<ov::Node>> inputs(all);
  for (size_t n = 0; n < node.get_input_size(); ++n) {
    const ov::Output<ov::Node> input = node.get_input(int(n));
    if (input.get_node()->get_type_name() != std::string("NullNode")) {
      inputs[n] = input;
    }
    OPENVINO_ASSERT(n >= required || inputs[n].get_node(), op, ": input ", n, " is missing");
  }
  return inputs;
}

Attributes attributes_of(const ov::frontend::NodeContext& node) {
  return {{},
          node.get_attribute<Ints>("stride"),
          node.get_attribute<Ints>("padding"),
          node.get_attribute<Ints>("dilation")};
}

ov::OutputVector convert(const ov::frontend::NodeContext& node) {
  constexpr auto op = "involution2d";
  const auto inputs = inputs_of(op, node, 2, 2);
  return convert_images<Involution2d>({inputs[0], inputs[1]}, 1, attributes_of(node));
}

ov::OutputVector convert_fused(const ov::frontend::NodeContext& node) {
  constexpr auto op = "involution2d_fused";
  const auto inputs = inputs_of(op, node, 3, 6);
  ov::OutputVector present;
  std::copy_if(inputs.begin(), inputs.end(), std::back_inserter(present),
               [](const auto& input) { return input.get_node() != nullptr; });
  OPENVINO_ASSERT((inputs[4].get_node() == nullptr) == (inputs[5].get_node() == nullptr), op,
                  ": one of scale and shift is missing, expected both or neither");
  Attributes attributes = attributes_of(node);
  attributes.kernel_size = node.get_attribute<Ints>("kernel_size");
  const int64_t relu = node.get_attribute<int64_t>("relu");
  OPENVINO_ASSERT(relu == 0 || relu == 1, op, ": relu is ", relu, ", expected 0 or 1");
  attributes.relu = relu == 1;
  return convert_images<Involution2dFused>(present, 2, attributes);
}

ov::Extension::Ptr onnx_conversion(const std::string& type, const ov::frontend::CreatorFunction& convert) {
  return std::make_shared<ov::frontend::onnx::ConversionExtension>(type, "rednet", convert);
}

}  // namespace
}  // namespace involution

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<involution::Involution2d>>(),
                                     std::make_shared<ov::OpExtension<involution::Involution2dFused>>(),
                                     involution::onnx_conversion("Involution2d", involution::convert),
                                     involution::onnx_conversion("Involution2dFused", involution::convert_fused)}));
