#include <algorithm>
#include <tuple>
#include <vector>

#include "../lanes.h"
#include "../map.h"
#include "pa_l2_loss.h"

// Sizes: B images, C channels, h x w student cells, H x W teacher positions. A cell has one position (H = h), or four
// (H = 2h), its phases 0 to 3 in row order.
namespace zoominnet {
namespace {

// Eight neighbouring cells of a row, or less at its end, of which at least one position is masked.
struct Group {
  int64_t student, teacher;  // of its first cell and position, in elements from those of the same channel's first
  int64_t i, j;
  int8_t masked[4][kLanes];  // for each phase, -1 where masked, else 0

  bool any(int64_t lane) const { return masked[0][lane] | masked[1][lane] | masked[2][lane] | masked[3][lane]; }
};

static_assert(sizeof(Group) == 64);  // a line of the cache: they are read once more for each channel

struct Problem {
  int64_t B, C, h, w, phases;
  std::vector<std::vector<Group>> groups;  // of each image, in row order
  int64_t masked = 0;                      // positions

  Problem(const Tensor& student, const Tensor& teacher, const Tensor& mask) {
    const int64_t step = check_features(student, teacher, mask, check_on_cpu);
    B = student.size(0);
    C = student.size(1);
    h = student.size(2);
    w = student.size(3);
    phases = step * step;
    find_groups(student, teacher, mask, step);
  }

  // Cells of a group.
  int64_t count(const Group& group) const { return std::min(kLanes, w - group.j); }

  // Of an image: how many groups are in rows before row i.
  int64_t first_group(int64_t b, int64_t i) const {
    const auto first =
        std::partition_point(groups[b].begin(), groups[b].end(), [&](const Group& g) { return g.i < i; });
    return first - groups[b].begin();
  }

 private:
  void find_groups(const Tensor& student, const Tensor& teacher, const Tensor& mask, int64_t step) {
    const auto* data = static_cast<const uint8_t*>(mask.const_data_ptr());
    const int64_t image = mask.stride(0), row = mask.stride(1), column = mask.stride(2);
    groups.resize(B);
    std::vector<int64_t> counts(B);
    torch::stable::parallel_for(0, B, 1 + (1 << 16) / (h * w * phases + 1), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t i = 0; i < h; ++i) {
          for (int64_t j = 0; j < w; j += kLanes) {
            const int64_t cells = std::min(kLanes, w - j);
            const uint8_t* const first = data + b * image + step * (i * row + j * column);
            Lanes<uint8_t> of_phase[4] = {};
            for (int64_t p = 0; p < phases; p += step) {
              const uint8_t* const from = first + p / step * row;
              if (column != 1 || cells < kLanes) {
                for (int64_t n = 0; n < step * cells; ++n) {
                  of_phase[p + n % step][n / step] = from[n * column];
                }
              } else if (step == 1) {
                of_phase[p] = load_lanes(from);
              } else {
                const auto pairs = split_pairs<uint8_t>(load_lanes(from), load_lanes(from + kLanes));
                of_phase[p] = pairs.even;
                of_phase[p + 1] = pairs.odd;
              }
            }
            if (!any_lane((of_phase[0] | of_phase[1]) | (of_phase[2] | of_phase[3]))) {
              continue;
            }
            Group group{i * student.stride(2) + j * student.stride(3),
                        step * (i * teacher.stride(2) + j * teacher.stride(3)),
                        i,
                        j,
                        {}};
            for (int64_t p = 0; p < phases; ++p) {
              const Lanes<int8_t> masked = of_phase[p] != 0;
              store_lanes(group.masked[p], masked);
              counts[b] += __builtin_popcountll(cast_bits<uint64_t>(masked)) / 8;  // bits of a byte
            }
            groups[b].push_back(group);
          }
        }
      }
    });
    for (const int64_t count : counts) {
      masked += count;
    }
  }
};

template <class T>
ZOOMINNET_INLINE Lanes<T> keep_masked(const Lanes<T>& x, const int8_t* masked) {
  // GCC knows instructions for each doubling of the width alone.
  const Lanes<int32_t> wide = convert_lanes<int32_t>(convert_lanes<int16_t>(load_lanes(masked)));
  const LaneMask<T> mask = __builtin_convertvector(wide, LaneMask<T>);
  return cast_bits<Lanes<T>>(cast_bits<LaneMask<T>>(x) & mask);
}

// S - T at each phase of eight cells or of eight channels of a cell, times the scale of the gradient; 0 where not
// masked.
template <class T, int64_t phases>
struct Terms {
  Lanes<T> of_phase[phases];

