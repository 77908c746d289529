#include <optional>

#include "../map_cuda.h"
#include "upsample_nearest2x.h"

// Sizes: B images, C channels, H x W cells of the small map.
namespace zoominnet {
namespace {

struct Sizes {
  int64_t B, C, H, W;
};

// Adds two packs value by value, rounding once.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> add_packs(const Pack<T, N>& a, const Pack<T, N>& b) {
  Pack<T, N> sum;
  for (int n = 0; n < N; ++n) {
    sum.values[n] = static_cast<T>(widen(a.values[n]) + widen(b.values[n]));
  }
  return sum;
}

template <class T>
__device__ __forceinline__ T sum_of_four(T a, T b, T c, T d) {
  return static_cast<T>((widen(a) + widen(b)) + (widen(c) + widen(d)));
}

// A thread's item: `cells` neighbours in a row of one channel. Without `add` (null) values are copied as they are.
template <class T, int cells, bool packed>
__global__ __launch_bounds__(kThreads) void upsample_columns_kernel(Sizes sizes, Map<const T> x, Map<const T> add,
                                                                    Map<T> out, int64_t items) {
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, sizes.W / cells, sizes.H, sizes.C);
    const int64_t j = at.inner * cells, i = at.second, c = at.third, b = at.outer;
    const auto small = load_pack<cells, packed>(x.at(b, c, i, j), x.column);
    Pack<T, 2 * cells> wide;
    for (int n = 0; n < 2 * cells; ++n) {
      wide.values[n] = small.values[n / 2];
    }
    // Loads come before stores, so that they wait together: the compiler cannot know that the maps do not overlap.
    Pack<T, 2 * cells> rows[2] = {wide, wide};
    if (add.data != nullptr) {
      for (int r = 0; r < 2; ++r) {
        rows[r] = load_pack<2 * cells, packed>(add.at(b, c, 2 * i + r, 2 * j), add.column);
      }
      for (int r = 0; r < 2; ++r) {
        rows[r] = add_packs(wide, rows[r]);
      }
    }
    for (int r = 0; r < 2; ++r) {
      store_pack<2 * cells, packed>(out.at(b, c, 2 * i + r, 2 * j), out.column, rows[r]);
    }
  }
}

// A thread's item: kPack channels of a cell.
template <class T>
__global__ __launch_bounds__(kThreads) void upsample_channels_kernel(Sizes sizes, Map<const T> x, Map<const T> add,
                                                                     Map<T> out, int64_t items) {
  constexpr int kChannels = kPack<T>;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, sizes.C / kChannels, sizes.W, sizes.H);
    const int64_t c = at.inner * kChannels, j = at.second, i = at.third, b = at.outer;
    const auto small = load_pack<kChannels, true>(x.at(b, c, i, j), 1);
    Pack<T, kChannels> of_phase[4] = {small, small, small, small};
    if (add.data != nullptr) {
      for (int p = 0; p < 4; ++p) {
        of_phase[p] = load_pack<kChannels, true>(add.at(b, c, 2 * i + p / 2, 2 * j + p % 2), 1);
      }
      for (int p = 0; p < 4; ++p) {
        of_phase[p] = add_packs(small, of_phase[p]);
      }
    }
    for (int p = 0; p < 4; ++p) {
      store_pack<kChannels, true>(out.at(b, c, 2 * i + p / 2, 2 * j + p % 2), 1, of_phase[p]);
    }
  }
}

