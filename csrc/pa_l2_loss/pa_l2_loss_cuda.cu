#include <tuple>

#include "../map_cuda.h"
#include "pa_l2_loss.h"

// Sizes: B images, C channels, h x w student cells, H x W teacher positions. A cell has one position (step 1), or 2 x 2
// of them (step 2), its phases, in row order.
namespace zoominnet {
namespace {

constexpr int64_t kMaxSumBlocks = 2048;

template <class T>
struct Inputs {
  Map<const T> student, teacher;
  Map<const uint8_t> mask;  // with one channel
  int64_t B, C, h, w;
};

struct PartialSum {
  double sum;
  int64_t masked;
};

// What a kernel is to make of the inputs: the sums, one for each block, or the gradient.
template <class T>
struct Results {
  PartialSum* sums;
  Map<T> grad;
  const Accumulated<T>* grad_out;
  const int64_t* count;
  bool channel_mean;

  // Of the gradient.
  __device__ __forceinline__ Accumulated<T> scale(int64_t C) const {
    return 2 * *grad_out / static_cast<Accumulated<T>>(divisor(*count, C, channel_mean));
  }
};

// The differences of a student value and its teacher values, 0 where they are not masked.
template <class Wide, int step>
struct Differences {
  Wide of_phase[step * step];

  __device__ __forceinline__ Wide sum_of_squares() const {
    Wide sum = of_phase[0] * of_phase[0];
    for (int p = 1; p < step * step; ++p) {
      sum += of_phase[p] * of_phase[p];
    }
    return sum;
  }

  __device__ __forceinline__ Wide gradient(Wide scale, unsigned masked) const {
    Wide terms[step * step];
    for (int p = 0; p < step * step; ++p) {
      terms[p] = masked >> p & 1 ? of_phase[p] * scale : Wide{};
    }
    if constexpr (step == 1) {
      return terms[0];
    } else {
      return (terms[0] + terms[1]) + (terms[2] + terms[3]);
    }
  }
};

// Which phases of a cell are masked, a bit for each.
template <int step>
__device__ __forceinline__ unsigned masked_phases(const Map<const uint8_t>& mask, int64_t b, int64_t i, int64_t j) {
  unsigned bits = 0;
  for (int p = 0; p < step * step; ++p) {
    bits |= static_cast<unsigned>(*mask.at(b, 0, step * i + p / step, step * j + p % step) != 0) << p;
  }
  return bits;
}

__device__ __forceinline__ void write_sums(PartialSum* sums, double sum, int64_t masked) {
  sum = block_reduce(sum, Add{});
  masked = block_reduce(masked, Add{});
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = {sum, masked};
  }
}

// A thread's item: `cells` neighbours in a row, and some channels.
template <class T, int step, int cells, bool packed, bool backward>
__global__ __launch_bounds__(kThreads) void columns_kernel(Inputs<T> in, int64_t channels, int64_t items,
                                                           Results<T> results) {
  using Wide = Accumulated<T>;
  const int64_t groups = in.w / cells, chunks = in.C > 0 ? (in.C + channels - 1) / channels : 1;
  const Wide scale = backward ? results.scale(in.C) : Wide{1};
  double sum = 0;
  int64_t count = 0;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, groups, in.h, chunks);
    const int64_t j = at.inner * cells, i = at.second, b = at.outer, begin = at.third * channels;
    const int64_t end = begin + channels < in.C ? begin + channels : in.C;
    unsigned masked[cells], row_masked[step] = {};
    for (int n = 0; n < cells; ++n) {
      masked[n] = masked_phases<step>(in.mask, b, i, j + n);
      for (int r = 0; r < step; ++r) {
        row_masked[r] |= masked[n] >> (r * step) & ((1u << step) - 1);
      }
      count += begin == 0 ? __popc(masked[n]) : 0;
    }
    unsigned any = 0;
    for (int r = 0; r < step; ++r) {
      any |= row_masked[r];
    }
    if (!backward && any == 0) {
      continue;
    }
#pragma unroll 2
    for (int64_t c = begin; c < end; ++c) {
      Differences<Wide, step> differences[cells] = {};
      if (any != 0) {
        const auto student = load_pack<cells, packed>(in.student.at(b, c, i, j), in.student.column);
        for (int r = 0; r < step; ++r) {
          if (row_masked[r] != 0) {
            const auto teacher =
                load_pack<step * cells, packed>(in.teacher.at(b, c, step * i + r, step * j), in.teacher.column);
            for (int n = 0; n < cells; ++n) {
              for (int p = r * step; p < (r + 1) * step; ++p) {
                if (masked[n] >> p & 1) {
                  differences[n].of_phase[p] = widen(student.values[n]) - widen(teacher.values[n * step + p % step]);
                }
              }
            }
          }
        }
      }
      if constexpr (backward) {
        Pack<T, cells> grad;
        for (int n = 0; n < cells; ++n) {
          grad.values[n] = static_cast<T>(differences[n].gradient(scale, masked[n]));
        }
        store_pack<cells, packed>(results.grad.at(b, c, i, j), results.grad.column, grad);
      } else {
        Wide squares = differences[0].sum_of_squares();
        for (int n = 1; n < cells; ++n) {
          squares += differences[n].sum_of_squares();
        }
        sum += static_cast<double>(squares);
      }
    }
  }
  if constexpr (!backward) {
    write_sums(results.sums, sum, count);
  }
}

