// The parts of CUDA that the kernels use, on the host: blocks run one after the other, and every thread of a block is
// a fiber, which runs until a barrier or its end.
//
// Barriers of a block (__syncthreads) or a warp (__syncwarp, mma, ldmatrix) suspend a fiber until all threads of the
// block or warp have arrived. If some threads never arrive, the program aborts with an error. A warp runs until its
// next barrier of the block before another warp runs. Threads and warps run in ascending order in one block and in
// descending order in the next, and shared memory is filled with NaN before every block. Therefore a missing barrier,
// or a value that was not written, changes the results.
//
// The environment plants defects into kernels, to test the self-check: INVOLUTION_DEFECTS="kernel:defect kernel:defect
// ...". "barrier": barriers of a block do nothing. "abort": the kernel ends the program. "hang": it never ends.
// "tensor_cores:absent" is no defect, but code for an older GPU.
#pragma once

#undef _FORTIFY_SOURCE  // its longjmp refuses to enter another stack

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <setjmp.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

struct Index {
  int x = 0;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __launch_bounds__(...)

namespace shim {

constexpr int kWarp = 32;
constexpr int kSharedBytes = 48 * 1024;
constexpr size_t kStackBytes = 128 * 1024;

alignas(16) static unsigned char shared_memory[kSharedBytes];

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// A thread of a block. Fibers are created once and used for all blocks: makecontext gives each its stack, and then
// setjmp and longjmp switch between them, without the system calls of swapcontext.
struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  State state = State::kDone;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

// What the lanes of a warp share with each other between two barriers.
struct Lane {
  std::uint32_t a[4], b[2];
  const void* row;
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Lane> lanes;
static std::function<void()> body;
static ucontext_t scheduler_context;
static jmp_buf scheduler;
static int current = 0;
static bool has_block_barriers = true;

inline void suspend(State state) {
  fibers[current]->state = state;
  if (_setjmp(fibers[current]->resume) == 0) {
    _longjmp(scheduler, 1);
  }
}

inline void run_fiber() {
  while (true) {
    body();
    suspend(State::kDone);
  }
}

inline void resume(int thread) {
  current = threadIdx.x = thread;
  Fiber& fiber = *fibers[thread];
  if (_setjmp(scheduler) != 0) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.resume, 1);
  }
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.context, run_fiber, 0);
  swapcontext(&scheduler_context, &fiber.context);
}

// Releases the threads [first, last) if all of them wait at a barrier of this kind.
inline bool release(int first, int last, State barrier) {
  for (int thread = first; thread < last; ++thread) {
    if (fibers[thread]->state != barrier) {
      return false;
    }
  }
  for (int thread = first; thread < last; ++thread) {
    fibers[thread]->state = State::kReady;
  }
  return true;
}

// Runs the threads [first, last) of a warp until they wait for other warps or end.
inline void run_warp(int first, int last, bool ascending) {
  do {
    for (int n = first; n < last; ++n) {
      const int thread = ascending ? n : first + last - 1 - n;
      if (fibers[thread]->state == State::kReady) {
        resume(thread);
      }
    }
  } while (release(first, last, State::kAtWarpBarrier));
}

inline void run_block(int threads) {
  std::memset(shared_memory, 0xff, sizeof(shared_memory));
  for (int thread = 0; thread < threads; ++thread) {
    fibers[thread]->state = State::kReady;
  }
  const bool ascending = blockIdx.x % 2 == 0;
  const int warps = (threads + kWarp - 1) / kWarp;
  do {
    for (int n = 0; n < warps; ++n) {
      const int first = (ascending ? n : warps - 1 - n) * kWarp;
      run_warp(first, std::min(first + kWarp, threads), ascending);
    }
  } while (release(0, threads, State::kAtBlockBarrier));
  if (!release(0, threads, State::kDone)) {
    std::fprintf(stderr, "a barrier was not reached by all threads of its block or warp (block %d)\n", blockIdx.x);
    std::abort();
  }
}

static const char* last_launch = "";

// Whether the environment plants this defect into the kernel "(name<...>)".
inline bool has_defect(const char* kernel, const char* defect) {
  const char* planted = std::getenv("INVOLUTION_DEFECTS");
  const std::string name(kernel + 1, std::strcspn(kernel + 1, "<)"));
  return planted != nullptr &&
         (" " + std::string(planted) + " ").find(" " + name + ":" + defect + " ") != std::string::npos;
}

