// The products of the gradient: weights of a tile with the vectors of the other side. Included by tile.h.
#pragma once

namespace {

// One strip: R rows of the (transposed) matrix, entries [first, last) of each, with every panel of features.
template <class L, int R>
inline __attribute__((always_inline)) void product_strip(
    const typename L::T* a, int64_t row_step, int64_t depth_step, int first, int last, int depth, int rows_left,
    const typename L::T* vectors, int64_t features, typename L::T* out) {
  using T = typename L::T;
  constexpr int N = L::gradient_vectors, panel = N * L::width;
  for (int64_t f = 0; f < features; f += panel) {
    typename L::V acc[R][N];
    multiply<L, R, N>(a + first * depth_step, row_step, depth_step, vectors + f * depth + first * panel, last - first, acc);
    if (rows_left >= R && f + panel <= features) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          T* at = out + r * features + f + v * L::width;
          L::store(at, L::load(at) + acc[r][v]);
        }
      continue;
    }
    T edge[R * panel];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < N; ++v) L::store(edge + r * panel + v * L::width, acc[r][v]);
    for (int r = 0; r < R && r < rows_left; ++r)
      for (int c = 0; c < panel && f + c < features; ++c) out[r * features + f + c] += edge[r * panel + c];
  }
}

template <class L>
void add_product(
    const contrastive::Matrix<typename L::T>& m, bool transposed, const typename L::T* vectors, int64_t features,
    typename L::T* out) {
  constexpr int R = L::gradient_rows;
  if (transposed) {
    for (int column = 0; column < m.width; column += R) {
      const int last = m.upper && column + R < m.height ? column + R : m.height;  // above the diagonal: row < column
      product_strip<L, R>(
          m.at + column, 1, kStride, 0, last, m.height, m.width - column, vectors, features, out + column * features);
    }
    return;
  }
  for (int row = 0; row < m.height; row += R) {
    const int first = m.upper ? row : 0;
    product_strip<L, R>(
        m.at + row * kStride, kStride, 1, first, m.width, m.width, m.height - row, vectors, features,
        out + row * features);
  }
}

template <class L>
constexpr contrastive::Kernels<typename L::T> kernels() {
  return {Strips<L>::panel, L::gradient_vectors * L::width, square_forward<L>, rectangle_forward<L>,
          square_weights<L>, rectangle_weights<L>, add_product<L>};
}

template <class Single, class Double>
constexpr contrastive::InstructionSet instruction_set(const char* name) {
  return {name,
          kernels<Single>(),
          kernels<Double>(),
          {unit_vectors<float, float>, unit_gradient<float, float>},
          {unit_vectors<float, double>, unit_gradient<float, double>},
          {unit_vectors<double, double>, unit_gradient<double, double>},
          {pairs<float>, pairs_gradient<float>},
          {pairs<double>, pairs_gradient<double>}};
}

}  // namespace
