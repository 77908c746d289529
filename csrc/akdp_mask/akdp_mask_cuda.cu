#include <cmath>
#include <tuple>
#include <vector>

#include "../boxes_cuda.h"
#include "akdp_mask.h"

// Three steps: the sums of the pairs of each box, in parts; from them the lambda of each image and level; the mask.
namespace zoominnet {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // mask, lambda, greatest IoU of each box

// Of some pairs of one box that overlap.
struct VisitedSums {
  double overlapping, sum, sum_of_squares, max_iou;

  __device__ __forceinline__ void add(double iou) {
    overlapping += iou > 0;
    sum += iou;
    sum_of_squares += iou * iou;
    max_iou = iou > max_iou ? iou : max_iou;
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

template <class T>
__global__ __launch_bounds__(kThreads) void sum_grids_kernel(const __grid_constant__ Grids grids, BoxArray boxes,
                                                             int64_t tasks, VisitedSums* sums) {
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BoxTile at = find_tile(grids, task);
    const Box<T> box = sanitize(boxes.load<T>(at.box));
    VisitedSums mine{};
    visit_tile(grids.levels[at.level], box, at.tile, at.tiles,
               [&](int, int, int64_t, T iou) { mine.add(static_cast<double>(iou)); });
    const VisitedSums total{block_reduce(mine.overlapping, Add{}), block_reduce(mine.sum, Add{}),
                               block_reduce(mine.sum_of_squares, Add{}), block_reduce(mine.max_iou, Greater{})};
    if (threadIdx.x == 0) {
      sums[task] = total;
    }
  }
}

// A task: one level and image.
template <class T>
__global__ __launch_bounds__(kThreads) void lambda_kernel(const __grid_constant__ Images images,
                                                          const __grid_constant__ PartsOfLevels levels,
                                                          const VisitedSums* sums, Options options, int64_t B,
                                                          double* lambda, T* max_iou) {
  for (int task = static_cast<int>(blockIdx.x); task < levels.L * images.count; task += gridDim.x) {
    const int level = task / images.count, image = task % images.count;
    const int first_level = options.all_levels ? 0 : level, end_level = options.all_levels ? levels.L : level + 1;
    const int64_t begin = images.first_box[image], end = images.first_box[image + 1];
    double overlapping = 0, sum = 0, sum_of_squares = 0;
    for (int64_t g = begin + threadIdx.x; g < end; g += kThreads) {
      double best = 0;
      for (int64_t part = levels.first[first_level]; part < levels.first[end_level]; ++part) {
        const VisitedSums of_part = sums[g * levels.parts + part];
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
                                                                int64_t G, int64_t B, const double* lambda,
                                                                const T* max_iou, uint8_t* mask) {
  const int64_t first_box = images.first_box[0];
  const int64_t tasks = (images.first_box[images.count] - first_box) * grids.tiles;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    BoxTile at = find_tile(grids, task);
    at.box += first_box;
    const T best = max_iou[at.level * G + at.box];
    if (!(best > 0)) {
      continue;
    }
    const Level& level = grids.levels[at.level];
    const int64_t b = images.first + images.image_of(at.box);
    const T threshold = akdp_threshold(lambda[at.level * B + b], best);
    uint8_t* const of_image = mask + B * level.first_cell + b * level.cells();
    visit_tile(level, sanitize(boxes.load<T>(at.box)), at.tile, at.tiles, [&](int row, int column, int64_t, T iou) {
      if (iou > threshold) {
        of_image[static_cast<int64_t>(row) * level.width + column] = 1;  // by any number of threads
      }
    });
  }
}

// A task: kThreads boxes, of any images, and one part of the anchors.
template <class T>
__global__ __launch_bounds__(kThreads) void sum_dense_kernel(DenseAnchors anchors, BoxArray boxes, int64_t G,
                                                             int64_t parts, VisitedSums* sums) {
  __shared__ Box<T> shared[kThreads];
  const int64_t tasks = (G + kThreads - 1) / kThreads * parts;
  const int64_t anchors_of_part = (anchors.count() + parts - 1) / parts;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Division at = divide(task, parts);
    const int64_t g = at.quotient * kThreads + threadIdx.x;
    const Box<T> box = g < G ? sanitize(boxes.load<T>(g)) : Box<T>{};
    const int64_t begin = at.remainder * anchors_of_part;
    const int64_t end = begin + anchors_of_part < anchors.count() ? begin + anchors_of_part : anchors.count();
    VisitedSums mine{};
    for (int64_t first = begin; first < end; first += kThreads) {
      const int n = static_cast<int>(end - first < kThreads ? end - first : kThreads);
      __syncthreads();  // nobody reads the last anchors any more
      if (static_cast<int>(threadIdx.x) < n) {
        shared[threadIdx.x] = anchors.load<T>(first + threadIdx.x);
      }
      __syncthreads();
      for (int a = 0; a < n; ++a) {
        const T iou = iou_of(shared[a], box);
        if (iou > 0) {
          mine.add(static_cast<double>(iou));
        }
      }
    }
    if (g < G) {
      sums[g * parts + at.remainder] = mine;
    }
  }
}

// A task: kThreads anchors and one image.
template <class T>
__global__ __launch_bounds__(kThreads) void select_dense_kernel(DenseAnchors anchors,
                                                                const __grid_constant__ Images images, BoxArray boxes,
                                                                const double* lambda, const T* max_iou, uint8_t* mask) {
  __shared__ Box<T> shared[kThreads];
  __shared__ T thresholds[kThreads];
  const int64_t runs = (anchors.count() + kThreads - 1) / kThreads, tasks = runs * images.count;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const Division at = divide(task, runs);
    const int image = static_cast<int>(at.quotient);
    const int64_t b = images.first + image, a = at.remainder * kThreads + threadIdx.x;
    const Box<T> anchor = a < anchors.count() ? anchors.load<T>(a) : Box<T>{};
    const int64_t end = images.first_box[image + 1];
    bool selected = false;
    for (int64_t first = images.first_box[image]; first < end; first += kThreads) {
      const int n = static_cast<int>(end - first < kThreads ? end - first : kThreads);
      __syncthreads();  // nobody reads the last boxes any more
      if (static_cast<int>(threadIdx.x) < n) {
        const int64_t g = first + threadIdx.x;
        shared[threadIdx.x] = sanitize(boxes.load<T>(g));
        thresholds[threadIdx.x] = akdp_threshold(lambda[b], max_iou[g]);
      }
      __syncthreads();
      for (int g = 0; g < n && !selected; ++g) {
        selected = iou_of(anchor, shared[g]) > thresholds[g];
      }
    }
    if (selected) {
      mask[b * anchors.cells + divide(a, anchors.K).quotient] = 1;  // by any number of threads
    }
  }
}

// Outputs of which the mask is zero and the others are not written yet.
template <class T>
Outputs new_outputs(const Stream& stream, const Tensor& boxes, int64_t B, int64_t L, int64_t cells) {
  const Tensor mask = torch::stable::new_empty(boxes, {checked_product(B, cells)}, ScalarType::Bool);
  stream.fill(mask.mutable_data_ptr(), 0, B * cells);
  return {mask, torch::stable::new_empty(boxes, {L, B}, ScalarType::Double),
          torch::stable::new_empty(boxes, {L, boxes.size(0)},
                                   std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float)};
}

template <class T>
Outputs akdp_mask_of_grids(const Tensor& boxes, const std::vector<int64_t>& counts, const Grids& grids,
                           const Options& options) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), G = boxes.size(0), tasks = checked_product(G, grids.tiles);
  const Outputs outputs = new_outputs<T>(stream, boxes, B, grids.L, grids.cells);
  uint8_t* const mask = data_of<uint8_t>(std::get<0>(outputs));
  double* const lambda = data_of<double>(std::get<1>(outputs));
  T* const max_iou = data_of<T>(std::get<2>(outputs));
  PartsOfLevels levels{grids.L, grids.tiles, G, {}, {}};
  for (int l = 0; l < grids.L; ++l) {
    levels.first[l] = grids.levels[l].first_tile;
    levels.anchors[l] = static_cast<double>(grids.levels[l].K * grids.levels[l].height * grids.levels[l].width);
  }
  levels.first[grids.L] = grids.tiles;

