#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../dense_cpu.h"
#include "../grid_cpu.h"
#include "max_iou_assign.h"

// Sizes: B images, L levels of H x W cells with K anchors each, A anchors in all, G boxes of one image. A slice is the
// anchors of one level and one k.
namespace zoominnet {
namespace {

// Integers of the size of T, so that comparing T gives a mask for them.
template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// For each anchor, the greatest IoU and its box, the first of equal ones.
template <class T>
ZOOMINNET_INLINE void keep_best(const Lanes<T>& iou, Index<T> box, T* best, Index<T>* best_box) {
  const Lanes<T> before = load_lanes(best);
  const auto better = iou > before;
  store_lanes<T>(best, better ? iou : before);
  store_lanes<Index<T>>(best_box, better ? broadcast(box) : load_lanes(best_box));
}

// One slice, in rows of W + 8 values.
template <class T>
struct Slice {
  const GridLevel<T>* level;
  int64_t k;
  int64_t first_anchor;  // of the level, among A
  T* best;               // [H, W + 8], greatest IoU of each anchor
  Index<T>* best_box;    // [H, W + 8], undefined where `best` is 0
  T* max_iou;            // [G], of each box with an anchor of this slice

  int64_t pitch() const { return level->width + kLanes; }
};

template <class T>
struct MatchSlice {
  static ZOOMINNET_INLINE void run(const Slice<T>& slice, const Box<T>* const& boxes, const int64_t& G) {
    const int64_t pitch = slice.pitch();
    std::fill(slice.best, slice.best + slice.level->height * pitch, T{0});
    for (int64_t g = 0; g < G; ++g) {
      Lanes<T> max_iou{};
      visit_cells(*slice.level, slice.k, boxes[g], {0, slice.level->height}, slice.level->width,
                  [&](int64_t i, int64_t j, const Lanes<T>& iou) __attribute__((always_inline)) {
                    const int64_t at = i * pitch + j;
                    keep_best(iou, static_cast<Index<T>>(g), slice.best + at, slice.best_box + at);
                    max_iou = iou > max_iou ? iou : max_iou;
                  });
      slice.max_iou[g] = max_of_lanes<T>(max_iou);
    }
  }
};

// Writes what one slice's anchors in some rows are assigned to. `assigned`, [A], holds kBelow there.
template <class T>
struct AssignSlice {
  static ZOOMINNET_INLINE void run(const Slice<T>& slice, const Box<T>* const& boxes, const std::vector<T>& best_of_box,
                                   const Thresholds<T>& thresholds, const Range& rows, int64_t* const& assigned) {
    const GridLevel<T>& level = *slice.level;
    const int64_t K = level.xs.size(), pitch = slice.pitch();
    const Lanes<T> negative = broadcast(thresholds.negative);
    int64_t* const first = assigned + slice.first_anchor + slice.k;
    const auto box_of = [&](int64_t at) { return slice.best[at] > 0 ? int64_t{slice.best_box[at]} : 0; };
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      for (int64_t j = 0; j < level.width; j += kLanes) {
        const int64_t at = i * pitch + j;
        if (any_lane(load_lanes(slice.best + at) >= negative)) {
          for (int64_t lane = 0; lane < std::min(kLanes, level.width - j); ++lane) {
            first[(i * level.width + j + lane) * K] = thresholds.decide(slice.best[at + lane], box_of(at + lane));
          }
        }
      }
    }
    // A box's best anchors keep the box that is best for them, which may be another box, or are its own. The last of
    // several boxes overwrites the others.
    for (size_t g = 0; thresholds.allow_low_quality && g < best_of_box.size(); ++g) {
      if (best_of_box[g] > 0 && slice.max_iou[g] == best_of_box[g]) {
        const Lanes<T> best = broadcast(best_of_box[g]);
        visit_cells(level, slice.k, boxes[g], rows, level.width,
                    [&](int64_t i, int64_t j, const Lanes<T>& iou) __attribute__((always_inline)) {
                      const auto keep = iou == best;
                      for (int64_t lane = 0; any_lane(keep) && lane < kLanes; ++lane) {
                        if (keep[lane]) {
                          first[(i * level.width + j + lane) * K] =
                              thresholds.own_best ? static_cast<int64_t>(g) : box_of(i * pitch + j + lane);
                        }
                      }
                    });
      }
    }
  }
};

template <class T>
void assign_grids(const std::vector<GridLevel<T>>& levels, const Box<T>* boxes, int64_t G,
                  const Thresholds<T>& thresholds, int64_t* assigned) {
  std::vector<Slice<T>> slices;
  int64_t values = 0, anchors = 0;
  for (const GridLevel<T>& level : levels) {
    for (size_t k = 0; k < level.xs.size(); ++k) {
      slices.push_back({&level, static_cast<int64_t>(k), anchors, nullptr, nullptr, nullptr});
      values += level.height * slices.back().pitch();
    }
    anchors += level.anchors();
  }
  const int64_t S = slices.size();
  const std::unique_ptr<T[]> best(new T[values]);
  const std::unique_ptr<Index<T>[]> best_box(new Index<T>[values]);
  std::vector<T> max_iou(S * G);  // [S, G]
  int64_t used = 0;
  for (int64_t s = 0; s < S; ++s) {
    slices[s].best = best.get() + used;
    slices[s].best_box = best_box.get() + used;
    slices[s].max_iou = max_iou.data() + s * G;
    used += slices[s].level->height * slices[s].pitch();
  }
  // The finest level has most of the work: neighbours in this order are of different levels.
  std::stable_sort(slices.begin(), slices.end(), [](const auto& a, const auto& b) { return a.k < b.k; });

  torch::stable::parallel_for(0, S, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      run_best<MatchSlice<T>>(slices[s], boxes, G);
    }
  });
  std::vector<T> best_of_box(G);
  for (const Slice<T>& slice : slices) {
    for (int64_t g = 0; g < G; ++g) {
      best_of_box[g] = std::max(best_of_box[g], slice.max_iou[g]);
    }
  }
  const int64_t bands = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      int64_t* level_assigned = assigned;
      const auto rows_of = [&](const GridLevel<T>& level) {
        return Range{level.height * band / bands, level.height * (band + 1) / bands};
      };
      for (const GridLevel<T>& level : levels) {
        const int64_t per_row = level.width * level.xs.size();
        std::fill(level_assigned + rows_of(level).begin * per_row, level_assigned + rows_of(level).end * per_row,
                  kBelow);
        level_assigned += level.anchors();
      }
      for (const Slice<T>& slice : slices) {
        run_best<AssignSlice<T>>(slice, boxes, best_of_box, thresholds, rows_of(*slice.level), assigned);
      }
    }
  });
}

