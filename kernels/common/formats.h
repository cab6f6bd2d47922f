// Number formats: what one 32-bit group of an activation row holds, and how a group meets 32-bit lanes of weights.
// The microkernel knows nothing else of a format; BF16 (vdpbf16ps, two numbers a group) would fit in here.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace redline {

template <class T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <class T, int kLanes>
using Vector = typename VectorOf<T, kLanes>::type;

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

// The larger or smaller of a and b in each lane; b where a is NaN. (gcc makes two instructions of a > b ? a : b.)
template <class V>
inline V larger(const V& a, const V& b) {
#if defined(__AVX512F__)
  return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

template <class V>
inline V smaller(const V& a, const V& b) {
#if defined(__AVX512F__)
  return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

#if defined(__AVX512VNNI__)
// Four numbers a group. vpdpbusd wants unsigned activations: u8 = s8 ^ 0x80, that is 128 more; what this adds to a
// column, 128 times the sum of its weights, is taken off its starting value.
struct Int8 {
  using Activation = uint8_t;
  using Weight = int8_t;
  static constexpr int kLanes = 16, kRows = 12, kOffset = 128;
  using Accumulator = Vector<int32_t, kLanes>;

  static Accumulator weights(const Accumulator& activations) { return activations ^ static_cast<int32_t>(0x80808080); }

  // By hand: whether gcc 12 spills the accumulators of _mm512_dpbusd_epi32 depends on the code around it.
  static void dot(Accumulator& sum, const Accumulator& activations, const Accumulator& weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(activations), "v"(weights));
  }
};
#else
// Two numbers a group, both 16 bits wide: vpmaddwd is exact where AVX2's vpmaddubsw saturates.
struct Int8 {
  using Activation = int16_t;
  using Weight = int16_t;
#if defined(__AVX2__)
  static constexpr int kLanes = 8, kRows = 6, kOffset = 0;
#else
  static constexpr int kLanes = 4, kRows = 4, kOffset = 0;
#endif
  using Accumulator = Vector<int32_t, kLanes>;

  static Accumulator weights(const Accumulator& activations) { return activations; }

  static void dot(Accumulator& sum, const Accumulator& activations, const Accumulator& weights) {
#if defined(__AVX2__)
    sum += (Accumulator)_mm256_madd_epi16((__m256i)activations, (__m256i)weights);
#else
    using Unsigned = Vector<uint32_t, kLanes>;
    const auto low = [](const Accumulator& v) { return (Accumulator)((Unsigned)v << 16) >> 16; };
    sum += low(activations) * low(weights) + (activations >> 16) * (weights >> 16);
#endif
  }
};
#endif

// One number a group. Product and sum are rounded each on its own, so every ISA gives the same bits.
struct Fp32 {
  using Activation = float;
  using Weight = float;
  static constexpr int kLanes = Int8::kLanes, kRows = Int8::kRows, kOffset = 0;
  using Accumulator = Vector<float, kLanes>;

  static Accumulator weights(const Accumulator& activations) { return activations; }
  static void dot(Accumulator& sum, const Accumulator& activations, const Accumulator& weights) {
    sum += activations * weights;
  }
};

}  // namespace redline
