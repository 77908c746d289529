// What the focal loss asks of its arguments, and its terms, for CPU and CUDA; see
// kernels/sigmoid_focal_loss/reference.py. Functions of a value take a number or lanes of them, V, of the type S.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "../common.h"
#include "../host_device.h"

// Sizes: B images, L levels of A_l anchors each, A in all, C classes, G boxes of an image at the most.
namespace zoominnet {

// What an anchor is trained as that is of none of the classes from 0 on.
constexpr int64_t kBackgroundClass = -1, kIgnoredClass = -2, kInvalidClass = -3;

// What an invalid one gives.
template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

// What anchors are trained as.
struct Classes {
  const int64_t *assigned, *labels;  // [B, A] and [B, G]
  int64_t assigned_image, assigned_anchor, labels_image, labels_box, C, G;

  ZOOMINNET_HOST_DEVICE int64_t at(int64_t b, int64_t a) const {
    const int64_t index = assigned[b * assigned_image + a * assigned_anchor];
    if (index == kBackgroundClass || index == kIgnoredClass) {
      return index;
    }
    if (index < 0 || index >= G) {
      return kInvalidClass;
    }
    const int64_t label = labels[b * labels_image + index * labels_box];
    return label >= 0 && label < C ? label : kInvalidClass;
  }
};

inline Classes check_focal(const std::vector<Tensor>& logits, const Tensor& assigned, const Tensor& labels,
                           double alpha, double gamma, CheckDevice check_device) {
  STD_TORCH_CHECK(!logits.empty(), "logits must hold at least one level");
  int64_t anchors = 0;
  for (const Tensor& level : logits) {
    check_device("logits", level);
    check_strided("logits", level, 3);
    check_same_dtype("logits", level, "logits[0]", logits[0]);
    check_size("logits", level, 0, logits[0].size(0));
    check_size("logits", level, 2, logits[0].size(2));
    anchors += level.size(1);
  }
  check_device("assigned", assigned);
  check_strided("assigned", assigned, 2);
  check_size("assigned", assigned, 0, logits[0].size(0));
  check_size("assigned", assigned, 1, anchors);
  STD_TORCH_CHECK(assigned.scalar_type() == ScalarType::Long, "assigned must be int64");
  check_device("labels", labels);
  check_strided("labels", labels, 2);
  check_size("labels", labels, 0, logits[0].size(0));
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "labels must be int64");
  STD_TORCH_CHECK(alpha >= 0 && alpha <= 1, "alpha must be in [0, 1], got ", alpha);
  STD_TORCH_CHECK(gamma >= 0 && std::isfinite(gamma), "gamma must be finite and not negative, got ", gamma);
  return {static_cast<const int64_t*>(assigned.const_data_ptr()),
          static_cast<const int64_t*>(labels.const_data_ptr()),
          assigned.stride(0),
          assigned.stride(1),
          labels.stride(0),
          labels.stride(1),
          logits[0].size(2),
          labels.size(1)};
}

inline ScalarType focal_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_focal_gradient(const Tensor& grad_out, const Tensor& logits, CheckDevice check_device) {
  check_device("grad_out", grad_out);
  check_strided("grad_out", grad_out, 0);
  STD_TORCH_CHECK(grad_out.scalar_type() == focal_dtype(logits), "grad_out must have the dtype of the loss");
}

// Calls `body` with a value of the logits' type, with one of the type to compute in, and whether gamma is 2. Any other
// power is computed in float64: in float32 exp(gamma log p) would lose more digits the farther p is from 1.
template <class Body>
void dispatch_focal(ScalarType dtype, double gamma, const Body& body) {
  dispatch_floating("logits", dtype, [&](auto tag) {
    if (gamma == 2) {
      body(tag, Accumulated<decltype(tag)>{}, std::true_type{});
    } else {
      body(tag, double{}, std::false_type{});
    }
  });
}

// Of a level's logits or gradient [B, A_l, C].
template <class T>
struct Values {
  T* data;
  int64_t image, anchor, cls;

  bool dense(int64_t C) const { return cls == 1 && anchor == C; }

  // Value i, counted from the first of anchor a on; beyond that anchor only if they are dense.
  ZOOMINNET_HOST_DEVICE T* at(int64_t b, int64_t a, int64_t i) const { return data + b * image + a * anchor + i * cls; }
};