// The best box of each anchor of a block, counted from `first_box`, and each near box's greatest IoU.
template <class T>
struct MatchBlock {
  static ZOOMINNET_INLINE void run(const AnchorBlock<T>& block, const std::vector<Box<T>>& boxes,
                                   const int64_t& first_box, std::vector<T>& best, std::vector<Index<T>>& best_box,
                                   T* const& max_iou) {
    for (const int64_t g : block.near) {
      Lanes<T> greatest{};
      for (int64_t v = 0; v < block.vectors(); ++v) {
        const Lanes<T> iou = block.iou_with(boxes[g], v);
        keep_best(iou, static_cast<Index<T>>(g - first_box), &best[v * kLanes], &best_box[v * kLanes]);
        greatest = iou > greatest ? iou : greatest;
      }
      max_iou[g] = std::max(max_iou[g], max_of_lanes<T>(greatest));
    }
  }
};

// Sets `forced` for the anchors of a block that reach a near box's greatest IoU. With `own_best`, they are `assigned`
// that box, counted from `first_box`, the last of several.
template <class T>
struct ForceInBlock {
  static ZOOMINNET_INLINE void run(const AnchorBlock<T>& block, const std::vector<Box<T>>& boxes,
                                   const std::vector<T>& best_of_box, const bool& own_best, const int64_t& first_box,
                                   std::vector<uint8_t>& forced, int64_t* const& assigned) {
    for (const int64_t g : block.near) {
      const Lanes<T> best = broadcast(best_of_box[g] > 0 ? best_of_box[g] : T{2});  // no IoU is 2
      for (int64_t v = 0; v < block.vectors(); ++v) {
        const auto reached = block.iou_with(boxes[g], v) == best;
        uint8_t* const to = &forced[v * kLanes];
        store_lanes<uint8_t>(to, load_lanes(to) | mask_bytes(reached));
        for (int64_t lane = 0; own_best && any_lane(reached) && lane < kLanes; ++lane) {
          if (reached[lane]) {
            assigned[v * kLanes + lane] = g - first_box;
          }
        }
      }
    }
  }
};

template <class T>
void assign_tensor(const DenseAnchors& anchors, const std::vector<Box<T>>& boxes, const std::vector<int64_t>& first_box,
                   const Thresholds<T>& thresholds, int64_t* assigned) {
  const int64_t A = anchors.cells, B = first_box.size() - 1, G = boxes.size();
  const int64_t step = cells_per_block(1), blocks = (A + step - 1) / step;
  const int64_t parts = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  const std::unique_ptr<T[]> best(new T[B * A]);  // [B, A]
  std::vector<T> maxima(parts * G);               // [parts, G]
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    AnchorBlock<T> block(step);
    std::vector<T> block_best(step);
    std::vector<Index<T>> block_box(step);
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t n = blocks * part / parts; n < blocks * (part + 1) / parts; ++n) {
        const Range range{n * step, std::min((n + 1) * step, A)};
        anchors.read(range, block);
        for (int64_t b = 0; b < B; ++b) {
          block.find_near(boxes, first_box[b], first_box[b + 1]);
          std::fill(block_best.begin(), block_best.end(), T{0});
          std::fill(block_box.begin(), block_box.end(), 0);
          run_best<MatchBlock<T>>(block, boxes, first_box[b], block_best, block_box, maxima.data() + part * G);
          std::copy_n(block_best.begin(), range.end - range.begin, best.get() + b * A + range.begin);
          std::copy_n(block_box.begin(), range.end - range.begin, assigned + b * A + range.begin);
        }
      }
    }
  });
  std::vector<T> best_of_box(G);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t g = 0; g < G; ++g) {
      best_of_box[g] = std::max(best_of_box[g], maxima[part * G + g]);
    }
  }
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    AnchorBlock<T> block(step);
    std::vector<uint8_t> forced(step);
    for (int64_t n = begin; n < end; ++n) {
      const Range range{n * step, std::min((n + 1) * step, A)};
      if (thresholds.allow_low_quality) {
        anchors.read(range, block);
      }
      for (int64_t b = 0; b < B; ++b) {
        std::fill(forced.begin(), forced.end(), 0);
        if (thresholds.allow_low_quality) {
          block.find_near(boxes, first_box[b], first_box[b + 1]);
          run_best<ForceInBlock<T>>(block, boxes, best_of_box, thresholds.own_best, first_box[b], forced,
                                    assigned + b * A + range.begin);
        }
        for (int64_t a = range.begin; a < range.end; ++a) {
          int64_t& box = assigned[b * A + a];
          if (first_box[b] == first_box[b + 1]) {
            box = kBelow;
          } else if (!forced[a - range.begin]) {
            box = thresholds.decide(best[b * A + a], box);
          }
        }
      }
    }
  });
}