  ZOOMINNET_INLINE Lanes<double> sum_of_squares() const {
    Lanes<T> sum = of_phase[0] * of_phase[0];
    for (int64_t p = 1; p < phases; ++p) {
      sum += of_phase[p] * of_phase[p];
    }
    return convert_lanes<double>(sum);
  }

  ZOOMINNET_INLINE Lanes<T> sum() const {
    if constexpr (phases == 1) {
      return of_phase[0];
    } else {
      return (of_phase[0] + of_phase[1]) + (of_phase[2] + of_phase[3]);
    }
  }
};

template <class T, int64_t phases>
struct Inputs {
  using Element = T;
  using Wide = Accumulated<T>;
  const Problem& problem;
  Map<const T> student, teacher;

  // One channel of a group.
  ZOOMINNET_INLINE Terms<Wide, phases> of_group(int64_t b, int64_t c, const Group& group, Wide scale) const {
    Terms<Wide, phases> terms;
    const T* const s_first = student.at(b, c, 0, 0) + group.student;
    const T* const t_first = teacher.at(b, c, 0, 0) + group.teacher;
    // Groups are too far apart for the processor to foresee; the same group of the next channel comes next but a plane.
    const int64_t next = c + 1 < problem.C ? 1 : 0;
    prefetch(s_first + next * student.channel);
    prefetch(t_first + next * teacher.channel);
    if constexpr (phases == 4) {
      prefetch(t_first + next * (teacher.channel + teacher.row));
    }
    const int64_t count = problem.count(group);
    const Lanes<Wide> s = load_wide(s_first, student.column, count);
    if constexpr (phases == 1) {
      const Lanes<Wide> t = load_wide(t_first, teacher.column, count);
      terms.of_phase[0] = keep_masked<Wide>((s - t) * scale, group.masked[0]);
    } else {
      for (int64_t r = 0; r < 2; ++r) {
        const Pairs<Wide> t = load_pairs(t_first + r * teacher.row, teacher.column, count);
        terms.of_phase[2 * r] = keep_masked<Wide>((s - t.even) * scale, group.masked[2 * r]);
        terms.of_phase[2 * r + 1] = keep_masked<Wide>((s - t.odd) * scale, group.masked[2 * r + 1]);
      }
    }
    return terms;
  }

  // `count` channels from c of one cell of a group.
  ZOOMINNET_INLINE Terms<Wide, phases> of_cell(int64_t b, int64_t c, int64_t count, const Group& group, int64_t lane,
                                               Wide scale) const {
    constexpr int64_t step = phases == 1 ? 1 : 2;
    Terms<Wide, phases> terms;
    const int64_t j = group.j + lane;
    prefetch(student.at(b, c, group.i, j + 1));  // masked too, more often than not
    const Lanes<Wide> s = load_wide(student.at(b, c, group.i, j), student.channel, count);
    for (int64_t p = 0; p < phases; ++p) {
      terms.of_phase[p] = Lanes<Wide>{};
      if (group.masked[p][lane]) {
        const T* t = teacher.at(b, c, step * group.i + p / 2, step * j + p % 2);
        prefetch(t + step * teacher.column);
        terms.of_phase[p] = (s - load_wide(t, teacher.channel, count)) * scale;
      }
    }
    return terms;
  }

  // Whether the work is cut into rows with lanes along the channels, or into channels with lanes along the rows.
  bool along_channels() const { return teacher.channel == 1 && teacher.column != 1; }
  int64_t pieces() const { return along_channels() ? problem.h : problem.C; }
};

// The sum of squares of one row or channel of an image.
template <class In>
struct SumPiece {
  static ZOOMINNET_INLINE void run(const In& in, const int64_t& b, const int64_t& piece, double& result) {
    const Problem& problem = in.problem;
    const std::vector<Group>& groups = problem.groups[b];
    Lanes<double> sum{};
    if (in.along_channels()) {
      for (int64_t n = problem.first_group(b, piece); n < problem.first_group(b, piece + 1); ++n) {
        for (int64_t lane = 0; lane < problem.count(groups[n]); ++lane) {
          for (int64_t c = 0; c < problem.C && groups[n].any(lane); c += kLanes) {
            sum += in.of_cell(b, c, std::min(kLanes, problem.C - c), groups[n], lane, 1).sum_of_squares();
          }
        }
      }
    } else {
      for (const Group& group : groups) {
        sum += in.of_group(b, piece, group, 1).sum_of_squares();
      }
    }
    result = sum_of_lanes(sum);
  }
};

template <class T>
ZOOMINNET_INLINE void set_zero(T* to, int64_t stride, int64_t count) {
  if (stride == 1) {
    std::fill_n(to, count, T(0));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[i * stride] = T(0);
    }
  }
}

