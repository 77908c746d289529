// What every CUDA file needs: PyTorch's current stream, checked launches, sums over a warp and a block.
//
// Kernels run in blocks of kThreads threads, in one dimension. A block, or a warp, takes one task after the other, so
// any number of blocks is right. Whatever a block needs to enter a loop with __syncthreads() is the same for all its
// threads, and whatever a warp needs to enter one with a shuffle for all its lanes.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "common.h"

namespace zoominnet {

constexpr int kThreads = 128, kWarpSize = 32, kWarps = kThreads / kWarpSize;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxBlocks = int64_t{1} << 30;

inline void check_on_cuda(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), name, " must be on a CUDA device");
}

inline void check_same_device(const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  STD_TORCH_CHECK(x.get_device_index() == other.get_device_index(), name, " must be on the device of ", other_name);
}

// PyTorch's current stream on the device of a tensor. That device is the current one as long as this lives.
class Stream {
 public:
  explicit Stream(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Nothing is launched for 0 blocks.
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, const Arguments&... arguments) const {
    if (blocks > 0) {
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
      config.blockDim = dim3(kThreads);
      config.stream = stream_;
      STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
    }
  }

  // Sets each of `count` bytes.
  void fill(void* data, int byte, int64_t count) const {
    if (count > 0) {
      STD_CUDA_CHECK(cudaMemsetAsync(data, byte, count, stream_));
    }
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Scratch memory for `count` values of T on the device of a tensor, for work on PyTorch's current stream.
template <class T>
Tensor new_scratch(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {checked_product(count, sizeof(T))}, ScalarType::Byte);
}

template <class T>
T* data_of(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Division {
  int64_t quotient, remainder;
};

// Of numbers that are not negative. 64-bit division is slow on a GPU, and seldom needed.
__device__ __forceinline__ Division divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t narrow_a = static_cast<uint32_t>(a), narrow_b = static_cast<uint32_t>(b);
    const uint32_t quotient = narrow_a / narrow_b;
    return {quotient, narrow_a - quotient * narrow_b};
  }
  const int64_t quotient = a / b;
  return {quotient, a - quotient * b};
}

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Greater {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Smaller {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// The first task of a warp, and how far each of its next ones is.
__device__ __forceinline__ int64_t first_task_of_warp() {
  return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
}
__device__ __forceinline__ int64_t tasks_of_warps() { return int64_t{gridDim.x} * kWarps; }

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x % kWarpSize); }

// All lanes' values combined, in an order that never varies; the result is for every lane. All lanes of the warp must
// call it.
template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

// All threads' values combined, in an order that never varies; the result is for every thread. All threads of the block
// must call it.
template <class T, class Combine>
__device__ T block_reduce(T value, Combine combine) {
  __shared__ T of_warp[kWarps];
  value = warp_reduce(value, combine);
  if (threadIdx.x % kWarpSize == 0) {
    of_warp[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  T result = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) {
    result = combine(result, of_warp[warp]);
  }
  __syncthreads();  // so that the next call may write
  return result;
}

template <class To, class T>
__device__ __forceinline__ To convert(T value) {
  if constexpr (is_half<T>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

// How many blocks are enough for `clear`.
inline int64_t blocks_to_clear(int64_t count) { return divide_up(count, 64 * kThreads); }

// Sets `count` bytes, of which the first is aligned to 16, to zero. All threads of the grid must call it.
__device__ __forceinline__ void clear(uint8_t* data, int64_t count) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = int64_t{gridDim.x} * kThreads;
  const int64_t words = count / 16;
  for (int64_t n = thread; n < words; n += threads) {
    __stwb(reinterpret_cast<uint4*>(data) + n, uint4{});
  }
  for (int64_t n = 16 * words + thread; n < count; n += threads) {
    data[n] = 0;
  }
}

}  // namespace zoominnet
