// ai.redline::PagedAttention on CUDA, sm_80 and newer: one new token a sequence against its cached keys and values.
//
// The cache is cut into blocks of block_size tokens (any), and block_table says which of them a sequence owns, in order.
// A block of threads takes one sequence and one kv head with up to 16 of the query heads that share it: they are the 16
// rows of the tensor cores' tile (common/attention.cuh), so each key is read once for all of them. Its warps take turns
// at steps of 16 tokens; each has two stages of shared memory of its own, filled by cp.async, and its own running
// softmax, so within the loop nobody waits for another warp. At the end the four partial answers become one.
//
// Roofline: 4 · group · D operations against 4 · D bytes a token and kv head: group operations a byte, far below every
// GPU's ridge. Memory bounds it: Σ context_lens · kv_heads · 4 · D bytes (⌈group / 16⌉ times), by the GPU's bandwidth;
// q, out and a table entry a token are little beside it. What limits it below: fewer sequences · kv_heads than the GPU
// has room for blocks (a context is not split over blocks).
#include "../common/attention.cuh"

constexpr int WARPS = 4, ROWS = 16, TOKENS = 16, BUFFER = 2 * 2 * TOKENS;  // rows of a warp: [2 stages][k, v][TOKENS]

// q, out [sequences, heads, D] · k_cache, v_cache [blocks, block_size, kv_heads, D], 16-byte aligned · block_table
// [sequences, max_blocks], read as far as context_lens [sequences] needs it.
// Grid (⌈heads / kv_heads / ROWS⌉, kv_heads, sequences), 2 · D · (ROWS + WARPS · BUFFER) bytes of dynamic shared memory:
// q [ROWS, D], then the warps' stages, whose place the partial answers take.
template <class T, int D>
__device__ __forceinline__ void attend(const T* __restrict__ q, const T* __restrict__ k_cache,
                                       const T* __restrict__ v_cache, const int* __restrict__ block_table,
                                       const int* __restrict__ context_lens, int heads, int kv_heads, int block_size,
                                       int max_blocks, float scale, T* __restrict__ out) {
  extern __shared__ int4 shared[];
  T *queries = reinterpret_cast<T*>(shared), *stages = queries + ROWS * D;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y, sequence = blockIdx.z;
  const int group = heads / kv_heads, first = blockIdx.x * ROWS, there = min(ROWS, group - first);
  const int length = context_lens[sequence];
  const size_t head = size_t(sequence) * heads + kv_head * group + first;
  const float factor = scale * LOG2_E;
  T* mine = stages + warp * BUFFER * D;

  auto fetch_step = [&](int step) {
    const int token = step * TOKENS + lane % TOKENS;  // a lane looks up one token for all
    const bool seen = token < length;
    const int* block = block_table + size_t(sequence) * max_blocks + token / block_size;
    const int slot = seen ? *block * block_size + token % block_size : -1;
    auto slot_of = [&](int r) { return __shfl_sync(~0u, slot, r); };
    T* stage = mine + step / WARPS % 2 * 2 * TOKENS * D;
    fetch<T, D, TOKENS, 32>(stage, lane, k_cache + kv_head * D, kv_heads * D, slot_of);
    fetch<T, D, TOKENS, 32>(stage + TOKENS * D, lane, v_cache + kv_head * D, kv_heads * D, slot_of);
    __pipeline_commit();
  };

  fetch<T, D, ROWS, WARPS * 32>(queries, threadIdx.x, q + head * D, D, [=](int r) { return r < there ? r : -1; });
  QueryRows<T, D, TOKENS> rows;
  const int steps = (length + TOKENS - 1) / TOKENS;
  if (warp < steps) fetch_step(warp);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();  // every warp sees all queries
  for (int step = warp; step < steps; step += WARPS) {
    __pipeline_wait_prior(0);
    __syncwarp();  // this step is there for the warp, and none of its lanes reads the other stage any more
    if (step + WARPS < steps) fetch_step(step + WARPS);
    const T* stage = mine + step / WARPS % 2 * 2 * TOKENS * D;
    const int left = length - step * TOKENS;
    rows.meet(queries, stage, stage + TOKENS * D, {left, left}, factor);
  }

  // The partial answers: [WARPS, ROWS, D], and of each row the maximum and the sum.
  __syncthreads();
  float *answers = reinterpret_cast<float*>(stages), *most = answers + WARPS * ROWS * D, *sum = most + WARPS * ROWS;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * ROWS + rows.row + half * 8;
    const float total = sum_of_quad(rows.sum[half]);
    if (rows.column == 0) most[row] = rows.most[half], sum[row] = total;
#pragma unroll
    for (int c = 0; c < D / 8; ++c)
      for (int i = 0; i < 2; ++i) answers[row * D + c * 8 + rows.column + i] = rows.o[c][half * 2 + i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < there * D; i += WARPS * 32) {
    const int row = i / D;
    float top = -INFINITY, total = 0.f, value = 0.f;
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, most[w * ROWS + row]);
    for (int w = 0; w < WARPS && top > -INFINITY; ++w) {
      const float weight = exp2_fast((most[w * ROWS + row] - top) * factor);
      total += weight * sum[w * ROWS + row];
      value += weight * answers[w * ROWS * D + i];
    }
    out[head * D + i] = Numbers<T>::pair(total > 0.f ? value / total : 0.f, 0.f).x;
  }
}

#define PAGED_ATTENTION(name, T, D)                                                                                 \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 3)                                                       \
  name(const T* __restrict__ q, const T* __restrict__ k_cache, const T* __restrict__ v_cache,                       \
       const int* __restrict__ block_table, const int* __restrict__ context_lens, int heads, int kv_heads,          \
       int block_size, int max_blocks, float scale, T* __restrict__ out) {                                          \
    attend<T, D>(q, k_cache, v_cache, block_table, context_lens, heads, kv_heads, block_size, max_blocks, scale, out); \
  }
PAGED_ATTENTION(paged_attention_f16_d64, __half, 64)
REDLINE_EXPORT(paged_attention_f16_d64)
PAGED_ATTENTION(paged_attention_f16_d128, __half, 128)
REDLINE_EXPORT(paged_attention_f16_d128)
PAGED_ATTENTION(paged_attention_bf16_d64, __nv_bfloat16, 64)
REDLINE_EXPORT(paged_attention_bf16_d64)
PAGED_ATTENTION(paged_attention_bf16_d128, __nv_bfloat16, 128)
REDLINE_EXPORT(paged_attention_bf16_d128)
