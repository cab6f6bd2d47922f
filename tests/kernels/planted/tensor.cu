// half, bfloat16, tensor cores and asynchronous copies: three tiles without a bug, and planted ones (`// <-`).
#include "../../../kernels/common/device.cuh"

// One warp: y [16, 8] = x [16, k] · w [8, k] transposed, as registers of 4 bytes straight from memory.
template <class T, class Sum, class Mma>
__device__ __forceinline__ void tile(const T* x, const T* w, int k, Sum* y, Mma mma) {
  constexpr int PER = 4 / sizeof(T);
  const int lane = threadIdx.x, row = lane / 4, quad = lane % 4;
  Sum sums[4] = {};
  for (int step = 0; step < k; step += 8 * PER) {
    auto load = [&](const T* from, int r, int column) {
      return *reinterpret_cast<const unsigned*>(from + r * k + step + column);
    };
    unsigned a[4] = {load(x, row, quad * PER), load(x, row + 8, quad * PER), load(x, row, (quad + 4) * PER),
                     load(x, row + 8, (quad + 4) * PER)};
    unsigned b[2] = {load(w, row, quad * PER), load(w, row, (quad + 4) * PER)};
    mma(sums, a, b);
  }
  for (int i = 0; i < 4; ++i) y[(row + i / 2 * 8) * 8 + quad * 2 + i % 2] = sums[i];
}
#define TILE(name, T, Sum, mma)                                                                       \
  extern "C" __global__ void __launch_bounds__(32) name(const T* x, const T* w, int k, Sum* y) {      \
    tile(x, w, k, y, [](Sum(&d)[4], const unsigned(&a)[4], const unsigned(&b)[2]) { mma(d, a, b); }); \
  }
TILE(tile_f16, __half, float, mma_f16)
REDLINE_EXPORT(tile_f16)
TILE(tile_bf16, __nv_bfloat16, float, mma_bf16)
REDLINE_EXPORT(tile_bf16)
TILE(tile_s8, signed char, int, mma_s8)
REDLINE_EXPORT(tile_s8)

// Rounding as the device does: float → half → float, float → bfloat16 → float.
extern "C" __global__ void __launch_bounds__(64) round_trip(const float* x, int n, float* as_half, float* as_bfloat16) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    as_half[i] = __half2float(__float2half(x[i]));
    as_bfloat16[i] = __bfloat162float(__float2bfloat16(x[i]));
  }
}
REDLINE_EXPORT(round_trip)

// Two stages in flight: the sum of x in columns of 64.
extern "C" __global__ void __launch_bounds__(16) pipelined(const int* x, int n, int* y) {
  __shared__ __align__(16) int stages[2][64];
  const int t = threadIdx.x * 4, steps = n / 64;
  int4 sum = {0, 0, 0, 0};
  __pipeline_memcpy_async(&stages[0][t], x + t, 16);
  __pipeline_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) __pipeline_memcpy_async(&stages[(step + 1) % 2][t], x + (step + 1) * 64 + t, 16);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    const int* mine = &stages[step % 2][60 - t];  // another thread's copy
    sum = {sum.x + mine[0], sum.y + mine[1], sum.z + mine[2], sum.w + mine[3]};
    __syncthreads();
  }
  y[60 - t] = sum.x, y[61 - t] = sum.y, y[62 - t] = sum.z, y[63 - t] = sum.w;
}
REDLINE_EXPORT(pipelined)

extern "C" __global__ void __launch_bounds__(16) forgotten_wait(const int* x, int n, int* y) {
  __shared__ __align__(16) int stage[64];
  const int t = threadIdx.x * 4;
  __pipeline_memcpy_async(&stage[t], x + t, 16);  // <-
  __pipeline_commit();
  __syncthreads();
  y[t] = stage[60 - t] + n;  // <-
}
REDLINE_EXPORT(forgotten_wait)

extern "C" __global__ void __launch_bounds__(16) misaligned_copy(const int* x, int n, int* y) {
  __shared__ __align__(16) int stage[64];
  const int t = threadIdx.x * 4;
  __pipeline_memcpy_async(&stage[t], x + t / 2 + 1, 16);  // <-
  __pipeline_commit();
  __pipeline_wait_prior(0);
  y[t] = stage[t] + n;
}
REDLINE_EXPORT(misaligned_copy)

// Four 8 x 8 tiles as ldmatrix hands them out, straight and transposed: y [2, 4 tiles, 32 lanes].
extern "C" __global__ void __launch_bounds__(32) matrices(const int* x, int n, int* y) {
  __shared__ __align__(16) int tiles[128];
  for (int i = threadIdx.x; i < n; i += 32) tiles[i] = x[i];
  __syncwarp();
  unsigned b[2][2];
  ldmatrix(b, tiles + threadIdx.x * 4);
  for (int tile = 0; tile < 4; ++tile) y[tile * 32 + threadIdx.x] = int(b[tile / 2][tile % 2]);
  ldmatrix_transposed(b, tiles + threadIdx.x * 4);
  for (int tile = 0; tile < 4; ++tile) y[(4 + tile) * 32 + threadIdx.x] = int(b[tile / 2][tile % 2]);
}
REDLINE_EXPORT(matrices)

// A lane's row was written by another lane, without __syncwarp.
extern "C" __global__ void __launch_bounds__(32) unsynced_row(const int* x, int n, int* y) {
  __shared__ __align__(16) int tiles[128];
  *reinterpret_cast<int4*>(tiles + (31 - threadIdx.x) * 4) = make_int4(x[threadIdx.x], n, n, n);  // <-
  unsigned b[2][2];
  ldmatrix(b, tiles + threadIdx.x * 4);  // <-
  y[threadIdx.x] = int(b[0][0]);
}
REDLINE_EXPORT(unsynced_row)

extern "C" __global__ void __launch_bounds__(32) misaligned_row(const int* x, int n, int* y) {
  __shared__ __align__(16) int tiles[132];
  for (int i = threadIdx.x; i < 132; i += 32) tiles[i] = x[0] + n;
  __syncwarp();
  unsigned b[2][2];
  ldmatrix_transposed(b, tiles + threadIdx.x * 4 + 2);  // <-
  y[threadIdx.x] = int(b[0][0]);
}
REDLINE_EXPORT(misaligned_row)
