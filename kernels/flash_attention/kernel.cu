// ai.redline::FlashAttention on CUDA, sm_80 and newer: softmax(scale · q · kᵀ) · v, and no score leaves the registers.
//
// A block owns ROWS rows of queries of one head, each of its warps 16 of them (common/attention.cuh). Keys and values
// come through shared memory in tiles of KEYS = D / 2, by cp.async, in two stages: while one tile is computed the next
// one is under way, and one barrier a tile says both that it has landed and that the stage it leaves is free. Copies
// past the last key fill with zeros; what a row may not see counts as -inf. Any n and m; tiles that no row of the block
// sees are skipped.
//
// causal: the n queries are the last n of m positions, so query i sees the keys up to i + m - n; a query before them all
// answers 0. Heads share keys and values in groups of heads / kv_heads.
//
// Roofline: 4 · n · m · D operations a head (causal: half). Global memory: q and out once, k and v once a block of ROWS,
//   2 · D · (2 · n + 2 · m · ⌈n / ROWS⌉) bytes; unfused, s and p go out and back: 2 · D · (2 · n + 2 · m) + 8 · n · m.
// A byte of k or v serves ROWS operations, and L2 keeps them for the blocks of a head: tensor cores bound it, not HBM.
// A byte from shared memory serves 16, a warp's rows: 128 bytes a clock and SM times 16 is what an A100's tensor cores
// do (2,048 operations of two), so shared memory is the second bound; 32 rows a warp would lift it, and cost registers.
#include "../common/attention.cuh"

constexpr int THREADS = 256, ROWS = 128;

// q, out [batch, heads, n, D] · k, v [batch, kv_heads, m, D], 16-byte aligned. A block of THREADS for ROWS rows,
// grid (⌈n / ROWS⌉, heads, batch), 2 · D · (ROWS + 4 · KEYS) bytes of dynamic shared memory: q [ROWS, D], then
// [2 stages][k, v][KEYS, D].
template <class T, int D>
__device__ __forceinline__ void attend(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, int n,
                                       int m, int heads, int kv_heads, int causal, float scale, T* __restrict__ out) {
  constexpr int KEYS = D / 2;
  extern __shared__ int4 shared[];
  T *queries = reinterpret_cast<T*>(shared), *stages = queries + ROWS * D;
  const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;  // causal: the rows with most keys start first
  const size_t head = size_t(blockIdx.z) * heads + blockIdx.y;
  const size_t kv_head = size_t(blockIdx.z) * kv_heads + blockIdx.y / (heads / kv_heads);
  q += (head * n + first) * D, k += kv_head * m * D, v += kv_head * m * D;

  auto visible = [&](int row) { return causal ? min(m, max(0, first + row + m - n + 1)) : m; };
  const int tiles = (visible(min(ROWS, n - first) - 1) + KEYS - 1) / KEYS;
  auto fetch_tile = [&](int tile) {
    T* stage = stages + tile % 2 * 2 * KEYS * D;
    auto key = [=](int r) { return tile * KEYS + r < m ? tile * KEYS + r : -1; };
    fetch<T, D, KEYS, THREADS>(stage, threadIdx.x, k, D, key);
    fetch<T, D, KEYS, THREADS>(stage + KEYS * D, threadIdx.x, v, D, key);
    __pipeline_commit();
  };

  const int mine = threadIdx.x / 32 * 16;  // the warp's first row in the block
  QueryRows<T, D, KEYS> rows;
  fetch<T, D, ROWS, THREADS>(queries, threadIdx.x, q, D, [=](int r) { return r < n - first ? r : -1; });
  if (tiles) fetch_tile(0);
  for (int tile = 0; tile < tiles; ++tile) {
    __pipeline_wait_prior(0);
    __syncthreads();  // this tile is there for everybody, and nobody reads the other stage any more
    if (tile + 1 < tiles) fetch_tile(tile + 1);
    const T* stage = stages + tile % 2 * 2 * KEYS * D;
    const int seen[2] = {visible(mine + rows.row) - tile * KEYS, visible(mine + rows.row + 8) - tile * KEYS};
    rows.meet(queries + mine * D, stage, stage + KEYS * D, seen, scale * LOG2_E);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = mine + rows.row + half * 8;
    const float sum = sum_of_quad(rows.sum[half]), over = sum > 0.f ? 1.f / sum : 0.f;
    if (first + row >= n) continue;
#pragma unroll
    for (int c = 0; c < D / 8; ++c)
      *reinterpret_cast<typename Numbers<T>::Pair*>(out + (head * n + first + row) * D + c * 8 + rows.column) =
          Numbers<T>::pair(rows.o[c][half * 2] * over, rows.o[c][half * 2 + 1] * over);
  }
}

#define FLASH_ATTENTION(name, T, D, blocks)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, blocks)                                                       \
  name(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, int n, int m, int heads,            \
       int kv_heads, int causal, float scale, T* __restrict__ out) {                                                  \
    attend<T, D>(q, k, v, n, m, heads, kv_heads, causal, scale, out);                                                 \
  }
FLASH_ATTENTION(flash_attention_f16_d64, __half, 64, 2)
REDLINE_EXPORT(flash_attention_f16_d64)
FLASH_ATTENTION(flash_attention_f16_d128, __half, 128, 1)
REDLINE_EXPORT(flash_attention_f16_d128)
FLASH_ATTENTION(flash_attention_bf16_d64, __nv_bfloat16, 64, 2)
REDLINE_EXPORT(flash_attention_bf16_d64)
FLASH_ATTENTION(flash_attention_bf16_d128, __nv_bfloat16, 128, 1)
REDLINE_EXPORT(flash_attention_bf16_d128)
