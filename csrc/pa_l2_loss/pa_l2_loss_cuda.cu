#include <tuple>

#include "../map_cuda.h"
#include "pa_l2_loss.h"

// Sizes: B images, C channels, h x w student cells, H x W teacher positions. A cell has one position (step 1), or 2 x 2
// of them (step 2), its phases, in row order.
namespace zoominnet {
namespace {

constexpr int64_t kMaxSumBlocks = 2048;

// Neighbouring cells that a thread takes where maps can be read in packs along the rows. With four positions a cell,
// more would not fit in its registers.
template <class T>
constexpr int columns_of(int64_t step) {
  return step == 1 ? kPack<T> : 4;
}

template <class T>
struct Inputs {
  Map<const T> student, teacher;
  Map<const uint8_t> mask;  // with one channel
  bool mask_packed;         // it can be read in packs as the teacher is
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

// Which phases of `cells` neighbours in a row are masked, a bit for each phase.
template <int step, int cells>
struct Masked {
  unsigned of_cell[cells], any = 0;

  __device__ __forceinline__ Masked(const Map<const uint8_t>& mask, bool packed, int64_t b, int64_t i, int64_t j)
      : of_cell{} {
    for (int r = 0; r < step; ++r) {
      const uint8_t* const from = mask.at(b, 0, step * i + r, step * j);
      const auto row =
          packed ? load_pack<step * cells, true>(from, 1) : load_pack<step * cells, false>(from, mask.column);
      for (int n = 0; n < step * cells; ++n) {
        of_cell[n / step] |= static_cast<unsigned>(row.values[n] != 0) << (r * step + n % step);
      }
    }
    for (int n = 0; n < cells; ++n) {
      any |= of_cell[n];
    }
  }