  const Tensor scratch = new_scratch<VisitedSums>(boxes, tasks);
  auto* const sums = data_of<VisitedSums>(scratch);
  const BoxArray array = read_box_array("boxes", boxes);
  stream.launch(sum_grids_kernel<T>, tasks, grids, array, tasks, sums);
  for (const Images& images : split_images(counts)) {
    stream.launch(lambda_kernel<T>, grids.L * images.count, images, levels, sums, options, B, lambda, max_iou);
    const int64_t of_images = images.first_box[images.count] - images.first_box[0];
    stream.launch(select_grids_kernel<T>, of_images * grids.tiles, grids, images, array, G, B, lambda, max_iou, mask);
  }
  return outputs;
}

template <class T>
Outputs akdp_mask_of_tensor(const Tensor& boxes, const std::vector<int64_t>& counts, const DenseAnchors& anchors,
                            const Options& options) {
  const Stream stream(boxes);
  const int64_t B = static_cast<int64_t>(counts.size()), G = boxes.size(0);
  const Outputs outputs = new_outputs<T>(stream, boxes, B, 1, anchors.cells);
  uint8_t* const mask = data_of<uint8_t>(std::get<0>(outputs));
  double* const lambda = data_of<double>(std::get<1>(outputs));
  T* const max_iou = data_of<T>(std::get<2>(outputs));

  // So many parts that there are about 4,096 blocks, if the anchors are enough for that.
  const int64_t groups = divide_up(G, kThreads), most = std::max<int64_t>(divide_up(anchors.count(), 4 * kThreads), 1);
  const int64_t parts = std::clamp<int64_t>(4096 / std::max<int64_t>(groups, 1), 1, most);
  const PartsOfLevels levels{1, parts, G, {0, parts}, {static_cast<double>(anchors.count())}};
  const Tensor scratch = new_scratch<VisitedSums>(boxes, checked_product(G, parts));
  auto* const sums = data_of<VisitedSums>(scratch);
  const BoxArray array = read_box_array("boxes", boxes);
  stream.launch(sum_dense_kernel<T>, groups * parts, anchors, array, G, parts, sums);
  for (const Images& images : split_images(counts)) {
    stream.launch(lambda_kernel<T>, images.count, images, levels, sums, options, B, lambda, max_iou);
    stream.launch(select_dense_kernel<T>, divide_up(anchors.count(), kThreads) * images.count, anchors, images, array,
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
