// Eight numbers at a time, in the vector extension of GCC and Clang, and one source compiled for several instruction
// sets. The number of lanes is the same on all of them, so the order of every sum is too.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define ZOOMINNET_INLINE inline __attribute__((always_inline))

namespace zoominnet {

constexpr int64_t kLanes = 8;

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::type;

// Everything that `Body::run` calls must be inlined into it to profit.
template <class Body, class... Args>
void run_baseline(Args&... args) {
  Body::run(args...);
}

#ifdef __x86_64__
template <class Body, class... Args>
__attribute__((target("avx2"))) void run_avx2(Args&... args) {
  Body::run(args...);
}
template <class Body, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void run_avx512(Args&... args) {
  Body::run(args...);
}

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best that the processor has, or less where ATEN_CPU_CAPABILITY limits PyTorch's own kernels.
inline InstructionSet instruction_set() {
  static const InstructionSet best = [] {
    const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
    const auto at_most = [&](const char* name) { return wanted != nullptr && std::strcmp(wanted, name) == 0; };
    if (at_most("default") || !__builtin_cpu_supports("avx2")) {
      return InstructionSet::kBaseline;
    }
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return at_most("avx2") || !avx512 ? InstructionSet::kAvx2 : InstructionSet::kAvx512;
  }();
  return best;
}

template <class Body, class... Args>
void run_best(Args&&... args) {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return run_avx512<Body>(args...);
    case InstructionSet::kAvx2:
      return run_avx2<Body>(args...);
    case InstructionSet::kBaseline:
      return run_baseline<Body>(args...);
  }
}
#else
template <class Body, class... Args>
void run_best(Args&&... args) {
  run_baseline<Body>(args...);
}
#endif

template <class T>
ZOOMINNET_INLINE Lanes<T> broadcast(T value) {
  return Lanes<T>{} + value;
}

template <class T>
ZOOMINNET_INLINE Lanes<T> load_lanes(const T* from) {
  Lanes<T> lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

template <class T>
ZOOMINNET_INLINE void store_lanes(T* to, const Lanes<T>& lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

template <class To, class T>
ZOOMINNET_INLINE Lanes<To> convert_lanes(const T& lanes) {
  return __builtin_convertvector(lanes, Lanes<To>);
}

// In a fixed order.
ZOOMINNET_INLINE double sum_of_lanes(const Lanes<double>& x) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

template <class T>
ZOOMINNET_INLINE T max_of_lanes(const Lanes<T>& x) {
  T best = x[0];
  for (int64_t i = 1; i < kLanes; ++i) {
    best = x[i] > best ? x[i] : best;
  }
  return best;
}

}  // namespace zoominnet
