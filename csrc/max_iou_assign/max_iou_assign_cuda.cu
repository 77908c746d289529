#include <limits>
#include <vector>

#include "../boxes_cuda.h"
#include "max_iou_assign.h"

namespace zoominnet {
namespace {

// The anchors of grids keep their best match in the output as a key, which atomicMin can lower: the inverted bits of
// the IoU, and for float32 below them the index of the box, so that of equal boxes the first wins. IoUs are at most 1,
// so the highest bit of a key is 1 until it is cleared for an anchor that a box keeps as its best. With `own_best` such
// a key holds the greatest index of such a box alone, counted down from the highest bit, so that atomicMin finds it. An
// anchor without overlap has all bits set.
using Key = unsigned long long;
constexpr Key kNoMatch = ~Key{0}, kNotKept = Key{1} << 63;

__device__ __forceinline__ Key inverted_bits(float iou) {
  return static_cast<Key>(~static_cast<unsigned>(__float_as_int(iou))) << 32;
}
__device__ __forceinline__ Key inverted_bits(double iou) { return ~static_cast<Key>(__double_as_longlong(iou)); }

__device__ __forceinline__ void iou_of_key(Key key, float& iou) {
  iou = __int_as_float(static_cast<int>(~static_cast<unsigned>((key | kNotKept) >> 32)));
}
__device__ __forceinline__ void iou_of_key(Key key, double& iou) {
  iou = __longlong_as_double(static_cast<long long>(~(key | kNotKept)));
}

template <class T>
struct Problem {
  Grids grids;
  Images images;
  BoxArray boxes;
  Thresholds<T> thresholds;
  Key* keys;         // [B, A]
  Key* first_boxes;  // [B, A], for float64: the first box of the best IoU
  T* max_iou;        // [G, tiles], greatest IoU of each tile of a box

  __device__ __forceinline__ int64_t tasks() const {
    return (images.first_box[images.count] - images.first_box[0]) * grids.tiles;
  }
};

static_assert(sizeof(Problem<double>) <= 4096, "arguments of a kernel");

// What is known of a warp's task.
template <class T>
struct Task {
  BoxTile at;
  Box<T> box;
  int64_t index;       // of the box in its image
  int64_t row_offset;  // of the image's anchors of the level in the keys

  __device__ __forceinline__ Task(const Problem<T>& problem, int64_t task) : at(find_tile(problem.grids, task)) {
    at.box += problem.images.first_box[0];
    box = sanitize(problem.boxes.template load<T>(at.box));
    const int image = problem.images.image_of(at.box);
    index = at.box - problem.images.first_box[image];
    row_offset = (problem.images.first + image) * problem.grids.anchors + problem.grids.levels[at.level].first_anchor;
  }

