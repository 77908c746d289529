// The IoU of anchors and boxes, for CPU and CUDA. The contract stands in kernels/akdp_mask/reference.py: every
// operation is rounded by itself, so this must be compiled without fused multiply-add.
//
// T is float or double, or in CPU code eight of them at a time (lanes.h).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace zoominnet {

template <class T>
struct Box {
  T x1, y1, x2, y2;  // px
};

// Length of the common part of two intervals, 0 where there is none.
template <class T>
ZOOMINNET_HOST_DEVICE T overlap(T a_begin, T a_end, T b_begin, T b_end) {
  const T begin = a_begin > b_begin ? a_begin : b_begin;
  const T end = a_end < b_end ? a_end : b_end;
  const T length = end - begin;
  return length > T{} ? length : T{};
}

// `area_a` may be infinite: the IoU is 0 then. `area_b` is finite, and 0 / 0 is not used.
template <class T>
ZOOMINNET_HOST_DEVICE T iou(T inter, T area_a, T area_b) {
  const T quotient = inter / ((area_a + area_b) - inter);
  return inter > T{} ? quotient : T{};
}

template <class T>
ZOOMINNET_HOST_DEVICE T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// A box without positive, finite area becomes the zero box, which intersects nothing.
template <class T>
ZOOMINNET_HOST_DEVICE Box<T> sanitize(const Box<T>& box) {
  const T a = area(box);
  const bool valid = box.x2 - box.x1 > 0 && box.y2 - box.y1 > 0 && a - a == 0;
  return valid ? box : Box<T>{};
}

// How far cell `index` is from cell 0; an anchor's coordinate is this plus the base anchor's.
template <class T, class Index>
ZOOMINNET_HOST_DEVICE T cell_shift(Index index, double stride) {
  return static_cast<T>(index) * static_cast<T>(stride);
}

}  // namespace zoominnet
