#include <algorithm>
#include <optional>

#include "../lanes.h"
#include "upsample_nearest2x.h"

// Sizes: B images, C channels, H x W cells of the small map.
namespace zoominnet {
namespace {

struct Sizes {
  int64_t B, C, H, W;
  bool along_channels;  // lanes along the channels and work cut into rows, not lanes along rows and work cut into
                        // channels

  int64_t pieces() const { return along_channels ? H : C; }
  int64_t grain() const { return (1 << 14) / (C * H * W / std::max<int64_t>(pieces(), 1) + 1) + 1; }
};

// So many values ahead are asked for, where two rows are read in turns: 8 KiB, by trial.
template <class T>
constexpr int64_t kAhead = 8192 / sizeof(T);

// T may also be uint16_t, to copy values of that size.
template <class T>
struct UpsamplePiece {
  static ZOOMINNET_INLINE void run(const Sizes& sizes, const int64_t& b, const int64_t& piece, const Map<const T>& x,
                                   const Map<const T>& add, const Map<T>& out) {
    // Results and addends are gone through in the order of memory.
    if (sizes.along_channels) {
      const bool dense = x.channel == 1 && out.channel == 1 && (!add.data || add.channel == 1);
      for (int64_t n = 0; n < 4 * sizes.W; ++n) {
        const int64_t i = 2 * piece + n / (2 * sizes.W), j = n % (2 * sizes.W);
        const T* const value = x.at(b, 0, piece, j / 2);
        const T* const addend = add.data ? add.at(b, 0, i, j) : nullptr;
        T* const to = out.at(b, 0, i, j);
        int64_t c = 0;
        for (; dense && c + kLanes <= sizes.C; c += kLanes) {
          auto sum = load_wide(value + c);
          if (addend) {
            sum += load_wide(addend + c);
          }
          store_narrow(to + c, sum);
        }
        for (; c < sizes.C; c += kLanes) {
          const int64_t count = std::min(kLanes, sizes.C - c);
          auto sum = load_wide(value + c * x.channel, x.channel, count);
          if (addend) {
            sum += load_wide(addend + c * add.channel, add.channel, count);
          }
          store_narrow(to + c * out.channel, out.channel, count, sum);
        }
      }
      return;
    }
    for (int64_t i = 0; i < 2 * sizes.H; ++i) {
      for (int64_t j = 0; j < sizes.W; j += kLanes) {
        const int64_t count = std::min(kLanes, sizes.W - j);
        const auto value = load_wide(x.at(b, piece, i / 2, j), x.column, count);
        T* const to = out.at(b, piece, i, 2 * j);
        const T* const from = add.data ? add.at(b, piece, i, 2 * j) : nullptr;
        if (count == kLanes && out.column == 1 && (!from || add.column == 1)) {
          auto first = shuffle<0, 0, 1, 1, 2, 2, 3, 3>(value, value);
          auto second = shuffle<4, 4, 5, 5, 6, 6, 7, 7>(value, value);
          if (from) {
            first += load_wide(from);
            second += load_wide(from + kLanes);
          }
          store_narrow(to, first);
          store_narrow(to + kLanes, second);
          continue;
        }
        for (int64_t q = 0; q < 2; ++q) {
          auto sum = value;
          if (from) {
            sum += load_wide(from + q * add.column, 2 * add.column, count);
          }
          store_narrow(to + q * out.column, 2 * out.column, count, sum);
        }
      }
    }
  }
};

template <class T>
struct DownsamplePiece {
  static ZOOMINNET_INLINE void run(const Sizes& sizes, const int64_t& b, const int64_t& piece,
                                   const Map<const T>& grad_out, const Map<T>& grad) {
    if (sizes.along_channels) {
      const bool dense = grad_out.channel == 1 && grad.channel == 1;
      for (int64_t j = 0; j < sizes.W; ++j) {
        const T* from[4];
        for (int64_t p = 0; p < 4; ++p) {
          from[p] = grad_out.at(b, 0, 2 * piece + p / 2, 2 * j + p % 2);
        }
        T* const to = grad.at(b, 0, piece, j);
        int64_t c = 0;
        for (; dense && c + kLanes <= sizes.C; c += kLanes) {
          for (int64_t p = 0; p < 4; ++p) {
            prefetch(from[p] + c + kAhead<T>);
          }
          store_narrow(to + c, (load_wide(from[0] + c) + load_wide(from[1] + c)) +
                                   (load_wide(from[2] + c) + load_wide(from[3] + c)));
        }
        for (; c < sizes.C; c += kLanes) {
          const int64_t count = std::min(kLanes, sizes.C - c), at = c * grad_out.channel;
          const auto upper =
              load_wide(from[0] + at, grad_out.channel, count) + load_wide(from[1] + at, grad_out.channel, count);
          const auto lower =
              load_wide(from[2] + at, grad_out.channel, count) + load_wide(from[3] + at, grad_out.channel, count);
          store_narrow(to + c * grad.channel, grad.channel, count, upper + lower);
        }
      }
      return;
    }
    for (int64_t i = 0; i < sizes.H; ++i) {
      const T* const upper = grad_out.at(b, piece, 2 * i, 0);
      const T* const lower = grad_out.at(b, piece, 2 * i + 1, 0);
      T* const to = grad.at(b, piece, i, 0);
      int64_t j = 0;
      for (; grad_out.column == 1 && grad.column == 1 && j + kLanes <= sizes.W; j += kLanes) {
        prefetch(upper + 2 * j + kAhead<T>);
        prefetch(lower + 2 * j + kAhead<T>);
        const auto first = load_pairs(upper + 2 * j, 1, kLanes), second = load_pairs(lower + 2 * j, 1, kLanes);
        store_narrow(to + j, (first.even + first.odd) + (second.even + second.odd));
      }
      for (; j < sizes.W; j += kLanes) {
        const int64_t count = std::min(kLanes, sizes.W - j), at = 2 * j * grad_out.column;
        const auto first = load_pairs(upper + at, grad_out.column, count);
        const auto second = load_pairs(lower + at, grad_out.column, count);
        store_narrow(to + j * grad.column, grad.column, count, (first.even + first.odd) + (second.even + second.odd));
      }
    }
  }
};

Tensor upsample_nearest2x_cpu(const Tensor& x, std::optional<Tensor> add) {
  check_upsample(x, add, check_on_cpu);
  const Sizes sizes{x.size(0), x.size(1), x.size(2), x.size(3), format_of(x) == MemoryFormat::ChannelsLast};
  const Tensor result = new_map(x, 2 * sizes.H, 2 * sizes.W);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const Map<const T> from = read_map<T>(x), addend = add ? read_map<T>(*add) : Map<const T>{};
    const Map<T> to = write_map<T>(result);
    const int64_t pieces = sizes.pieces();
    torch::stable::parallel_for(0, sizes.B * pieces, sizes.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        run_best<UpsamplePiece<T>>(sizes, n / pieces, n % pieces, from, addend, to);
      }
    });
  };
  dispatch_floating("x", x.scalar_type(), [&](auto tag) {
    if (is_half<decltype(tag)> && !add) {
      run(uint16_t{});
    } else {
      run(tag);
    }
  });
  return result;
}

Tensor upsample_nearest2x_backward_cpu(const Tensor& grad_out) {
  check_downsample(grad_out, check_on_cpu);
  const Sizes sizes{grad_out.size(0), grad_out.size(1), grad_out.size(2) / 2, grad_out.size(3) / 2,
                    format_of(grad_out) == MemoryFormat::ChannelsLast};
  const Tensor result = new_map(grad_out, sizes.H, sizes.W);
  dispatch_floating("grad_out", grad_out.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Map<const T> from = read_map<T>(grad_out);
    const Map<T> to = write_map<T>(result);
    const int64_t pieces = sizes.pieces();
    torch::stable::parallel_for(0, sizes.B * pieces, sizes.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        run_best<DownsamplePiece<T>>(sizes, n / pieces, n % pieces, from, to);
      }
    });
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) {
  m.impl("upsample_nearest2x_native", TORCH_BOX(&zoominnet::upsample_nearest2x_cpu));
  m.impl("upsample_nearest2x_backward_native", TORCH_BOX(&zoominnet::upsample_nearest2x_backward_cpu));
}
