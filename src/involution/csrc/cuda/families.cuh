// The families of kernels: which of them may run, and which one ran last.
//
// The package forbids families whose results differ from the definition on a GPU of this machine (verification.py),
// and measurements forbid families to measure the others. "general" is the last resort and cannot be forbidden.
#pragma once

#include <atomic>
#include <cstddef>
#include <iterator>
#include <string_view>

namespace involution {

enum class Operator { kForward, kInputGrad, kKernelGrad, kFused };
enum class Family { kGeneral, kTiled, kTensorCores, kConvolution };

constexpr const char* kOperatorNames[] = {"involution2d", "involution2d_input_grad", "involution2d_kernel_grad",
                                          "involution2d_fused"};
// The last one is the form of the fused operator in which a convolution generates the kernel.
constexpr const char* kFamilyNames[] = {"general", "tiled", "tensor_cores", "convolution + involution"};

// Not `inline`, because the dynamic linker merges inline variables: one table for each library in a process.
static std::atomic<bool> forbidden[std::size(kOperatorNames)][std::size(kFamilyNames)];
static thread_local const char* last_family = "";

static std::atomic<bool>& forbidden_entry(Operator op, Family family) {
  return forbidden[static_cast<int>(op)][static_cast<int>(family)];
}

static bool is_allowed(Operator op, Family family) {
  return !forbidden_entry(op, family).load(std::memory_order_relaxed);
}

static void record_family(Family family) {
  last_family = kFamilyNames[static_cast<int>(family)];
}

template <std::size_t COUNT>
int position_of(std::string_view name, const char* const (&names)[COUNT]) {
  for (std::size_t n = 0; n < COUNT; ++n) {
    if (name == names[n]) {
      return static_cast<int>(n);
    }
  }
  return -1;
}

}  // namespace involution

// The interface for Python's ctypes.

// Allows or forbids a family for all later calls of an operator in this process. Returns 1, or 0 if there is no such
// operator or family, or if it cannot be forbidden.
extern "C" int involution_allow(const char* op, const char* family, int allowed) {
  const int o = involution::position_of(op, involution::kOperatorNames);
  const int f = involution::position_of(family, involution::kFamilyNames);
  if (o < 0 || f <= static_cast<int>(involution::Family::kGeneral)) {
    return 0;
  }
  involution::forbidden[o][f] = allowed == 0;
  return 1;
}

// Whether the code that the current device runs has the tensor-core kernels. See common.cuh.
extern "C" int involution_has_tensor_cores() {
  return involution::has_tensor_cores();
}

// The family of the last kernel that an operator launched in this thread, or "" if there was none.
extern "C" const char* involution_last_family() {
  return involution::last_family;
}
