// The anchors of a pyramid's levels on the CPU: coordinates for each row and each column, and the run of rows or columns
// whose anchors can touch a box. The number of anchors is H * W * K, that of stored coordinates (H + W) * K.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "boxes.h"
#include "lanes.h"

namespace zoominnet {

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// The extents of one base anchor's copies along x or y. `begin` and `end` do not decrease.
template <class T>
struct Axis {
  const T* begin;   // [n], px
  const T* end;     // [n], px
  const T* length;  // [n], px, 0 where it is not positive; eight more values may be read from each, and are not used
  int64_t n;        // 0 where the base anchor is not finite
  double base_begin, base_end, inverse_stride;

  // The copies that have a part in common with (box_begin, box_end), which are finite.
  ZOOMINNET_INLINE Range touching(T box_begin, T box_end) const {
    Range range{estimate((box_begin - base_end) * inverse_stride), estimate((box_end - base_begin) * inverse_stride)};
    // The estimates are off by no more than a few cells; coordinates are rounded, so only comparing them is exact.
    while (range.begin > 0 && end[range.begin - 1] > box_begin) {
      --range.begin;
    }
    while (range.begin < n && !(end[range.begin] > box_begin)) {
      ++range.begin;
    }
    while (range.end < n && begin[range.end] < box_end) {
      ++range.end;
    }
    while (range.end > range.begin && !(begin[range.end - 1] < box_end)) {
      --range.end;
    }
    return range;
  }

 private:
  ZOOMINNET_INLINE int64_t estimate(double cell) const {
    if (!(cell > 0)) {
      return 0;
    }
    return cell < static_cast<double>(n) ? static_cast<int64_t>(cell) : n;
  }
};

template <class T>
struct GridLevel {
  int64_t height, width;         // H, W
  std::vector<Axis<T>> xs, ys;  // [K]
};

template <class T>
class Grids {
 public:
  std::vector<GridLevel<T>> levels;

  Grids(const std::vector<Tensor>& base_anchors, const std::vector<double>& strides,
        const std::vector<int64_t>& shapes) {
    const size_t n = base_anchors.size();
    std::vector<std::vector<Box<T>>> bases(n);
    int64_t values = 0;
    for (size_t l = 0; l < n; ++l) {
      const int64_t k = base_anchors[l].size(0);
      bases[l].resize(k);
      read_boxes("base_anchors", base_anchors[l], 0, k, bases[l].data());
      values += checked_product(3 * k, shapes[2 * l] + shapes[2 * l + 1] + 2 * kLanes);
    }
    coordinates_.resize(values);
    T* free = coordinates_.data();
    for (size_t l = 0; l < n; ++l) {
      GridLevel<T> level{shapes[2 * l], shapes[2 * l + 1], {}, {}};
      for (const Box<T>& base : bases[l]) {
        level.ys.push_back(fill(base.y1, base.y2, strides[2 * l], level.height, free));
        level.xs.push_back(fill(base.x1, base.x2, strides[2 * l + 1], level.width, free));
      }
      levels.push_back(std::move(level));
    }
  }

 private:
  std::vector<T> coordinates_;

  static Axis<T> fill(T base_begin, T base_end, double stride, int64_t n, T*& free) {
    if (!std::isfinite(base_begin) || !std::isfinite(base_end) || !std::isfinite(static_cast<T>(stride))) {
      n = 0;
    }
    const int64_t pitch = n + kLanes;
    T* const begin = free;
    T* const end = begin + pitch;
    T* const length = end + pitch;
    free = length + pitch;
    for (int64_t i = 0; i < n; ++i) {
      const T shift = cell_shift<T>(i, stride);
      begin[i] = shift + base_begin;
      end[i] = shift + base_end;
      const T difference = end[i] - begin[i];
      length[i] = difference > 0 ? difference : 0;  // not NaN
    }
    return {begin, end, length, n, base_begin, base_end, 1 / stride};
  }
};

}  // namespace zoominnet
