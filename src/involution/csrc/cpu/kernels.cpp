// Selects the kernels for this processor.
//
// A library that is compiled on the machine that runs it (with -march=native) has one copy of the kernels. A library
// for other x86-64 machines (kernel-builder and the wheel define CPU_KERNEL) has two, for AVX2 and for AVX-512, because
// code for every x86-64 processor would be several times slower.

#include "kernels.h"

#if defined(CPU_KERNEL) && defined(__x86_64__)

namespace involution {

const Kernels* kernels_for_avx2();    // kernels_avx2.cpp
const Kernels* kernels_for_avx512();  // kernels_avx512.cpp

const Kernels* kernels() {
  static const Kernels* const kernels = [] {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? kernels_for_avx512() : avx2 ? kernels_for_avx2() : nullptr;
  }();
  return kernels;
}

}  // namespace involution

#else

#include "implementation.h"

namespace involution {

const Kernels* kernels() {
  return &kKernels;
}

}  // namespace involution

#endif

namespace involution {

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") || __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

}  // namespace involution