// A thread's item: kPack channels of a cell.
template <class T, int step, bool backward>
__global__ __launch_bounds__(kThreads) void channels_kernel(Inputs<T> in, int64_t items, Results<T> results) {
  using Wide = Accumulated<T>;
  constexpr int kChannels = kPack<T>;
  const Wide scale = backward ? results.scale(in.C) : Wide{1};
  double sum = 0;
  int64_t count = 0;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, in.C / kChannels, in.w, in.h);
    const int64_t c = at.inner * kChannels, j = at.second, i = at.third, b = at.outer;
    const unsigned masked = masked_phases<step>(in.mask, b, i, j);
    count += c == 0 ? __popc(masked) : 0;
    if (!backward && masked == 0) {
      continue;
    }
    Differences<Wide, step> differences[kChannels] = {};
    if (masked != 0) {
      const auto student = load_pack<kChannels, true>(in.student.at(b, c, i, j), 1);
      for (int p = 0; p < step * step; ++p) {
        if (masked >> p & 1) {
          const auto teacher =
              load_pack<kChannels, true>(in.teacher.at(b, c, step * i + p / step, step * j + p % step), 1);
          for (int n = 0; n < kChannels; ++n) {
            differences[n].of_phase[p] = widen(student.values[n]) - widen(teacher.values[n]);
          }
        }
      }
    }
    if constexpr (backward) {
      Pack<T, kChannels> grad;
      for (int n = 0; n < kChannels; ++n) {
        grad.values[n] = static_cast<T>(differences[n].gradient(scale, masked));
      }
      store_pack<kChannels, true>(results.grad.at(b, c, i, j), 1, grad);
    } else {
      Wide squares = differences[0].sum_of_squares();
      for (int n = 1; n < kChannels; ++n) {
        squares += differences[n].sum_of_squares();
      }
      sum += static_cast<double>(squares);
    }
  }
  if constexpr (!backward) {
    write_sums(results.sums, sum, count);
  }
}

// One block.
template <class Wide>
__global__ __launch_bounds__(kThreads) void loss_kernel(const PartialSum* sums, int64_t blocks, int64_t C,
                                                        bool channel_mean, Wide* loss, int64_t* count) {
  double sum = 0;
  int64_t masked = 0;
  for (int64_t n = threadIdx.x; n < blocks; n += kThreads) {
    sum += sums[n].sum;
    masked += sums[n].masked;
  }
  sum = block_reduce(sum, Add{});
  masked = block_reduce(masked, Add{});
  if (threadIdx.x == 0) {
    *loss = static_cast<Wide>(sum / static_cast<double>(divisor(masked, C, channel_mean)));
    *count = masked;
  }
}

