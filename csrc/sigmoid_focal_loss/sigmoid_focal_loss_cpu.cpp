#include <algorithm>
#include <vector>

#include "../lanes.h"
#include "../map.h"
#include "sigmoid_focal_loss.h"

// Sizes: B images, L levels of A_l anchors each, A in all, C classes.
namespace zoominnet {

template <>
struct BitsOf<Lanes<float>> {
  using type = Lanes<uint32_t>;
};
template <>
struct BitsOf<Lanes<double>> {
  using type = Lanes<uint64_t>;
};

namespace {

// Some anchors of one image and level.
struct Piece {
  int64_t level, b, begin, end;
  int64_t first;  // anchor of the level, among A
};

// So few anchors that they have about 2^13 logits. How the work is cut, and so the order of the sum, is a matter of the
// sizes alone.
std::vector<Piece> cut_in_pieces(const std::vector<Tensor>& logits, int64_t C) {
  const int64_t step = std::max<int64_t>((1 << 13) / std::max<int64_t>(C, 1), 1);
  std::vector<Piece> pieces;
  int64_t first = 0;
  for (size_t level = 0; level < logits.size(); ++level) {
    const int64_t anchors = C > 0 ? logits[level].size(1) : 0;
    for (int64_t b = 0; b < logits[level].size(0); ++b) {
      for (int64_t begin = 0; begin < anchors; begin += step) {
        pieces.push_back({static_cast<int64_t>(level), b, begin, std::min(begin + step, anchors), first});
      }
    }
    first += anchors;
  }
  return pieces;
}

// Lanes whose number is less than `count`.
template <class W>
ZOOMINNET_INLINE LaneMask<W> lanes_below(int64_t count) {
  using Number = std::conditional_t<sizeof(W) == 4, int32_t, int64_t>;
  return Lanes<Number>{0, 1, 2, 3, 4, 5, 6, 7} < static_cast<Number>(std::clamp<int64_t>(count, 0, kLanes));
}

// T is the logits' type, W that of the computation.
template <class T, class W, bool squared>
struct Inputs {
  using Element = T;
  using Wide = W;
  const Classes& classes;
  std::vector<Values<const T>> logits;
  W of_class, of_others, gamma;  // weights of a logit whose class is that of its anchor, and of any other

  // Calls `visit(a, i, count, cls)` for eight values after the other, or less: `count` of them from value i of anchor a
  // on, which is of the class `cls`. If `runs`, all neighbours that are background are gone through as one.
  template <class Visit>
  ZOOMINNET_INLINE void visit_values(const Piece& piece, bool runs, const Visit& visit) const {
    const int64_t* const assigned = classes.assigned + piece.b * classes.assigned_image;
    for (int64_t a = piece.begin; a < piece.end;) {
      const int64_t start = a++, cls = classes.at(piece.b, piece.first + start);
      while (runs && cls == kBackgroundClass && a < piece.end &&
             assigned[(piece.first + a) * classes.assigned_anchor] == cls) {
        ++a;
      }
      const int64_t values = (a - start) * classes.C;
      for (int64_t i = 0; i < values; i += kLanes) {
        visit(start, i, std::min(kLanes, values - i), cls);
      }
    }
  }

  // Of `count` values; `mine` tells which are of their anchor's class.
  ZOOMINNET_INLINE FocalTerm<W, squared, Lanes<W>> terms(const T* from, int64_t stride, int64_t count,
                                                         const LaneMask<W>& mine) const {
    const Lanes<W> x = convert_lanes<W>(load_wide(from, stride, count));
    return {mine ? -x : x, gamma};
  }

  ZOOMINNET_INLINE LaneMask<W> lanes_of_class(int64_t cls, int64_t i) const {
    if (cls < i) {  // as of the background, which is nearly all
      return LaneMask<W>{};
    }
    return lanes_below<W>(cls - i + 1) & ~lanes_below<W>(cls - i);
  }

