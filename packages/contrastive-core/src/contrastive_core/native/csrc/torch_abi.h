// The part of torch's stable ABI that is used, and scratch memory from torch's allocator, which accounts for it.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace contrastive {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor numbers(std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::empty(shape, type, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

template <class T>
constexpr ScalarType type_of();
template <>
constexpr ScalarType type_of<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType type_of<double>() {
  return ScalarType::Double;
}

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : tensor_(numbers({count}, type_of<T>())), at_(tensor_.mutable_data_ptr<T>()) {}
  T* at(int64_t i = 0) const { return at_ + i; }

 private:
  Tensor tensor_;
  T* at_;
};

}  // namespace contrastive
