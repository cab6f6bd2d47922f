// Kernels without a bug: the checks must stay silent. Each leans on one way of ordering threads.
#include "../../../kernels/common/device.cuh"

extern "C" __global__ void __launch_bounds__(256) scale(const float* x, int n, float by, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * by;
}
REDLINE_EXPORT(scale)

// Sum by shuffles, then by shared memory across warps, then by one atomic a block.
extern "C" __global__ void __launch_bounds__(128) sum(const int* x, int n, int* total) {
  __shared__ int of_warp[4];
  int value = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) value += x[i];
  for (int offset = 16; offset; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(total, of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3]);
}
REDLINE_EXPORT(sum)

// Atomics on shared memory, dynamic shared memory, a tile that is refilled.
extern "C" __global__ void __launch_bounds__(64) histogram(const int* x, int n, int bins, int* counts) {
  extern __shared__ int here[];
  for (int i = threadIdx.x; i < bins; i += blockDim.x) here[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&here[x[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < bins; i += blockDim.x) counts[i] = here[i];
}
REDLINE_EXPORT(histogram)

// Neighbors of one warp talk through shared memory with __syncwarp alone; ballot, any, all, reduce agree.
extern "C" __global__ void __launch_bounds__(64) neighbors(const int* x, int* y) {
  __shared__ int line[64];
  int t = threadIdx.x, warp = t / 32 * 32;
  line[t] = x[t];
  __syncwarp();
  int next = line[warp + (t + 1) % 32];
  unsigned odd = __ballot_sync(~0u, x[t] & 1);
  int most = __reduce_max_sync(~0u, x[t]);
  y[t] = next + 1000 * __popc(odd) + 100000 * most + __any_sync(~0u, t == 40) + 2 * __all_sync(~0u, x[t] >= 0);
}
REDLINE_EXPORT(neighbors)

// Every shuffle in two halves of a warp, every atomic: 32 threads, one row of y each kind.
extern "C" __global__ void __launch_bounds__(32) lanes(const int* x, int n, int* y, int* ends) {
  const int t = threadIdx.x, value = x[t];
  y[t] = __shfl_sync(~0u, value, 3, 16);
  y[32 + t] = __shfl_up_sync(~0u, value, 2, 16);
  y[64 + t] = __shfl_down_sync(~0u, value, 2, 16);
  y[96 + t] = __shfl_xor_sync(~0u, value, 5);
  if (t < n) y[128 + t] = __reduce_add_sync((1u << n) - 1, value);
  atomicMin(&ends[0], value);
  atomicMax(&ends[1], value);
  atomicXor(&ends[2], value);
  atomicOr(&ends[3], value);
  for (int seen = 0;;) {  // a loop of compare-and-swap: the sum
    const int before = atomicCAS(&ends[4], seen, seen + value);
    if (before == seen) break;
    seen = before;
  }
}
REDLINE_EXPORT(lanes)
