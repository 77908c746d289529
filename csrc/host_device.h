// A mark for functions that run on the CPU and in CUDA kernels, and one that both need.
#pragma once

#include <cstring>

#ifdef __CUDACC__
#define ZOOMINNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ZOOMINNET_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace zoominnet {

// The same bits as another type.
template <class To, class T>
ZOOMINNET_HOST_DEVICE To cast_bits(const T& from) {
  static_assert(sizeof(To) == sizeof(T));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace zoominnet
