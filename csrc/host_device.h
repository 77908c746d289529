// A mark for functions that run on the CPU and in CUDA kernels.
#pragma once

#ifdef __CUDACC__
#define ZOOMINNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ZOOMINNET_HOST_DEVICE inline __attribute__((always_inline))
#endif
