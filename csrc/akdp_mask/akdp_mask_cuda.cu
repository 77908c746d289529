#include <cmath>
#include <tuple>
#include <vector>

#include "../boxes_cuda.h"
#include "akdp_mask.h"

// Three steps: the sums of the pairs, in parts; from them the lambda of each image and level; the mask.
namespace zoominnet {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // mask, lambda, greatest IoU of each box

// Of some pairs that overlap.
struct PartSums {
  double overlapping, sum, sum_of_squares, max_iou;
};

// The same, of the pairs that a lane visits.
template <class T>
struct VisitedSums {
  int64_t overlapping;
  double sum, sum_of_squares;
  T max_iou;

  __device__ __forceinline__ void add(T iou) {
    const double wide = static_cast<double>(iou);
    overlapping += iou > 0;
    sum += wide;
    sum_of_squares = fma(wide, wide, sum_of_squares);
    max_iou = iou > max_iou ? iou : max_iou;
  }

  // All lanes of the warp must call it.
  __device__ __forceinline__ void write(PartSums* to) const {
    PartSums total{};
    if (__ballot_sync(kAllLanes, overlapping > 0) != 0) {
      total = {warp_reduce(static_cast<double>(overlapping), Add{}), warp_reduce(sum, Add{}),
               warp_reduce(sum_of_squares, Add{}), static_cast<double>(warp_reduce(max_iou, Greater{}))};
    }
    if (lane_of_thread() == 0) {
      *to = total;
    }
  }
};

// Where the sums of a box are: `parts` of them, [G, parts], of which a level has those from its `first` to the next's.
struct PartsOfLevels {
  int L;
  int64_t parts, G;
  int64_t first[kMaxLevels + 1];
  double anchors[kMaxLevels];
};

static_assert(sizeof(Grids) + sizeof(Images) + 128 <= 4096, "arguments of a kernel");
static_assert(sizeof(Images) + sizeof(PartsOfLevels) + 128 <= 4096, "arguments of a kernel");

struct Options {
  int64_t mode;
  double factor;
  bool all_levels;
};

// Also sets `mask_size` bytes of the mask to zero.
template <class T>
__global__ __launch_bounds__(kThreads) void sum_grids_kernel(const __grid_constant__ Grids grids, BoxArray boxes,
                                                             int64_t tasks, PartSums* sums, uint8_t* mask,
                                                             int64_t mask_size) {
  clear(mask, mask_size);
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    const BoxTile at = find_tile(grids, task);
    VisitedSums<T> mine{};
    visit_tile(grids.levels[at.level], sanitize(boxes.load<T>(at.box)), at.tile, at.tiles,
               [&](int, int, int64_t, T iou) { mine.add(iou); });
    mine.write(sums + task);
  }
}

// A task: one level and image.
template <class T>
__global__ __launch_bounds__(kThreads) void lambda_kernel(const __grid_constant__ Images images,
                                                          const __grid_constant__ PartsOfLevels levels,
                                                          const PartSums* sums, Options options, int64_t B,
                                                          double* lambda, T* max_iou) {
  for (int task = static_cast<int>(blockIdx.x); task < levels.L * images.count; task += gridDim.x) {
    const int level = task / images.count, image = task % images.count;
    const int first_level = options.all_levels ? 0 : level, end_level = options.all_levels ? levels.L : level + 1;
    const int64_t begin = images.first_box[image], end = images.first_box[image + 1];
    double overlapping = 0, sum = 0, sum_of_squares = 0;
    for (int64_t g = begin + threadIdx.x; g < end; g += kThreads) {
      double best = 0;
      for (int64_t part = levels.first[first_level]; part < levels.first[end_level]; ++part) {
        const PartSums of_part = sums[g * levels.parts + part];
        overlapping += of_part.overlapping;
        sum += of_part.sum;
        sum_of_squares += of_part.sum_of_squares;
        best = of_part.max_iou > best ? of_part.max_iou : best;
      }
      max_iou[level * levels.G + g] = static_cast<T>(best);
    }
    PairSums total{0, block_reduce(overlapping, Add{}), block_reduce(sum, Add{}), block_reduce(sum_of_squares, Add{})};
    for (int l = first_level; l < end_level; ++l) {
      total.pairs += levels.anchors[l] * static_cast<double>(end - begin);
    }
    if (threadIdx.x == 0) {
      lambda[level * B + images.first + image] = akdp_lambda(total, options.mode, options.factor);
    }
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void select_grids_kernel(const __grid_constant__ Grids grids,
                                                                const __grid_constant__ Images images, BoxArray boxes,
                                                                int64_t G, int64_t B, const PartSums* sums,
                                                                const double* lambda, const T* max_iou, uint8_t* mask) {
  const int64_t first_box = images.first_box[0];
  const int64_t tasks = (images.first_box[images.count] - first_box) * grids.tiles;
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    BoxTile at = find_tile(grids, task);
    at.box += first_box;
    const T best = max_iou[at.level * G + at.box],
            best_of_tile = static_cast<T>(sums[first_box * grids.tiles + task].max_iou);
    if (!(best_of_tile > 0)) {
      continue;  // a box of a usual size touches few of a level's tiles
    }
    const Level& level = grids.levels[at.level];
    const int64_t b = images.first + images.image_of(at.box);
    const T threshold = akdp_threshold(lambda[at.level * B + b], best);
    if (!(best_of_tile > threshold)) {
      continue;
    }
    uint8_t* const of_image = mask + B * level.first_cell + b * level.cells();
    visit_tile(level, sanitize(boxes.load<T>(at.box)), at.tile, at.tiles, [&](int row, int column, int64_t, T iou) {
      if (iou > threshold) {
        of_image[static_cast<int64_t>(row) * level.width + column] = 1;  // by any number of threads
      }
    });
  }
}

// Raises each box's greatest IoU as well, and sets `mask_size` bytes of the mask to zero. A warp's task: one image and
// every `parts`-th run of 32 anchors.
template <class T>
__global__ __launch_bounds__(kThreads) void sum_dense_kernel(DenseAnchors anchors,
                                                             const __grid_constant__ Images images, BoxArray boxes,
                                                             int64_t parts, PartSums* sums, T* max_iou, uint8_t* mask,
                                                             int64_t mask_size) {
  clear(mask, mask_size);
  const int64_t tasks = parts * images.count;
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    const Division at = divide(task, parts);
    const int image = static_cast<int>(at.quotient);
    VisitedSums<T> mine{};
    for (int64_t run = at.remainder; run < anchors.runs(); run += parts) {
      visit_boxes(boxes, images.first_box[image], images.first_box[image + 1], anchors.load<T>(run),
                  [&](int64_t g, T iou) {
                    raise_to_greatest(max_iou + g, iou);
                    mine.add(iou);
                  });
    }
    mine.write(sums + task);
  }
}

