// Kernels for AVX2 and FMA: 16 registers of 8 floats or 4 doubles. A mask is a register with all bits 1 or 0 per number.
#include <immintrin.h>

#include "exp2.h"
#include "kernels.h"

namespace {

struct Single {
  using T = float;
  using V = __m256;
  using Mask = __m256;
  static constexpr int width = 8;
  static constexpr int rows = 4, vectors = 3;
  static constexpr int gradient_rows = 6, gradient_vectors = 2;
  static constexpr T lowest = -200;  // its exp2 is 0

  static V load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, V x) { _mm256_storeu_ps(p, x); }
  static V all(T x) { return _mm256_set1_ps(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }  // b where one is NaN
  static T sum(V x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static T top(V x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static Mask before(int n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), index));
  }
  static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static Mask without(Mask a, Mask b) { return _mm256_andnot_ps(b, a); }
  static V pick(Mask m, V x, V other) { return _mm256_blendv_ps(other, x, m); }
  static V abs(V x) { return _mm256_andnot_ps(all(-0.0f), x); }
  static Mask above(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static unsigned bits(Mask m) { return _mm256_movemask_ps(m); }
  static V exp2(V x) {
    const V n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V p = contrastive::power_of_fraction<Single>(_mm256_sub_ps(x, n));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    const V power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    // The result below the normal numbers is zero. NaN compares false and remains.
    return _mm256_and_ps(_mm256_mul_ps(p, power), _mm256_cmp_ps(x, all(-126.0f), _CMP_NLT_UQ));
  }
};

struct Double {
  using T = double;
  using V = __m256d;
  using Mask = __m256d;
  static constexpr int width = 4;
  static constexpr int rows = 4, vectors = 3;
  static constexpr int gradient_rows = 6, gradient_vectors = 2;
  static constexpr T lowest = -1100;  // its exp2 is 0

  static V load(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, V x) { _mm256_storeu_pd(p, x); }
  static V all(T x) { return _mm256_set1_pd(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static V max(V a, V b) { return _mm256_max_pd(a, b); }
  static T sum(V x) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static T top(V x) {
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static Mask before(int n) {
    const __m256i index = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), index));
  }
  static Mask both(Mask a, Mask b) { return _mm256_and_pd(a, b); }
  static Mask without(Mask a, Mask b) { return _mm256_andnot_pd(b, a); }
  static V pick(Mask m, V x, V other) { return _mm256_blendv_pd(other, x, m); }
  static V abs(V x) { return _mm256_andnot_pd(all(-0.0), x); }
  static Mask above(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  static unsigned bits(Mask m) { return _mm256_movemask_pd(m); }
  static V exp2(V x) {
    const V n = _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V p = contrastive::power_of_fraction<Double>(_mm256_sub_pd(x, n));
    const __m256i exponent = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
    const __m256i bits = _mm256_slli_epi64(_mm256_add_epi64(exponent, _mm256_set1_epi64x(1023)), 52);
    const V power = _mm256_castsi256_pd(bits);
    return _mm256_and_pd(_mm256_mul_pd(p, power), _mm256_cmp_pd(x, all(-1022.0), _CMP_NLT_UQ));
  }
};

}  // namespace

#include "tile.h"

namespace contrastive {
const InstructionSet kAvx2 = instruction_set<Single, Double>("AVX2");
}
