#include <algorithm>
#include <tuple>
#include <vector>

#include "../dense_cpu.h"
#include "../grid_cpu.h"
#include "akdp_mask.h"

// Sizes: B images, L levels of H x W cells with K anchors each, G boxes of all images.
namespace zoominnet {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // mask, lambda, greatest IoU of each box

// Of the pairs of one box, or of one block of anchors, that are visited.
template <class T>
struct VisitedSums {
  double overlapping, sum, sum_of_squares;
  T max_iou;
};

template <class T>
class LaneSums {
 public:
  ZOOMINNET_INLINE void add(const Lanes<T>& iou) {
    const Lanes<double> wide = convert_lanes<double>(iou);
    sum_ += wide;
    sum_of_squares_ += wide * wide;
    overlapping_ -= iou > Lanes<T>{};  // true is -1
    max_iou_ = iou > max_iou_ ? iou : max_iou_;
  }

  ZOOMINNET_INLINE VisitedSums<T> total() const {
    return {sum_of_lanes(convert_lanes<double>(overlapping_)), sum_of_lanes(sum_), sum_of_lanes(sum_of_squares_),
            max_of_lanes<T>(max_iou_)};
  }

 private:
  Lanes<double> sum_{}, sum_of_squares_{};
  Lanes<T> max_iou_{};
  LaneMask<T> overlapping_{};
};

// The sums of all the pairs of one box and one level.
template <class T>
struct SumOverGrid {
  static ZOOMINNET_INLINE void run(const GridLevel<T>& level, const Box<T>& box, VisitedSums<T>& result) {
    LaneSums<T> sums;
    for (size_t k = 0; k < level.xs.size(); ++k) {
      visit_cells(level, k, box, {0, level.height}, level.width,
                  [&](int64_t, int64_t, const Lanes<T>& iou) __attribute__((always_inline)) { sums.add(iou); });
    }
    result = sums.total();
  }
};

// Sets the cells of `mask`, uint8[H, W], that one box selects in some rows.
template <class T>
struct SelectInGrid {
  static ZOOMINNET_INLINE void run(const GridLevel<T>& level, const Box<T>& box, const T& threshold, const Range& rows,
                                   uint8_t* const& mask) {
    // Cells may be visited twice, but no group of eight reaches past its row, where another thread writes.
    const int64_t width = level.width, last = std::max<int64_t>(width - kLanes, 0);
    const Lanes<T> limit = broadcast(threshold);
    for (size_t k = 0; k < level.xs.size(); ++k) {
      visit_cells(level, k, box, rows, last,
                  [&](int64_t i, int64_t j, const Lanes<T>& iou) __attribute__((always_inline)) {
                    const Lanes<uint8_t> selected = mask_bytes(iou > limit);
                    uint8_t* const cells = mask + i * width + j;
                    if (width >= kLanes) {
                      store_lanes<uint8_t>(cells, load_lanes(cells) | selected);
                    } else {
                      for (int64_t lane = 0; lane < width; ++lane) {
                        cells[lane] |= selected[lane];
                      }
                    }
                  });
    }
  }
};

// What both forms share: the outputs, and the lambdas from the sums.
template <class T>
class Result {
 public:
  const int64_t images, levels, boxes;
  std::vector<int64_t> first_box;  // [B + 1]
  Tensor mask, lambda, max_iou;

  Result(const Tensor& like, const std::vector<int64_t>& counts, int64_t levels_, int64_t cells)
      : images(counts.size()),
        levels(levels_),
        boxes(like.size(0)),
        mask(torch::stable::new_empty(like, {checked_product(images, cells)}, ScalarType::Bool)),
        lambda(torch::stable::new_empty(like, {levels, images}, ScalarType::Double)),
        max_iou(torch::stable::new_empty(like, {levels, boxes},
                                         std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float)) {
    first_box.push_back(0);
    for (const int64_t count : counts) {
      first_box.push_back(first_box.back() + count);
    }
  }