// A block's task: one image.
__global__ __launch_bounds__(kThreads) void lambda_dense_kernel(const __grid_constant__ Images images, double anchors,
                                                                const PartSums* sums, int64_t parts, Options options,
                                                                double* lambda) {
  for (int image = static_cast<int>(blockIdx.x); image < images.count; image += gridDim.x) {
    double overlapping = 0, sum = 0, sum_of_squares = 0;
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      const PartSums of_part = sums[image * parts + part];
      overlapping += of_part.overlapping;
      sum += of_part.sum;
      sum_of_squares += of_part.sum_of_squares;
    }
    const double pairs = anchors * static_cast<double>(images.first_box[image + 1] - images.first_box[image]);
    const PairSums total{pairs, block_reduce(overlapping, Add{}), block_reduce(sum, Add{}),
                         block_reduce(sum_of_squares, Add{})};
    if (threadIdx.x == 0) {
      lambda[images.first + image] = akdp_lambda(total, options.mode, options.factor);
    }
  }
}

// A warp's task: one image and 32 anchors.
template <class T>
__global__ __launch_bounds__(kThreads) void select_dense_kernel(DenseAnchors anchors,
                                                                const __grid_constant__ Images images, BoxArray boxes,
                                                                const double* lambda, const T* max_iou, uint8_t* mask) {
  const int64_t tasks = anchors.runs() * images.count;
  for (int64_t task = first_task_of_warp(); task < tasks; task += tasks_of_warps()) {
    const Division at = divide(task, anchors.runs());
    const int image = static_cast<int>(at.quotient);
    const int64_t b = images.first + image;
    bool selected = false;
    visit_boxes(boxes, images.first_box[image], images.first_box[image + 1], anchors.load<T>(at.remainder),
                [&](int64_t g, T iou) { selected = selected || iou > akdp_threshold(lambda[b], max_iou[g]); });
    if (selected) {
      const int64_t a = at.remainder * kWarpSize + lane_of_thread();
      mask[b * anchors.cells + divide(a, anchors.K).quotient] = 1;  // by any number of threads
    }
  }
}

// Outputs that are not written yet.
template <class T>
Outputs new_outputs(const Tensor& boxes, int64_t B, int64_t L, int64_t cells) {
  return {torch::stable::new_empty(boxes, {checked_product(B, cells)}, ScalarType::Bool),
          torch::stable::new_empty(boxes, {L, B}, ScalarType::Double),
          torch::stable::new_empty(boxes, {L, boxes.size(0)},
                                   std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float)};
}

