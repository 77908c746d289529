// Feature maps: tensors [B, C, H, W] of any strides, which count elements.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common.h"
#include "host_device.h"

namespace zoominnet {

template <class T>
struct Map {
  T* data;
  int64_t image, channel, row, column;

  ZOOMINNET_HOST_DEVICE T* at(int64_t b, int64_t c, int64_t i, int64_t j) const {
    return data + b * image + c * channel + i * row + j * column;
  }
};

template <class T>
Map<const T> read_map(const Tensor& x) {
  const auto s = x.strides();
  return {static_cast<const T*>(x.const_data_ptr()), s[0], s[1], s[2], s[3]};
}

// Asks the system for large pages under a large new tensor, of which each element will be written. Most of the time of
// writing fresh memory goes into page faults. It is a hint: where it is not taken, nothing else changes.
inline void prefer_large_pages([[maybe_unused]] const Tensor& x, [[maybe_unused]] int64_t element_size) {
#ifdef __linux__
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const auto data = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t begin = (data + page - 1) / page * page, end = (data + x.numel() * element_size) / page * page;
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

// Of a new tensor.
template <class T>
Map<T> write_map(const Tensor& x) {
  if (x.is_cpu()) {
    prefer_large_pages(x, sizeof(T));
  }
  const auto s = x.strides();
  return {static_cast<T*>(x.mutable_data_ptr()), s[0], s[1], s[2], s[3]};
}

inline void check_map(const char* name, const Tensor& x, CheckDevice check_device = check_on_cpu) {
  check_device(name, x);
  check_strided(name, x, 4);
}

}  // namespace zoominnet
