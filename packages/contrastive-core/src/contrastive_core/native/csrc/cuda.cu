// The operators on CUDA. Experimental: compiled and checked without a GPU, timed on none.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "mma.cuh"
#include "rectangle.cuh"
#include "square.cuh"

namespace contrastive {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor as_int64(const Tensor& classes) {
  return torch::stable::contiguous(
      classes.scalar_type() == ScalarType::Long ? classes : torch::stable::to(classes, ScalarType::Long));
}

// The arguments of an operator, and the tensors that must live as long as the kernels need them.
struct Arguments {
  Arguments(
      const Tensor& queries, const Tensor& keys, double scale, const std::vector<int64_t>& omit,
      const std::optional<Tensor>& q_classes, const std::optional<Tensor>& k_classes, const std::string& among)
      : q(torch::stable::contiguous(queries)), k(torch::stable::contiguous(keys)), guard(queries.get_device_index()) {
    STD_TORCH_CHECK(q.dim() == 2 && k.dim() == 2 && q.size(1) == k.size(1), "contrastive_core: q and k do not match");
    STD_TORCH_CHECK(q.scalar_type() == k.scalar_type(), "contrastive_core: q and k are of different types");
    if (q_classes && k_classes) classes = {as_int64(*q_classes), as_int64(*k_classes)};
    problem = {nullptr, nullptr, q.size(0), k.size(0), q.size(1), scale, 0, {}, nullptr, nullptr, among == "same"};
    for (const int64_t diagonal : omit) problem.omit[problem.omitted++] = diagonal;
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(queries.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  template <class T>
  Problem<T> of() const {
    Problem<T> p;
    p.q = static_cast<const T*>(q.const_data_ptr());
    p.k = static_cast<const T*>(k.const_data_ptr());
    p.queries = problem.queries, p.keys = problem.keys, p.depth = problem.depth;
    p.scale = problem.scale, p.omitted = problem.omitted, p.same = problem.same;
    for (int n = 0; n < 3; ++n) p.omit[n] = problem.omit[n];
    p.q_class = classes.empty() ? nullptr : classes[0].const_data_ptr<int64_t>();
    p.k_class = classes.empty() ? nullptr : classes[1].const_data_ptr<int64_t>();
    return p;
  }

  Tensor q, k;
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> classes;
  Problem<float> problem;
  cudaStream_t stream = nullptr;
};

template <class T, class Product>
struct Way {
  using Type = T;
  using Products = Product;
};

template <class F>
void with_type(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(Way<float, Simt<float>>());
    case ScalarType::Double: return f(Way<double, Simt<double>>());
    case ScalarType::Half: return f(Way<__half, Mma<__half>>());
    case ScalarType::BFloat16: return f(Way<__nv_bfloat16, Mma<__nv_bfloat16>>());
    default: STD_TORCH_CHECK(false, "contrastive_core: expected float32, float64, float16 or bfloat16");
  }
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>((rows + kTile - 1) / kTile); }

Tensor forward(const Arguments& arguments) {
  Tensor lse = torch::stable::new_empty(arguments.q, {arguments.problem.queries}, ScalarType::Double);
  if (arguments.problem.queries == 0) return lse;
  with_type(arguments.q, [&](auto way) {
    using T = typename decltype(way)::Type;
    rows_lse<T, typename decltype(way)::Products><<<blocks(arguments.problem.queries), kThreads, 0, arguments.stream>>>(
        arguments.of<T>(), lse.mutable_data_ptr<double>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return lse;
}

ScalarType wide(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor narrowed(const Tensor& gradient, const Tensor& input) {
  const ScalarType type = input.scalar_type();
  return gradient.scalar_type() == type ? gradient : torch::stable::to(gradient, type);
}

template <bool kOfQueries>
void add_gradient(const Arguments& arguments, const Tensor& grad, const Tensor& lse, Tensor& out) {
  const int64_t rows = kOfQueries ? arguments.problem.queries : arguments.problem.keys;
  if (rows == 0) return;
  const Tensor g = torch::stable::contiguous(grad), l = torch::stable::contiguous(lse);
  with_type(arguments.q, [&](auto way) {
    using T = typename decltype(way)::Type;
    using W = typename Wide<T>::type;
    rows_gradient<T, typename decltype(way)::Products, kOfQueries><<<blocks(rows), kThreads, 0, arguments.stream>>>(
        arguments.of<T>(), g.const_data_ptr<double>(), l.const_data_ptr<double>(), out.mutable_data_ptr<W>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

Tensor zeros(const Tensor& x, bool wanted) {
  const std::vector<int64_t> none = {0}, shape = {x.size(0), x.size(1)};
  return torch::stable::new_zeros(x, wanted ? shape : none, wide(x));
}

std::vector<int64_t> of_self(std::optional<int64_t> skip) {
  return skip ? std::vector<int64_t>{0, *skip, -*skip} : std::vector<int64_t>{0};
}

std::vector<int64_t> of_rows(std::optional<int64_t> offset) {
  return offset ? std::vector<int64_t>{*offset} : std::vector<int64_t>{};
}

// Whether the square form is wanted, and exp(S) safe without a maximum; as on the CPU. Without a bound known to the caller
// it would take a look at the data, for which the host would have to wait.
bool symmetric = false;

bool is_square(const Tensor& z, double scale, std::optional<double> max_norm) {
  const double limit = z.scalar_type() == ScalarType::Double ? 300.0 : 40.0;
  return symmetric && max_norm && scale * *max_norm * *max_norm <= limit;
}

Tensor square_forward(const Arguments& arguments) {
  const int64_t rows = arguments.problem.queries, tiles = tiles_of(rows);
  Tensor lse = torch::stable::new_zeros(arguments.q, {rows}, ScalarType::Double);
  if (rows == 0) return lse;
  double* at = lse.mutable_data_ptr<double>();
  with_type(arguments.q, [&](auto way) {
    using T = typename decltype(way)::Type;
    for (int64_t round = 0; round < tiles; ++round) {
      square_sums<T, typename decltype(way)::Products>
          <<<blocks(rows), kThreads, 0, arguments.stream>>>(arguments.of<T>(), round, at);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  square_logs<<<blocks(rows), kThreads, 0, arguments.stream>>>(rows, at);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return lse;
}

void add_square_gradient(const Arguments& arguments, const Tensor& grad, const Tensor& lse, Tensor& out) {
  const int64_t rows = arguments.problem.queries, tiles = tiles_of(rows);
  const Tensor g = torch::stable::contiguous(grad), l = torch::stable::contiguous(lse);
  with_type(arguments.q, [&](auto way) {
    using T = typename decltype(way)::Type;
    using W = typename Wide<T>::type;
    for (int64_t round = 0; round < tiles; ++round) {
      square_gradient<T, typename decltype(way)::Products><<<blocks(rows), kThreads, 0, arguments.stream>>>(
          arguments.of<T>(), round, g.const_data_ptr<double>(), l.const_data_ptr<double>(), out.mutable_data_ptr<W>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
}

Tensor self_lse(
    const Tensor& z, double scale, std::optional<int64_t> skip, std::optional<Tensor> classes, std::string among,
    std::optional<double> max_norm) {
  const Arguments arguments(z, z, scale, of_self(skip), classes, classes, among);
  return is_square(z, scale, max_norm) ? square_forward(arguments) : forward(arguments);
}

Tensor self_lse_backward(
    const Tensor& grad, const Tensor& lse, const Tensor& z, double scale, std::optional<int64_t> skip,
    std::optional<Tensor> classes, std::string among, std::optional<double> max_norm) {
  const Arguments arguments(z, z, scale, of_self(skip), classes, classes, among);
  Tensor dz = zeros(z, true);
  if (is_square(z, scale, max_norm)) {
    add_square_gradient(arguments, grad, lse, dz);
  } else {
    add_gradient<true>(arguments, grad, lse, dz);
    add_gradient<false>(arguments, grad, lse, dz);
  }
  return narrowed(dz, z);
}

Tensor row_lse(
    const Tensor& q, const Tensor& k, double scale, std::optional<int64_t> self_offset, std::optional<Tensor> q_classes,
    std::optional<Tensor> k_classes, std::string among) {
  return forward(Arguments(q, k, scale, of_rows(self_offset), q_classes, k_classes, among));
}

std::tuple<Tensor, Tensor> row_lse_backward(
    const Tensor& grad, const Tensor& lse, const Tensor& q, const Tensor& k, double scale,
    std::optional<int64_t> self_offset, std::optional<Tensor> q_classes, std::optional<Tensor> k_classes,
    std::string among, bool needs_q, bool needs_k) {
  const Arguments arguments(q, k, scale, of_rows(self_offset), q_classes, k_classes, among);
  Tensor dq = zeros(q, needs_q), dk = zeros(k, needs_k);
  if (needs_q) add_gradient<true>(arguments, grad, lse, dq);
  if (needs_k) add_gradient<false>(arguments, grad, lse, dk);
  return {narrowed(dq, q), narrowed(dk, k)};
}

}  // namespace
}  // namespace contrastive

extern "C" __attribute__((visibility("default"))) void contrastive_core_symmetric(bool wanted) {
  contrastive::symmetric = wanted;
}

STABLE_TORCH_LIBRARY_IMPL(contrastive_core_native, CUDA, library) {
  library.impl("self_lse", TORCH_BOX(&contrastive::self_lse));
  library.impl("self_lse_backward", TORCH_BOX(&contrastive::self_lse_backward));
  library.impl("row_lse", TORCH_BOX(&contrastive::row_lse));
  library.impl("row_lse_backward", TORCH_BOX(&contrastive::row_lse_backward));
}
