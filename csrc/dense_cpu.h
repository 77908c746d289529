// The anchors of a plain tensor on the CPU, a block after the other, so that nothing of size anchors x boxes is stored.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "boxes.h"
#include "lanes.h"

namespace zoominnet {

constexpr int64_t kAnchorsPerBlock = 128;

// How many cells of K anchors make a block.
inline int64_t cells_per_block(int64_t K) { return std::max<int64_t>(kAnchorsPerBlock / std::max<int64_t>(K, 1), 1); }

// A run of anchors, sanitized and each coordinate by itself, with the boxes that can touch one of them.
template <class T>
class AnchorBlock {
 public:
  std::vector<int64_t> near;  // ascending indices of boxes

  explicit AnchorBlock(int64_t capacity) : pitch_((capacity + kLanes - 1) / kLanes * kLanes), values_(5 * pitch_) {}

  int64_t vectors() const { return (count_ + kLanes - 1) / kLanes; }

  void clear() {
    count_ = 0;
    std::fill(values_.begin(), values_.end(), T{});
    constexpr T infinity = std::numeric_limits<T>::infinity();
    hull_ = {infinity, infinity, -infinity, -infinity};
  }

  void push_back(const Box<T>& anchor) {
    const Box<T> a = sanitize(anchor);
    T* const to = values_.data() + count_++;
    to[0] = a.x1;
    to[pitch_] = a.y1;
    to[2 * pitch_] = a.x2;
    to[3 * pitch_] = a.y2;
    to[4 * pitch_] = area(a);
    if (a.x1 < a.x2) {
      hull_ = {std::min(hull_.x1, a.x1), std::min(hull_.y1, a.y1), std::max(hull_.x2, a.x2), std::max(hull_.y2, a.y2)};
    }
  }

  // Fills `near` with those of boxes [begin, end) that reach into the hull of the anchors; no other has an IoU above 0.
  void find_near(const std::vector<Box<T>>& boxes, int64_t begin, int64_t end) {
    near.clear();
    for (int64_t g = begin; g < end; ++g) {
      const Box<T>& box = boxes[g];
      if (box.x1 < hull_.x2 && box.x2 > hull_.x1 && box.y1 < hull_.y2 && box.y2 > hull_.y1) {
        near.push_back(g);
      }
    }
  }

  // Of anchors 8v to 8v + 7; 0 for those past the last.
  ZOOMINNET_INLINE Lanes<T> iou_with(const Box<T>& box, int64_t v) const {
    const T* const from = values_.data() + v * kLanes;
    const Lanes<T> width =
        overlap(load_lanes(from), load_lanes(from + 2 * pitch_), broadcast(box.x1), broadcast(box.x2));
    const Lanes<T> height =
        overlap(load_lanes(from + pitch_), load_lanes(from + 3 * pitch_), broadcast(box.y1), broadcast(box.y2));
    return iou(width * height, load_lanes(from + 4 * pitch_), broadcast(area(box)));
  }

 private:
  int64_t pitch_, count_ = 0;
  std::vector<T> values_;
  Box<T> hull_;
};

// The anchors of a CPU tensor [H, W, K, 4], or [A, 4] with A cells of one, of any strides.
class DenseAnchors {
 public:
  int64_t cells, anchors_per_cell;

  explicit DenseAnchors(const Tensor& anchors) : data_(anchors.const_data_ptr()), dtype_(anchors.scalar_type()) {
    check_on_cpu("anchors", anchors);
    check_strided("anchors", anchors, anchors.dim() == 2 ? 2 : 4);
    check_size("anchors", anchors, anchors.dim() - 1, 4);
    dispatch_floating("anchors", dtype_, [](auto) {});
    const auto strides = anchors.strides();
    coordinate_stride_ = strides[strides.size() - 1];
    if (anchors.dim() == 2) {
      cells = width_ = anchors.size(0);
      anchors_per_cell = 1;
      column_stride_ = strides[0];
    } else {
      width_ = anchors.size(1);
      cells = anchors.size(0) * width_;
      anchors_per_cell = anchors.size(2);
      row_stride_ = strides[0];
      column_stride_ = strides[1];
      anchor_stride_ = strides[2];
    }
  }

  // Puts the anchors of some cells, counted in row order, into a block.
  template <class T>
  void read(Range range, AnchorBlock<T>& block) const {
    block.clear();
    if (range.empty()) {
      return;
    }
    dispatch_floating("anchors", dtype_, [&](auto tag) {
      const auto* data = static_cast<const decltype(tag)*>(data_);
      int64_t row = range.begin / width_, column = range.begin % width_;
      for (int64_t cell = range.begin; cell < range.end; ++cell) {
        for (int64_t k = 0; k < anchors_per_cell; ++k) {
          const auto* a = data + row * row_stride_ + column * column_stride_ + k * anchor_stride_;
          block.push_back({static_cast<T>(a[0]), static_cast<T>(a[coordinate_stride_]),
                           static_cast<T>(a[2 * coordinate_stride_]), static_cast<T>(a[3 * coordinate_stride_])});
        }
        if (++column == width_) {
          column = 0;
          ++row;
        }
      }
    });
  }

 private:
  const void* data_;
  ScalarType dtype_;
  int64_t width_, row_stride_ = 0, column_stride_ = 0, anchor_stride_ = 0, coordinate_stride_ = 0;
};

}  // namespace zoominnet
