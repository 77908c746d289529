#include <vector>

#include "../map_cuda.h"
#include "sigmoid_focal_loss.h"

// Sizes: B images, L levels of A_l anchors each, A in all, C classes.
namespace zoominnet {
namespace {

constexpr int64_t kMaxSumBlocks = 2048;  // of a level

// Whether the logits of an image can be read, or its gradient written, in packs that run on from anchor to anchor.
template <class T>
bool fits_in_runs(const Values<const T>& values, const Tensor& x) {
  return sizeof(T) < sizeof(double) && values.dense(x.size(2)) && x.size(1) * x.size(2) % kPack<T> == 0 &&
         (x.size(0) <= 1 || values.image % kPack<T> == 0) && reinterpret_cast<uintptr_t>(values.data) % 16 == 0;
}

// What a kernel is to make of a level: the sums, one for each block, or the gradient.
template <class T>
struct Level {
  Values<const T> logits;
  int64_t anchors, first;  // A_l, and its first one among A
  double* sums;
  Values<T> grad;
};

// Weights of a logit whose class is that of its anchor, and of any other; of the gradient without its scale.
template <class W>
struct Weights {
  W of_class, of_others, gamma;
};

// W is the type of the computation. A thread's item: a pack of values of an image, or one value.
template <class T, class W, bool squared, bool packed, bool backward>
__global__ __launch_bounds__(kThreads) void focal_kernel(Level<T> level, Classes classes, Weights<W> weights,
                                                         const Accumulated<T>* grad_out, int64_t items_of_image,
                                                         int64_t items) {
  constexpr int kValues = packed ? kPack<T> : 1;
  if constexpr (backward) {
    const W scale = static_cast<W>(*grad_out);
    weights.of_class *= scale;
    weights.of_others *= scale;
  }
  double sum = 0;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const Division image = divide(item, items_of_image), anchor = divide(image.remainder * kValues, classes.C);
    const int64_t b = image.quotient;
    int64_t a = anchor.quotient, c = anchor.remainder;
    const auto logits = load_pack<kValues, packed>(level.logits.at(b, a, c), 1);
    int64_t cls = classes.at(b, level.first + a);
    Pack<T, kValues> grads;
    W losses = 0;
    for (int n = 0; n < kValues; ++n) {
      if (c == classes.C) {
        c = 0;
        cls = classes.at(b, level.first + ++a);
      }
      const bool mine = c++ == cls;
      const W x = static_cast<W>(widen(logits.values[n])), weight = mine ? weights.of_class : weights.of_others;
      const FocalTerm<W, squared, W> term(mine ? -x : x, weights.gamma);
      const W none = cls == kIgnoredClass ? W{0} : kNaN<W>;
      if constexpr (backward) {
        const W grad = term.gradient(weights.gamma) * weight;
        const W kept = cls < kBackgroundClass ? none : mine ? -grad : grad;
        grads.values[n] = static_cast<T>(static_cast<Accumulated<T>>(kept));
      } else {
        losses += cls < kBackgroundClass ? none : term.loss() * weight;
      }
    }
    if constexpr (backward) {
      store_pack<kValues, packed>(level.grad.at(b, anchor.quotient, anchor.remainder), 1, grads);
    } else {
      sum += static_cast<double>(losses);
    }
  }
  if constexpr (!backward) {
    sum = block_reduce(sum, Add{});
    if (threadIdx.x == 0) {
      level.sums[blockIdx.x] = sum;
    }
  }
}

// One block.
template <class Result>
__global__ __launch_bounds__(kThreads) void add_up_kernel(const double* sums, int64_t count, Result* result) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < count; n += kThreads) {
    sum += sums[n];
  }
  sum = block_reduce(sum, Add{});
  if (threadIdx.x == 0) {
    *result = static_cast<Result>(sum);
  }
}

