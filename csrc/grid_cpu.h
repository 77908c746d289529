// The anchors of a pyramid's levels on the CPU: coordinates for each row and each column, and the run of rows or
// columns whose anchors can touch a box. There are H * W * K anchors, but only (H + W) * K coordinates.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "boxes.h"
#include "lanes.h"

namespace zoominnet {

// The extents of one base anchor's copies along x or y. Neither `begin` nor `end` decreases. Eight values more than `n`
// can be read from each array; they touch no box.
template <class T>
struct Axis {
  const T* begin;   // [n], px
  const T* end;     // [n], px
  const T* length;  // [n], px, 0 where it is not positive
  int64_t n;        // 0 where the base anchor is not finite
  double base_begin, base_end, inverse_stride;

  // The copies that have a part in common with a finite interval.
  ZOOMINNET_INLINE Range touching(T box_begin, T box_end) const {
    // Coordinates are rounded, so the run's ends are estimated, then moved to where the coordinates say.
    Range range{cell((box_begin - base_end) * inverse_stride), cell((box_end - base_begin) * inverse_stride)};
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
  ZOOMINNET_INLINE int64_t cell(double position) const {
    if (!(position > 0)) {  // NaN too
      return 0;
    }
    return position < static_cast<double>(n) ? static_cast<int64_t>(position) : n;
  }
};

template <class T>
struct GridLevel {
  int64_t height = 0, width = 0;  // H, W; both 0 for a level without cells
  std::vector<Axis<T>> xs, ys;    // [K]

  int64_t cells() const { return height * width; }
  int64_t anchors() const { return cells() * static_cast<int64_t>(xs.size()); }
};

template <class T>
class Grids {
 public:
  std::vector<GridLevel<T>> levels;

  Grids(const std::vector<Tensor>& base_anchors, const std::vector<double>& strides,
        const std::vector<int64_t>& shapes) {
    std::vector<std::vector<Box<T>>> bases;
    int64_t size = 0;
    for (size_t l = 0; l < base_anchors.size(); ++l) {
      const int64_t k = base_anchors[l].size(0);
      bases.emplace_back(k);
      read_boxes("base_anchors", base_anchors[l], bases.back().data());
      GridLevel<T>& level = levels.emplace_back();
      checked_product(checked_product(shapes[2 * l], shapes[2 * l + 1]), k);
      if (shapes[2 * l] > 0 && shapes[2 * l + 1] > 0) {
        level.height = shapes[2 * l];
        level.width = shapes[2 * l + 1];
      }
      size += 3 * k * (level.height + level.width + 2 * kLanes);
    }
    coordinates_.resize(size);
    T* free = coordinates_.data();
    for (size_t l = 0; l < bases.size(); ++l) {
      GridLevel<T>& level = levels[l];
      for (const Box<T>& base : bases[l]) {
        level.ys.push_back(place(base.y1, base.y2, strides[2 * l], level.height, free));
        level.xs.push_back(place(base.x1, base.x2, strides[2 * l + 1], level.width, free));
      }
    }
  }

 private:
  std::vector<T> coordinates_;

  static Axis<T> place(T base_begin, T base_end, double stride, int64_t n, T*& free) {
    if (!std::isfinite(base_begin) || !std::isfinite(base_end) || !std::isfinite(static_cast<T>(stride))) {
      n = 0;
    }
    T* const begin = std::exchange(free, free + n + kLanes);
    T* const end = std::exchange(free, free + n + kLanes);
    T* const length = std::exchange(free, free + n + kLanes);
    for (int64_t i = 0; i < n; ++i) {
      const T shift = cell_shift<T>(i, stride);
      begin[i] = shift + base_begin;
      end[i] = shift + base_end;
      length[i] = end[i] - begin[i] > 0 ? end[i] - begin[i] : 0;  // not NaN, which both ends infinite would give
    }
    return {begin, end, length, n, base_begin, base_end, 1 / stride};
  }
};

// Calls `visit(i, j, iou)` for the cells in rows [rows.begin, rows.end) whose anchor k can touch the box: row i,
// columns j to j + 7, and the IoU of the box with their anchors, which is 0 past the last column. No j is greater than
// `last`.
template <class T, class Visit>
ZOOMINNET_INLINE void visit_cells(const GridLevel<T>& level, size_t k, const Box<T>& box, Range rows, int64_t last,
                                  const Visit& visit) {
  const Axis<T>&x = level.xs[k], &y = level.ys[k];
  const Range touching = y.touching(box.y1, box.y2);
  rows = {std::max(rows.begin, touching.begin), std::min(rows.end, touching.end)};
  if (rows.empty()) {
    return;
  }
  const Range columns = x.touching(box.x1, box.x2);
  const Lanes<T> box_x1 = broadcast(box.x1), box_x2 = broadcast(box.x2), box_area = broadcast(area(box));
  for (int64_t start = columns.begin; start < columns.end; start += kLanes) {
    const int64_t j = std::min(start, last);
    const Lanes<T> width = overlap(load_lanes(x.begin + j), load_lanes(x.end + j), box_x1, box_x2);
    const Lanes<T> anchor_width = load_lanes(x.length + j);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const T height = overlap(y.begin[i], y.end[i], box.y1, box.y2);
      visit(i, j, iou(width * height, anchor_width * y.length[i], box_area));
    }
  }
}

}  // namespace zoominnet
