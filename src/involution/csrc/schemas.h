// The schemas of the operators, and their definition in a process without Python. Where Python runs, registration.py
// defines the operators. It reads the schemas from this file.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

extern "C" __attribute__((weak)) int Py_IsInitialized();  // null if this process has not loaded Python

namespace involution {

constexpr const char* kSchemas[] = {
    "involution2d(Tensor input, Tensor kernel, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
    "involution2d_input_grad(Tensor grad_output, Tensor kernel, SymInt[2] input_size, int[2] stride, int[2] padding, "
    "int[2] dilation) -> Tensor",
    "involution2d_kernel_grad(Tensor grad_output, Tensor input, SymInt groups, SymInt[2] kernel_size, int[2] stride, "
    "int[2] padding, int[2] dilation) -> Tensor",
    "involution2d_fused(Tensor input, Tensor features, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "bool relu, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
    "involution2d_fused_grad(Tensor grad_output, Tensor input, Tensor features, Tensor weight, Tensor? bias, "
    "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation) -> (Tensor, Tensor, Tensor, Tensor)",
};

// Defines the operators in a process without Python. Loading the library calls this; it returns whether it did.
inline bool define_operators(const char* operators_namespace) {
  if (Py_IsInitialized != nullptr && Py_IsInitialized()) {
    return false;
  }
  TorchLibraryHandle library;  // kept, because deleting it would remove the definitions
  if (aoti_torch_library_init_fragment(operators_namespace, __FILE__, __LINE__, &library) != AOTI_TORCH_SUCCESS) {
    return false;
  }
  bool defined = true;
  for (const char* schema : kSchemas) {  // each fails if another library (CPU or CUDA) has defined it
    defined &= aoti_torch_library_def(library, schema) == AOTI_TORCH_SUCCESS;
  }
  return defined;
}

}  // namespace involution