// Of the boxes of all images: the first of each image, and the total number.
std::vector<int64_t> starts(const std::vector<int64_t>& counts) {
  std::vector<int64_t> first{0};
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "an image must have less than 2^31 boxes");
    first.push_back(first.back() + count);
  }
  return first;
}

template <class T>
Tensor max_iou_assign_of_grids(const Tensor& boxes_tensor, const std::vector<int64_t>& counts, const Grids<T>& grids,
                               const Thresholds<T>& thresholds) {
  const std::vector<Box<T>> boxes = read_sanitized_boxes<T>(boxes_tensor);
  const std::vector<int64_t> first_box = starts(counts);
  const int64_t B = counts.size();
  int64_t A = 0;
  for (const GridLevel<T>& level : grids.levels) {
    A += level.anchors();
  }
  checked_product(B, A);
  Tensor assigned = torch::stable::new_empty(boxes_tensor, {B, A}, ScalarType::Long);
  int64_t* const data = static_cast<int64_t*>(assigned.mutable_data_ptr());
  const auto assign_images = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (counts[b] == 0) {
        std::fill(data + b * A, data + (b + 1) * A, kBelow);
      } else {
        assign_grids(grids.levels, boxes.data() + first_box[b], counts[b], thresholds, data + b * A);
      }
    }
  };
  if (B < torch::stable::get_num_threads()) {
    assign_images(0, B);  // whose parts are done in parallel
  } else {
    torch::stable::parallel_for(0, B, 1, assign_images);
  }
  return assigned;
}

template <class T>
Tensor max_iou_assign_of_tensor(const Tensor& boxes_tensor, const std::vector<int64_t>& counts,
                                const DenseAnchors& anchors, const Thresholds<T>& thresholds) {
  const std::vector<Box<T>> boxes = read_sanitized_boxes<T>(boxes_tensor);
  const int64_t B = counts.size(), A = anchors.cells;
  checked_product(B, A);
  Tensor assigned = torch::stable::new_empty(boxes_tensor, {B, A}, ScalarType::Long);
  assign_tensor(anchors, boxes, starts(counts), thresholds, static_cast<int64_t*>(assigned.mutable_data_ptr()));
  return assigned;
}

Tensor max_iou_assign_cpu(const Tensor& boxes, std::vector<int64_t> counts, std::vector<Tensor> base_anchors,
                          std::vector<double> strides, std::vector<int64_t> shapes, double positive, double negative,
                          bool allow_low_quality, bool own_best) {
  check_boxes(boxes, counts);
  check_grids(base_anchors, strides, shapes);
  check_matching(positive, negative, allow_low_quality, own_best);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    return max_iou_assign_of_grids<T>(
        boxes, counts, Grids<T>(base_anchors, strides, shapes),
        {static_cast<T>(positive), static_cast<T>(negative), allow_low_quality, own_best});
  };
  return needs_double(boxes, base_anchors) ? run(double{}) : run(float{});
}

Tensor max_iou_assign_dense_cpu(const Tensor& boxes, std::vector<int64_t> counts, const Tensor& anchors,
                                double positive, double negative, bool allow_low_quality, bool own_best) {
  check_boxes(boxes, counts);
  check_matching(positive, negative, allow_low_quality, own_best);
  STD_TORCH_CHECK(anchors.dim() == 2, "anchors must have 2 dimensions, got ", anchors.dim());
  const DenseAnchors dense(anchors);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    return max_iou_assign_of_tensor<T>(
        boxes, counts, dense, {static_cast<T>(positive), static_cast<T>(negative), allow_low_quality, own_best});
  };
  return needs_double(boxes, {anchors}) ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) {
  m.impl("max_iou_assign_native", TORCH_BOX(&zoominnet::max_iou_assign_cpu));
  m.impl("max_iou_assign_dense_native", TORCH_BOX(&zoominnet::max_iou_assign_dense_cpu));
}
