// Operators on single vectors [..., depth]: unit vectors, and similarities of pairs. Every vector is processed separately,
// so that results do not depend on the number of threads.
#pragma once
#include <tuple>

#include "tensors.h"

namespace contrastive {
namespace {

inline std::vector<int64_t> shape_of(const Tensor& x, bool without_depth = false) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < x.dim() - without_depth; ++d) shape.push_back(x.size(d));
  return shape;
}

// Calls work(first, count, depth) for parts of the vectors.
template <class Work>
void over_vectors(const Tensor& x, const Work& work) {
  constexpr int64_t kWorthAThread = 1 << 17;  // numbers
  const int64_t depth = x.size(x.dim() - 1), count = depth ? x.numel() / depth : 0;
  if (count == 0) return;
  torch::stable::parallel_for(
      0, count, kWorthAThread / depth + 1, [&](int64_t first, int64_t last) { work(first, last - first, depth); });
}

template <class X, class Z>
void directions(const Directions<X, Z>& kernels, const Tensor& x, const Tensor& z, const Tensor& length) {
  const X* from = x.const_data_ptr<X>();
  Z* to = z.mutable_data_ptr<Z>();
  double* lengths = length.mutable_data_ptr<double>();
  over_vectors(x, [&](int64_t first, int64_t count, int64_t depth) {
    kernels.unit(from + first * depth, count, depth, to + first * depth, lengths + first);
  });
}

// Returns the unit vectors z, in double if requested, and the lengths [...].
std::tuple<Tensor, Tensor> unit_rows(const Tensor& vectors, bool in_double) {
  const Tensor x = widened(vectors);
  const bool from_double = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(in_double || !from_double, "contrastive_core: directions of doubles are doubles");
  const Tensor z = numbers(shape_of(x), in_double ? ScalarType::Double : ScalarType::Float);
  const Tensor length = numbers(shape_of(x, true), ScalarType::Double);
  if (from_double)
    directions(chosen->directions_of_doubles, x, z, length);
  else if (in_double)
    directions(chosen->exact_directions, x, z, length);
  else
    directions(chosen->directions, x, z, length);
  return {z, length};
}

template <class X, class Z>
void gradient_of_directions(
    const Directions<X, Z>& kernels, const Tensor& gradient, const Tensor& z, const Tensor& length, const Tensor& out) {
  const Z *from = gradient.const_data_ptr<Z>(), *units = z.const_data_ptr<Z>();
  const double* lengths = length.const_data_ptr<double>();
  X* to = out.mutable_data_ptr<X>();
  over_vectors(z, [&](int64_t first, int64_t count, int64_t depth) {
    kernels.gradient(
        from + first * depth, units + first * depth, lengths + first, count, depth, to + first * depth);
  });
}

// Returns the gradient in float, or in double for double inputs.
Tensor unit_rows_backward(const Tensor& grad, const Tensor& z, const Tensor& length, bool from_double) {
  const Tensor gradient = torch::stable::contiguous(grad);
  const Tensor out = numbers(shape_of(z), from_double ? ScalarType::Double : ScalarType::Float);
  if (from_double)
    gradient_of_directions(chosen->directions_of_doubles, gradient, z, length, out);
  else if (z.scalar_type() == ScalarType::Double)
    gradient_of_directions(chosen->exact_directions, gradient, z, length, out);
  else
    gradient_of_directions(chosen->directions, gradient, z, length, out);
  return out;
}

template <class T>
const Pairs<T>& pair_kernels();
template <>
const Pairs<float>& pair_kernels() {
  return chosen->pairs;
}
template <>
const Pairs<double>& pair_kernels() {
  return chosen->pairs_of_doubles;
}

template <class T>
void similarities(const Tensor& a, const Tensor& b, const Tensor& out) {
  const T *left = a.const_data_ptr<T>(), *right = b.const_data_ptr<T>();
  double* to = out.mutable_data_ptr<double>();
  over_vectors(a, [&](int64_t first, int64_t count, int64_t depth) {
    pair_kernels<T>().similarity(left + first * depth, right + first * depth, count, depth, to + first);
  });
}

template <class T>
void gradients_of_pairs(
    const Tensor& gradient, const Tensor& a, const Tensor& b, const Tensor& of_a, const Tensor& of_b) {
  const double* g = gradient.const_data_ptr<double>();
  const T *left = a.const_data_ptr<T>(), *right = b.const_data_ptr<T>();
  T *da = of_a.mutable_data_ptr<T>(), *db = of_b.mutable_data_ptr<T>();
  over_vectors(a, [&](int64_t first, int64_t count, int64_t depth) {
    const int64_t at = first * depth;
    pair_kernels<T>().gradient(g + first, left + at, right + at, count, depth, da + at, db + at);
  });
}

Tensor pair_similarity(const Tensor& first, const Tensor& second) {
  const Tensor a = widened(first), b = widened(second);
  const Tensor out = torch::stable::new_zeros(a, shape_of(a, true), ScalarType::Double);
  a.scalar_type() == ScalarType::Double ? similarities<double>(a, b, out) : similarities<float>(a, b, out);
  return out;
}

std::tuple<Tensor, Tensor> pair_similarity_backward(const Tensor& grad, const Tensor& first, const Tensor& second) {
  const Tensor gradient = torch::stable::contiguous(grad), a = widened(first), b = widened(second);
  const Tensor da = numbers(shape_of(a), a.scalar_type()), db = numbers(shape_of(a), a.scalar_type());
  if (a.scalar_type() == ScalarType::Double)
    gradients_of_pairs<double>(gradient, a, b, da, db);
  else
    gradients_of_pairs<float>(gradient, a, b, da, db);
  return {narrowed(da, first), narrowed(db, second)};
}

}  // namespace
}  // namespace contrastive