// Runs the kernel that fits a level's memory; returns its number of blocks.
template <class T, class W, bool squared, bool backward>
int64_t launch_level(const Stream& stream, const Level<T>& level, bool packed, const Tensor& logits,
                     const Classes& classes, const Weights<W>& weights, const Accumulated<T>* grad_out) {
  const int64_t items_of_image = level.anchors * classes.C / (packed ? kPack<T> : 1);
  const int64_t items = logits.size(0) * items_of_image;
  const int64_t wanted = divide_up(items, kThreads), blocks = backward ? wanted : std::min(wanted, kMaxSumBlocks);
  if constexpr (sizeof(T) < sizeof(double)) {
    if (packed) {
      stream.launch(focal_kernel<T, W, squared, true, backward>, blocks, level, classes, weights, grad_out,
                    items_of_image, items);
      return blocks;
    }
  }
  stream.launch(focal_kernel<T, W, squared, false, backward>, blocks, level, classes, weights, grad_out, items_of_image,
                items);
  return blocks;
}

Classes check_inputs(const std::vector<Tensor>& logits, const Tensor& assigned, const Tensor& labels, double alpha,
                     double gamma) {
  const Classes classes = check_focal(logits, assigned, labels, alpha, gamma, check_on_cuda);
  for (const Tensor& level : logits) {
    check_same_device("logits", level, "logits[0]", logits[0]);
  }
  check_same_device("assigned", assigned, "logits", logits[0]);
  check_same_device("labels", labels, "logits", logits[0]);
  return classes;
}

Tensor sigmoid_focal_loss_cuda(const std::vector<Tensor>& logits, const Tensor& assigned, const Tensor& labels,
                               double alpha, double gamma) {
  const Classes classes = check_inputs(logits, assigned, labels, alpha, gamma);
  const Stream stream(logits[0]);
  const Tensor result = torch::stable::new_empty(logits[0], {}, focal_dtype(logits[0]));
  const Tensor sums = new_scratch<double>(logits[0], checked_product(logits.size(), kMaxSumBlocks));
  dispatch_focal(logits[0].scalar_type(), gamma, [&](auto tag, auto wide, auto squared) {
    using T = decltype(tag);
    using W = decltype(wide);
    const Weights<W> weights{W(alpha), W(1 - alpha), W(gamma)};
    int64_t blocks = 0, first = 0;
    for (const Tensor& x : logits) {
      const Level<T> level{read_values<T>(x), x.size(1), first, data_of<double>(sums) + blocks, {}};
      blocks += launch_level<T, W, decltype(squared)::value, false>(stream, level, fits_in_runs(level.logits, x), x,
                                                                    classes, weights, nullptr);
      first += level.anchors;
    }
    stream.launch(add_up_kernel<Accumulated<T>>, 1, static_cast<const double*>(data_of<double>(sums)), blocks,
                  data_of<Accumulated<T>>(result));
  });
  return result;
}

std::vector<Tensor> sigmoid_focal_loss_backward_cuda(const Tensor& grad_out, const std::vector<Tensor>& logits,
                                                     const Tensor& assigned, const Tensor& labels, double alpha,
                                                     double gamma) {
  const Classes classes = check_inputs(logits, assigned, labels, alpha, gamma);
  check_focal_gradient(grad_out, logits[0], check_on_cuda);
  check_same_device("grad_out", grad_out, "logits", logits[0]);
  const Stream stream(logits[0]);
  std::vector<Tensor> result;
  dispatch_focal(logits[0].scalar_type(), gamma, [&](auto tag, auto wide, auto squared) {
    using T = decltype(tag);
    using W = decltype(wide);
    const Weights<W> weights{W(alpha), W(1 - alpha), W(gamma)};
    int64_t first = 0;
    for (const Tensor& x : logits) {
      result.push_back(torch::stable::empty_like(x));
      const Level<T> level{read_values<T>(x), x.size(1), first, nullptr, write_values<T>(result.back())};
      const bool packed = fits_in_runs(level.logits, x) && fits_in_runs(read_values<T>(result.back()), result.back());
      launch_level<T, W, decltype(squared)::value, true>(stream, level, packed, x, classes, weights,
                                                         static_cast<const Accumulated<T>*>(grad_out.const_data_ptr()));
      first += level.anchors;
    }
  });
  return result;
}

}  // namespace
}  // namespace zoominnet

STABLE_TORCH_LIBRARY_IMPL(zoominnet, CUDA, m) {
  m.impl("sigmoid_focal_loss_native", TORCH_BOX(&zoominnet::sigmoid_focal_loss_cuda));
  m.impl("sigmoid_focal_loss_backward_native", TORCH_BOX(&zoominnet::sigmoid_focal_loss_backward_cuda));
}