  uint8_t* mask_data() const { return static_cast<uint8_t*>(mask.mutable_data_ptr()); }
  double* lambda_data() const { return static_cast<double*>(lambda.mutable_data_ptr()); }
  T* max_iou_data() const { return static_cast<T*>(max_iou.mutable_data_ptr()); }
  Outputs outputs() const { return {mask, lambda, max_iou}; }
};

template <class T>
Outputs akdp_mask_of_grids(const Tensor& boxes_tensor, const std::vector<int64_t>& counts, const Grids<T>& grids,
                           int64_t mode, double factor, bool all_levels) {
  const std::vector<GridLevel<T>>& levels = grids.levels;
  const std::vector<Box<T>> boxes = read_sanitized_boxes<T>(boxes_tensor);
  int64_t cells = 0;
  for (const GridLevel<T>& level : levels) {
    cells += level.cells();
  }
  const Result<T> result(boxes_tensor, counts, levels.size(), cells);
  const int64_t L = result.levels, G = result.boxes, B = result.images;

  std::vector<VisitedSums<T>> sums(G * L);  // [G, L]
  torch::stable::parallel_for(0, G, 8, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t l = 0; l < L; ++l) {
        run_best<SumOverGrid<T>>(levels[l], boxes[g], sums[g * L + l]);
      }
    }
  });

  double* const lambda = result.lambda_data();
  T* const max_iou = result.max_iou_data();
  for (int64_t b = 0; b < B; ++b) {
    PairSums total{};
    for (int64_t l = 0; l < L; ++l) {
      if (!all_levels) {
        total = {};
      }
      total.pairs += static_cast<double>(levels[l].anchors()) * counts[b];
      for (int64_t g = result.first_box[b]; g < result.first_box[b + 1]; ++g) {
        const VisitedSums<T>& of_box = sums[g * L + l];
        total.overlapping += of_box.overlapping;
        total.sum += of_box.sum;
        total.sum_of_squares += of_box.sum_of_squares;
        max_iou[l * G + g] = of_box.max_iou;
      }
      lambda[l * B + b] = akdp_lambda(total, mode, factor);
    }
    if (all_levels) {
      for (int64_t l = 0; l < L; ++l) {
        lambda[l * B + b] = lambda[(L - 1) * B + b];
      }
    }
  }
  if (all_levels) {
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t l = 1; l < L; ++l) {
        max_iou[g] = std::max(max_iou[g], max_iou[l * G + g]);
      }
      for (int64_t l = 1; l < L; ++l) {
        max_iou[l * G + g] = max_iou[g];
      }
    }
  }

  // Each image is one piece of work, or several bands of rows where there are fewer images than threads.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t bands = std::max<int64_t>(threads / std::max<int64_t>(B, 1), 1);
  const int64_t grain = G < 16 ? B * bands : 1;
  uint8_t* const mask = result.mask_data();
  torch::stable::parallel_for(0, B * bands, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    for (int64_t work = begin; work < end; ++work) {
      const int64_t b = work / bands, band = work % bands;
      uint8_t* level_mask = mask;
      for (int64_t l = 0; l < L; ++l) {
        const GridLevel<T>& level = levels[l];
        uint8_t* const image_mask = level_mask + b * level.cells();
        const Range rows{level.height * band / bands, level.height * (band + 1) / bands};
        std::fill(image_mask + rows.begin * level.width, image_mask + rows.end * level.width, 0);
        for (int64_t g = result.first_box[b]; g < result.first_box[b + 1]; ++g) {
          const T best = max_iou[l * G + g];
          if (best > 0) {
            run_best<SelectInGrid<T>>(level, boxes[g], akdp_threshold(lambda[l * B + b], best), rows, image_mask);
          }
        }
        level_mask += B * level.cells();
      }
    }
  });
  return result.outputs();
}

Outputs akdp_mask_cpu(const Tensor& boxes, std::vector<int64_t> counts, std::vector<Tensor> base_anchors,
                      std::vector<double> strides, std::vector<int64_t> shapes, int64_t mode, double factor,
                      bool all_levels) {
  check_boxes(boxes, counts);
  check_grids(base_anchors, strides, shapes);
  check_mode(mode, factor);
  if (needs_double(boxes, base_anchors)) {
    return akdp_mask_of_grids(boxes, counts, Grids<double>(base_anchors, strides, shapes), mode, factor, all_levels);
  }
  return akdp_mask_of_grids(boxes, counts, Grids<float>(base_anchors, strides, shapes), mode, factor, all_levels);
}

// Sums over a block of anchors and the boxes near it, and raises each of these boxes' greatest IoU.
template <class T>
struct SumOverBlock {
  static ZOOMINNET_INLINE void run(const AnchorBlock<T>& block, const std::vector<Box<T>>& boxes, T* const& max_iou,
                                   VisitedSums<T>& result) {
    LaneSums<T> sums;
    for (const int64_t g : block.near) {
      Lanes<T> best{};
      for (int64_t v = 0; v < block.vectors(); ++v) {
        const Lanes<T> iou = block.iou_with(boxes[g], v);
        sums.add(iou);
        best = iou > best ? iou : best;
      }
      max_iou[g] = std::max(max_iou[g], max_of_lanes<T>(best));
    }
    result = sums.total();
  }
};