// Runs the kernel that fits the maps; returns its number of blocks.
template <class T, int step, bool backward>
int64_t launch_kernel(const Stream& stream, const Inputs<T>& in, Order order, const Results<T>& results) {
  const auto blocks_of = [](int64_t items) {
    const int64_t blocks = divide_up(items, kThreads);
    return backward ? blocks : std::min(blocks, kMaxSumBlocks);
  };
  if constexpr (sizeof(T) < sizeof(double)) {
    if (order == Order::kChannels) {
      const int64_t items = in.B * in.h * in.w * (in.C / kPack<T>);
      stream.launch(channels_kernel<T, step, backward>, blocks_of(items), in, items, results);
      return blocks_of(items);
    }
  }
  constexpr int kCells = kPack<T> / step;
  const int64_t positions = in.B * in.h * (order == Order::kColumns ? in.w / kCells : in.w);
  // So few channels for a thread that there are about 2^18 of them, but not less than 4.
  const int64_t chunks = std::clamp<int64_t>((1 << 18) / std::max<int64_t>(positions, 1), 1, divide_up(in.C + 1, 4));
  const int64_t channels = std::max<int64_t>(divide_up(in.C, chunks), 1);
  const int64_t items = positions * std::max<int64_t>(divide_up(in.C, channels), 1);
  if constexpr (sizeof(T) < sizeof(double)) {
    if (order == Order::kColumns) {
      stream.launch(columns_kernel<T, step, kCells, true, backward>, blocks_of(items), in, channels, items, results);
      return blocks_of(items);
    }
  }
  stream.launch(columns_kernel<T, step, 1, false, backward>, blocks_of(items), in, channels, items, results);
  return blocks_of(items);
}

template <class T>
struct Problem {
  Inputs<T> in;
  int64_t step;
  OrderOfMaps order;

  Problem(const Tensor& student, const Tensor& teacher, const Tensor& mask, int64_t step_)
      : in{read_map<T>(student),
           read_map<T>(teacher),
           {static_cast<const uint8_t*>(mask.const_data_ptr()), mask.stride(0), 0, mask.stride(1), mask.stride(2)},
           student.size(0),
           student.size(1),
           student.size(2),
           student.size(3)},
        step(step_) {
    order.include(in.student, student, columns());
    order.include(in.teacher, teacher, kPack<T>);
  }

  // Of the student, in a pack.
  int columns() const { return kPack<T> / static_cast<int>(step); }

  template <bool backward>
  int64_t launch(const Stream& stream, const Results<T>& results) const {
    return step == 1 ? launch_kernel<T, 1, backward>(stream, in, order.best(), results)
                     : launch_kernel<T, 2, backward>(stream, in, order.best(), results);
  }
};

int64_t check_inputs(const Tensor& student, const Tensor& teacher, const Tensor& mask) {
  const int64_t step = check_features(student, teacher, mask, check_on_cuda);
  check_same_device("teacher", teacher, "student", student);
  check_same_device("mask", mask, "student", student);
  return step;
}

std::tuple<Tensor, Tensor> pa_l2_loss_cuda(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                                           bool channel_mean) {
  const int64_t step = check_inputs(student, teacher, mask);
  const Stream stream(student);
  const Tensor loss = torch::stable::new_empty(student, {}, loss_dtype(student));
  const Tensor count = torch::stable::new_empty(student, {}, ScalarType::Long);
  const Tensor sums = new_scratch<PartialSum>(student, kMaxSumBlocks);
  dispatch_floating("student", student.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Problem<T> problem(student, teacher, mask, step);
    Results<T> results{};
    results.sums = data_of<PartialSum>(sums);
    const int64_t blocks = problem.template launch<false>(stream, results);
    stream.launch(loss_kernel<Accumulated<T>>, 1, results.sums, blocks, problem.in.C, channel_mean,
                  data_of<Accumulated<T>>(loss), data_of<int64_t>(count));
  });
  return {loss, count};
}

Tensor pa_l2_loss_backward_cuda(const Tensor& grad_out, const Tensor& student, const Tensor& teacher,
                                const Tensor& mask, const Tensor& count, bool channel_mean) {
  const int64_t step = check_inputs(student, teacher, mask);
  check_scalars(grad_out, count, student, check_on_cuda);
  check_same_device("grad_out", grad_out, "student", student);
  check_same_device("count", count, "student", student);
  const Stream stream(student);
  const Tensor result = torch::stable::empty_like(student);
  dispatch_floating("student", student.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    Problem<T> problem(student, teacher, mask, step);
    Results<T> results{nullptr, write_map<T>(result),
                       static_cast<const Accumulated<T>*>(grad_out.const_data_ptr()),
                       static_cast<const int64_t*>(count.const_data_ptr()), channel_mean};
    problem.order.include(results.grad, result, problem.columns());
    problem.template launch<true>(stream, results);
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CUDA, m) {
  m.impl("pa_l2_loss_native", TORCH_BOX(&zoominnet::pa_l2_loss_cuda));
  m.impl("pa_l2_loss_backward_native", TORCH_BOX(&zoominnet::pa_l2_loss_backward_cuda));
}
