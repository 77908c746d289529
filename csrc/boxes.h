// Arguments that the operators on anchors and boxes share, read on the host.
#pragma once

#include <cmath>
#include <vector>

#include "common.h"
#include "iou.h"

namespace zoominnet {

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// The arguments `boxes` and `counts`.
inline void check_boxes(const Tensor& boxes, const std::vector<int64_t>& counts,
                        CheckDevice check_device = check_on_cpu) {
  check_device("boxes", boxes);
  check_strided("boxes", boxes, 2);
  check_size("boxes", boxes, 1, 4);
  int64_t total = 0;
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(count >= 0, "counts must not be negative, got ", count);
    STD_TORCH_CHECK(!__builtin_add_overflow(total, count, &total), "counts are too large");
  }
  STD_TORCH_CHECK(total == boxes.size(0), "counts must sum to the ", boxes.size(0), " boxes, got ", total);
}

// The arguments `base_anchors`, `strides` and `shapes`.
inline void check_grids(const std::vector<Tensor>& base_anchors, const std::vector<double>& strides,
                        const std::vector<int64_t>& shapes, CheckDevice check_device = check_on_cpu) {
  STD_TORCH_CHECK(strides.size() == 2 * base_anchors.size() && shapes.size() == 2 * base_anchors.size(),
                  "strides and shapes must have two values for each of the ", base_anchors.size(), " levels, got ",
                  strides.size(), " and ", shapes.size());
  for (const Tensor& base : base_anchors) {
    check_device("base_anchors", base);
    check_strided("base_anchors", base, 2);
    check_size("base_anchors", base, 1, 4);
  }
  for (const double stride : strides) {
    STD_TORCH_CHECK(std::isfinite(stride) && stride > 0, "strides must be positive and finite, got ", stride);
  }
  for (const int64_t size : shapes) {
    STD_TORCH_CHECK(size >= 0, "shapes must not be negative, got ", size);
  }
}

// Whether the IoU is taken in float64.
inline bool needs_double(const Tensor& boxes, const std::vector<Tensor>& anchors) {
  bool any = boxes.scalar_type() == ScalarType::Double;
  for (const Tensor& x : anchors) {
    any |= x.scalar_type() == ScalarType::Double;
  }
  return any;
}

// The boxes of a CPU tensor [N, 4] of any strides, converted to T.
template <class T>
void read_boxes(const char* name, const Tensor& boxes, Box<T>* to) {
  dispatch_floating(name, boxes.scalar_type(), [&](auto tag) {
    const auto* data = static_cast<const decltype(tag)*>(boxes.const_data_ptr());
    const int64_t n = boxes.size(0), next = boxes.stride(0), step = boxes.stride(1);
    for (int64_t i = 0; i < n; ++i) {
      const auto* row = data + i * next;
      to[i] = {static_cast<T>(row[0]), static_cast<T>(row[step]), static_cast<T>(row[2 * step]),
               static_cast<T>(row[3 * step])};
    }
  });
}

template <class T>
std::vector<Box<T>> read_sanitized_boxes(const Tensor& boxes) {
  std::vector<Box<T>> result(boxes.size(0));
  read_boxes("boxes", boxes, result.data());
  for (Box<T>& box : result) {
    box = sanitize(box);
  }
  return result;
}

}  // namespace zoominnet
