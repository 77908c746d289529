// Stands in for the CUDA runtime's header so that a C++ compiler turns the CUDA files of csrc/ into code for the CPU,
// registered for CPU tensors. Each CUDA thread is a coroutine; the threads of a block take turns, in one order and in
// the other by turns, and blocks run one after the other. A turn ends at a barrier, where a thread waits for its block,
// or at a shuffle, where it waits for its warp. If they do not all come, the process ends. Only what csrc/ uses is
// here.
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

#include <algorithm>
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
#define __launch_bounds__(...)
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

inline void end_turn(Turn turn) {
  Thread& thread = threads[threadIdx.x];
  thread.turn = turn;
  swapcontext(&thread.context, &scheduler);
}

inline void run_thread() {
  body();
  end_turn(Turn::kDone);
}

// Whether `count` threads from `first` on are all at `turn`; if so, each gets another.
inline bool release(size_t first, size_t count, Turn turn) {
  for (size_t t = first; t < first + count; ++t) {
    if (threads[t].turn != turn) {
      return false;
    }
  }
  for (size_t t = first; t < first + count && turn != Turn::kDone; ++t) {
    threads[t].turn = Turn::kRunning;
  }
  return true;
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
  for (bool backwards = false; !release(0, threads.size(), Turn::kDone); backwards = !backwards) {
    for (size_t n = 0; n < threads.size(); ++n) {
      const size_t t = backwards ? threads.size() - 1 - n : n;
      if (threads[t].turn == Turn::kRunning) {
        threadIdx.x = static_cast<unsigned>(t);
        swapcontext(&scheduler, &threads[t].context);
      }
    }
    bool any = release(0, threads.size(), Turn::kBarrier) || release(0, threads.size(), Turn::kDone);
    for (size_t t = 0; t < threads.size(); t += 32) {
      any = release(t, 32, Turn::kShuffle) || any;
    }
    if (!any) {
      std::fprintf(stderr, "threads of a block wait for each other at different places\n");
      std::abort();
    }
  }
}

// The values of the threads of a warp. They stay for one turn more, in which some threads may be at their next
// exchange.
template <class T>
const T* exchange(T value) {
  static T slots[2][1024];
  static bool odd[1024];
  const unsigned thread = threadIdx.x;
  T* const now = slots[odd[thread]];
  odd[thread] = !odd[thread];
  now[thread] = value;
  end_turn(Turn::kShuffle);
  return now + thread / 32 * 32;
}

}  // namespace emulation

inline void __syncthreads() { emulation::end_turn(emulation::Turn::kBarrier); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::exchange(value)[lane];
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulation::exchange(value)[threadIdx.x % 32 ^ static_cast<unsigned>(lanes)];
}

inline unsigned __ballot_sync(unsigned, bool value) {
  const bool* const values = emulation::exchange(value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    bits |= static_cast<unsigned>(values[lane]) << lane;
  }
  return bits;
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
inline int __ffs(int value) { return __builtin_ffs(value); }

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
  const char* const most = std::getenv("ZOOMINNET_EMULATED_BLOCKS");  // as on a GPU that is given fewer than asked for
  gridDim = most == nullptr ? config->gridDim : std::min<unsigned>(config->gridDim.x, std::atoi(most));
  emulation::body = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulation::run_block();
  }
  return 0;
}
