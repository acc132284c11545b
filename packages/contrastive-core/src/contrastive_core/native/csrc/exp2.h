// Compute 2^f for f in [-1/2, 1/2], the core of exp2. Because the exponent is exact, the relative error is that of a few
// roundings; 2^0 is exactly 1.
#pragma once

namespace contrastive {
namespace {

template <class Lanes, class T>
struct Coefficients;

// Least-squares fit at Chebyshev points, with a relative error of 2e-9.
template <class Lanes>
struct Coefficients<Lanes, float> {
  static constexpr int degree = 6;
  static constexpr float of[degree + 1] = {
      1.0f,
      0.693147182f,
      0.240226462f,
      0.0555032901f,
      0.00961851981f,
      0.00133998599f,
      0.000153375775f};
};

// Taylor coefficients (ln 2)^n / n!, with a relative error of 5e-18.
template <class Lanes>
struct Coefficients<Lanes, double> {
  static constexpr int degree = 13;
  static constexpr double of[degree + 1] = {
      1.0,
      0.6931471805599453,
      0.2402265069591007,
      0.055504108664821576,
      0.009618129107628477,
      0.0013333558146428441,
      0.00015403530393381606,
      1.5252733804059838e-05,
      1.3215486790144305e-06,
      1.0178086009239696e-07,
      7.054911620801121e-09,
      4.44553827187081e-10,
      2.5678435993488196e-11,
      1.3691488853904124e-12};
};

template <class Lanes>
inline __attribute__((always_inline)) typename Lanes::V power_of_fraction(typename Lanes::V f) {
  using C = Coefficients<Lanes, typename Lanes::T>;
  typename Lanes::V p = Lanes::all(C::of[C::degree]);
#pragma GCC unroll 16
  for (int n = C::degree - 1; n >= 0; --n) p = Lanes::fma(p, f, Lanes::all(C::of[n]));
  return p;
}

}  // namespace
}  // namespace contrastive
