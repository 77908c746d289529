// Eight numbers at a time, in the vector extension of GCC and Clang, and one source compiled for several instruction
// sets. The number of lanes is the same on all of them, so the order of every sum is too.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common.h"
#include "host_device.h"

#define ZOOMINNET_INLINE inline __attribute__((always_inline))

namespace zoominnet {

constexpr int64_t kLanes = 8;

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::type;

// `run_best<Body>(...)` calls `Body::run(...)`, compiled for the best instruction set of the processor. Everything that
// it calls must be inlined into it. ZOOMINNET_BASELINE_ONLY leaves one version, for slow builds such as with
// sanitizers.
template <class Body, class... Args>
void run_baseline(Args&... args) {
  Body::run(args...);
}

#if defined(__x86_64__) && !defined(ZOOMINNET_BASELINE_ONLY)
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

// What comparing lanes of T gives: integers of that size, -1 for true and 0 for false.
template <class T>
using LaneMask = decltype(Lanes<T>{} < Lanes<T>{});

// Into the second-level cache: data that the processor would not foresee, or not early enough. The address need not
// exist.
ZOOMINNET_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// float16 or bfloat16 to float32, by the bits, since no instruction for it is in every instruction set.
template <class T>
ZOOMINNET_INLINE Lanes<float> widen_half(const Lanes<uint16_t>& x) {
  const Lanes<uint32_t> bits = convert_lanes<uint32_t>(x);
  if constexpr (std::is_same_v<T, BFloat16>) {
    return cast_bits<Lanes<float>>(bits << 16);
  } else {
    const Lanes<uint32_t> magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    const Lanes<uint32_t> infinite = cast_bits<Lanes<uint32_t>>(magnitude >= (0x7c00 << 13)) & (112 << 23);
    const Lanes<uint32_t> normal = magnitude + (112 << 23) + infinite;
    // A subnormal is its mantissa times 2^-24, which is what 0.5 with that mantissa is above 0.5.
    const Lanes<float> half = cast_bits<Lanes<float>>((magnitude >> 13) + (126 << 23)) - 0.5f;
    const Lanes<uint32_t> chosen = magnitude < (0x0400 << 13) ? cast_bits<Lanes<uint32_t>>(half) : normal;
    return cast_bits<Lanes<float>>(chosen | sign);
  }
}

// float32 to float16 or bfloat16, to the nearest, ties to even.
template <class T>
ZOOMINNET_INLINE Lanes<uint16_t> narrow_half(const Lanes<float>& x) {
  const Lanes<uint32_t> bits = cast_bits<Lanes<uint32_t>>(x);
  const Lanes<uint32_t> magnitude = bits & 0x7fffffff, sign = (bits & 0x80000000) >> 16;
  const Lanes<uint32_t> nan = cast_bits<Lanes<uint32_t>>(magnitude > 0x7f800000);
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Lanes<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return convert_lanes<uint16_t>((rounded & ~nan) | (nan & 0x7fc0));
  } else {
    const Lanes<uint32_t> rounded = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
    // Adding 0.5 leaves the subnormal's mantissa, rounded, in the lowest bits.
    const Lanes<float> shifted = cast_bits<Lanes<float>>(magnitude) + 0.5f;
    const Lanes<uint32_t> subnormal = cast_bits<Lanes<uint32_t>>(shifted) - (126 << 23);
    const Lanes<uint32_t> finite = magnitude < (113 << 23) ? subnormal : rounded;
    const Lanes<uint32_t> large = cast_bits<Lanes<uint32_t>>(magnitude >= 0x477ff000);  // rounds to 65536 or more
    const Lanes<uint32_t> value = (finite & ~large) | (large & ~nan & 0x7c00) | (nan & 0x7e00);
    return convert_lanes<uint16_t>(value | sign);
  }
}

// Eight values of any floating-point type in the type of their sums.
template <class T>
ZOOMINNET_INLINE Lanes<Accumulated<T>> load_wide(const T* from) {
  if constexpr (is_half<T>) {
    return widen_half<T>(load_lanes(reinterpret_cast<const uint16_t*>(from)));
  } else {
    return load_lanes(from);
  }
}

template <class T>
ZOOMINNET_INLINE void store_narrow(T* to, const Lanes<Accumulated<T>>& x) {
  if constexpr (is_half<T>) {
    store_lanes<uint16_t>(reinterpret_cast<uint16_t*>(to), narrow_half<T>(x));
  } else {
    store_lanes<T>(to, x);
  }
}

// The same for values that are `stride` apart, of which there may be less than eight; the others are 0.
template <class T>
ZOOMINNET_INLINE Lanes<Accumulated<T>> load_wide(const T* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) {
    return load_wide(from);
  }
  T values[kLanes] = {};
  if (stride == 1) {
    std::memcpy(values, from, count * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      values[i] = from[i * stride];
    }
  }
  return load_wide(values);
}

template <class T>
ZOOMINNET_INLINE void store_narrow(T* to, int64_t stride, int64_t count, const Lanes<Accumulated<T>>& x) {
  if (stride == 1 && count == kLanes) {
    return store_narrow(to, x);
  }
  T values[kLanes];
  store_narrow(values, x);
  if (stride == 1) {
    std::memcpy(to, values, count * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[i * stride] = values[i];
    }
  }
}

template <int... lanes, class T>
ZOOMINNET_INLINE T shuffle(const T& a, const T& b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){lanes...});
#endif
}

// The values at even and at odd positions of sixteen.
template <class T>
struct Pairs {
  Lanes<T> even, odd;
};

template <class T>
ZOOMINNET_INLINE Pairs<T> split_pairs(const Lanes<T>& first, const Lanes<T>& second) {
  return {shuffle<0, 2, 4, 6, 8, 10, 12, 14>(first, second), shuffle<1, 3, 5, 7, 9, 11, 13, 15>(first, second)};
}

// `count` pairs of neighbours that are `stride` apart; the others are 0.
template <class T>
ZOOMINNET_INLINE Pairs<Accumulated<T>> load_pairs(const T* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) {
    return split_pairs<Accumulated<T>>(load_wide(from), load_wide(from + kLanes));
  }
  if (stride == 1) {
    T values[2 * kLanes] = {};
    std::memcpy(values, from, 2 * count * sizeof(T));
    return split_pairs<Accumulated<T>>(load_wide(values), load_wide(values + kLanes));
  }
  return {load_wide(from, 2 * stride, count), load_wide(from + stride, 2 * stride, count)};
}

// One byte a lane, 1 for true. GCC knows instructions for each halving of the width alone.
template <class Mask>
ZOOMINNET_INLINE Lanes<uint8_t> mask_bytes(const Mask& mask) {
  return convert_lanes<uint8_t>(convert_lanes<int16_t>(convert_lanes<int32_t>(mask))) & 1;
}

template <class Mask>
ZOOMINNET_INLINE bool any_lane(const Mask& mask) {
  uint64_t words[sizeof(mask) / sizeof(uint64_t)], any = 0;
  std::memcpy(words, &mask, sizeof(mask));
  for (const uint64_t word : words) {
    any |= word;
  }
  return any != 0;
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
