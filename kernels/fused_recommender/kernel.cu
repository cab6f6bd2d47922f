// ai.redline::FusedRecommender on CUDA: a whole DLRM-like forward in one launch.
//
// A block takes ROWS rows through everything. The bottoms' layers (chain.cuh) leave dense vectors in shared memory; a
// warp then takes a row at a time through look-ups and dots (interaction.cuh), whose answers become steps in the tile
// that the top's layers start from. Global memory sees ids, dense inputs, the tables' rows and y once, and the weights.
// The parts are FusedMlp's and EmbeddingInteraction's own, so the bits are those of the three nodes in a row.
//
// Roofline: the sum of the parts'. 26 tables of 32, 13-256-128-32, 383-512-256-128-1: 0.40 M multiply-adds a row in the
// layers, 0.01 M in the dots, against 1.2 KB (int8 tables) or 3.6 KB of memory at random: bound by dp4a and L1, as
// FusedMlp is.
#include "../embedding_interaction/interaction.cuh"
#include "../fused_mlp/chain.cuh"

// ids to places, and the numbers up to pairs: see Interaction · dense [rows, dense_width]: the inputs of each dense
// vector's bottom, side by side · weights to plan: see Layers, of all bottoms, then the top · chains [dense_count + 1]:
// layers of each; of no layers: it enters as it is · fault: as EmbeddingInteraction's · y [rows, n last].
// A block of THREADS for ROWS rows. Dynamic shared memory: tiles of ROWS · stride and ROWS · other_stride bytes,
// scratch_chunks of 16 bytes for each of the `slots` warps that take the rows, dense vectors [dense_count, ROWS, dim].
template <class Format>
__device__ __forceinline__ void recommend(const Interaction<Format>& in, Layers at, const int* __restrict__ chains,
                                          const float* __restrict__ dense, int rows, int dense_count, int dense_width,
                                          int stride, int other_stride, int slots, int scratch_chunks, long long* fault,
                                          float* y) {
  extern __shared__ int4 shared[];
  signed char* tile = reinterpret_cast<signed char*>(shared);
  Tiles tiles{tile, tile + ROWS * stride, stride, other_stride};
  int4* scratch = shared + ROWS * (stride + other_stride) / 16;
  float* vectors = reinterpret_cast<float*>(scratch + slots * scratch_chunks);
  const int first = blockIdx.x * ROWS, dim = in.dim, here = min(ROWS, rows - first);

  const float* x = dense + size_t(first) * dense_width;
  for (int d = 0; d < dense_count; ++d) {
    float* to = vectors + d * ROWS * dim;
    if (chains[d] == 0) {
      for (int i = threadIdx.x; i < here * dim; i += THREADS) to[i] = x[size_t(i / dim) * dense_width + i % dim];
      x += dim;
      continue;
    }
    const int inputs = at.plan[0];
    enter(at, tiles, here, [=](int r, int k) { return x[size_t(r) * dense_width + k]; });
    run(at, tiles, chains[d], [=](int r, int column, float value) { to[r * dim + column] = value; });
    x += inputs;
  }

  for (int i = threadIdx.x; i < ROWS * tiles.from_stride / 16; i += THREADS)
    reinterpret_cast<int4*>(tiles.from)[i] = make_int4(0, 0, 0, 0);
  __syncthreads();  // what pads the top's inputs is there, and every dense vector
  const int warp = threadIdx.x / 32;
  for (int r = warp; warp < slots && r < here; r += slots) {
    signed char* to = tiles.from + r * tiles.from_stride;
    in.row(first + r, scratch + warp * scratch_chunks, fault,
           [=](int d, int k) { return vectors[(d * ROWS + r) * dim + k]; },
           [=](int place, float value) { to[place] = quantize(value, at.input_scales[0]); });
  }

  const int outputs = at.plan[chains[dense_count] * 3 - 2];
  run(at, tiles, chains[dense_count], [=](int r, int column, float value) {
    if (r < here) y[size_t(first + r) * outputs + column] = value;
  });
}

#define FUSED_RECOMMENDER(name, Format)                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                            \
  name(const int* __restrict__ ids, const Format::Number* __restrict__ table, const float* __restrict__ row_scale,    \
       const long long* __restrict__ tables, const int* __restrict__ places, const float* __restrict__ dense,         \
       const signed char* __restrict__ weights, const float* __restrict__ weight_scales,                              \
       const float* __restrict__ biases, const float* __restrict__ input_scales, const int* __restrict__ plan,        \
       const int* __restrict__ chains, int wide, int columns, int dim, int table_count, int looked_up, int entered,   \
       int leads, int pairs, int rows, int dense_count, int dense_width, int stride, int other_stride, int slots,     \
       int scratch_chunks, long long* __restrict__ fault, float* __restrict__ y) {                                    \
    const Interaction<Format> in{ids, table, row_scale, tables, reinterpret_cast<const int2*>(places), wide,          \
                                 columns, dim, table_count, looked_up, entered, leads, pairs};                        \
    const Layers layers{weights, weight_scales, biases, input_scales, plan};                                          \
    recommend(in, layers, chains, dense, rows, dense_count, dense_width, stride, other_stride, slots, scratch_chunks, \
              fault, y);                                                                                              \
  }
FUSED_RECOMMENDER(fused_recommender_fp32, Fp32)
REDLINE_EXPORT(fused_recommender_fp32)
FUSED_RECOMMENDER(fused_recommender_int8, Int8)
REDLINE_EXPORT(fused_recommender_int8)
