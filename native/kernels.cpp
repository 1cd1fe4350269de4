// One pass over a tile of logits in f32 on the CPU, where ATen's operations would take three to five.
//
// Pointers are to contiguous rows of `columns` floats; `targets` are indices into the whole vocabulary, of which the tile begins at
// `start`. Each function says what it computes in the notation of src/logps/tile.rs, which has the same in ATen's operations.

#include <torch/csrc/stable/c/shim.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Versions for wider vectors, chosen when the library is loaded. Older compilers do not know the levels by name.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int LANES = 16;
constexpr float NONE = -std::numeric_limits<float>::infinity();

// e^x for x ≤ 0, within 2 units in the last place, without a branch: x = n·log 2 + r with log 2 in two parts, and a polynomial in r
// (coefficients: Moshier, Cephes expf).
INLINE float exponential(float given) {
  // NaN takes the lower bound too, since it cannot become an integer, and is put back at the end.
  float x = given >= -87.0f ? given : -87.0f;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  // Below the smallest normal number it is 0, so that a token ruled out by −∞ has no share at all.
  float result = given < -87.0f ? 0.0f : p * power;
  return given == given ? result : given;
}

WIDE float largest(const float *x, int64_t n) {
  float lanes[LANES];
  for (float &lane : lanes) lane = NONE;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  for (; i < n; i++) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  float result = lanes[0];
  for (int j = 1; j < LANES; j++) result = lanes[j] > result ? lanes[j] : result;
  return result;
}

// Σ e^{x−m}, and with `moment` also Σ e^{x−m}(x − m); with `store` x becomes e^{x−m}.
template <bool store, bool moment> INLINE void sums_of(float *x, int64_t n, float m, float *sum, float *first) {
  float s[LANES] = {0}, u[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) {
      float d = x[i + j] - m, e = exponential(d);
      s[j] += e;
      // A logit of −∞ adds 0·log 0 = 0.
      if (moment) u[j] += d < -87.0f ? 0.0f : e * d;
      if (store) x[i + j] = e;
    }
  for (; i < n; i++) {
    float d = x[i] - m, e = exponential(d);
    s[0] += e;
    if (moment) u[0] += d < -87.0f ? 0.0f : e * d;
    if (store) x[i] = e;
  }
  for (int j = 1; j < LANES; j++) {
    s[0] += s[j];
    u[0] += u[j];
  }
  *sum = s[0];
  *first = u[0];
}

WIDE void sums(float *x, int64_t n, float m, float *sum, float *first) { sums_of<false, false>(x, n, m, sum, first); }
WIDE void sums_moment(float *x, int64_t n, float m, float *sum, float *first) { sums_of<false, true>(x, n, m, sum, first); }
WIDE void sums_store(float *x, int64_t n, float m, float *sum, float *first) { sums_of<true, false>(x, n, m, sum, first); }
WIDE void sums_store_moment(float *x, int64_t n, float m, float *sum, float *first) { sums_of<true, true>(x, n, m, sum, first); }

WIDE void slopes(float *x, int64_t n, float max, float log_sum, float g) {
  for (int64_t i = 0; i < n; i++) x[i] = -g * exponential((x[i] - max) - log_sum);
}

struct Absorb {
  float *x;
  int64_t columns, start;
  const int64_t *targets;
  float *max, *sum, *moment, *target, *correction;
};

void absorb_rows(int64_t begin, int64_t end, void *context) {
  const Absorb &a = *static_cast<const Absorb *>(context);
  auto pass = a.correction ? (a.moment ? sums_store_moment : sums_store) : (a.moment ? sums_moment : sums);
  for (int64_t i = begin; i < end; i++) {
    float *x = a.x + i * a.columns;
    int64_t local = a.targets[i] - a.start;
    if (local >= 0 && local < a.columns) a.target[i] = x[local];
    float tile = largest(x, a.columns), old = a.max[i], now = tile > old ? tile : old;
    // Every logit so far is −∞ (or NaN, which the sum will show): −∞ − (−∞) would be NaN.
    if (now == NONE) now = 0.0f;
    float shrink = std::exp(old - now), sum, moment;
    pass(x, a.columns, now, &sum, &moment);
    // At the first tile old is −∞ and there is nothing to shrink, not 0·∞.
    if (a.moment) a.moment[i] = (old > NONE ? shrink * (a.moment[i] + a.sum[i] * (old - now)) : 0.0f) + moment;
    a.sum[i] = shrink * a.sum[i] + sum;
    a.max[i] = tile > old ? tile : old;
    if (a.correction) a.correction[i] = shrink;
  }
}

