// What every operator's entry needs: the stable ABI, checks of arguments, the choice of a type by dtype.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <type_traits>
#include <vector>

namespace zoominnet {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_strided(const char* name, const Tensor& x, int64_t dim) {
  STD_TORCH_CHECK(x.layout() == torch::headeronly::Layout::Strided, name, " must be a dense tensor");
  STD_TORCH_CHECK(x.dim() == dim, name, " must have ", dim, " dimensions, got ", x.dim());
}

inline void check_on_cpu(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
}

using CheckDevice = void (*)(const char* name, const Tensor& x);

inline void check_size(const char* name, const Tensor& x, int64_t dim, int64_t expected) {
  STD_TORCH_CHECK(x.size(dim) == expected, name, " must have size ", expected, " in dimension ", dim, ", got ",
                  x.size(dim));
}

inline void check_same_dtype(const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  STD_TORCH_CHECK(x.scalar_type() == other.scalar_type(), name, " must have the dtype of ", other_name);
}

inline int64_t checked_product(int64_t a, int64_t b) {
  int64_t product = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "sizes ", a, " and ", b, " are too large together");
  return product;
}

// Calls `body` with a value of the C++ type of a floating-point dtype.
template <class Body>
auto dispatch_floating(const char* name, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
  }
}

template <class T>
constexpr bool is_half = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

// The type of sums and products of values of type T.
template <class T>
using Accumulated = std::conditional_t<is_half<T>, float, T>;

}  // namespace zoominnet
