// The kernels for processors with AVX-512, in a library for other machines (kernels.cpp).

#if defined(CPU_KERNEL) && defined(__x86_64__)

// The standard library is included before the pragma: its functions, of which the linker keeps one copy for the whole
// library, must run on every processor.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")

#include "implementation.h"

namespace involution {

const Kernels* kernels_for_avx512() {
  return &kKernels;
}

}  // namespace involution

#endif
