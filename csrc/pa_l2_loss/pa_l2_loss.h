// What the PA-L2 loss asks of its arguments, for CPU and CUDA; see kernels/pa_l2_loss/reference.py.
#pragma once

#include "../common.h"
#include "../host_device.h"

namespace zoominnet {

// Returns 1 where student and teacher have the same height and width, 2 where the teacher's are twice the student's.
inline int64_t check_features(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                              CheckDevice check_device) {
  check_device("student", student);
  check_strided("student", student, 4);
  check_device("teacher", teacher);
  check_strided("teacher", teacher, 4);
  check_same_dtype("teacher", teacher, "student", student);
  check_device("mask", mask);
  check_strided("mask", mask, 3);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "mask must be bool");
  const int64_t h = student.size(2), w = student.size(3);
  const int64_t step = teacher.size(2) == h && teacher.size(3) == w ? 1 : 2;
  const int64_t sizes[] = {student.size(0), student.size(1), step * h, step * w};
  for (int64_t d = 0; d < 4; ++d) {
    check_size("teacher", teacher, d, sizes[d]);
  }
  for (int64_t d = 0; d < 3; ++d) {
    check_size("mask", mask, d, sizes[d == 0 ? 0 : d + 1]);
  }
  return step;
}

inline ScalarType loss_dtype(const Tensor& student) {
  return student.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The arguments `grad_out` and `count`.
inline void check_scalars(const Tensor& grad_out, const Tensor& count, const Tensor& student,
                          CheckDevice check_device) {
  check_device("grad_out", grad_out);
  check_strided("grad_out", grad_out, 0);
  STD_TORCH_CHECK(grad_out.scalar_type() == loss_dtype(student), "grad_out must have the dtype of the loss");
  check_device("count", count);
  check_strided("count", count, 0);
  STD_TORCH_CHECK(count.scalar_type() == ScalarType::Long, "count must be int64");
}

// By what the sum is divided; `masked` positions, C channels.
ZOOMINNET_HOST_DEVICE int64_t divisor(int64_t masked, int64_t C, bool channel_mean) {
  const int64_t terms = channel_mean ? masked * C : masked;
  return terms > 1 ? terms : 1;
}

}  // namespace zoominnet