  template <class Visit>
  __device__ __forceinline__ void visit(const Problem<T>& problem, const Visit& visit_anchor) const {
    const Level& level = problem.grids.levels[at.level];
    visit_tile(level, box, at.tile, at.tiles, [&](int row, int column, int64_t k, T iou) {
      visit_anchor(row_offset + (static_cast<int64_t>(row) * level.width + column) * level.K + k, iou);
    });
  }
};

// Each anchor's best match, and each tile's greatest IoU.
template <class T>
__global__ __launch_bounds__(kThreads) void match_kernel(const __grid_constant__ Problem<T> problem) {
  for (int64_t n = first_task_of_warp(); n < problem.tasks(); n += tasks_of_warps()) {
    const Task<T> task(problem, n);
    T best{};
    task.visit(problem, [&](int64_t anchor, T iou) {
      if (iou > 0) {
        best = iou > best ? iou : best;
        const Key box = std::is_same_v<T, float> ? static_cast<Key>(task.index) : 0;
        atomicMin(problem.keys + anchor, inverted_bits(iou) | box);
      }
    });
    best = warp_reduce(best, Greater{});
    if (lane_of_thread() == 0) {
      problem.max_iou[task.at.box * problem.grids.tiles + n % problem.grids.tiles] = best;
    }
  }
}

// For float64, the first box of each anchor's best IoU.
template <class T>
__global__ __launch_bounds__(kThreads) void first_box_kernel(const __grid_constant__ Problem<T> problem) {
  for (int64_t n = first_task_of_warp(); n < problem.tasks(); n += tasks_of_warps()) {
    const Task<T> task(problem, n);
    task.visit(problem, [&](int64_t anchor, T iou) {
      if (iou > 0 && problem.keys[anchor] == inverted_bits(iou)) {
        atomicMin(problem.first_boxes + anchor, static_cast<Key>(task.index));
      }
    });
  }
}

// Marks the anchors that reach the greatest IoU of a box.
template <class T, bool kOwnBest>
__global__ __launch_bounds__(kThreads) void keep_kernel(const __grid_constant__ Problem<T> problem) {
  for (int64_t n = first_task_of_warp(); n < problem.tasks(); n += tasks_of_warps()) {
    const Task<T> task(problem, n);
    const T* const of_tiles = problem.max_iou + task.at.box * problem.grids.tiles;
    T best{};
    for (int tile = 0; tile < problem.grids.tiles; ++tile) {
      best = of_tiles[tile] > best ? of_tiles[tile] : best;
    }
    if (best > 0 && of_tiles[n % problem.grids.tiles] == best) {
      task.visit(problem, [&](int64_t anchor, T iou) {
        if (iou == best) {
          if constexpr (kOwnBest) {
            atomicMin(problem.keys + anchor, kNotKept - 1 - static_cast<Key>(task.index));
          } else {
            atomicAnd(problem.keys + anchor, ~kNotKept);
          }
        }
      });
    }
  }
}

// From keys to assignments, in place.
template <class T>
__global__ __launch_bounds__(kThreads) void resolve_kernel(const __grid_constant__ Problem<T> problem) {
  constexpr int kAnchors = 8 * kThreads;
  const int64_t A = problem.grids.anchors, runs = (A + kAnchors - 1) / kAnchors, tasks = runs * problem.images.count;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Division at = divide(task, runs);
    const int image = static_cast<int>(at.quotient);
    const bool no_boxes = problem.images.first_box[image] == problem.images.first_box[image + 1];
    const int64_t without_match = no_boxes ? kBelow : problem.thresholds.decide(T{}, 0);
    const int64_t first = (problem.images.first + image) * A, begin = at.remainder * kAnchors;
    const int64_t end = begin + kAnchors < A ? begin + kAnchors : A;
    for (int64_t a = begin + threadIdx.x; a < end; a += kThreads) {
      const Key key = problem.keys[first + a];
      int64_t assigned = without_match;
      if (problem.thresholds.own_best && !(key & kNotKept)) {
        assigned = static_cast<int64_t>(kNotKept - 1 - key);
      } else if (key != kNoMatch) {
        T best;
        iou_of_key(key, best);
        const int64_t box =
            static_cast<int64_t>(std::is_same_v<T, float> ? key & 0xffffffffu : problem.first_boxes[first + a]);
        assigned = key & kNotKept ? problem.thresholds.decide(best, box) : box;
      }
      if (assigned != static_cast<int64_t>(key)) {
        problem.keys[first + a] = static_cast<Key>(assigned);
      }
    }
  }
}

template <class T>
Tensor max_iou_assign_of_grids(const Tensor& boxes, const std::vector<int64_t>& counts, const Grids& grids,
                               const Thresholds<T>& thresholds) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), values = checked_product(B, grids.anchors);
  const Tensor assigned = torch::stable::new_empty(boxes, {B, grids.anchors}, ScalarType::Long);
  const Tensor max_iou = new_scratch<T>(boxes, checked_product(boxes.size(0), grids.tiles));
  const Tensor first_boxes = new_scratch<Key>(boxes, std::is_same_v<T, double> ? values : 0);
  stream.fill(assigned.mutable_data_ptr(), 0xff, values * static_cast<int64_t>(sizeof(Key)));
  stream.fill(first_boxes.mutable_data_ptr(), 0xff, first_boxes.numel());
  for (const Images& images : split_images(counts)) {
    const Problem<T> problem{grids,
                             images,
                             read_box_array("boxes", boxes),
                             thresholds,
                             data_of<Key>(assigned),
                             data_of<Key>(first_boxes),
                             data_of<T>(max_iou)};
    const int64_t tasks = (images.first_box[images.count] - images.first_box[0]) * grids.tiles;
    const int64_t blocks = divide_up(tasks, kWarps);
    stream.launch(match_kernel<T>, blocks, problem);
    if constexpr (std::is_same_v<T, double>) {
      stream.launch(first_box_kernel<T>, blocks, problem);
    }
    if (thresholds.allow_low_quality) {
      stream.launch(thresholds.own_best ? keep_kernel<T, true> : keep_kernel<T, false>, blocks, problem);
    }
    stream.launch(resolve_kernel<T>, divide_up(grids.anchors, 8 * kThreads) * images.count, problem);
  }
  return assigned;
}

// Raises each box's greatest IoU. A warp's task: one image and 32 anchors.
template <class T>
__global__ __launch_bounds__(kThreads) void max_dense_kernel(DenseAnchors anchors,
                                                             const __grid_constant__ Images images, BoxArray boxes,
                                                             T* max_iou) {
  const int64_t tasks = anchors.runs() * images.count;
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    const Division at = divide(task, anchors.runs());
    const int image = static_cast<int>(at.quotient);
    visit_boxes(boxes, images.first_box[image], images.first_box[image + 1], anchors.load<T>(at.remainder),
                [&](int64_t g, T iou) { raise_to_greatest(max_iou + g, iou); });
  }
}

