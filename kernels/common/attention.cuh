// What one warp does in either attention kernel: 16 rows of queries against tiles of keys and values in shared memory.
//
//   s [16, KEYS] = q · kᵀ (mma, fp32) → the running maximum and sum of each row, p = exp(scale · (s - maximum))
//   o [16, D] = o · exp(scale · (old maximum - new one)) + p · v (p rounded to T, mma, fp32)
//
// Scores and answers stay in registers, laid out over lanes as mma.m16n8k16 says: lane i holds rows i / 4 and i / 4 + 8,
// and of each 8 columns the two from i % 4 · 2 on. So an s is at once the a of the second product, and a row belongs to
// four lanes. Queries are read anew from shared memory for each tile: their registers would be those that spill.
#pragma once
#include "device.cuh"

template <class T> struct Numbers;
template <> struct Numbers<__half> {
  using Pair = __half2;
  static __device__ __forceinline__ Pair pair(float x, float y) { return __floats2half2_rn(x, y); }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_f16(d, a, b);
  }
};
template <> struct Numbers<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ Pair pair(float x, float y) { return __floats2bfloat162_rn(x, y); }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

constexpr int CHUNK = 8;  // numbers of T in 16 bytes: what one asynchronous copy and one lane of ldmatrix take
constexpr float LOG2_E = 1.44269504f;

// Where chunk c of a row of a tile [rows, D] lies. The xor spreads the eight rows that ldmatrix reads at once over all
// banks; without it they would lie in the same four.
template <int D> __device__ __forceinline__ int swizzled(int row, int c) { return row * D + (c ^ (row % 8)) * CHUNK; }

__device__ __forceinline__ float most_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Asynchronous copies of a tile [ROWS, D] by THREADS threads, this being thread t: row r is row `index(r)` of `from`,
// whose rows lie `stride` apart, or 0 where that is below 0.
template <class T, int D, int ROWS, int THREADS, class Index>
__device__ __forceinline__ void fetch(T* tile, int t, const T* from, int stride, Index index) {
  const int row = t / (D / CHUNK), c = t % (D / CHUNK);
#pragma unroll
  for (int i = 0; i < ROWS; i += THREADS / (D / CHUNK)) {
    const int found = index(row + i);
    const T* at = from + size_t(max(found, 0)) * stride + c * CHUNK;
    __pipeline_memcpy_async(tile + swizzled<D>(row + i, c), at, 16, found < 0 ? 16 : 0);
  }
}

template <class T, int D, int KEYS> struct QueryRows {
  float o[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // most, sum: of this lane's two rows
  int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;

  // queries [16, D], keys and values [KEYS, D], swizzled; the lane's two rows see the keys below `seen`.
  // factor: scale · log2 e, above 0.
  __device__ __forceinline__ void meet(const T* queries, const T* keys, const T* values, const int (&seen)[2],
                                       float factor) {
    float s[KEYS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      unsigned q[2][2];
      ldmatrix(q, queries + swizzled<D>(lane % 16, step * 2 + lane / 16));
      const unsigned a[4] = {q[0][0], q[0][1], q[1][0], q[1][1]};
#pragma unroll
      for (int two = 0; two < KEYS / 16; ++two) {
        unsigned k[2][2];
        ldmatrix(k, keys + swizzled<D>(two * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
        Numbers<T>::mma(s[two * 2], a, k[0]);
        Numbers<T>::mma(s[two * 2 + 1], a, k[1]);
      }
    }
    if (min(seen[0], seen[1]) < KEYS)
#pragma unroll
      for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (tile * 8 + column + i % 2 >= seen[i / 2]) s[tile][i] = -INFINITY;
    weigh(s, 0, factor);
    weigh(s, 1, factor);
#pragma unroll
    for (int two = 0; two < KEYS / 16; ++two) {
      unsigned p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* x = &s[two * 2 + i / 2][i % 2 * 2];
        const auto pair = Numbers<T>::pair(x[0], x[1]);
        p[i] = *reinterpret_cast<const unsigned*>(&pair);
      }
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        unsigned v[2][2];
        ldmatrix_transposed(v, values + swizzled<D>(two * 16 + lane % 16, c * 2 + lane / 16));
        Numbers<T>::mma(o[c * 2], p, v[0]);
        Numbers<T>::mma(o[c * 2 + 1], p, v[1]);
      }
    }
  }

  // s of one of the lane's rows → p; what came before is scaled down where the maximum grows.
  __device__ __forceinline__ void weigh(float (&s)[KEYS / 8][4], int half, float factor) {
    float now = most[half];
#pragma unroll
    for (int tile = 0; tile < KEYS / 8; ++tile) now = fmaxf(now, fmaxf(s[tile][half * 2], s[tile][half * 2 + 1]));
    now = most_of_quad(now);
    const float base = now == -INFINITY ? 0.f : now * factor;  // a row that has seen no key: exp of -inf is 0
    const float kept = exp2_fast(most[half] * factor - base);
    most[half] = now;
    sum[half] *= kept;
#pragma unroll
    for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) sum[half] += s[tile][i] = exp2_fast(s[tile][i] * factor - base);
#pragma unroll
    for (int c = 0; c < D / 8; ++c) o[c][half * 2] *= kept, o[c][half * 2 + 1] *= kept;
  }
};
