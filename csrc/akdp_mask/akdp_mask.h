// The lambda of the AKDP mask, for CPU and CUDA; see kernels/akdp_mask/reference.py.
#pragma once

#include <cmath>

#include "../common.h"
#include "../iou.h"

namespace zoominnet {

enum AkdpMode : int64_t { kAdaptive = 0, kAdaptiveNonzero = 1, kFactor = 2 };

inline void check_mode(int64_t mode, double factor) {
  STD_TORCH_CHECK(mode == kAdaptive || mode == kAdaptiveNonzero || mode == kFactor, "mode must be 0, 1 or 2, got ",
                  mode);
  STD_TORCH_CHECK(mode != kFactor || factor >= 0, "factor must not be negative, got ", factor);
}

// Of the pairs of an anchor and a box, those without overlap included in `pairs` alone.
struct PairSums {
  double pairs, overlapping, sum, sum_of_squares;
};

ZOOMINNET_HOST_DEVICE double akdp_lambda(const PairSums& sums, int64_t mode, double factor) {
  if (mode == kFactor) {
    return factor;
  }
  const double n = mode == kAdaptiveNonzero ? sums.overlapping : sums.pairs;
  const double mean = sums.sum / (n > 1 ? n : 1);
  const double spread = sums.sum_of_squares - sums.sum * mean;
  return mean + std::sqrt((spread > 0 ? spread : 0) / (n - 1 > 1 ? n - 1 : 1));
}

// A cell is selected where an IoU is greater than this.
template <class T>
ZOOMINNET_HOST_DEVICE T akdp_threshold(double lambda, T max_iou) {
  return static_cast<T>(lambda * static_cast<double>(max_iou));
}

}  // namespace zoominnet
