// What an anchor is assigned to, for CPU and CUDA; see kernels/max_iou_assign/reference.py.
#pragma once

#include "../common.h"
#include "../host_device.h"

namespace zoominnet {

constexpr int64_t kBelow = -1, kBetween = -2;

template <class T>
struct Thresholds {
  T positive, negative;
  bool allow_low_quality;

  // `best` is the anchor's greatest IoU, `box` the box.
  ZOOMINNET_HOST_DEVICE int64_t decide(T best, int64_t box) const {
    return best >= positive ? box : best < negative ? kBelow : kBetween;
  }
};

inline void check_thresholds(double positive, double negative) {
  STD_TORCH_CHECK(0 <= negative && negative <= positive && positive <= 1,
                  "thresholds must satisfy 0 <= negative <= positive <= 1, got negative=", negative,
                  ", positive=", positive);
}

}  // namespace zoominnet
