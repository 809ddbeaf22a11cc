// The warp instructions of the tensor-core kernels (sm_80 and later). All 32 lanes have to execute them together, which
// takes a __syncwarp() after branches that depend on the lane.
//
// On the host, the shim of the tests defines load_matrices, load_matrices_transposed and multiply_add instead,
// according to the layout of fragments in the PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix". With g =
// lane / 4 and p = lane % 4:
//   A (16 x 16), 4 registers of two values: a[0] = A[g][2p, 2p + 1], a[1] = A[g + 8][2p, 2p + 1],
//                                           a[2] = A[g][2p + 8, 2p + 9], a[3] = A[g + 8][2p + 8, 2p + 9]
//   B (16 x 8), 2 registers of two values:  b[0] = B[2p, 2p + 1][g], b[1] = B[2p + 8, 2p + 9][g]
//   D (16 x 8), 4 floats:                   d[0], d[1] = D[g][2p, 2p + 1], d[2], d[3] = D[g + 8][2p, 2p + 1]
#pragma once

#include "common.cuh"

namespace involution {

constexpr int kWarp = 32;

#ifdef __CUDACC__

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define INVOLUTION_NO_TENSOR_CORES
#endif

// Loads four 8 x 8 matrices of 16-bit values. Lane l passes the address (in shared memory, aligned to 16) of row l % 8
// of matrix l / 8. fragments[m] becomes elements (g; 2p, 2p + 1) of matrix m.
__device__ inline void load_matrices(std::uint32_t (&fragments)[4], const void* row) {
#ifndef INVOLUTION_NO_TENSOR_CORES
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(address)
               : "memory");
#endif
}

// The same, with the matrices transposed: fragments[m] becomes elements (2p, 2p + 1; g).
__device__ inline void load_matrices_transposed(std::uint32_t (&fragments)[4], const void* row) {
#ifndef INVOLUTION_NO_TENSOR_CORES
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(address)
               : "memory");
#endif
}

// d += A * B, in float.
template <typename scalar_t>
__device__ inline void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#ifndef INVOLUTION_NO_TENSOR_CORES
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

#endif  // __CUDACC__

}  // namespace involution
