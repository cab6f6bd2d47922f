// Floats → numbers as a format stores them: INT8 by ONNX's QuantizeLinear with zero point 0, BF16 rounded, FP32 as they
// are. In plain integer and float operations, so the same bits on every ISA.
#pragma once
#include <limits>
#include <type_traits>

#include "formats.h"

namespace redline {

using Floats = Vector<float, kLanes>;
using Ints = Vector<int32_t, kLanes>;
template <class Format>
using Numbers = Vector<typename Format::Activation, kLanes>;

// What a hidden layer without ReLU clamps to.
template <class Format>
constexpr float kLowest = std::is_same_v<Format, Int8> ? -128.0f : -std::numeric_limits<float>::infinity();

// NaN becomes -128, as in ONNX Runtime's QuantizeLinear; ties go to even.
[[gnu::always_inline]] inline Numbers<Int8> quantized(Floats steps, float lowest) {
  steps = smaller(larger(steps, lowest - Floats{}), 127.0f - Floats{});
  // Adding 1.5 · 2^23 leaves the rounded number in the low bits.
  const Ints whole = (Ints)(steps + 12582912.0f) - 0x4B400000 + Int8::kOffset;
  return __builtin_convertvector(whole, Numbers<Int8>);
}

// To nearest, ties to even; NaN stays NaN.
[[gnu::always_inline]] inline Numbers<Bf16> rounded(const Floats& x) {
  using Bits = Vector<uint32_t, kLanes>;
  const Bits bits = (Bits)x, up = bits + 0x7FFF + (bits >> 16 & 1), quiet = bits | 0x400000;
  return __builtin_convertvector((x == x ? up : quiet) >> 16, Numbers<Bf16>);
}

inline float widened(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// scale: of INT8 only; lowest: in steps there. A float that isn't a number stays so.
template <class Format>
[[gnu::always_inline]] inline Numbers<Format> narrowed(const Floats& x, float scale, float lowest) {
  if constexpr (std::is_same_v<Format, Int8>)
    return quantized(x / scale, lowest);
  else if constexpr (std::is_same_v<Format, Bf16>)
    return rounded(larger(lowest - Floats{}, x));
  else
    return larger(lowest - Floats{}, x);
}

// x [k] → out, in whole vectors: zeros fill the last.
template <class Format>
void enter(const float* x, int64_t k, float scale, typename Format::Activation* out) {
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store(out + i, narrowed<Format>(load<Floats>(x + i), scale, kLowest<Format>));
  if (i < k) {
    float rest[kLanes] = {};
    std::memcpy(rest, x + i, (k - i) * sizeof(float));
    store(out + i, narrowed<Format>(load<Floats>(rest), scale, kLowest<Format>));
  }
}

}  // namespace redline
