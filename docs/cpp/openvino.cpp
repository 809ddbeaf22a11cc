// Classifies a picture with an exported RedNet in OpenVINO, without Python:
//
//   python -m involution.build openvino  # compiles the library with the operators and prints its path, LIBRARY
//   c++ -std=c++17 -I OPENVINO/include openvino.cpp OPENVINO/libs/libopenvino.so.* -Wl,-rpath,OPENVINO/libs -o classify
//   ./classify rednet.onnx LIBRARY picture.bin
//
// OPENVINO is the folder of the Python package, `python -c "import openvino; print(*openvino.__path__)"`. The library
// works with this release of OpenVINO only, on processors with the same instructions. rednet.onnx is the result of
// `python -m rednet.export MODEL rednet.onnx --format onnx --involution custom`, and can also be an IR, rednet.xml.
// picture.bin holds the `pixel_values` of the image processor, (1, 3, 224, 224) in float32.

#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>

#include <openvino/openvino.hpp>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: classify rednet.onnx LIBRARY picture.bin\n";
    return 2;
  }
  try {
    ov::Tensor picture(ov::element::f32, {1, 3, 224, 224});
    if (!std::ifstream(argv[3], std::ios::binary)
             .read(static_cast<char*>(picture.data()), std::streamsize(picture.get_byte_size()))) {
      std::cerr << argv[3] << " does not have " << picture.get_size() << " numbers\n";
      return 1;
    }
    ov::Core core;
    core.add_extension(argv[2]);
    ov::InferRequest request = core.compile_model(argv[1], "CPU").create_infer_request();
    request.set_input_tensor(picture);
    request.infer();

    const ov::Tensor output = request.get_output_tensor();
    const float* logits = output.data<const float>();
    const float* best = std::max_element(logits, logits + output.get_size());
    std::cout << "class " << best - logits << " with logit " << *best << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
