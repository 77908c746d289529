// Boxes and anchors in CUDA kernels. What kernels need to know of them travels as a kernel's argument, by value:
// nothing is copied to the device and nothing waits for it.
#pragma once

#include <limits>
#include <vector>

#include "boxes.h"
#include "launch_cuda.h"

// Sizes: B images, L levels of H x W cells with K anchors each, A anchors of an image, G boxes of all images.
namespace zoominnet {

constexpr int kMaxLevels = 16;
constexpr int kMaxImages = 256;  // of one launch: more would not fit in its arguments, and take further launches
constexpr int64_t kMaxCells = int64_t{1} << 30;

template <class T>
constexpr double kEpsilon = std::numeric_limits<T>::epsilon();
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <class T, class From>
__device__ __forceinline__ Box<T> load_box_of(const void* data, int64_t at, int64_t step) {
  const From* const from = static_cast<const From*>(data) + at;
  return {convert<T>(from[0]), convert<T>(from[step]), convert<T>(from[2 * step]), convert<T>(from[3 * step])};
}

// The box whose coordinates are `step` apart, from element `at` on, in an array of any floating-point dtype.
template <class T>
__device__ __forceinline__ Box<T> load_box(const void* data, int64_t at, int64_t step, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return load_box_of<T, double>(data, at, step);
    case ScalarType::Half:
      return load_box_of<T, Half>(data, at, step);
    case ScalarType::BFloat16:
      return load_box_of<T, BFloat16>(data, at, step);
    default:
      return load_box_of<T, float>(data, at, step);
  }
}

// A tensor [N, 4] of any strides and floating-point dtype.
struct BoxArray {
  const void* data;
  int64_t next, step;
  ScalarType dtype;

  template <class T>
  __device__ __forceinline__ Box<T> load(int64_t index) const {
    return load_box<T>(data, index * next, step, dtype);
  }
};

inline void check_floating(const char* name, const Tensor& x) {
  dispatch_floating(name, x.scalar_type(), [](auto) {});
}

inline BoxArray read_box_array(const char* name, const Tensor& x) {
  check_floating(name, x);
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.scalar_type()};
}

struct Level {
  BoxArray bases;
  int64_t K;
  int height, width;
  double stride_y, stride_x;    // px
  double inverse_y, inverse_x;  // 1 / stride, NaN where that is beyond the range of float64
  int64_t first_cell;           // among the cells of all levels
  int64_t first_anchor;         // among A
  int first_tile;               // among the tiles of a box

  __device__ __forceinline__ int64_t cells() const { return static_cast<int64_t>(height) * width; }
};

// The levels of a pyramid. A warp's task is one tile of a box: those anchors of a row, 32 at a time, that are left to
// the warp when the level's tiles share out the columns that the box can touch; and all rows that it can touch.
struct Grids {
  Level levels[kMaxLevels];
  int L, tiles;            // tiles of a box, in all levels
  int64_t cells, anchors;  // of all levels; the latter is A
};

// 1 / stride as kernels take it to find cells. The stride is rounded as a coordinate is.
inline double inverse_of(double stride, bool as_double) {
  const double inverse = 1 / (as_double ? stride : static_cast<double>(static_cast<float>(stride)));
  return std::isnormal(inverse) ? inverse : std::numeric_limits<double>::quiet_NaN();
}