// A warp's task: one image and 32 anchors.
template <class T>
__global__ __launch_bounds__(kThreads) void assign_dense_kernel(DenseAnchors anchors,
                                                                const __grid_constant__ Images images, BoxArray boxes,
                                                                Thresholds<T> thresholds, const T* max_iou,
                                                                int64_t* assigned) {
  const int64_t A = anchors.count(), tasks = anchors.runs() * images.count;
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    const Division at = divide(task, anchors.runs());
    const int image = static_cast<int>(at.quotient);
    const int64_t begin = images.first_box[image], end = images.first_box[image + 1];
    T best{};
    int64_t box = 0, own = -1;  // the last box whose best this anchor is
    visit_boxes(boxes, begin, end, anchors.load<T>(at.remainder), [&](int64_t g, T iou) {
      own = thresholds.allow_low_quality && iou > 0 && iou == max_iou[g] ? g - begin : own;
      if (iou > best) {
        best = iou;
        box = g - begin;
      }
    });
    const int64_t a = at.remainder * kWarpSize + lane_of_thread();
    if (a < A) {
      const int64_t kept = thresholds.own_best ? own : box;
      assigned[(images.first + image) * A + a] = begin == end ? kBelow : own >= 0 ? kept : thresholds.decide(best, box);
    }
  }
}

template <class T>
Tensor max_iou_assign_of_tensor(const Tensor& boxes, const std::vector<int64_t>& counts, const DenseAnchors& anchors,
                                const Thresholds<T>& thresholds) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), A = anchors.count();
  checked_product(B, A);
  const Tensor assigned = torch::stable::new_empty(boxes, {B, A}, ScalarType::Long);
  const Tensor max_iou = new_scratch<T>(boxes, boxes.size(0));
  const BoxArray array = read_box_array("boxes", boxes);
  if (thresholds.allow_low_quality) {
    stream.fill(max_iou.mutable_data_ptr(), 0, max_iou.numel());
  }
  for (const Images& images : split_images(counts)) {
    const int64_t blocks = divide_up(anchors.runs() * images.count, kWarps);
    if (thresholds.allow_low_quality) {
      stream.launch(max_dense_kernel<T>, blocks, anchors, images, array, data_of<T>(max_iou));
    }
    stream.launch(assign_dense_kernel<T>, blocks, anchors, images, array, thresholds, data_of<T>(max_iou),
                  data_of<int64_t>(assigned));
  }
  return assigned;
}

void check_arguments(const Tensor& boxes, const std::vector<int64_t>& counts, double positive, double negative,
                     bool allow_low_quality, bool own_best) {
  check_boxes(boxes, counts, check_on_cuda);
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "an image must have less than 2^31 boxes");
  }
  check_matching(positive, negative, allow_low_quality, own_best);
}

template <class T>
Thresholds<T> round_thresholds(double positive, double negative, bool allow_low_quality, bool own_best) {
  return {static_cast<T>(positive), static_cast<T>(negative), allow_low_quality, own_best};
}

Tensor max_iou_assign_cuda(const Tensor& boxes, std::vector<int64_t> counts, std::vector<Tensor> base_anchors,
                           std::vector<double> strides, std::vector<int64_t> shapes, double positive, double negative,
                           bool allow_low_quality, bool own_best) {
  check_arguments(boxes, counts, positive, negative, allow_low_quality, own_best);
  const Grids grids = read_grids(boxes, base_anchors, strides, shapes);
  return needs_double(boxes, base_anchors)
             ? max_iou_assign_of_grids(boxes, counts, grids,
                                       round_thresholds<double>(positive, negative, allow_low_quality, own_best))
             : max_iou_assign_of_grids(boxes, counts, grids,
                                       round_thresholds<float>(positive, negative, allow_low_quality, own_best));
}

Tensor max_iou_assign_dense_cuda(const Tensor& boxes, std::vector<int64_t> counts, const Tensor& anchors,
                                 double positive, double negative, bool allow_low_quality, bool own_best) {
  check_arguments(boxes, counts, positive, negative, allow_low_quality, own_best);
  const DenseAnchors dense = read_dense_anchors(boxes, anchors, 2);
  return needs_double(boxes, {anchors})
             ? max_iou_assign_of_tensor(boxes, counts, dense,
                                        round_thresholds<double>(positive, negative, allow_low_quality, own_best))
             : max_iou_assign_of_tensor(boxes, counts, dense,
                                        round_thresholds<float>(positive, negative, allow_low_quality, own_best));
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CUDA, m) {
  m.impl("max_iou_assign_native", TORCH_BOX(&zoominnet::max_iou_assign_cuda));
  m.impl("max_iou_assign_dense_native", TORCH_BOX(&zoominnet::max_iou_assign_dense_cuda));
}
