// Number formats: what one 32-bit group of an activation row holds, and how a group meets 32-bit lanes of weights.
// The microkernel knows nothing else of a format.
#pragma once
#include <cstdint>
#include <cstring>

// REDLINE_WIDE is for tests: AVX-512's shapes without its instructions, so that any machine runs all else of that path.
#if defined(__AVX512F__) && !defined(REDLINE_WIDE)
#define REDLINE_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && !defined(REDLINE_WIDE)
#define REDLINE_AVX2
#endif
#if defined(REDLINE_AVX512) || defined(REDLINE_AVX2)
#include <immintrin.h>
#endif

namespace redline {

#if defined(REDLINE_AVX512) || defined(REDLINE_WIDE)
constexpr int kLanes = 16, kTileRows = 12;
#elif defined(REDLINE_AVX2)
constexpr int kLanes = 8, kTileRows = 6;
#else
constexpr int kLanes = 4, kTileRows = 4;
#endif

template <class T, int kCount>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kCount)));
};
template <class T, int kCount>
using Vector = typename VectorOf<T, kCount>::type;

template <class V, class T>
inline V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
inline void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

// The 32 bits at `from` in every lane. (As an integer gcc would shift and mask BF16's halves before it spreads them.)
template <class V>
inline V spread(const char* from) {
  float group;
  std::memcpy(&group, from, sizeof group);
#if defined(REDLINE_AVX512)
  return (V)_mm512_set1_ps(group);
#elif defined(REDLINE_AVX2)
  return (V)_mm256_set1_ps(group);
#else
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return (V)(bits - Vector<uint32_t, kLanes>{});
#endif
}

// The larger or smaller of a and b in each lane; b where one is NaN. (gcc makes two instructions of a > b ? a : b.)
template <class V>
inline V larger(const V& a, const V& b) {
#if defined(REDLINE_AVX512)
  return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(REDLINE_AVX2)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

template <class V>
inline V smaller(const V& a, const V& b) {
#if defined(REDLINE_AVX512)
  return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(REDLINE_AVX2)
  return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// sum + a · b, rounded once where the ISA has FMA, else twice: the one step whose bits differ between ISAs.
template <class V>
inline void multiply_add(V& sum, const V& a, const V& b) {
#if defined(REDLINE_AVX512)
  sum = (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(REDLINE_AVX2)
  sum = (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  sum += a * b;
#endif
}

#if defined(REDLINE_AVX512) || defined(REDLINE_WIDE)
// Four numbers a group. vpdpbusd wants unsigned activations: u8 = s8 ^ 0x80, that is 128 more; what this adds to a
// column, 128 times the sum of its weights, is taken off its starting value.
struct Int8 {
  using Activation = uint8_t;
  using Weight = int8_t;
  using Sum = int32_t;
  using Groups = Vector<int32_t, kLanes>;
  using Accumulator = Groups;
  static constexpr int kRows = kTileRows, kOffset = 128;

  static Groups weights(const Groups& activations) { return activations ^ static_cast<int32_t>(0x80808080); }

  static void dot(Accumulator& sum, const Groups& activations, const Groups& weights) {
#if defined(REDLINE_AVX512)
    // By hand: whether gcc 12 spills the accumulators of _mm512_dpbusd_epi32 depends on the code around it.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(activations), "v"(weights));
#else
    using Words = Vector<uint16_t, 2 * kLanes>;
    using Signed = Vector<int16_t, 2 * kLanes>;
    const Words a = (Words)activations, w = (Words)weights;  // 255 · 128 fits into 16 bits
    for (const Signed& product : {(Signed)(a & 0xFF) * ((Signed)(w << 8) >> 8), (Signed)(a >> 8) * ((Signed)w >> 8)})
      sum += ((Groups)((Vector<uint32_t, kLanes>)product << 16) >> 16) + ((Groups)product >> 16);
#endif
  }
};
#else
// Two numbers a group, both 16 bits wide: vpmaddwd is exact where AVX2's vpmaddubsw saturates.
struct Int8 {
  using Activation = int16_t;
  using Weight = int16_t;
  using Sum = int32_t;
  using Groups = Vector<int32_t, kLanes>;
  using Accumulator = Groups;
  static constexpr int kRows = kTileRows, kOffset = 0;

  static Groups weights(const Groups& activations) { return activations; }

  static void dot(Accumulator& sum, const Groups& activations, const Groups& weights) {
#if defined(REDLINE_AVX2)
    sum += (Accumulator)_mm256_madd_epi16((__m256i)activations, (__m256i)weights);
#else
    const auto low = [](const Groups& v) { return (Groups)((Vector<uint32_t, kLanes>)v << 16) >> 16; };
    sum += low(activations) * low(weights) + (activations >> 16) * (weights >> 16);
#endif
  }
};
#endif

// Two numbers a group, fp32 sums. Without vdpbf16ps each half is widened, which costs AVX2's tile two rows of registers.
struct Bf16 {
  using Activation = uint16_t;  // the upper half of a float
  using Weight = uint16_t;
  using Sum = float;
  using Groups = Vector<uint32_t, kLanes>;
  using Accumulator = Vector<float, kLanes>;
  static constexpr int kRows = kLanes == 16 ? kTileRows : 4, kOffset = 0;

  static Groups weights(const Groups& activations) { return activations; }

  static void dot(Accumulator& sum, const Groups& activations, const Groups& weights) {
#if defined(REDLINE_AVX512) && defined(__AVX512BF16__)
    sum = (Accumulator)_mm512_dpbf16_ps((__m512)sum, (__m512bh)activations, (__m512bh)weights);
#else
    const auto high = [](const Groups& v) { return (Accumulator)(v & 0xFFFF0000u); };
    const auto low = [](const Groups& v) { return (Accumulator)(v << 16); };
    multiply_add(sum, high(activations), high(weights));
    multiply_add(sum, low(activations), low(weights));
#endif
  }
};

// One number a group.
struct Fp32 {
  using Activation = float;
  using Weight = float;
  using Sum = float;
  using Groups = Vector<float, kLanes>;
  using Accumulator = Groups;
  static constexpr int kRows = kTileRows, kOffset = 0;

  static Groups weights(const Groups& activations) { return activations; }
  static void dot(Accumulator& sum, const Groups& activations, const Groups& weights) {
    multiply_add(sum, activations, weights);
  }
};

}  // namespace redline
