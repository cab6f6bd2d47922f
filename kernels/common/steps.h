// Floats → int8 steps, ONNX QuantizeLinear with zero point 0, in the form in which the INT8 format stores them.
#pragma once
#include "formats.h"

namespace redline {

using Floats = Vector<float, Int8::kLanes>;
using Ints = Int8::Accumulator;
using Step = Int8::Activation;
using Steps = Vector<Step, Int8::kLanes>;
constexpr int kLanes = Int8::kLanes;

// NaN becomes -128, as in ONNX Runtime's QuantizeLinear; ties go to even.
[[gnu::always_inline]] inline Steps quantized(Floats steps, float lowest) {
  steps = smaller(larger(steps, lowest - Floats{}), 127.0f - Floats{});
  // Adding 1.5 · 2^23 leaves the rounded number in the low bits.
  const Ints whole = (Ints)(steps + 12582912.0f) - 0x4B400000 + Int8::kOffset;
  return __builtin_convertvector(whole, Steps);
}

inline void quantize_row(const float* x, int64_t k, float scale, Step* out) {
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store(out + i, quantized(load<Floats>(x + i) / scale, -128.0f));
  if (i < k) {
    float rest[kLanes] = {};
    std::memcpy(rest, x + i, (k - i) * sizeof(float));
    store(out + i, quantized(load<Floats>(rest) / scale, -128.0f));
  }
}

}  // namespace redline