inline Grids read_grids(const Tensor& boxes, const std::vector<Tensor>& base_anchors,
                        const std::vector<double>& strides, const std::vector<int64_t>& shapes) {
  check_grids(base_anchors, strides, shapes, check_on_cuda);
  STD_TORCH_CHECK(base_anchors.size() <= kMaxLevels, "a pyramid must have at most ", kMaxLevels, " levels, got ",
                  base_anchors.size());
  const bool as_double = needs_double(boxes, base_anchors);
  Grids grids{};
  grids.L = static_cast<int>(base_anchors.size());
  for (int l = 0; l < grids.L; ++l) {
    const Tensor& base = base_anchors[l];
    check_same_device("base_anchors", base, "boxes", boxes);
    const int64_t K = base.size(0), H = shapes[2 * l], W = shapes[2 * l + 1];
    STD_TORCH_CHECK(H < kMaxCells && W < kMaxCells && checked_product(W, K) < kMaxCells,
                    "a level must have less than 2^30 rows, and columns, and anchors a row, got ", H, " x ", W,
                    " cells with ", K, " anchors");
    const int64_t anchors = checked_product(H * W, K);
    grids.levels[l] = {read_box_array("base_anchors", base),
                       K,
                       static_cast<int>(H),
                       static_cast<int>(W),
                       strides[2 * l],
                       strides[2 * l + 1],
                       inverse_of(strides[2 * l], as_double),
                       inverse_of(strides[2 * l + 1], as_double),
                       grids.cells,
                       grids.anchors,
                       grids.tiles};
    // A box of a usual size touches so few columns that they are work for no more than a few warps.
    grids.tiles += static_cast<int>(std::clamp<int64_t>(divide_up(anchors, 128 * kThreads), 1, 8));
    grids.cells += H * W;
    grids.anchors += anchors;
  }
  return grids;
}

// Some neighbouring images of a batch.
struct Images {
  int64_t first;  // of the batch
  int count;
  int64_t first_box[kMaxImages + 1];  // of each image, and the end of the last, among G

  // The image of a box; it is one of these.
  __device__ __forceinline__ int image_of(int64_t box) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_box[middle] <= box) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// All images, in parts that fit in a kernel's arguments.
inline std::vector<Images> split_images(const std::vector<int64_t>& counts) {
  std::vector<Images> parts;
  int64_t box = 0;
  for (size_t b = 0; b < counts.size(); ++b) {
    if (b % kMaxImages == 0) {
      parts.push_back({static_cast<int64_t>(b), 0, {box}});
    }
    box += counts[b];
    parts.back().first_box[++parts.back().count] = box;
  }
  return parts;
}

struct CellRange {
  int begin, end;
};

// Cells of `n` among which are all whose interval has a part in common with that of a box. The intervals of cell j are
// within [hull_begin, hull_end] + j * stride.
template <class T>
__device__ __forceinline__ CellRange touching_cells(T box_begin, T box_end, T hull_begin, T hull_end, double inverse,
                                                    int n) {
  // Coordinates are sums of rounded numbers, here they are not rounded. That, and the roundings below with that of the
  // inverse, are less than half of what is allowed for.
  const double sizes = fabs(static_cast<double>(box_begin)) + fabs(static_cast<double>(box_end)) +
                       fabs(static_cast<double>(hull_begin)) + fabs(static_cast<double>(hull_end));
  const double slack = 1 + 8 * kEpsilon<T> * sizes * inverse;
  const double first = (static_cast<double>(box_begin) - static_cast<double>(hull_end)) * inverse - slack;
  const double last = (static_cast<double>(box_end) - static_cast<double>(hull_begin)) * inverse + slack;
  // A NaN, from a stride that is almost 0 or infinite, means all the cells.
  return {first > 0 ? (first < n ? static_cast<int>(first) : n) : 0,
          last < n - 1 ? (last >= 0 ? static_cast<int>(last) + 1 : 0) : n};
}

// The box of a lane. All lanes of the warp must call it.
template <class T>
__device__ __forceinline__ Box<T> box_of_lane(const Box<T>& box, int lane) {
  return {__shfl_sync(kAllLanes, box.x1, lane), __shfl_sync(kAllLanes, box.y1, lane),
          __shfl_sync(kAllLanes, box.x2, lane), __shfl_sync(kAllLanes, box.y2, lane)};
}

