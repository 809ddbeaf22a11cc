// Runs a RedNet in a C++ program without Python: a package of AOTInductor with the operator's library.
//
//   TORCH=$(python -c "import torch; print(torch.__path__[0])")
//   c++ -std=c++20 aoti.cpp -o aoti -I$TORCH/include -L$TORCH/lib -ltorch -ltorch_cpu -lc10 -Wl,-rpath,$TORCH/lib
//   ./aoti $LIBRARY rednet.pt2 40 50 < picture > logits
//
// LIBRARY is the path that `python -m involution.build cpu` prints, or lib/involution_cpu.so in the package `involution`
// of the wheel for x86-64 Linux. `python -m rednet.export MODEL rednet.pt2 --format aoti` writes the package, for the
// release of torch and the processor that it runs on. The picture is 3 x 40 x 50 numbers in float32, normalized as the
// image processor does; the logits are float32, too.

#include <ATen/Functions.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: aoti LIBRARY PACKAGE HEIGHT WIDTH < PICTURE > LOGITS\n";
    return 2;
  }
  // Loading the library registers the operator. It stays loaded until the program ends.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(argv[2]);

  const int64_t height = std::atoll(argv[3]), width = std::atoll(argv[4]);
  std::vector<float> picture(3 * height * width);
  std::cin.read(reinterpret_cast<char*>(picture.data()), picture.size() * sizeof(float));
  const at::Tensor pixel_values = at::from_blob(picture.data(), {1, 3, height, width}, at::kFloat);

  const at::Tensor logits = model.run({pixel_values})[0].contiguous();
  std::cout.write(static_cast<const char*>(logits.const_data_ptr()), logits.nbytes());
}
