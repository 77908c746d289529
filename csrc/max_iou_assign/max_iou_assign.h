// What an anchor is assigned to, for CPU and CUDA; see kernels/max_iou_assign/reference.py.
#pragma once

#include "../common.h"
#include "../host_device.h"

namespace zoominnet {

constexpr int64_t kBelow = -1, kBetween = -2;

template <class T>
struct Thresholds {
  T positive, negative;
  bool allow_low_quality, own_best;

  // `best` is the anchor's greatest IoU, `box` the box.
  ZOOMINNET_HOST_DEVICE int64_t decide(T best, int64_t box) const {
    return best >= positive ? box : best < negative ? kBelow : kBetween;
  }
};

inline void check_matching(double positive, double negative, bool allow_low_quality, bool own_best) {
  STD_TORCH_CHECK(0 <= negative && negative <= positive && positive <= 1,
                  "thresholds must satisfy 0 <= negative <= positive <= 1, got negative=", negative,
                  ", positive=", positive);
  STD_TORCH_CHECK(allow_low_quality || !own_best, "own_best needs allow_low_quality");
}

}  // namespace zoominnet