// The least box around those of all lanes, for every lane. All lanes of the warp must call it.
template <class T>
__device__ __forceinline__ Box<T> hull_of_warp(const Box<T>& box) {
  return {warp_reduce(box.x1, Smaller{}), warp_reduce(box.y1, Smaller{}), warp_reduce(box.x2, Greater{}),
          warp_reduce(box.y2, Greater{})};
}

// Calls `visit(row, column, k, iou)` for the anchors of a level that overlap a sanitized box and belong to one of the
// level's `tiles`. All lanes of the warp must call it, for the same tile; `visit` is called by some of them.
template <class T, class Visit>
__device__ __forceinline__ void visit_tile(const Level& level, const Box<T>& box, int tile, int tiles,
                                           const Visit& visit) {
  const T box_area = area(box), step_y = static_cast<T>(level.stride_y), step_x = static_cast<T>(level.stride_x);
  if (!(box_area > 0 && step_y - step_y == 0 && step_x - step_x == 0)) {
    return;  // with an infinite stride no anchor is finite
  }
  const int lane = lane_of_thread();
  for (int64_t first = 0; first < level.K; first += kWarpSize) {
    const int n = static_cast<int>(level.K - first < kWarpSize ? level.K - first : kWarpSize);
    Box<T> base = level.bases.load<T>(first + (lane < n ? lane : 0));
    const T size = base.x1 * 0 + base.y1 * 0 + base.x2 * 0 + base.y2 * 0;  // 0 if all are finite
    base = size == 0 ? base : Box<T>{};
    const Box<T> hull = hull_of_warp(base);
    const CellRange columns = touching_cells(box.x1, box.x2, hull.x1, hull.x2, level.inverse_x, level.width);
    const int anchors_of_row = (columns.end - columns.begin) * n;
    if (tile * kWarpSize >= anchors_of_row) {
      continue;
    }
    const CellRange rows = touching_cells(box.y1, box.y2, hull.y1, hull.y2, level.inverse_y, level.height);
    for (int start = tile * kWarpSize; start < anchors_of_row; start += tiles * kWarpSize) {
      const int at = start + lane, column = columns.begin + at / n, k = at % n;
      const Box<T> of_k = box_of_lane(base, k);
      const T shift_x = cell_shift<T>(column, level.stride_x);
      const T x1 = shift_x + of_k.x1, x2 = shift_x + of_k.x2, width = overlap(x1, x2, box.x1, box.x2);
      if (at < anchors_of_row && width > 0) {
        for (int row = rows.begin; row < rows.end; ++row) {
          const T shift_y = cell_shift<T>(row, level.stride_y);
          const Box<T> anchor{x1, shift_y + of_k.y1, x2, shift_y + of_k.y2};
          const T inter = width * overlap(anchor.y1, anchor.y2, box.y1, box.y2);
          if (inter > 0) {
            visit(row, column, first + k, iou(inter, area(anchor), box_area));
          }
        }
      }
    }
  }
}

// A warp's task: a tile of a box.
struct BoxTile {
  int64_t box;
  int level, tile, tiles;  // of the level
};

__device__ __forceinline__ BoxTile find_tile(const Grids& grids, int64_t task) {
  const Division division = divide(task, grids.tiles);
  const int tile = static_cast<int>(division.remainder);
  int l = grids.L - 1;
  while (grids.levels[l].first_tile > tile) {
    --l;
  }
  const int end = l + 1 < grids.L ? grids.levels[l + 1].first_tile : grids.tiles;
  return {division.quotient, l, tile - grids.levels[l].first_tile, end - grids.levels[l].first_tile};
}

// The anchors of a tensor [H, W, K, 4], or [A, 4], of any strides.
struct DenseAnchors {
  const void* data;
  int64_t row, column, anchor, step;  // strides
  int64_t W, K, cells;
  ScalarType dtype;

  __host__ __device__ int64_t count() const { return cells * K; }

  // Anchors are taken 32 at a time, one a lane.
  __host__ __device__ int64_t runs() const { return (count() + kWarpSize - 1) / kWarpSize; }

