// Stands in for the CUDA runtime's header so that a C++ compiler turns the CUDA files of csrc/ into code for the CPU,
// registered for CPU tensors. Each CUDA thread is a coroutine; the threads of a block take turns, in one order and in
// the other by turns, a turn ends at a barrier or a shuffle, and blocks run one after the other. A barrier that not all
// threads of a block reach ends the process. Only what csrc/ uses is here.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

// What needs a GPU, or PyTorch's library for CUDA.
#define aoti_torch_create_device_guard(device, guard) (*(guard) = nullptr, 0)
#define aoti_torch_delete_device_guard(guard) 0
#define aoti_torch_get_current_cuda_stream(device, stream) (*(stream) = nullptr, 0)
#define torch_c10_cuda_check_msg(error, file, function, line, assertions, message) \
  (static_cast<void>(error), static_cast<void>(message))
#define torch_c10_cuda_free_error_msg(message) static_cast<void>(message)

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define CUDA CPU
#define is_cuda is_cpu

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};
inline dim3 threadIdx, blockIdx, gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  std::memset(to, byte, count);
  return 0;
}
namespace emulation {

constexpr size_t kStackBytes = 1 << 16;

enum class Turn { kRunning, kBarrier, kShuffle, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Turn turn = Turn::kDone;
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned char slots[1024][8];

inline void end_turn(Turn turn) {
  Thread& thread = threads[threadIdx.x];
  thread.turn = turn;
  swapcontext(&thread.context, &scheduler);
}

inline void run_thread() {
  body();
  end_turn(Turn::kDone);
}

inline void run_block() {
  for (Thread& thread : threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
    thread.turn = Turn::kRunning;
  }
  bool backwards = false;
  do {
    for (size_t n = 0; n < threads.size(); ++n) {
      const size_t t = backwards ? threads.size() - 1 - n : n;
      threadIdx.x = static_cast<unsigned>(t);
      swapcontext(&scheduler, &threads[t].context);
    }
    backwards = !backwards;
    for (const Thread& thread : threads) {
      if (thread.turn != threads[0].turn) {
        std::fprintf(stderr, "threads of a block are at different barriers\n");
        std::abort();
      }
    }
  } while (threads[0].turn != Turn::kDone);
}

}  // namespace emulation

inline void __syncthreads() { emulation::end_turn(emulation::Turn::kBarrier); }

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned offset) {
  const unsigned thread = threadIdx.x, from = thread % 32 + offset < 32 ? thread + offset : thread;
  std::memcpy(emulation::slots[thread], &value, sizeof(T));
  emulation::end_turn(emulation::Turn::kShuffle);
  std::memcpy(&value, emulation::slots[from], sizeof(T));
  emulation::end_turn(emulation::Turn::kShuffle);
  return value;
}

template <class T>
T atomicMin(T* to, T value) {
  const T before = *to;
  *to = value < before ? value : before;
  return before;
}

template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = value > before ? value : before;
  return before;
}

template <class T>
T atomicAnd(T* to, T value) {
  const T before = *to;
  *to = before & value;
  return before;
}

template <class To, class T>
To same_bits(T value) {
  static_assert(sizeof(To) == sizeof(T));
  To to;
  std::memcpy(&to, &value, sizeof(to));
  return to;
}
inline int __float_as_int(float value) { return same_bits<int>(value); }
inline float __int_as_float(int value) { return same_bits<float>(value); }
inline long long __double_as_longlong(double value) { return same_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return same_bits<double>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (emulation::threads.size() != config->blockDim.x) {
    emulation::threads = std::vector<emulation::Thread>(config->blockDim.x);
  }
  gridDim = config->gridDim;
  emulation::body = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulation::run_block();
  }
  return 0;
}