// Sets those of `selected`, one byte an anchor, that a box near the block selects.
template <class T>
struct SelectInBlock {
  static ZOOMINNET_INLINE void run(const AnchorBlock<T>& block, const std::vector<Box<T>>& boxes,
                                   const std::vector<T>& thresholds, std::vector<uint8_t>& selected) {
    for (const int64_t g : block.near) {
      const Lanes<T> limit = broadcast(thresholds[g]);
      for (int64_t v = 0; v < block.vectors(); ++v) {
        uint8_t* const to = selected.data() + v * kLanes;
        store_lanes<uint8_t>(to, load_lanes(to) | mask_bytes(block.iou_with(boxes[g], v) > limit));
      }
    }
  }
};

template <class T>
Outputs akdp_mask_of_tensor(const Tensor& boxes_tensor, const std::vector<int64_t>& counts, const DenseAnchors& anchors,
                            int64_t mode, double factor) {
  const std::vector<Box<T>> boxes = read_sanitized_boxes<T>(boxes_tensor);
  const Result<T> result(boxes_tensor, counts, 1, anchors.cells);
  const int64_t G = result.boxes, B = result.images, K = anchors.anchors_per_cell, cells = anchors.cells;
  const int64_t step = cells_per_block(K), blocks = (cells + step - 1) / step;

  // One array of maxima a thread; the sums are kept a block by itself, so that their order is fixed.
  const int64_t parts = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  std::vector<VisitedSums<T>> sums(B * blocks);  // [B, blocks]
  std::vector<T> maxima(parts * G);              // [parts, G]
  const auto cells_of = [&](int64_t block) { return Range{block * step, std::min((block + 1) * step, cells)}; };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    AnchorBlock<T> block(step * K);
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t n = blocks * part / parts; n < blocks * (part + 1) / parts; ++n) {
        anchors.read(cells_of(n), block);
        for (int64_t b = 0; b < B; ++b) {
          block.find_near(boxes, result.first_box[b], result.first_box[b + 1]);
          run_best<SumOverBlock<T>>(block, boxes, maxima.data() + part * G, sums[b * blocks + n]);
        }
      }
    }
  });

  T* const max_iou = result.max_iou_data();
  double* const lambda = result.lambda_data();
  std::vector<T> thresholds(G);
  std::fill(max_iou, max_iou + G, T{0});
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t g = 0; g < G; ++g) {
      max_iou[g] = std::max(max_iou[g], maxima[part * G + g]);
    }
  }
  for (int64_t b = 0; b < B; ++b) {
    PairSums total{static_cast<double>(cells * K) * counts[b], 0, 0, 0};
    for (int64_t n = 0; n < blocks; ++n) {
      const VisitedSums<T>& of_block = sums[b * blocks + n];
      total.overlapping += of_block.overlapping;
      total.sum += of_block.sum;
      total.sum_of_squares += of_block.sum_of_squares;
    }
    lambda[b] = akdp_lambda(total, mode, factor);
    for (int64_t g = result.first_box[b]; g < result.first_box[b + 1]; ++g) {
      thresholds[g] = akdp_threshold(lambda[b], max_iou[g]);
    }
  }

  uint8_t* const mask = result.mask_data();
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    AnchorBlock<T> block(step * K);
    std::vector<uint8_t> selected;
    for (int64_t n = begin; n < end; ++n) {
      const Range range = cells_of(n);
      anchors.read(range, block);
      for (int64_t b = 0; b < B; ++b) {
        block.find_near(boxes, result.first_box[b], result.first_box[b + 1]);
        selected.assign(block.vectors() * kLanes, 0);
        run_best<SelectInBlock<T>>(block, boxes, thresholds, selected);
        for (int64_t cell = range.begin; cell < range.end; ++cell) {
          const uint8_t* const of_cell = selected.data() + (cell - range.begin) * K;
          mask[b * cells + cell] = std::any_of(of_cell, of_cell + K, [](uint8_t s) { return s != 0; });
        }
      }
    }
  });
  return result.outputs();
}

Outputs akdp_mask_dense_cpu(const Tensor& boxes, std::vector<int64_t> counts, const Tensor& anchors, int64_t mode,
                            double factor) {
  check_boxes(boxes, counts);
  check_mode(mode, factor);
  STD_TORCH_CHECK(anchors.dim() == 4, "anchors must have 4 dimensions, got ", anchors.dim());
  const DenseAnchors dense(anchors);
  return needs_double(boxes, {anchors}) ? akdp_mask_of_tensor<double>(boxes, counts, dense, mode, factor)
                                        : akdp_mask_of_tensor<float>(boxes, counts, dense, mode, factor);
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) {
  m.impl("akdp_mask_native", TORCH_BOX(&zoominnet::akdp_mask_cpu));
  m.impl("akdp_mask_dense_native", TORCH_BOX(&zoominnet::akdp_mask_dense_cpu));
}
