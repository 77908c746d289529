// Boxes and anchors in CUDA kernels. What kernels need to know of them travels as a kernel's argument, by value: nothing
// is copied to the device and nothing waits for it.
#pragma once

#include <limits>
#include <vector>

#include "boxes.h"
#include "launch_cuda.h"

// Sizes: B images, L levels of H x W cells with K anchors each, A anchors of an image, G boxes of all images.
namespace zoominnet {

constexpr int kMaxLevels = 16;
constexpr int kMaxImages = 256;     // of one launch
constexpr int kBasesPerChunk = 32;  // base anchors in shared memory
constexpr int64_t kMaxCells = int64_t{1} << 30;

template <class T>
constexpr double kEpsilon = std::numeric_limits<T>::epsilon();

// A tensor [N, 4] of any strides and floating-point dtype.
struct BoxArray {
  const void* data;
  int64_t next, step;
  ScalarType dtype;

  template <class T>
  __device__ __forceinline__ Box<T> load(int64_t index) const {
    const int64_t at = index * next;
    return {load_as<T>(data, at, dtype), load_as<T>(data, at + step, dtype), load_as<T>(data, at + 2 * step, dtype),
            load_as<T>(data, at + 3 * step, dtype)};
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
  double stride_y, stride_x;  // px
  int64_t first_cell;         // among the cells of all levels
  int64_t first_anchor;       // among A
  int first_tile;             // among the tiles of a box

  __device__ __forceinline__ int64_t cells() const { return static_cast<int64_t>(height) * width; }
};

// The levels of a pyramid. A block's task is one tile of a box: the rows of one level that are left to the block when
// the level's tiles share out the rows that the box can touch.
struct Grids {
  Level levels[kMaxLevels];
  int L, tiles;            // tiles of a box, in all levels
  int64_t cells, anchors;  // of all levels; the latter is A
};

inline Grids read_grids(const Tensor& boxes, const std::vector<Tensor>& base_anchors,
                        const std::vector<double>& strides, const std::vector<int64_t>& shapes) {
  check_grids(base_anchors, strides, shapes, check_on_cuda);
  STD_TORCH_CHECK(base_anchors.size() <= kMaxLevels, "a pyramid must have at most ", kMaxLevels, " levels, got ",
                  base_anchors.size());
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
                       grids.cells,
                       grids.anchors,
                       grids.tiles};
    // Up to 128 anchors a thread, if a box touches all of them.
    grids.tiles += static_cast<int>(std::clamp<int64_t>(divide_up(anchors, 128 * kThreads), 1, 8));
    grids.cells += H * W;
    grids.anchors += anchors;
  }
  return grids;
}

