// ai.redline::FusedMlp on CUDA: the whole chain in one launch, int8 by int8 → int32 with dp4a.
//
// A block owns ROWS rows from the first layer to the last: their activations stay in shared memory as int8, in two
// tiles that swap roles a layer, so global memory sees x once, y once and the weights. A thread computes ROWS_A_THREAD
// rows of one column: 16 bytes of weights meet 16 bytes of each row, which a whole warp reads at one address. Zeros pad
// k to 16 and rows to ROWS; what pads is computed and never stored.
//
// Answers are those of operator.py to the bit where no sigmoid stands: accumulation is exact, and scale, bias and
// division are rounded one by one (__fmul_rn and friends: never an fma).
//
// Roofline: rows · Σ n·k multiply-adds, 4 a dp4a, against (k first + n last) · rows · 4 bytes of memory. Each block
// reads the Σ n·k bytes of weights once from L2 and GROUPS times from L1: a byte from L2 serves ROWS multiply-adds, one
// from L1 ROWS_A_THREAD. Bound by L1 and dp4a alike; tensor cores (mma_s8) would lift both.
#include "../common/device.cuh"

constexpr int THREADS = 256, ROWS = 16, ROWS_A_THREAD = 4, GROUPS = ROWS / ROWS_A_THREAD;
constexpr int RELU = 1, SIGMOID = 2;

__device__ __forceinline__ int padded(int k) { return (k + 15) / 16 * 16; }

__device__ __forceinline__ signed char quantize(float value, float scale) {
  return static_cast<signed char>(__float2int_rn(fminf(fmaxf(__fdiv_rn(value, scale), -128.f), 127.f)));
}

__device__ __forceinline__ int dot16(int4 a, int4 b, int sum) {
  return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, sum))));
}

// x [rows, k first] · weights: a layer after the other, [padded k / 16, n, 16] · weight_scales, biases: [Σ n], the
// former already times the layer's input scale · input_scales [layers] · plan [layers, 3]: k, n, activation · stride:
// bytes a row of a tile, the widest padded k · y [rows, n last].
// A block of THREADS for ROWS rows, with 2 · ROWS · stride bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
fused_mlp(const float* __restrict__ x, const signed char* __restrict__ weights,
          const float* __restrict__ weight_scales, const float* __restrict__ biases,
          const float* __restrict__ input_scales, const int* __restrict__ plan, int rows, int layers, int stride,
          float* __restrict__ y) {
  extern __shared__ int4 tiles[];
  signed char* from = reinterpret_cast<signed char*>(tiles);
  signed char* to = from + ROWS * stride;
  const int first_row = blockIdx.x * ROWS;

  const int inputs = plan[0];
  for (int i = threadIdx.x; i < ROWS * padded(inputs); i += THREADS) {
    const int r = i / padded(inputs), k = i % padded(inputs), row = first_row + r;
    from[r * stride + k] = row < rows && k < inputs ? quantize(x[size_t(row) * inputs + k], input_scales[0]) : 0;
  }

  for (int layer = 0; layer < layers; ++layer) {
    const int k = padded(plan[layer * 3]), n = plan[layer * 3 + 1], activation = plan[layer * 3 + 2];
    const bool last = layer + 1 == layers;
    const int columns = last ? n : padded(n);  // what pads this layer's outputs is the next one's padding of k
    __syncthreads();                           // the tile is full, and nobody reads the other one any more

    for (int item = threadIdx.x; item < columns * GROUPS; item += THREADS) {
      const int column = item % columns, r = item / columns * ROWS_A_THREAD;
      int sums[ROWS_A_THREAD] = {};
      if (column < n) {
        const int4* weight = reinterpret_cast<const int4*>(weights) + column;
        const int4* row = reinterpret_cast<const int4*>(from + r * stride);
        for (int step = 0; step < k / 16; ++step) {
          const int4 w = weight[step * n];
#pragma unroll
          for (int i = 0; i < ROWS_A_THREAD; ++i) sums[i] = dot16(w, row[i * (stride / 16) + step], sums[i]);
        }
      }
      const float scale = column < n ? weight_scales[column] : 0.f, bias = column < n ? biases[column] : 0.f;
#pragma unroll
      for (int i = 0; i < ROWS_A_THREAD; ++i) {
        float value = __fadd_rn(__fmul_rn(__int2float_rn(sums[i]), scale), bias);
        if (activation == RELU) value = fmaxf(value, 0.f);
        if (activation == SIGMOID) value = __fdiv_rn(1.f, __fadd_rn(1.f, expf(-value)));
        if (!last)
          to[(r + i) * stride + column] = column < n ? quantize(value, input_scales[layer + 1]) : 0;
        else if (first_row + r + i < rows)
          y[size_t(first_row + r + i) * n + column] = value;
      }
    }
    weights += k * n, weight_scales += n, biases += n;
    signed char* swap = from;
    from = to, to = swap;
  }
}
REDLINE_EXPORT(fused_mlp)