template <class T>
Values<const T> read_values(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

template <class T>
Values<T> write_values(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

// Unsigned integers of the size of V's numbers.
template <class V>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <class S, class V>
ZOOMINNET_HOST_DEVICE V polynomial(const V&, S constant) {
  return V{} + constant;
}
template <class S, class V, class... Rest>
ZOOMINNET_HOST_DEVICE V polynomial(const V& x, S constant, Rest... rest) {
  return polynomial(x, rest...) * x + constant;
}

// e^x for x <= 0, within a unit in the last place; 0 where it is below the normal numbers. Both polynomials of this
// file have the least greatest relative error (Remez), 2e-9 and 4e-9 in float32, 3e-18 and 1e-18 in float64.
template <class S, class V>
ZOOMINNET_HOST_DEVICE V exp_of_nonpositive(const V& x) {
  constexpr bool single = sizeof(S) == 4;
  constexpr S lowest = single ? S(-87.3) : S(-708.3);
  // Adding 1.5 times the power of two at which units are whole numbers rounds, and leaves the whole number in the last
  // bits.
  constexpr S whole = single ? S(12582912.0) : S(6755399441055744.0);
  constexpr S ln2_high = single ? S(0.693359375) : S(6.93147180369123816490e-01);
  constexpr S ln2_low = single ? S(-2.12194440e-4) : S(1.90821492927058770002e-10);
  const V clamped = x < lowest ? V{} + lowest : x;  // NaN stays
  const V shifted = clamped * S(1.44269504088896341) + whole;
  const V n = shifted - whole;
  const V r = (clamped - n * ln2_high) - n * ln2_low;
  V power;
  if constexpr (single) {
    power = polynomial(r, 1.0f, 1.0f, 0.49999991059303284f, 0.16666419804096222f, 0.04166822507977486f,
                       0.008374824188649654f, 0.0013836849248036742f);
  } else {
    power = polynomial(r, 1.0, 1.0, 0.5000000000000018, 0.1666666666666617, 0.041666666666492644, 0.008333333333559382,
                       0.001388888895125701, 0.00019841269432566554, 2.4801486485520618e-05, 2.7557622543887344e-06,
                       2.763230675915368e-07, 2.49943256273634e-08);
  }
  using Bits = typename BitsOf<V>::type;
  constexpr int mantissa = single ? 23 : 52;
  const Bits exponent = (cast_bits<Bits>(shifted) << mantissa) + cast_bits<Bits>(V{} + S(1));
  return x < lowest ? V{} : power * cast_bits<V>(exponent);
}

// log(1 + e) for 0 <= e <= 1, within two units in the last place, however small e is: 2 atanh(e / (2 + e)).
template <class S, class V>
ZOOMINNET_HOST_DEVICE V log1p_of_unit(const V& e) {
  const V s = e / (e + S(2)), u = s * s;
  if constexpr (sizeof(S) == 4) {
    return s *
           polynomial(u, 2.0f, 0.6666631698608398f, 0.40024909377098083f, 0.27960604429244995f, 0.28178322315216064f);
  } else {
    return s * polynomial(u, 2.0, 0.6666666666666613, 0.4000000000019034, 0.2857142854492413, 0.22222224111818956,
                          0.18181739786499237, 0.1538663547459545, 0.13300102297452726, 0.12112250368475938,
                          0.08315679191216221, 0.17060070631404683);
  }
}

// Of z, which is the logit, or minus the logit where its class is that of the anchor.
template <class S, bool squared, class V>
struct FocalTerm {
  V sigmoid, complement, softplus, power;  // p = 1 / (1 + e^-z), 1 - p, -log(1 - p), p^gamma

  ZOOMINNET_HOST_DEVICE FocalTerm(const V& z, S gamma) {
    const V zero{};
    const V e = exp_of_nonpositive<S>(z > zero ? -z : z), log1p = log1p_of_unit<S>(e);
    const V large = S(1) / (e + S(1));
    const V small = e * large;
    sigmoid = z > zero ? large : small;
    complement = z > zero ? small : large;
    softplus = (z > zero ? z : zero) + log1p;
    if constexpr (squared) {
      power = sigmoid * sigmoid;
    } else {
      power = exp_of_nonpositive<S>(((z > zero ? zero : z) - log1p) * gamma);
    }
  }

  ZOOMINNET_HOST_DEVICE V loss() const { return power * softplus; }
  // In z.
  ZOOMINNET_HOST_DEVICE V gradient(S gamma) const { return power * (complement * softplus * gamma + sigmoid); }
};

}  // namespace zoominnet
