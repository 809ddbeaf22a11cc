// Classifies a picture with an exported RedNet in onnxruntime, without Python:
//
//   python -m involution.build onnxruntime  # compiles the library with the operators and prints its path, LIBRARY
//   c++ -std=c++17 -I ONNXRUNTIME/include onnxruntime.cpp -L ONNXRUNTIME/lib -lonnxruntime -o classify
//   LD_LIBRARY_PATH=ONNXRUNTIME/lib ./classify rednet.onnx LIBRARY picture.bin
//
// ONNXRUNTIME is the folder of a release of onnxruntime for C++, 1.17 or later. The library does not depend on Python:
// it can be copied to any machine whose processor has the same instructions. rednet.onnx is the result of
// `python -m rednet.export MODEL rednet.onnx --format onnx --involution custom`. picture.bin holds the `pixel_values` of
// the image processor, (1, 3, 224, 224) in float32.

#include <algorithm>
#include <array>
#include <exception>
#include <fstream>
#include <iostream>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: classify rednet.onnx LIBRARY picture.bin\n";
    return 2;
  }
  const std::array<int64_t, 4> shape{1, 3, 224, 224};
  std::vector<float> picture(3 * 224 * 224);
  if (!std::ifstream(argv[3], std::ios::binary)
           .read(reinterpret_cast<char*>(picture.data()), picture.size() * sizeof(float))) {
    std::cerr << argv[3] << " does not have " << picture.size() << " numbers\n";
    return 1;
  }
  try {
    const Ort::Env env;
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(argv[2]);
    Ort::Session session(env, argv[1], options);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value input =
        Ort::Value::CreateTensor<float>(memory, picture.data(), picture.size(), shape.data(), shape.size());
    const char *input_name = "pixel_values", *output_name = "logits";
    const auto outputs = session.Run(Ort::RunOptions(), &input_name, &input, 1, &output_name, 1);

    const float* logits = outputs[0].GetTensorData<float>();
    const float* best = std::max_element(logits, logits + outputs[0].GetTensorTypeAndShapeInfo().GetElementCount());
    std::cout << "class " << best - logits << " with logit " << *best << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
