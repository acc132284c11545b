// Operators on the CPU, which convert tensors to arrays and select the square or the rectangular form.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "classes.h"
#include "rectangle.h"
#include "square.h"
#include "vector_operators.h"

namespace contrastive {
namespace {

template <class T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels() {
  return chosen->single;
}
template <>
const Kernels<double>& kernels() {
  return chosen->twice;
}

template <class F>
void with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Double)
    f(double());
  else
    f(float());
}

// Returns whether exp(S), its sums, their inverses and products with gradients are normal numbers for all entries of S.
template <class T>
bool is_bounded(const T* z, int64_t count, int64_t depth, double scale, std::optional<double> max_norm) {
  constexpr double limit = sizeof(T) == 4 ? 40.0 : 300.0;
  if (max_norm) return scale * *max_norm * *max_norm <= limit;
  for (int64_t i = 0; i < count; ++i) {
    double square = 0;
    for (int64_t k = 0; k < depth; ++k) square += static_cast<double>(z[i * depth + k]) * z[i * depth + k];
    if (!(scale * square <= limit)) return false;  // also for NaN, which the rectangular form propagates
  }
  return true;
}

// Returns the largest squared length of the vectors.
template <class T>
double longest(const T* z, int64_t count, int64_t depth) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) {
    double square = 0;
    for (int64_t k = 0; k < depth; ++k) square += static_cast<double>(z[i * depth + k]) * z[i * depth + k];
    most = std::fmax(most, square);
  }
  return most;
}

// Excluded diagonals other than the main one; in the upper triangle there is only one of them.
std::vector<int64_t> left_out(std::optional<int64_t> skip, bool upper) {
  if (upper) return skip && *skip != 0 ? std::vector<int64_t>{std::abs(*skip)} : std::vector<int64_t>{};
  return skip ? std::vector<int64_t>{0, *skip, -*skip} : std::vector<int64_t>{0};
}

Tensor self_lse(
    const Tensor& vectors, double scale, std::optional<int64_t> skip, std::optional<Tensor> classes, std::string among,
    std::optional<double> max_norm) {
  const Tensor z = widened(vectors);
  const int64_t count = z.size(0), depth = z.size(1);
  Tensor out = numbers({count}, ScalarType::Double);
  with_type(z, [&](auto zero) {
    using T = decltype(zero);
    const T* at = z.const_data_ptr<T>();
    double* lse = out.mutable_data_ptr<double>();
    const bool bounded = is_bounded(at, count, depth, scale, max_norm);
    const CandidateSet candidates(count, count, left_out(skip, bounded), classes, classes, among == "same");
    if (bounded)
      Square<T>(kernels<T>(), at, count, depth, scale, candidates.get()).forward(lse);
    else
      Rectangle<T>(kernels<T>(), at, count, at, count, depth, scale, candidates.get()).forward(lse);
  });
  return out;
}

// Share of the precision that may be omitted. Tests set it to 0 for comparison.
double part_omitted = 0.5;

// Shift and weight of each row, such that the gradient of an entry is weight * exp(S - lse) with weight = scale * gradient.
//
// `omit` bounds the entries that may be omitted from a result: their sizes add up to a share of the type's precision,
// relative to the norm of the gradient. At low temperatures, and for trained embeddings, most entries are that small.
template <class T>
struct Weights {
  Weights(const Tensor& grad, const Tensor& lse, double scale, bool with_shift)
      : count(lse.size(0)), shift(count + kPadding), weight(count + kPadding) {
    double square = 0;
    bool finite = true;
    const Tensor g = torch::stable::contiguous(grad), l = torch::stable::contiguous(lse);
    const double *gradient = g.const_data_ptr<double>(), *exact = l.const_data_ptr<double>();
    for (int64_t i = 0; i < count; ++i) {
      // A row without candidates has lse -inf and no gradient.
      const double log2_sum = exact[i] == -HUGE_VAL ? 0.0 : exact[i] * M_LOG2E;
      *shift.at(i) = static_cast<T>(with_shift ? log2_sum : 0.0);
      // The rounding error of the exponent is the same for a whole row; the weight of the row corrects it.
      const double rest = std::exp2(*shift.at(i) - log2_sum);
      *weight.at(i) = static_cast<T>(exact[i] == -HUGE_VAL ? 0.0 : scale * gradient[i] * rest);
      square += gradient[i] * gradient[i];
      finite &= std::isfinite(*weight.at(i)) && std::isfinite(log2_sum);
    }
    // Nothing is omitted if a number is infinite or NaN, which must not be hidden.
    const bool known = finite && std::isfinite(square);
    omit = known ? scale * std::sqrt(square) * std::numeric_limits<T>::epsilon() * part_omitted : 0;
    std::fill_n(shift.at(count), kPadding, T(0));
    std::fill_n(weight.at(count), kPadding, T(0));
  }

