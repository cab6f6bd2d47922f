// Floats → int8 steps, ONNX QuantizeLinear with zero point 0 (NaN becomes -128, ties go to even), and their exact dots.
#pragma once
#include "device.cuh"

__device__ __forceinline__ signed char quantize(float value, float scale) {
  return static_cast<signed char>(__float2int_rn(fminf(fmaxf(__fdiv_rn(value, scale), -128.f), 127.f)));
}

__device__ __forceinline__ int dot16(int4 a, int4 b, int sum) {
  return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, sum))));
}