  ZOOMINNET_INLINE Lanes<W> weights(const LaneMask<W>& mine) const {
    return mine ? broadcast(of_class) : broadcast(of_others);
  }
};

template <class In>
struct SumPiece {
  static ZOOMINNET_INLINE void run(const In& in, const Piece& piece, double& result) {
    using W = typename In::Wide;
    const auto& logits = in.logits[piece.level];
    Lanes<double> sum{};
    bool invalid = false;
    in.visit_values(piece, logits.dense(in.classes.C),
                    [&](int64_t a, int64_t i, int64_t count, int64_t cls) __attribute__((always_inline)) {
                      if (cls < kBackgroundClass) {
                        invalid = invalid || cls == kInvalidClass;
                        return;
                      }
                      const auto mine = in.lanes_of_class(cls, i);
                      Lanes<W> loss =
                          in.terms(logits.at(piece.b, a, i), logits.cls, count, mine).loss() * in.weights(mine);
                      if (count < kLanes) {
                        loss = lanes_below<W>(count) ? loss : Lanes<W>{};
                      }
                      sum += convert_lanes<double>(loss);
                    });
    result = invalid ? kNaN<double> : sum_of_lanes(sum);
  }
};

template <class In>
struct DifferentiatePiece {
  static ZOOMINNET_INLINE void run(const In& in, const Piece& piece,
                                   const std::vector<Values<typename In::Element>>& grads) {
    using W = typename In::Wide;
    const auto& logits = in.logits[piece.level];
    const auto& grad = grads[piece.level];
    in.visit_values(piece, logits.dense(in.classes.C) && grad.dense(in.classes.C),
                    [&](int64_t a, int64_t i, int64_t count, int64_t cls) __attribute__((always_inline)) {
                      Lanes<W> result{};
                      if (cls >= kBackgroundClass) {
                        const auto mine = in.lanes_of_class(cls, i);
                        result = in.terms(logits.at(piece.b, a, i), logits.cls, count, mine).gradient(in.gamma) *
                                 in.weights(mine);
                        result = mine ? -result : result;
                      } else if (cls == kInvalidClass) {
                        result += kNaN<W>;
                      }
                      store_narrow(grad.at(piece.b, a, i), grad.cls, count,
                                   convert_lanes<Accumulated<typename In::Element>>(result));
                    });
  }
};

// Calls `run(piece)` for all of them.
template <class Run>
void for_pieces(const std::vector<Piece>& pieces, const Run& run) {
  torch::stable::parallel_for(0, pieces.size(), 2, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      run(n);
    }
  });
}

// Calls `body` with the inputs in the C++ type that suits them.
template <class Body>
void dispatch_inputs(const std::vector<Tensor>& logits, const Classes& classes, double alpha, double gamma,
                     const Body& body) {
  dispatch_focal(logits[0].scalar_type(), gamma, [&](auto tag, auto wide, auto squared) {
    using T = decltype(tag);
    using W = decltype(wide);
    Inputs<T, W, decltype(squared)::value> in{classes, {}, W(alpha), W(1 - alpha), W(gamma)};
    for (const Tensor& level : logits) {
      in.logits.push_back(read_values<T>(level));
    }
    body(in);
  });
}

Tensor sigmoid_focal_loss_cpu(const std::vector<Tensor>& logits, const Tensor& assigned, const Tensor& labels,
                              double alpha, double gamma) {
  const Classes classes = check_focal(logits, assigned, labels, alpha, gamma, check_on_cpu);
  const Tensor result = torch::stable::new_empty(logits[0], {}, focal_dtype(logits[0]));
  const std::vector<Piece> pieces = cut_in_pieces(logits, classes.C);
  std::vector<double> sums(pieces.size());
  dispatch_inputs(logits, classes, alpha, gamma, [&](const auto& in) {
    using In = std::decay_t<decltype(in)>;
    for_pieces(pieces, [&](int64_t n) { run_best<SumPiece<In>>(in, pieces[n], sums[n]); });
    double sum = 0;
    for (const double of_piece : sums) {
      sum += of_piece;
    }
    using Result = Accumulated<typename In::Element>;
    *static_cast<Result*>(result.mutable_data_ptr()) = static_cast<Result>(sum);
  });
  return result;
}

std::vector<Tensor> sigmoid_focal_loss_backward_cpu(const Tensor& grad_out, const std::vector<Tensor>& logits,
                                                    const Tensor& assigned, const Tensor& labels, double alpha,
                                                    double gamma) {
  const Classes classes = check_focal(logits, assigned, labels, alpha, gamma, check_on_cpu);
  check_focal_gradient(grad_out, logits[0], check_on_cpu);
  const std::vector<Piece> pieces = cut_in_pieces(logits, classes.C);
  std::vector<Tensor> result;
  dispatch_inputs(logits, classes, alpha, gamma, [&](auto& in) {
    using In = std::decay_t<decltype(in)>;
    using T = typename In::Element;
    const auto scale = *static_cast<const Accumulated<T>*>(grad_out.const_data_ptr());
    in.of_class *= scale;
    in.of_others *= scale;
    std::vector<Values<T>> grads;
    for (const Tensor& level : logits) {
      result.push_back(torch::stable::empty_like(level));
      prefer_large_pages(result.back(), sizeof(T));
      grads.push_back(write_values<T>(result.back()));
    }
    for_pieces(pieces, [&](int64_t n) { run_best<DifferentiatePiece<In>>(in, pieces[n], grads); });
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CPU, m) {
  m.impl("sigmoid_focal_loss_native", TORCH_BOX(&zoominnet::sigmoid_focal_loss_cpu));
  m.impl("sigmoid_focal_loss_backward_native", TORCH_BOX(&zoominnet::sigmoid_focal_loss_backward_cpu));
}
