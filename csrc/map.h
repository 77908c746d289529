// Feature maps: tensors [B, C, H, W] of any strides, which count elements.
#pragma once

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

template <class T>
Map<T> write_map(const Tensor& x) {
  const auto s = x.strides();
  return {static_cast<T*>(x.mutable_data_ptr()), s[0], s[1], s[2], s[3]};
}

inline void check_map(const char* name, const Tensor& x, CheckDevice check_device = check_on_cpu) {
  check_device(name, x);
  check_strided(name, x, 4);
}

}  // namespace zoominnet
