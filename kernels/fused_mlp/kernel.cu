// ai.redline::FusedMlp on CUDA: the whole chain in one launch, int8 by int8 → int32 with dp4a.
//
// A block owns ROWS rows from the first layer to the last (chain.cuh): their activations stay in shared memory, so
// global memory sees x once, y once and the weights.
//
// Answers are those of operator.py to the bit where no sigmoid stands: accumulation is exact, and scale, bias and
// division are rounded one by one (__fmul_rn and friends: never an fma).
//
// Roofline: rows · Σ n·k multiply-adds, 4 a dp4a, against (k first + n last) · rows · 4 bytes of memory. Each block
// reads the Σ n·k bytes of weights once from L2 and GROUPS times from L1: a byte from L2 serves ROWS multiply-adds, one
// from L1 ROWS_A_THREAD. Bound by L1 and dp4a alike; tensor cores (mma_s8) would lift both.
#include "chain.cuh"

// x [rows, k first] · weights to plan: see Layers · y [rows, n last].
// A block of THREADS for ROWS rows, with ROWS · (stride + other_stride) bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
fused_mlp(const float* __restrict__ x, const signed char* __restrict__ weights,
          const float* __restrict__ weight_scales, const float* __restrict__ biases,
          const float* __restrict__ input_scales, const int* __restrict__ plan, int rows, int layers, int stride,
          int other_stride, float* __restrict__ y) {
  extern __shared__ int4 shared[];
  signed char* tile = reinterpret_cast<signed char*>(shared);
  Tiles tiles{tile, tile + ROWS * stride, stride, other_stride};
  Layers at{weights, weight_scales, biases, input_scales, plan};
  const int first = blockIdx.x * ROWS, inputs = plan[0], outputs = plan[layers * 3 - 2];

  enter(at, tiles, rows - first, [=](int r, int k) { return x[size_t(first + r) * inputs + k]; });
  run(at, tiles, layers, [=](int r, int column, float value) {
    if (first + r < rows) y[size_t(first + r) * outputs + column] = value;
  });
}
REDLINE_EXPORT(fused_mlp)
