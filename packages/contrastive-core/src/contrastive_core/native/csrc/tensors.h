// Select the kernels, and convert tensors to their input.
#pragma once
#include "kernels.h"
#include "torch_abi.h"

namespace contrastive {

inline const InstructionSet* chosen = nullptr;

// Half-precision inputs are computed in float; the gradient is converted back to the type of the input.
inline Tensor widened(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  STD_TORCH_CHECK(chosen, "contrastive_core: this processor has neither AVX-512 nor AVX2");
  STD_TORCH_CHECK(
      half || type == ScalarType::Float || type == ScalarType::Double,
      "contrastive_core: expected float32, float64, float16 or bfloat16");
  return torch::stable::contiguous(half ? torch::stable::to(x, ScalarType::Float) : x);
}

inline Tensor narrowed(const Tensor& gradient, const Tensor& input) {
  const ScalarType type = input.scalar_type();
  return gradient.scalar_type() == type ? gradient : torch::stable::to(gradient, type);
}

}  // namespace contrastive
