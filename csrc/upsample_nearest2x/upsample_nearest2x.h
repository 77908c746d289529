// Arguments and results of the nearest 2x upsampling, for CPU and CUDA; see kernels/upsample_nearest2x/reference.py.
#pragma once

#include <optional>

#include "../map.h"

namespace zoominnet {

using torch::headeronly::MemoryFormat;

// The format that reference.py gives a result: channels_last where `x` is that and not contiguous as well.
inline MemoryFormat format_of(const Tensor& x) {
  if (x.is_contiguous()) {
    return MemoryFormat::Contiguous;
  }
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return MemoryFormat::Contiguous;
    }
    expected *= x.size(d);
  }
  return MemoryFormat::ChannelsLast;
}

inline Tensor new_map(const Tensor& like, int64_t H, int64_t W) {
  return torch::stable::empty({like.size(0), like.size(1), H, W}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, format_of(like));
}

inline void check_upsample(const Tensor& x, const std::optional<Tensor>& add, CheckDevice check_device) {
  check_map("x", x, check_device);
  if (add) {
    check_map("add", *add, check_device);
    check_same_dtype("add", *add, "x", x);
    const int64_t expected[] = {x.size(0), x.size(1), 2 * x.size(2), 2 * x.size(3)};
    for (int64_t d = 0; d < 4; ++d) {
      check_size("add", *add, d, expected[d]);
    }
  }
}

inline void check_downsample(const Tensor& grad_out, CheckDevice check_device) {
  check_map("grad_out", grad_out, check_device);
  STD_TORCH_CHECK(grad_out.size(2) % 2 == 0 && grad_out.size(3) % 2 == 0,
                  "grad_out must have an even height and width, got ", grad_out.size(2), " and ", grad_out.size(3));
}

}  // namespace zoominnet
