// The one header of every .cu: CUDA's own under nvcc, the shim of kernels/host under g++.
//
// A .cu holds only kernels: extern "C" __global__, __launch_bounds__(threads, minBlocks), raw pointers and numbers in
// the order inputs, numbers, outputs; no host code, no <<<>>>. After each kernel stands REDLINE_EXPORT(its name).
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#define REDLINE_EXPORT(kernel)

// Tensor cores, sm_80 on. A warp's 16 x 8 tile: d += a · b, a in rows, b in columns, laid out over lanes as PTX says.
#define REDLINE_MMA(name, T, constraint, shape, types)                                                             \
  __device__ __forceinline__ void name(T(&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {                 \
    asm volatile("mma.sync.aligned." shape ".row.col." types " {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" \
                 : constraint(d[0]), constraint(d[1]), constraint(d[2]), constraint(d[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
REDLINE_MMA(mma_f16, float, "+f", "m16n8k16", "f32.f16.f16.f32")
REDLINE_MMA(mma_bf16, float, "+f", "m16n8k16", "f32.bf16.bf16.f32")
REDLINE_MMA(mma_s8, int, "+r", "m16n8k32", "s32.s8.s8.s32")

// 2^x in one instruction; below 2^-126 it is 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four 8 x 8 tiles of 16-bit numbers from shared memory, as the b of two mma. Lane i names row i % 8 of tile i / 8 (16
// bytes, aligned) and gets of every tile two neighbors in row i / 4, or, transposed, in column i / 4.
#define REDLINE_LDMATRIX(name, transposed)                                                                   \
  __device__ __forceinline__ void name(unsigned (&b)[2][2], const void* row) {                               \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" transposed ".shared.b16 {%0,%1,%2,%3},[%4];"                \
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])                                \
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))                                 \
                 : "memory");                                                                                \
  }
REDLINE_LDMATRIX(ldmatrix, "")
REDLINE_LDMATRIX(ldmatrix_transposed, ".trans")
#else
#include "../host/device.h"
#include "../host/tensor.h"
#endif