// The gradient of one row or channel of an image.
template <class In>
struct DifferentiatePiece {
  static ZOOMINNET_INLINE void run(const In& in, const int64_t& b, const int64_t& piece, const typename In::Wide& scale,
                                   const Map<typename In::Element>& grad) {
    using Wide = typename In::Wide;
    const Problem& problem = in.problem;
    const std::vector<Group>& groups = problem.groups[b];
    if (in.along_channels()) {
      for (int64_t j = 0; j < problem.w; ++j) {
        set_zero(grad.at(b, 0, piece, j), grad.channel, problem.C);
      }
      for (int64_t n = problem.first_group(b, piece); n < problem.first_group(b, piece + 1); ++n) {
        for (int64_t lane = 0; lane < problem.count(groups[n]); ++lane) {
          for (int64_t c = 0; c < problem.C && groups[n].any(lane); c += kLanes) {
            const int64_t count = std::min(kLanes, problem.C - c);
            const Lanes<Wide> sum = in.of_cell(b, c, count, groups[n], lane, scale).sum();
            store_narrow(grad.at(b, c, piece, groups[n].j + lane), grad.channel, count, sum);
          }
        }
      }
    } else {
      for (int64_t i = 0; i < problem.h; ++i) {
        set_zero(grad.at(b, piece, i, 0), grad.column, problem.w);
      }
      for (const Group& group : groups) {
        const Lanes<Wide> sum = in.of_group(b, piece, group, scale).sum();
        store_narrow(grad.at(b, piece, group.i, group.j), grad.column, problem.count(group), sum);
      }
    }
  }
};

// Calls `body` with the inputs in the C++ type that suits them.
template <class Body>
void dispatch_inputs(const Problem& problem, const Tensor& student, const Tensor& teacher, const Body& body) {
  dispatch_floating("student", student.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Map<const T> s = read_map<T>(student), t = read_map<T>(teacher);
    if (problem.phases == 1) {
      body(Inputs<T, 1>{problem, s, t});
    } else {
      body(Inputs<T, 4>{problem, s, t});
    }
  });
}

// Calls `run(b, piece)` for the pieces of all images.
template <class In, class Run>
void for_pieces(const In& in, const Run& run) {
  const int64_t pieces = in.pieces();
  const int64_t features = in.problem.C * in.problem.h * in.problem.w / std::max<int64_t>(pieces, 1);
  const int64_t grain = (1 << 14) / (features + 1) + 1;
  torch::stable::parallel_for(0, in.problem.B * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      run(n / pieces, n % pieces);
    }
  });
}

std::tuple<Tensor, Tensor> pa_l2_loss_cpu(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                                          bool channel_mean) {
  const Problem problem(student, teacher, mask);
  const Tensor loss = torch::stable::new_empty(student, {}, loss_dtype(student));
  const Tensor count = torch::stable::new_empty(student, {}, ScalarType::Long);
  dispatch_inputs(problem, student, teacher, [&](const auto& in) {
    using In = std::decay_t<decltype(in)>;
    std::vector<double> sums(problem.B * in.pieces());
    for_pieces(in,
               [&](int64_t b, int64_t piece) { run_best<SumPiece<In>>(in, b, piece, sums[b * in.pieces() + piece]); });
    double sum = 0;
    for (const double of_piece : sums) {
      sum += of_piece;
    }
    *static_cast<typename In::Wide*>(loss.mutable_data_ptr()) =
        static_cast<typename In::Wide>(sum / divisor(problem.masked, problem.C, channel_mean));
  });
  *static_cast<int64_t*>(count.mutable_data_ptr()) = problem.masked;
  return {loss, count};
}

Tensor pa_l2_loss_backward_cpu(const Tensor& grad_out, const Tensor& student, const Tensor& teacher, const Tensor& mask,
                               const Tensor& count, bool channel_mean) {
  const Problem problem(student, teacher, mask);
  check_scalars(grad_out, count, student, check_on_cpu);
  const int64_t masked = *static_cast<const int64_t*>(count.const_data_ptr());
  const Tensor result = torch::stable::empty_like(student);
  dispatch_inputs(problem, student, teacher, [&](const auto& in) {
    using In = std::decay_t<decltype(in)>;
    using Wide = typename In::Wide;
    const auto grad = write_map<typename In::Element>(result);
    const Wide scale = 2 * *static_cast<const Wide*>(grad_out.const_data_ptr()) /
                       static_cast<Wide>(divisor(masked, problem.C, channel_mean));
    for_pieces(in, [&](int64_t b, int64_t piece) { run_best<DifferentiatePiece<In>>(in, b, piece, scale, grad); });
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) {
  m.impl("pa_l2_loss_native", TORCH_BOX(&zoominnet::pa_l2_loss_cpu));
  m.impl("pa_l2_loss_backward_native", TORCH_BOX(&zoominnet::pa_l2_loss_backward_cpu));
}
