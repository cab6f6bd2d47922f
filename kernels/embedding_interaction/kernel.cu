// ai.redline::EmbeddingInteraction on CUDA: tables' rows and dense vectors meet in shared memory, a row a warp.
//
// Answers are those of operator.py to the bit (interaction.cuh). A device can't throw: `fault` names the first id that
// no table has, and its row's answer is of no meaning.
//
// Roofline: a row reads, a table, an id of 8 bytes and at random a row of dim + 4 (int8: its scale) or 4 · dim, and
// writes 4 · (leads · dim + pairs). A pair's dot reads one vector from shared memory, the other is its neighbors' too:
// 16 bytes a lane for 4 dp4a (int8) or 8 roundings (fp32). 26 tables of 32 and a dense vector, 351 pairs: 2.8 KB (int8)
// or 5.2 KB of memory against 11 or 45 KB of shared memory, which moves 128 bytes a clock and SM. Bound by memory in
// int8, by both in fp32.
#include "interaction.cuh"

// ids to places, and the numbers: see Interaction · dense [rows, dense_count, dim] · fault [1], at first the largest
// number · y [rows, leads · dim + pairs]. A warp a row; shared memory: what Interaction::row asks, a warp.
template <class Format>
__device__ __forceinline__ void interact(const Interaction<Format>& in, const float* __restrict__ dense, int rows,
                                         int dense_count, int scratch_chunks, long long* fault, float* y) {
  extern __shared__ int4 shared[];
  const int warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
  if (row >= rows) return;
  const float* vectors = dense + size_t(row) * dense_count * in.dim;
  float* to = y + size_t(row) * (in.leads * in.dim + in.pairs);
  in.row(row, shared + warp * scratch_chunks, fault, [=](int d, int k) { return vectors[d * in.dim + k]; },
         [=](int place, float value) { to[place] = value; });
}

#define EMBEDDING_INTERACTION(name, Format)                                                                         \
  extern "C" __global__ void __launch_bounds__(256, 4)                                                              \
  name(const int* __restrict__ ids, const Format::Number* __restrict__ table, const float* __restrict__ row_scale,  \
       const long long* __restrict__ tables, const int* __restrict__ places, const float* __restrict__ dense,       \
       int wide, int columns, int dim, int table_count, int looked_up, int entered, int leads, int pairs, int rows, \
       int dense_count, int scratch_chunks, long long* __restrict__ fault, float* __restrict__ y) {                 \
    const Interaction<Format> in{ids, table, row_scale, tables, reinterpret_cast<const int2*>(places), wide,        \
                                 columns, dim, table_count, looked_up, entered, leads, pairs};                      \
    interact(in, dense, rows, dense_count, scratch_chunks, fault, y);                                               \
  }
EMBEDDING_INTERACTION(embedding_interaction_fp32, Fp32)
REDLINE_EXPORT(embedding_interaction_fp32)
EMBEDDING_INTERACTION(embedding_interaction_int8, Int8)
REDLINE_EXPORT(embedding_interaction_int8)