  // The lane's anchor of a run, sanitized; the zero box where there is none.
  template <class T>
  __device__ __forceinline__ Box<T> load(int64_t run) const {
    const int64_t index = run * kWarpSize + lane_of_thread();
    if (index >= count()) {
      return {};
    }
    const Division by_cell = divide(index, K), by_row = divide(by_cell.quotient, W);
    const int64_t at = by_row.quotient * row + by_row.remainder * column + by_cell.remainder * anchor;
    return sanitize(load_box<T>(data, at, step, dtype));
  }
};

inline DenseAnchors read_dense_anchors(const Tensor& boxes, const Tensor& anchors, int64_t dim) {
  check_on_cuda("anchors", anchors);
  check_same_device("anchors", anchors, "boxes", boxes);
  check_strided("anchors", anchors, dim);
  check_size("anchors", anchors, dim - 1, 4);
  check_floating("anchors", anchors);
  if (dim == 2) {
    return {anchors.const_data_ptr(), 0, anchors.stride(0), 0, anchors.stride(1), anchors.size(0), 1, anchors.size(0),
            anchors.scalar_type()};
  }
  return {anchors.const_data_ptr(), anchors.stride(0), anchors.stride(1), anchors.stride(2),
          anchors.stride(3),        anchors.size(1),   anchors.size(2),   anchors.size(0) * anchors.size(1),
          anchors.scalar_type()};
}

// IoU of a sanitized anchor and a sanitized box.
template <class T>
__device__ __forceinline__ T iou_of(const Box<T>& anchor, const Box<T>& box) {
  const T inter = overlap(anchor.x1, anchor.x2, box.x1, box.x2) * overlap(anchor.y1, anchor.y2, box.y1, box.y2);
  return inter > 0 ? iou(inter, area(anchor), area(box)) : T{};
}

// Calls `visit(g, iou)`, in ascending order, for those boxes g from `first` to before `end` that may overlap the anchor
// of a lane; `iou` is that of the lane's own anchor, which is sanitized. All lanes of the warp must call it, and all of
// them call `visit`.
template <class T, class Visit>
__device__ __forceinline__ void visit_boxes(const BoxArray& boxes, int64_t first, int64_t end, const Box<T>& anchor,
                                            const Visit& visit) {
  const Box<T> nowhere{kInfinity<T>, kInfinity<T>, -kInfinity<T>, -kInfinity<T>};
  const Box<T> hull = hull_of_warp(area(anchor) > 0 ? anchor : nowhere);
  for (int64_t start = first; start < end; start += kWarpSize) {
    const int64_t own = start + lane_of_thread();
    const Box<T> box = own < end ? sanitize(boxes.load<T>(own)) : Box<T>{};
    unsigned near = __ballot_sync(
        kAllLanes, box.x1 < hull.x2 && box.x2 > hull.x1 && box.y1 < hull.y2 && box.y2 > hull.y1 && area(box) > 0);
    for (; near != 0; near &= near - 1) {
      const int lane = __ffs(static_cast<int>(near)) - 1;
      visit(start + lane, iou_of(anchor, box_of_lane(box, lane)));
    }
  }
}

__device__ __forceinline__ void atomic_max(float* to, float value) {
  atomicMax(reinterpret_cast<int*>(to), __float_as_int(value));
}
__device__ __forceinline__ void atomic_max(double* to, double value) {
  atomicMax(reinterpret_cast<long long*>(to), __double_as_longlong(value));
}

// Raises the number at `to` to the greatest IoU of the lanes; the bits of IoUs, which are not negative, are ordered as
// they are. All lanes of the warp must call it.
template <class T>
__device__ __forceinline__ void raise_to_greatest(T* to, T iou) {
  iou = warp_reduce(iou, Greater{});
  if (lane_of_thread() == 0 && iou > 0) {
    atomic_max(to, iou);
  }
}

}  // namespace zoominnet