struct Slope {
  float *x;
  int64_t columns, start;
  const int64_t *targets;
  const float *max, *log_sum, *cotangent;
};

void slope_rows(int64_t begin, int64_t end, void *context) {
  const Slope &a = *static_cast<const Slope *>(context);
  for (int64_t i = begin; i < end; i++) {
    float *x = a.x + i * a.columns;
    slopes(x, a.columns, a.max[i], a.log_sum[i], a.cotangent[i]);
    int64_t local = a.targets[i] - a.start;
    if (local >= 0 && local < a.columns) x[local] += a.cotangent[i];
  }
}

constexpr int64_t ROWS_PER_TASK = 16;

// Σ w((a − b) − t)², w = 1 where there is none.
template <bool weighted> INLINE double distance_of(const float *a, const float *b, const float *t, const float *w, int64_t n) {
  float lanes[LANES] = {0};
  double sum = 0;
  for (int64_t i = 0; i < n;) {
    // f32 within a stretch, f64 between: as exact as the losses that it stands for.
    int64_t end = i + 16 * LANES < n ? i + 16 * LANES : n;
    for (float &lane : lanes) lane = 0;
    for (; i + LANES <= end; i += LANES)
      for (int j = 0; j < LANES; j++) {
        float d = (a[i + j] - b[i + j]) - t[i + j];
        lanes[j] += weighted ? w[i + j] * d * d : d * d;
      }
    for (; i < end; i++) {
      float d = (a[i] - b[i]) - t[i];
      lanes[0] += weighted ? w[i] * d * d : d * d;
    }
    for (float lane : lanes) sum += lane;
  }
  return sum;
}

WIDE double distance(const float *a, const float *b, const float *t, const float *, int64_t n) {
  return distance_of<false>(a, b, t, nullptr, n);
}
WIDE double distance_weighted(const float *a, const float *b, const float *t, const float *w, int64_t n) {
  return distance_of<true>(a, b, t, w, n);
}

} // namespace

extern "C" {

// Takes a tile into the running max, sum, moment (may be null) and target of each row. With `correction` (may be null) the tile
// becomes e^{x−max}, and correction is e^{old max − max}. Nonzero if libtorch refused.
int pf_absorb(float *x, int64_t rows, int64_t columns, int64_t start, const int64_t *targets, float *max, float *sum,
              float *moment, float *target, float *correction) {
  Absorb a{x, columns, start, targets, max, sum, moment, target, correction};
  return torch_parallel_for(0, rows, ROWS_PER_TASK, absorb_rows, &a);
}

// Index of the row m of smallest Σ w((a_m − b_m) − t)², `a` and `b` [rows, columns]; w may be null. A row that is NaN is the smallest, so
// that it does not go unseen.
int64_t pf_nearest(const float *a, const float *b, const float *t, const float *w, int64_t rows, int64_t columns) {
  int64_t nearest = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t m = 0; m < rows; m++) {
    double d = (w ? distance_weighted : distance)(a + m * columns, b + m * columns, t, w, columns);
    if (std::isnan(d)) return m;
    if (d < least) {
      least = d;
      nearest = m;
    }
  }
  return nearest;
}

// x := g·(δ(target) − e^{x−max−log sum}).
int pf_slope(float *x, int64_t rows, int64_t columns, int64_t start, const int64_t *targets, const float *max,
             const float *log_sum, const float *cotangent) {
  Slope a{x, columns, start, targets, max, log_sum, cotangent};
  return torch_parallel_for(0, rows, ROWS_PER_TASK, slope_rows, &a);
}
}