  // Returns the size that may be omitted, or 0 if no entry can be that small, so that none need be looked for. `reach` is
  // the largest |S|; each entry of the matrix, of size `rows` x `columns`, is added to one row and one column.
  double negligible(double reach, int64_t rows, int64_t columns) const {
    const double fewer = static_cast<double>(std::min(rows, columns));
    const double in_a_block = omit / (std::sqrt(fewer) * std::max(rows, columns)) * kLargestBlock;
    const bool positive = *weight.at(0) > 0;
    for (int64_t i = 0; i < count; ++i) {
      const double factor = *weight.at(i);
      // Weights of two rows may cancel if their signs differ.
      if ((factor > 0) != positive || std::fabs(factor) * std::exp2(-*shift.at(i) - reach * M_LOG2E) <= in_a_block) return omit;
    }
    return 0;
  }

  int64_t count;
  Scratch<T> shift, weight;
  double omit;
};

Tensor self_lse_backward(
    const Tensor& grad, const Tensor& lse, const Tensor& vectors, double scale, std::optional<int64_t> skip,
    std::optional<Tensor> classes, std::string among, std::optional<double> max_norm) {
  const Tensor z = widened(vectors);
  const int64_t count = z.size(0), depth = z.size(1);
  const Tensor dz = numbers({count, depth}, z.scalar_type());
  with_type(z, [&](auto zero) {
    using T = decltype(zero);
    const T* at = z.const_data_ptr<T>();
    T* out = dz.mutable_data_ptr<T>();
    const bool bounded = is_bounded(at, count, depth, scale, max_norm);
    const CandidateSet candidates(count, count, left_out(skip, bounded), classes, classes, among == "same");
    const Weights<T> rows(grad, lse, scale, !bounded);
    const double reach = scale * (max_norm ? *max_norm * *max_norm : longest(at, count, depth));
    if (bounded) {
      Square<T>(kernels<T>(), at, count, depth, scale, candidates.get())
          .backward(rows.weight.at(), rows.negligible(reach, count, count) / std::sqrt(static_cast<double>(count)), out);
      return;
    }
    const Rectangle<T> all(kernels<T>(), at, count, at, count, depth, scale, candidates.get());
    const Scratch<T> as_key(count * depth);
    all.backward(rows.shift.at(), rows.weight.at(), rows.negligible(reach, count, count), out, as_key.at());
    for (int64_t i = 0; i < count * depth; ++i) out[i] += *as_key.at(i);
  });
  return narrowed(dz, vectors);
}

std::vector<int64_t> left_out(std::optional<int64_t> self_offset) {
  return self_offset ? std::vector<int64_t>{*self_offset} : std::vector<int64_t>{};
}

Tensor row_lse(
    const Tensor& queries, const Tensor& keys, double scale, std::optional<int64_t> self_offset,
    std::optional<Tensor> q_classes, std::optional<Tensor> k_classes, std::string among) {
  const Tensor q = widened(queries), k = widened(keys);
  const int64_t rows = q.size(0), columns = k.size(0), depth = q.size(1);
  STD_TORCH_CHECK(k.size(1) == depth && k.scalar_type() == q.scalar_type(), "contrastive_core: q and k do not match");
  Tensor out = numbers({rows}, ScalarType::Double);
  const CandidateSet candidates(rows, columns, left_out(self_offset), q_classes, k_classes, among == "same");
  with_type(q, [&](auto zero) {
    using T = decltype(zero);
    Rectangle<T>(
        kernels<T>(), q.const_data_ptr<T>(), rows, k.const_data_ptr<T>(), columns, depth, scale, candidates.get())
        .forward(out.mutable_data_ptr<double>());
  });
  return out;
}