// Some neighbouring images of a batch.
struct Images {
  int64_t first;                      // of the batch
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
__device__ CellRange touching_cells(T box_begin, T box_end, T hull_begin, T hull_end, double stride, int n) {
  const double step = static_cast<double>(static_cast<T>(stride));
  if (!(step - step == 0)) {
    return {0, 0};  // with an infinite stride no anchor is finite
  }
  // Coordinates are sums of rounded numbers, here they are not rounded.
  const double sizes = fabs(static_cast<double>(box_begin)) + fabs(static_cast<double>(box_end)) +
                       fabs(static_cast<double>(hull_begin)) + fabs(static_cast<double>(hull_end));
  const double slack = 1 + 8 * kEpsilon<T> * sizes / step;
  const double first = (static_cast<double>(box_begin) - static_cast<double>(hull_end)) / step - slack;
  const double last = (static_cast<double>(box_end) - static_cast<double>(hull_begin)) / step + slack;
  // A NaN, from a stride that was rounded to 0, means all the cells.
  return {first > 0 ? (first < n ? static_cast<int>(first) : n) : 0,
          last < n - 1 ? (last >= 0 ? static_cast<int>(last) + 1 : 0) : n};
}

// Calls `visit(row, column, k, iou)` for the anchors of a level that overlap a sanitized box and belong to one of the
// level's `tiles`. All threads of the block must call it, for the same tile.
template <class T, class Visit>
__device__ void visit_tile(const Level& level, const Box<T>& box, int tile, int tiles, const Visit& visit) {
  __shared__ Box<T> bases[kBasesPerChunk];
  const T box_area = area(box);
  if (!(box_area > 0)) {
    return;
  }
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int64_t first = 0; first < level.K; first += kBasesPerChunk) {
    const int n = static_cast<int>(level.K - first < kBasesPerChunk ? level.K - first : kBasesPerChunk);
    __syncthreads();  // nobody reads the last chunk any more
    if (static_cast<int>(threadIdx.x) < n) {
      Box<T> base = level.bases.load<T>(first + threadIdx.x);
      const T size = base.x1 * 0 + base.y1 * 0 + base.x2 * 0 + base.y2 * 0;  // 0 if all are finite
      bases[threadIdx.x] = size == 0 ? base : Box<T>{};
    }
    __syncthreads();
    Box<T> hull = bases[0];
    for (int k = 1; k < n; ++k) {
      hull.x1 = bases[k].x1 < hull.x1 ? bases[k].x1 : hull.x1;
      hull.y1 = bases[k].y1 < hull.y1 ? bases[k].y1 : hull.y1;
      hull.x2 = bases[k].x2 > hull.x2 ? bases[k].x2 : hull.x2;
      hull.y2 = bases[k].y2 > hull.y2 ? bases[k].y2 : hull.y2;
    }
    const CellRange rows = touching_cells(box.y1, box.y2, hull.y1, hull.y2, level.stride_y, level.height);
    const CellRange columns = touching_cells(box.x1, box.x2, hull.x1, hull.x2, level.stride_x, level.width);
    const int anchors_of_row = (columns.end - columns.begin) * n;
    for (int row = rows.begin + tile * kWarps + warp; row < rows.end; row += tiles * kWarps) {
      const T shift_y = cell_shift<T>(row, level.stride_y);
      for (int at = lane; at < anchors_of_row; at += kWarpSize) {
        const int column = columns.begin + at / n, k = at % n;
        const T shift_x = cell_shift<T>(column, level.stride_x);
        const Box<T> base = bases[k];
        const Box<T> anchor{shift_x + base.x1, shift_y + base.y1, shift_x + base.x2, shift_y + base.y2};
        const T inter = overlap(anchor.x1, anchor.x2, box.x1, box.x2) * overlap(anchor.y1, anchor.y2, box.y1, box.y2);
        if (inter > 0) {
          visit(row, column, first + k, iou(inter, area(anchor), box_area));
        }
      }
    }
  }
}

// A block's task: a tile of a box.
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

  template <class T>
  __device__ __forceinline__ Box<T> load(int64_t index) const {
    const Division by_cell = divide(index, K), by_row = divide(by_cell.quotient, W);
    const int64_t at = by_row.quotient * row + by_row.remainder * column + by_cell.remainder * anchor;
    return sanitize(Box<T>{load_as<T>(data, at, dtype), load_as<T>(data, at + step, dtype),
                           load_as<T>(data, at + 2 * step, dtype), load_as<T>(data, at + 3 * step, dtype)});
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
  return {anchors.const_data_ptr(),
          anchors.stride(0),
          anchors.stride(1),
          anchors.stride(2),
          anchors.stride(3),
          anchors.size(1),
          anchors.size(2),
          anchors.size(0) * anchors.size(1),
          anchors.scalar_type()};
}

// IoU of a sanitized anchor and a sanitized box.
template <class T>
__device__ __forceinline__ T iou_of(const Box<T>& anchor, const Box<T>& box) {
  const T inter = overlap(anchor.x1, anchor.x2, box.x1, box.x2) * overlap(anchor.y1, anchor.y2, box.y1, box.y2);
  return inter > 0 ? iou(inter, area(anchor), area(box)) : T{};
}

}  // namespace zoominnet