template <class T>
Outputs akdp_mask_of_grids(const Tensor& boxes, const std::vector<int64_t>& counts, const Grids& grids,
                           const Options& options) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), G = boxes.size(0), tasks = checked_product(G, grids.tiles);
  const Outputs outputs = new_outputs<T>(boxes, B, grids.L, grids.cells);
  uint8_t* const mask = data_of<uint8_t>(std::get<0>(outputs));
  double* const lambda = data_of<double>(std::get<1>(outputs));
  T* const max_iou = data_of<T>(std::get<2>(outputs));
  PartsOfLevels levels{grids.L, grids.tiles, G, {}, {}};
  for (int l = 0; l < grids.L; ++l) {
    levels.first[l] = grids.levels[l].first_tile;
    levels.anchors[l] = static_cast<double>(grids.levels[l].K * grids.levels[l].height * grids.levels[l].width);
  }
  levels.first[grids.L] = grids.tiles;

  const Tensor scratch = new_scratch<PartSums>(boxes, tasks);
  auto* const sums = data_of<PartSums>(scratch);
  const BoxArray array = read_box_array("boxes", boxes);
  const int64_t mask_size = B * grids.cells, blocks = std::max(divide_up(tasks, kWarps), blocks_to_clear(mask_size));
  stream.launch(sum_grids_kernel<T>, blocks, grids, array, tasks, sums, mask, mask_size);
  for (const Images& images : split_images(counts)) {
    stream.launch(lambda_kernel<T>, grids.L * images.count, images, levels, sums, options, B, lambda, max_iou);
    const int64_t tasks_of_images = (images.first_box[images.count] - images.first_box[0]) * grids.tiles;
    stream.launch(select_grids_kernel<T>, divide_up(tasks_of_images, kWarps), grids, images, array, G, B, sums, lambda,
                  max_iou, mask);
  }
  return outputs;
}

template <class T>
Outputs akdp_mask_of_tensor(const Tensor& boxes, const std::vector<int64_t>& counts, const DenseAnchors& anchors,
                            const Options& options) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), G = boxes.size(0);
  const Outputs outputs = new_outputs<T>(boxes, B, 1, anchors.cells);
  uint8_t* const mask = data_of<uint8_t>(std::get<0>(outputs));
  double* const lambda = data_of<double>(std::get<1>(outputs));
  T* const max_iou = data_of<T>(std::get<2>(outputs));
  stream.fill(max_iou, 0, G * static_cast<int64_t>(sizeof(T)));

  // So few runs for a warp that an image alone can fill a GPU, but enough to be worth the sums.
  const int64_t parts = std::clamp<int64_t>(divide_up(anchors.runs(), 4), 1, 1024);
  const Tensor scratch = new_scratch<PartSums>(boxes, checked_product(B, parts));
  const BoxArray array = read_box_array("boxes", boxes);
  for (const Images& images : split_images(counts)) {
    PartSums* const sums = data_of<PartSums>(scratch) + images.first * parts;
    uint8_t* const of_images = mask + images.first * anchors.cells;  // a multiple of kMaxImages
    const int64_t mask_size = images.count * anchors.cells;
    const int64_t blocks = std::max(divide_up(images.count * parts, kWarps), blocks_to_clear(mask_size));
    stream.launch(sum_dense_kernel<T>, blocks, anchors, images, array, parts, sums, max_iou, of_images, mask_size);
    stream.launch(lambda_dense_kernel, images.count, images, static_cast<double>(anchors.count()), sums, parts, options,
                  lambda);
    stream.launch(select_dense_kernel<T>, divide_up(anchors.runs() * images.count, kWarps), anchors, images, array,
                  lambda, max_iou, mask);
  }
  return outputs;
}

Outputs akdp_mask_cuda(const Tensor& boxes, std::vector<int64_t> counts, std::vector<Tensor> base_anchors,
                       std::vector<double> strides, std::vector<int64_t> shapes, int64_t mode, double factor,
                       bool all_levels) {
  check_boxes(boxes, counts, check_on_cuda);
  check_mode(mode, factor);
  const Grids grids = read_grids(boxes, base_anchors, strides, shapes);
  const Options options{mode, factor, all_levels};
  return needs_double(boxes, base_anchors) ? akdp_mask_of_grids<double>(boxes, counts, grids, options)
                                           : akdp_mask_of_grids<float>(boxes, counts, grids, options);
}

Outputs akdp_mask_dense_cuda(const Tensor& boxes, std::vector<int64_t> counts, const Tensor& anchors, int64_t mode,
                             double factor) {
  check_boxes(boxes, counts, check_on_cuda);
  check_mode(mode, factor);
  const DenseAnchors dense = read_dense_anchors(boxes, anchors, 4);
  const Options options{mode, factor, false};
  return needs_double(boxes, {anchors}) ? akdp_mask_of_tensor<double>(boxes, counts, dense, options)
                                        : akdp_mask_of_tensor<float>(boxes, counts, dense, options);
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CUDA, m) {
  m.impl("akdp_mask_native", TORCH_BOX(&zoominnet::akdp_mask_cuda));
  m.impl("akdp_mask_dense_native", TORCH_BOX(&zoominnet::akdp_mask_dense_cuda));
}
