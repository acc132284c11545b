// Compute unit vectors and similarities of pairs, with lengths and sums in double. Included by tile.h.
#pragma once
#include <cstdint>

namespace {

constexpr int kParts = 16;  // number of parallel sums; the order of addition is the same on every processor

template <class Term>
inline __attribute__((always_inline)) double sum_of(int64_t depth, const Term& term) {
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= depth; k += kParts)
    for (int n = 0; n < kParts; ++n) parts[n] += term(k + n);
  for (; k < depth; ++k) parts[0] += term(k);
  double sum = 0;
  for (int n = 0; n < kParts; ++n) sum += parts[n];
  return sum;
}

// Computes z = x / |x| and |x|, or 0 and infinity if |x| is below the smallest normal number (its inverse is infinite).
template <class X, class Z>
void unit_vectors(const X* x, int64_t count, int64_t depth, Z* z, double* length) {
  constexpr double tiny = sizeof(X) == 4 ? 0x1p-126 : 0x1p-1022;
  for (int64_t i = 0; i < count; ++i, x += depth, z += depth) {
    double top = 1;
    if (sizeof(X) == 8) {  // there is no wider type for the squares, so divide by the largest entry first
      top = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const double size = x[k] < 0 ? -x[k] : x[k];
        top = size > top ? size : top;
      }
      if (top == 0) top = 1;
    }
    double partial = __builtin_sqrt(sum_of(depth, [&](int64_t k) { return (x[k] / top) * (x[k] / top); }));
    if (partial * top < tiny) partial = __builtin_inf();  // NaN compares false and remains
    length[i] = partial * top;
    if (sizeof(X) == 8) {
      for (int64_t k = 0; k < depth; ++k) z[k] = static_cast<Z>(x[k] / top / partial);
    } else {
      const double inverse = 1 / partial;
      for (int64_t k = 0; k < depth; ++k) z[k] = static_cast<Z>(x[k] * inverse);
    }
  }
}

// Computes dx = (dz - z (z . dz)) / |x|.
template <class X, class Z>
void unit_gradient(const Z* gradient, const Z* z, const double* length, int64_t count, int64_t depth, X* out) {
  for (int64_t i = 0; i < count; ++i, gradient += depth, z += depth, out += depth) {
    const double radial = sum_of(depth, [&](int64_t k) { return static_cast<double>(gradient[k]) * z[k]; });
    const double inverse = 1 / length[i];
    for (int64_t k = 0; k < depth; ++k) out[k] = static_cast<X>((gradient[k] - z[k] * radial) * inverse);
  }
}

template <class T>
void pairs(const T* a, const T* b, int64_t count, int64_t depth, double* out) {
  for (int64_t i = 0; i < count; ++i, a += depth, b += depth)
    out[i] = sum_of(depth, [&](int64_t k) { return static_cast<double>(a[k]) * b[k]; });
}

// Computes the gradient of (|a|^2 + |b|^2 - |a - b|^2) / 2 with constant lengths: da = g (b - a), db = -da. It lacks the
// component along a, which the gradient of the normalisation removes. For close vectors this component is most of b, and
// its rounding would be most of the error.
template <class T>
void pairs_gradient(const double* gradient, const T* a, const T* b, int64_t count, int64_t depth, T* da, T* db) {
  for (int64_t i = 0; i < count; ++i, a += depth, b += depth, da += depth, db += depth)
    for (int64_t k = 0; k < depth; ++k) {
      const T towards = static_cast<T>(gradient[i] * (static_cast<double>(b[k]) - a[k]));
      da[k] = towards;
      db[k] = -towards;
    }
}

}  // namespace