  __device__ __forceinline__ int count() const {
    int sum = 0;
    for (int n = 0; n < cells; ++n) {
      sum += __popc(of_cell[n]);
    }
    return sum;
  }
};

__device__ __forceinline__ void write_sums(PartialSum* sums, double sum, int64_t masked) {
  sum = block_reduce(sum, Add{});
  masked = block_reduce(masked, Add{});
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = {sum, masked};
  }
}

// For how many channels, or packs of channels, a thread asks for everything before it computes: the more values are on
// their way at a time, the less memory waits. The compiler may still move some of the loads; a test counts them.
template <int step>
constexpr int kAhead = step == 1 ? 4 : 2;

// Blocks that a multiprocessor can hold at the least: each thread may have 128 registers for what is on its way.
constexpr int kMinBlocks = 4;

// A thread's item: `cells` neighbours in a row, and some channels.
template <class T, int step, int cells, bool packed, bool backward>
__global__ __launch_bounds__(kThreads, kMinBlocks) void columns_kernel(Inputs<T> in, int64_t channels, int64_t items,
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
    const Masked<step, cells> masked(in.mask, packed && in.mask_packed, b, i, j);
    count += begin == 0 ? masked.count() : 0;
    if (!backward && masked.any == 0) {
      continue;
    }
    for (int64_t first = begin; first < end; first += kAhead<step>) {
      Pack<T, cells> student[kAhead<step>] = {};
      Pack<T, step * cells> teacher[kAhead<step>][step] = {};
#pragma unroll
      for (int n = 0; n < kAhead<step>; ++n) {
        const int64_t c = first + n < end ? first + n : end - 1;
        if (masked.any != 0) {  // both rows, though one may have nothing masked: a condition each would part the loads
          student[n] = load_pack<cells, packed>(in.student.at(b, c, i, j), in.student.column);
          for (int r = 0; r < step; ++r) {
            teacher[n][r] =
                load_pack<step * cells, packed>(in.teacher.at(b, c, step * i + r, step * j), in.teacher.column);
          }
        }
      }
      Wide squares[kAhead<step>] = {};
#pragma unroll
      for (int n = 0; n < kAhead<step>; ++n) {
        Differences<Wide, step> differences[cells] = {};
        for (int cell = 0; cell < cells; ++cell) {
          for (int p = 0; p < step * step; ++p) {
            if (masked.of_cell[cell] >> p & 1) {
              differences[cell].of_phase[p] =
                  widen(student[n].values[cell]) - widen(teacher[n][p / step].values[cell * step + p % step]);
            }
          }
        }
        if constexpr (backward) {
          Pack<T, cells> grad;
          for (int cell = 0; cell < cells; ++cell) {
            grad.values[cell] = static_cast<T>(differences[cell].gradient(scale, masked.of_cell[cell]));
          }
          if (first + n < end) {
            store_pack<cells, packed>(results.grad.at(b, first + n, i, j), results.grad.column, grad);
          }
        } else {
          squares[n] = differences[0].sum_of_squares();
          for (int cell = 1; cell < cells; ++cell) {
            squares[n] += differences[cell].sum_of_squares();
          }
        }
      }
      if constexpr (!backward) {
        Wide all = squares[0];
        for (int n = 1; n < kAhead<step>; ++n) {
          all += first + n < end ? squares[n] : Wide{};
        }
        sum += static_cast<double>(all);
      }
    }
  }
  if constexpr (!backward) {
    write_sums(results.sums, sum, count);
  }
}

// How many items a cell is for the kernel below.
template <class T, int step>
__host__ __device__ int64_t items_of_cell(int64_t C) {
  return (C / kPack<T> + kAhead<step> - 1) / kAhead<step>;
}

// A thread's item: packs of channels of a cell, so far apart that neighbouring threads have neighbouring packs.
template <class T, int step, bool backward>
__global__ __launch_bounds__(kThreads, kMinBlocks) void channels_kernel(Inputs<T> in, int64_t items,
                                                                        Results<T> results) {
  using Wide = Accumulated<T>;
  constexpr int kChannels = kPack<T>;
  const int64_t of_cell = items_of_cell<T, step>(in.C);
  const Wide scale = backward ? results.scale(in.C) : Wide{1};
  double sum = 0;
  int64_t count = 0;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Position at = find_position(item, of_cell, in.w, in.h);
    const int64_t j = at.second, i = at.third, b = at.outer;
    const unsigned masked = Masked<step, 1>(in.mask, false, b, i, j).any;
    count += at.inner == 0 ? __popc(masked) : 0;
    if (!backward && masked == 0) {
      continue;
    }
    Pack<T, kChannels> student[kAhead<step>] = {}, teacher[kAhead<step>][step * step] = {};
#pragma unroll
    for (int n = 0; n < kAhead<step>; ++n) {
      const int64_t c = (at.inner + n * of_cell) * kChannels;
      if (c < in.C && masked != 0) {
        student[n] = load_pack<kChannels, true>(in.student.at(b, c, i, j), 1);
      }
      for (int p = 0; p < step * step; ++p) {
        if (c < in.C && masked >> p & 1) {
          teacher[n][p] = load_pack<kChannels, true>(in.teacher.at(b, c, step * i + p / step, step * j + p % step), 1);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kAhead<step>; ++n) {
      const int64_t c = (at.inner + n * of_cell) * kChannels;
      Differences<Wide, step> differences[kChannels] = {};
      for (int channel = 0; channel < kChannels; ++channel) {
        for (int p = 0; p < step * step; ++p) {
          if (masked >> p & 1) {
            differences[channel].of_phase[p] = widen(student[n].values[channel]) - widen(teacher[n][p].values[channel]);
          }
        }
      }
      if constexpr (backward) {
        Pack<T, kChannels> grad;
        for (int channel = 0; channel < kChannels; ++channel) {
          grad.values[channel] = static_cast<T>(differences[channel].gradient(scale, masked));
        }
        if (c < in.C) {
          store_pack<kChannels, true>(results.grad.at(b, c, i, j), 1, grad);
        }
      } else {
        Wide squares = differences[0].sum_of_squares();
        for (int channel = 1; channel < kChannels; ++channel) {
          squares += differences[channel].sum_of_squares();
        }
        sum += static_cast<double>(squares);
      }
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
      const int64_t items = in.B * in.h * in.w * items_of_cell<T, step>(in.C);
      stream.launch(channels_kernel<T, step, backward>, blocks_of(items), in, items, results);
      return blocks_of(items);
    }
  }
  constexpr int kCells = columns_of<T>(step);
  const int64_t positions = in.B * in.h * (order == Order::kColumns ? in.w / kCells : in.w);
  // So few channels for a thread that there are about 2^18 of them, but not less than 4, and as many as are asked for
  // at a time, or a multiple of that.
  const int64_t chunks = std::clamp<int64_t>((1 << 18) / std::max<int64_t>(positions, 1), 1, divide_up(in.C + 1, 4));
  const int64_t channels = std::max<int64_t>(divide_up(divide_up(in.C, chunks), kAhead<step>), 1) * kAhead<step>;
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
           false,
           student.size(0),
           student.size(1),
           student.size(2),
           student.size(3)},
        step(step_) {
    const int positions = static_cast<int>(step) * columns();
    in.mask_packed = fits_in_packs(in.mask.data, mask, 2, positions);
    order.include(in.student, student, columns());
    order.include(in.teacher, teacher, positions);
  }

  // Of the student, that are read at a time.
  int columns() const { return columns_of<T>(step); }

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
    Results<T> results{nullptr, write_map<T>(result), static_cast<const Accumulated<T>*>(grad_out.const_data_ptr()),
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
