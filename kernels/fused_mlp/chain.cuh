// A chain of layers for ROWS rows by one block of THREADS: FusedMlp is one, FusedRecommender several after each other.
//
// Activations stay in shared memory as int8, in two tiles that swap roles a layer. A thread computes ROWS_A_THREAD rows
// of one column: 16 bytes of weights meet 16 bytes of each row, which a whole warp reads at one address. Zeros pad k to
// 16 and rows to ROWS; what pads is computed and never leaves.
#pragma once
#include "../common/steps.cuh"

constexpr int THREADS = 256, ROWS = 16, ROWS_A_THREAD = 4, GROUPS = ROWS / ROWS_A_THREAD;
constexpr int RELU = 1, SIGMOID = 2;

__device__ __forceinline__ int padded(int k) { return (k + 15) / 16 * 16; }

// The layers still to come: weights a layer after the other, [padded k / 16, n, 16]; weight_scales, biases [Σ n], the
// former already times the layer's input scale; input_scales [layers]; plan [layers, 3]: k, n, activation.
struct Layers {
  const signed char* weights;
  const float *weight_scales, *biases, *input_scales;
  const int* plan;
};

struct Tiles {
  signed char *from, *to;
  int from_stride, to_stride;  // bytes a row: the widest padded k of every second layer, and of the others
};

// x(row, k) of the first `rows` rows → steps, as the next layer takes them.
template <class X>
__device__ __forceinline__ void enter(const Layers& next, const Tiles& tiles, int rows, X x) {
  const int inputs = next.plan[0];
  for (int i = threadIdx.x; i < ROWS * padded(inputs); i += THREADS) {
    const int r = i / padded(inputs), k = i % padded(inputs);
    tiles.from[r * tiles.from_stride + k] = r < rows && k < inputs ? quantize(x(r, k), next.input_scales[0]) : 0;
  }
}

// From what was entered to y(row, column, value) of all ROWS rows, and on past these layers. Another chain may be
// entered at once: nobody reads the tile that is `from` then.
template <class Y>
__device__ __forceinline__ void run(Layers& at, Tiles& tiles, int layers, Y y) {
  for (int layer = 0; layer < layers; ++layer) {
    const int k = padded(at.plan[0]), n = at.plan[1], activation = at.plan[2];
    const bool last = layer + 1 == layers;
    const int columns = last ? n : padded(n);  // what pads this layer's outputs is the next one's padding of k
    __syncthreads();                           // the tile is full, and nobody reads the other one any more

    for (int item = threadIdx.x; item < columns * GROUPS; item += THREADS) {
      const int column = item % columns, r = item / columns * ROWS_A_THREAD;
      int sums[ROWS_A_THREAD] = {};
      if (column < n) {
        const int4* weight = reinterpret_cast<const int4*>(at.weights) + column;
        const int4* row = reinterpret_cast<const int4*>(tiles.from + r * tiles.from_stride);
        for (int step = 0; step < k / 16; ++step) {
          const int4 w = weight[step * n];
#pragma unroll
          for (int i = 0; i < ROWS_A_THREAD; ++i) sums[i] = dot16(w, row[i * (tiles.from_stride / 16) + step], sums[i]);
        }
      }
      const float scale = column < n ? at.weight_scales[column] : 0.f, bias = column < n ? at.biases[column] : 0.f;
#pragma unroll
      for (int i = 0; i < ROWS_A_THREAD; ++i) {
        float value = __fadd_rn(__fmul_rn(__int2float_rn(sums[i]), scale), bias);
        if (activation == RELU) value = fmaxf(value, 0.f);
        if (activation == SIGMOID) value = __fdiv_rn(1.f, __fadd_rn(1.f, expf(-value)));
        if (last)
          y(r + i, column, value);
        else
          tiles.to[(r + i) * tiles.to_stride + column] = column < n ? quantize(value, at.input_scales[1]) : 0;
      }
    }
    at.weights += k * n, at.weight_scales += n, at.biases += n, at.input_scales += 1, at.plan += 3;
    tiles = {tiles.to, tiles.from, tiles.to_stride, tiles.from_stride};
  }
}
