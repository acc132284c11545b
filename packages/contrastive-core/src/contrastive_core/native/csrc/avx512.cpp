// Kernels for AVX-512: 32 registers of 16 floats or 8 doubles.
#include <immintrin.h>

#include "exp2.h"
#include "kernels.h"

namespace {

struct Single {
  using T = float;
  using V = __m512;
  using Mask = __mmask16;
  static constexpr int width = 16;
  // Register tiles of rows x vectors. Their 24 accumulators hide the latency of two multiply-adds per cycle.
  static constexpr int rows = 8, vectors = 3;
  static constexpr int gradient_rows = 12, gradient_vectors = 2;
  static constexpr T lowest = -200;  // its exp2 is 0

  static V load(const T* p) { return _mm512_loadu_ps(p); }
  static void store(T* p, V x) { _mm512_storeu_ps(p, x); }
  static V all(T x) { return _mm512_set1_ps(x); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }  // b where one is NaN
  static T sum(V x) { return _mm512_reduce_add_ps(x); }
  static T top(V x) { return _mm512_reduce_max_ps(x); }
  static Mask before(int n) { return n <= 0 ? 0 : n >= width ? 0xffff : (1u << n) - 1; }
  static Mask both(Mask a, Mask b) { return a & b; }
  static Mask without(Mask a, Mask b) { return a & ~b; }
  static V pick(Mask m, V x, V other) { return _mm512_mask_blend_ps(m, other, x); }
  static V abs(V x) { return _mm512_abs_ps(x); }
  static Mask above(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static unsigned bits(Mask m) { return m; }
  static V exp2(V x) {
    const V n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(contrastive::power_of_fraction<Single>(_mm512_sub_ps(x, n)), n);
  }
};

struct Double {
  using T = double;
  using V = __m512d;
  using Mask = __mmask8;
  static constexpr int width = 8;
  static constexpr int rows = 8, vectors = 3;
  static constexpr int gradient_rows = 12, gradient_vectors = 2;
  static constexpr T lowest = -1100;  // its exp2 is 0

  static V load(const T* p) { return _mm512_loadu_pd(p); }
  static void store(T* p, V x) { _mm512_storeu_pd(p, x); }
  static V all(T x) { return _mm512_set1_pd(x); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static V max(V a, V b) { return _mm512_max_pd(a, b); }
  static T sum(V x) { return _mm512_reduce_add_pd(x); }
  static T top(V x) { return _mm512_reduce_max_pd(x); }
  static Mask before(int n) { return n <= 0 ? 0 : n >= width ? 0xff : (1u << n) - 1; }
  static Mask both(Mask a, Mask b) { return a & b; }
  static Mask without(Mask a, Mask b) { return a & ~b; }
  static V pick(Mask m, V x, V other) { return _mm512_mask_blend_pd(m, other, x); }
  static V abs(V x) { return _mm512_abs_pd(x); }
  static Mask above(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static unsigned bits(Mask m) { return m; }
  static V exp2(V x) {
    const V n = _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_pd(contrastive::power_of_fraction<Double>(_mm512_sub_pd(x, n)), n);
  }
};

}  // namespace

#include "tile.h"

namespace contrastive {
const InstructionSet kAvx512 = instruction_set<Single, Double>("AVX-512");
}