std::tuple<Tensor, Tensor> row_lse_backward(
    const Tensor& grad, const Tensor& lse, const Tensor& queries, const Tensor& keys, double scale,
    std::optional<int64_t> self_offset, std::optional<Tensor> q_classes, std::optional<Tensor> k_classes, std::string among,
    bool needs_q, bool needs_k) {
  const Tensor q = widened(queries), k = widened(keys);
  const int64_t rows = q.size(0), columns = k.size(0), depth = q.size(1);
  const auto like = [&](const Tensor& x, bool needed) {
    return numbers(needed ? std::vector<int64_t>{x.size(0), depth} : std::vector<int64_t>{0}, x.scalar_type());
  };
  const Tensor dq = like(q, needs_q), dk = like(k, needs_k);
  const CandidateSet candidates(rows, columns, left_out(self_offset), q_classes, k_classes, among == "same");
  with_type(q, [&](auto zero) {
    using T = decltype(zero);
    const Weights<T> each(grad, lse, scale, true);
    const double reach = scale * std::sqrt(
        longest(q.const_data_ptr<T>(), rows, depth) * longest(k.const_data_ptr<T>(), columns, depth));
    Rectangle<T>(
        kernels<T>(), q.const_data_ptr<T>(), rows, k.const_data_ptr<T>(), columns, depth, scale, candidates.get())
        .backward(
            each.shift.at(), each.weight.at(), each.negligible(reach, rows, columns), needs_q ? dq.mutable_data_ptr<T>() : nullptr,
            needs_k ? dk.mutable_data_ptr<T>() : nullptr);
  });
  return {narrowed(dq, queries), narrowed(dk, keys)};
}

}  // namespace
}  // namespace contrastive

// Selects an instruction set by name ("best" for the best available) and returns its name, or "" if it is unavailable.
extern "C" __attribute__((visibility("default"))) const char* contrastive_core_use(const char* wanted) {
  using contrastive::chosen;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
  for (const auto* set : {avx512 ? &contrastive::kAvx512 : nullptr, avx2 ? &contrastive::kAvx2 : nullptr})
    if (set && (std::strcmp(wanted, "best") == 0 || std::strcmp(wanted, set->name) == 0)) return (chosen = set)->name;
  return "";
}

extern "C" __attribute__((visibility("default"))) void contrastive_core_part_omitted(double part) {
  contrastive::part_omitted = part;
}

extern "C" __attribute__((visibility("default"))) void contrastive_core_largest_block(int64_t rows) {
  contrastive::largest_block = rows;
}

#define SELF "Tensor z, float scale, SymInt? skip, Tensor? classes, str among, float? max_norm"
#define ROWS "Tensor q, Tensor k, float scale, SymInt? self_offset, Tensor? q_classes, Tensor? k_classes, str among"

STABLE_TORCH_LIBRARY(contrastive_core_native, library) {
  library.def("self_lse(" SELF ") -> Tensor");
  library.def("self_lse_backward(Tensor grad, Tensor lse, " SELF ") -> Tensor");
  library.def("row_lse(" ROWS ") -> Tensor");
  library.def("row_lse_backward(Tensor grad, Tensor lse, " ROWS ", bool needs_q, bool needs_k) -> (Tensor, Tensor)");
  library.def("unit_rows(Tensor x, bool in_double) -> (Tensor, Tensor)");
  library.def("unit_rows_backward(Tensor grad, Tensor z, Tensor length, bool from_double) -> Tensor");
  library.def("pair_similarity(Tensor a, Tensor b) -> Tensor");
  library.def("pair_similarity_backward(Tensor grad, Tensor a, Tensor b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(contrastive_core_native, CPU, library) {
  library.impl("self_lse", TORCH_BOX(&contrastive::self_lse));
  library.impl("self_lse_backward", TORCH_BOX(&contrastive::self_lse_backward));
  library.impl("row_lse", TORCH_BOX(&contrastive::row_lse));
  library.impl("row_lse_backward", TORCH_BOX(&contrastive::row_lse_backward));
  library.impl("unit_rows", TORCH_BOX(&contrastive::unit_rows));
  library.impl("unit_rows_backward", TORCH_BOX(&contrastive::unit_rows_backward));
  library.impl("pair_similarity", TORCH_BOX(&contrastive::pair_similarity));
  library.impl("pair_similarity_backward", TORCH_BOX(&contrastive::pair_similarity_backward));
}
