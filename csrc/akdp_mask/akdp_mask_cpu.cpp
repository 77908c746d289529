#include "akdp_mask.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "../grid_cpu.h"

namespace zoominnet {
namespace {

// Of one box and one level's anchors.
template <class T>
struct BoxSums {
  double overlapping, sum, sum_of_squares;
  T max_iou;
};

// Calls `visit(i, j, iou)` for the cells of one level that can touch the box: row i, columns j .. j + 7, and the IoU of
// the box with one of their anchors, which is 0 beyond the last column.
template <class T, class Visit>
ZOOMINNET_INLINE void visit_cells(const GridLevel<T>& level, const Box<T>& box, const Visit& visit) {
  const Lanes<T> box_x1 = broadcast(box.x1), box_x2 = broadcast(box.x2), box_area = broadcast(area(box));
  for (size_t k = 0; k < level.xs.size(); ++k) {
    const Axis<T>&x = level.xs[k], &y = level.ys[k];
    const Range rows = y.touching(box.y1, box.y2);
    if (rows.empty()) {
      continue;
    }
    const Range columns = x.touching(box.x1, box.x2);
    for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
      const Lanes<T> width = overlap(load_lanes(x.begin + j), load_lanes(x.end + j), box_x1, box_x2);
      const Lanes<T> anchor_width = load_lanes(x.length + j);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const T height = overlap(y.begin[i], y.end[i], box.y1, box.y2);
        visit(i, j, iou(width * height, anchor_width * y.length[i], box_area));
      }
    }
  }
}

template <class T>
struct MeasureBox {
  static ZOOMINNET_INLINE void run(const GridLevel<T>& level, const Box<T>& box, BoxSums<T>& sums) {
    Lanes<double> sum{}, squares{};
    Lanes<T> best{};
    decltype(best > best) overlapping{};
    visit_cells(level, box, [&](int64_t, int64_t, const Lanes<T>& iou) __attribute__((always_inline)) {
      const Lanes<double> wide = convert_lanes<double>(iou);
      sum += wide;
      squares += wide * wide;
      best = iou > best ? iou : best;
      overlapping -= iou > Lanes<T>{};  // true is -1
    });
    sums = {sum_of_lanes(convert_lanes<double>(overlapping)), sum_of_lanes(sum), sum_of_lanes(squares), max_of_lanes<T>(best)};
  }
};

// Sets the cells of `mask`, whose rows have eight bytes more than the level has columns.
template <class T>
struct SelectCells {
  static ZOOMINNET_INLINE void run(const GridLevel<T>& level, const Box<T>& box, const T& threshold, uint8_t* mask) {
    const Lanes<T> limit = broadcast(threshold);
    const int64_t pitch = level.width + kLanes;
    visit_cells(level, box, [&](int64_t i, int64_t j, const Lanes<T>& iou) __attribute__((always_inline)) {
      uint8_t* const cells = mask + i * pitch + j;
      const Lanes<uint8_t> selected = load_lanes(cells) | (convert_lanes<uint8_t>(iou > limit) & 1);
      store_lanes(cells, selected);
    });
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_grid(const Tensor& boxes_, const std::vector<int64_t>& counts,
                                            const std::vector<Tensor>& base_anchors,
                                            const std::vector<double>& strides, const std::vector<int64_t>& shapes,
                                            int64_t mode, double factor, bool all_levels, ScalarType dtype) {
  const Grids<T> grids(base_anchors, strides, shapes);
  const std::vector<Box<T>> boxes = read_sanitized_boxes<T>(boxes_);
  const int64_t L = grids.levels.size(), B = counts.size(), G = boxes.size();
  int64_t cells = 0;
  for(auto&l: grids.levels) cells += l.height*l.width;
  Tensor mask = torch::stable::new_empty(boxes_, {B * cells}, ScalarType::Bool);
  Tensor lam = torch::stable::new_empty(boxes_, {L, B}, ScalarType::Double);
  Tensor max_iou = torch::stable::new_empty(boxes_, {L, G}, dtype);
  std::vector<BoxSums<T>> sums(L * G);
  torch::stable::parallel_for(0, G, 8, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g)
      for (int64_t l = 0; l < L; ++l) run_best<MeasureBox<T>>(grids.levels[l], boxes[g], sums[g * L + l]);
  });
  double* lp = static_cast<double*>(lam.mutable_data_ptr());
  T* mp = static_cast<T*>(max_iou.mutable_data_ptr());
  int64_t g0=0;
  for (int64_t b=0;b<B;++b){
    for(int64_t l=0;l<L;++l){
      PairSums p{}; 
      p.pairs = double(grids.levels[l].height*grids.levels[l].width*grids.levels[l].xs.size()*counts[b]);
      for(int64_t g=g0;g<g0+counts[b];++g){auto&s=sums[g*L+l]; p.overlapping+=s.overlapping;p.sum+=s.sum;p.sum_of_squares+=s.sum_of_squares; mp[l*G+g]=s.max_iou;}
      lp[l*B+b]=akdp_lambda(p,mode,factor);
    }
    g0+=counts[b];
  }
  (void)all_levels;
  std::vector<uint8_t> scratch;
  uint8_t* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  g0=0;
  for (int64_t b=0;b<B;++b){
    uint8_t* o = out;
    for(int64_t l=0;l<L;++l){
      auto& lev=grids.levels[l];
      scratch.assign(lev.height*(lev.width+kLanes),0);
      for(int64_t g=g0;g<g0+counts[b];++g){
        T t = akdp_threshold<T>(lp[l*B+b], mp[l*G+g]);
        run_best<SelectCells<T>>(lev, boxes[g], t, scratch.data());
      }
      for(int64_t i=0;i<lev.height;++i) std::memcpy(o+(b*lev.height+i)*lev.width, scratch.data()+i*(lev.width+kLanes), lev.width);
      o += B*lev.height*lev.width;
    }
    g0+=counts[b];
  }
  return {mask, lam, max_iou};
}

std::tuple<Tensor, Tensor, Tensor> akdp_mask_cpu(const Tensor& boxes, std::vector<int64_t> counts,
                                                 std::vector<Tensor> base_anchors, std::vector<double> strides,
                                                 std::vector<int64_t> shapes, int64_t mode, double factor,
                                                 bool all_levels) {
  check_boxes(boxes, counts);
  check_grids(base_anchors, strides, shapes);
  const bool d = needs_double(boxes, base_anchors);
  return d ? run_grid<double>(boxes, counts, base_anchors, strides, shapes, mode, factor, all_levels, ScalarType::Double)
           : run_grid<float>(boxes, counts, base_anchors, strides, shapes, mode, factor, all_levels, ScalarType::Float);
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) { m.impl("akdp_mask_native", TORCH_BOX(&zoominnet::akdp_mask_cpu)); }
