// Selects the kernels for this processor.
//
// A library that is compiled on the machine that runs it (with -march=native) has one copy of the kernels. A library
// for other x86-64 machines (kernel-builder and the wheel define CPU_KERNEL) has two, for AVX2 and for AVX-512,
// because code for every x86-64 processor would be several times slower.

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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
  // Not __builtin_cpu_supports, which does not know these names before GCC 11. Both need the registers of AVX-512.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool amx = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1);
  const bool avx512 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
  return __builtin_cpu_supports("avx512f") && (amx || avx512);
#else
  return false;
#endif
}

}  // namespace involution