template <typename F, typename... Arguments>
void launch(const char* name, int blocks, int threads, F kernel, Arguments... arguments) {
  last_launch = name;
  if (has_defect(name, "abort")) {
    std::abort();
  }
  while (has_defect(name, "hang")) {
    sleep(1);
  }
  has_block_barriers = !has_defect(name, "barrier");
  while (static_cast<int>(fibers.size()) < threads) {
    fibers.push_back(std::make_unique<Fiber>());
  }
  lanes.resize(fibers.size());
  body = [=] { kernel(arguments...); };
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    run_block(threads);
  }
}

// The lane'th lane of the current thread's warp.
inline Lane& lane(int lane) {
  return lanes[current / kWarp * kWarp + lane];
}

// Element `index` of a register of two 16-bit values.
template <typename scalar_t>
float element(std::uint32_t word, int index) {
  const std::uint16_t bits = static_cast<std::uint16_t>(word >> (16 * index));
  scalar_t value;
  std::memcpy(&value, &bits, sizeof(bits));
  return static_cast<float>(value);
}

}  // namespace shim

inline void __syncthreads() {
  if (shim::has_block_barriers) {
    shim::suspend(shim::State::kAtBlockBarrier);
  }
}
inline void __syncwarp() {
  shim::suspend(shim::State::kAtWarpBarrier);
}

#define INVOLUTION_STRIP(...) __VA_ARGS__
#define INVOLUTION_LAUNCH(kernel, blocks, threads, ...) \
  shim::launch(                                         \
      #kernel, (blocks), (threads),                     \
      [](auto... arguments) { (INVOLUTION_STRIP kernel)(arguments...); }, ##__VA_ARGS__)
#define INVOLUTION_SHARED_MEMORY(name, bytes)                                                    \
  static_assert((bytes) <= shim::kSharedBytes, "more than the static shared memory of a block"); \
  unsigned char* const name = shim::shared_memory

namespace involution {

inline bool has_tensor_cores() {
  return !shim::has_defect("(tensor_cores)", "absent");
}

// The warp instructions, according to the layout of fragments in cuda/mma.cuh.

// Lane l points to row l % 8 of matrix l / 8. A lane gets two elements, (g; 2p, 2p + 1), of each matrix or of the
// transposed matrix.
inline void load_matrices(std::uint32_t (&fragments)[4], const void* row, bool transposed) {
  const int lane = threadIdx.x % shim::kWarp, g = lane / 4, p = lane % 4;
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    std::fprintf(stderr, "ldmatrix: a row is not aligned to 16 bytes\n");
    std::abort();
  }
  shim::lane(lane).row = row;
  __syncwarp();
  for (int matrix = 0; matrix < 4; ++matrix) {
    fragments[matrix] = 0;
    for (int n = 0; n < 2; ++n) {
      const int i = transposed ? 2 * p + n : g, j = transposed ? g : 2 * p + n;
      std::uint16_t bits;
      std::memcpy(&bits, static_cast<const char*>(shim::lane(matrix * 8 + i).row) + 2 * j, sizeof(bits));
      fragments[matrix] |= static_cast<std::uint32_t>(bits) << (16 * n);
    }
  }
  __syncwarp();
}

inline void load_matrices(std::uint32_t (&fragments)[4], const void* row) {
  load_matrices(fragments, row, false);
}
inline void load_matrices_transposed(std::uint32_t (&fragments)[4], const void* row) {
  load_matrices(fragments, row, true);
}

// d += A * B. A[i][k] is register i / 8 + k / 8 * 2 of lane i % 8 * 4 + k % 8 / 2, its element k % 2; B[k][j] is
// register k / 8 of lane j * 4 + k % 8 / 2, its element k % 2.
template <typename scalar_t>
void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  static_assert(sizeof(scalar_t) == 2);
  const int lane = threadIdx.x % shim::kWarp, g = lane / 4, p = lane % 4;
  std::memcpy(shim::lane(lane).a, a, sizeof(a));
  std::memcpy(shim::lane(lane).b, b, sizeof(b));
  __syncwarp();
  for (int n = 0; n < 4; ++n) {
    const int i = g + n / 2 * 8, j = 2 * p + n % 2;
    for (int k = 0; k < 16; ++k) {
      d[n] += shim::element<scalar_t>(shim::lane(i % 8 * 4 + k % 8 / 2).a[i / 8 + k / 8 * 2], k % 2) *
              shim::element<scalar_t>(shim::lane(j * 4 + k % 8 / 2).b[k / 8], k % 2);
    }
  }
  __syncwarp();
}

}  // namespace involution