template <class T, int cells, bool packed>
__global__ __launch_bounds__(kThreads) void downsample_columns_kernel(Sizes sizes, Map<const T> grad_out, Map<T> grad,
                                                                      int64_t items) {
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, sizes.W / cells, sizes.H, sizes.C);
    const int64_t j = at.inner * cells, i = at.second, c = at.third, b = at.outer;
    const auto upper = load_pack<2 * cells, packed>(grad_out.at(b, c, 2 * i, 2 * j), grad_out.column);
    const auto lower = load_pack<2 * cells, packed>(grad_out.at(b, c, 2 * i + 1, 2 * j), grad_out.column);
    Pack<T, cells> sum;
    for (int n = 0; n < cells; ++n) {
      sum.values[n] =
          sum_of_four(upper.values[2 * n], upper.values[2 * n + 1], lower.values[2 * n], lower.values[2 * n + 1]);
    }
    store_pack<cells, packed>(grad.at(b, c, i, j), grad.column, sum);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void downsample_channels_kernel(Sizes sizes, Map<const T> grad_out, Map<T> grad,
                                                                       int64_t items) {
  constexpr int kChannels = kPack<T>;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, sizes.C / kChannels, sizes.W, sizes.H);
    const int64_t c = at.inner * kChannels, j = at.second, i = at.third, b = at.outer;
    Pack<T, kChannels> of_phase[4], sum;
    for (int p = 0; p < 4; ++p) {
      of_phase[p] = load_pack<kChannels, true>(grad_out.at(b, c, 2 * i + p / 2, 2 * j + p % 2), 1);
    }
    for (int n = 0; n < kChannels; ++n) {
      sum.values[n] =
          sum_of_four(of_phase[0].values[n], of_phase[1].values[n], of_phase[2].values[n], of_phase[3].values[n]);
    }
    store_pack<kChannels, true>(grad.at(b, c, i, j), 1, sum);
  }
}

Tensor upsample_nearest2x_cuda(const Tensor& x, std::optional<Tensor> add) {
  check_upsample(x, add, check_on_cuda);
  if (add) {
    check_same_device("add", *add, "x", x);
  }
  const Stream stream(x);
  const Sizes sizes{x.size(0), x.size(1), x.size(2), x.size(3)};
  const Tensor result = new_map(x, 2 * sizes.H, 2 * sizes.W);
  dispatch_floating("x", x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Map<const T> from = read_map<T>(x), addend = add ? read_map<T>(*add) : Map<const T>{};
    const Map<T> to = write_map<T>(result);
    OrderOfMaps order;
    order.include(from, x, kPack<T> / 2);
    order.include(to, result, kPack<T>);
    if (add) {
      order.include(addend, *add, kPack<T>);
    }
    const int64_t values = x.numel();
    if constexpr (sizeof(T) < sizeof(double)) {
      if (order.best() == Order::kColumns) {
        const int64_t items = values / (kPack<T> / 2);
        stream.launch(upsample_columns_kernel<T, kPack<T> / 2, true>, divide_up(items, kThreads), sizes, from, addend,
                      to, items);
        return;
      }
      if (order.best() == Order::kChannels) {
        const int64_t items = values / kPack<T>;
        stream.launch(upsample_channels_kernel<T>, divide_up(items, kThreads), sizes, from, addend, to, items);
        return;
      }
    }
    stream.launch(upsample_columns_kernel<T, 1, false>, divide_up(values, kThreads), sizes, from, addend, to, values);
  });
  return result;
}

Tensor upsample_nearest2x_backward_cuda(const Tensor& grad_out) {
  check_downsample(grad_out, check_on_cuda);
  const Stream stream(grad_out);
  const Sizes sizes{grad_out.size(0), grad_out.size(1), grad_out.size(2) / 2, grad_out.size(3) / 2};
  const Tensor result = new_map(grad_out, sizes.H, sizes.W);
  dispatch_floating("grad_out", grad_out.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Map<const T> from = read_map<T>(grad_out);
    const Map<T> to = write_map<T>(result);
    OrderOfMaps order;
    order.include(from, grad_out, kPack<T>);
    order.include(to, result, kPack<T> / 2);
    const int64_t values = result.numel();
    if constexpr (sizeof(T) < sizeof(double)) {
      if (order.best() == Order::kColumns) {
        const int64_t items = values / (kPack<T> / 2);
        stream.launch(downsample_columns_kernel<T, kPack<T> / 2, true>, divide_up(items, kThreads), sizes, from, to,
                      items);
        return;
      }
      if (order.best() == Order::kChannels) {
        const int64_t items = values / kPack<T>;
        stream.launch(downsample_channels_kernel<T>, divide_up(items, kThreads), sizes, from, to, items);
        return;
      }
    }
    stream.launch(downsample_columns_kernel<T, 1, false>, divide_up(values, kThreads), sizes, from, to, values);
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CUDA, m) {
  m.impl("upsample_nearest2x_native", TORCH_BOX(&zoominnet::upsample_nearest2x_cuda));
  m.impl("upsample_nearest2x_backward_native", TORCH_BOX(&zoominnet::upsample_nearest2x_backward_cuda));
}
