// Planted: threads that touch one byte in no order. `// <-` marks the lines that must be named.
#include "../../../kernels/common/device.cuh"

extern "C" __global__ void __launch_bounds__(64) missing_barrier(const int* x, int n, int* y) {
  __shared__ int tile[64];
  tile[threadIdx.x] = x[threadIdx.x];  // <-
  if (threadIdx.x < n) y[threadIdx.x] = tile[63 - threadIdx.x];  // <-
}
REDLINE_EXPORT(missing_barrier)

// The tile is refilled while slower threads still read the last one.
extern "C" __global__ void __launch_bounds__(64) no_trailing_barrier(const int* x, int n, int* y) {
  __shared__ int tile[64];
  int sum = 0;
  for (int k = 0; k < n; k += 64) {
    tile[threadIdx.x] = x[k + threadIdx.x];  // <-
    __syncthreads();
    for (int i = 0; i < 64; ++i) sum += tile[i];  // <-
  }
  y[threadIdx.x] = sum;
}
REDLINE_EXPORT(no_trailing_barrier)

// Lockstep within a warp is no order: __syncwarp is missing, and a shuffle does not stand in for it.
extern "C" __global__ void __launch_bounds__(32) missing_syncwarp(const int* x, int n, int* y) {
  __shared__ int tile[32];
  tile[threadIdx.x] = x[threadIdx.x];  // <-
  int first = __shfl_sync(~0u, n, 0);
  y[threadIdx.x] = tile[31 - threadIdx.x] + first;  // <-
}
REDLINE_EXPORT(missing_syncwarp)

// Two blocks add to one word without an atomic.
extern "C" __global__ void __launch_bounds__(32) two_blocks(const int* x, int n, int* total) {
  if (threadIdx.x == 0) *total += x[blockIdx.x];  // <-
}
REDLINE_EXPORT(two_blocks)

// A plain store beside atomics; its own thread's atomic after it hides nothing.
extern "C" __global__ void __launch_bounds__(64) half_atomic(const int* x, int n, int* total) {
  if (threadIdx.x == 63) *total = n;  // <-
  atomicAdd(total, x[threadIdx.x]);   // <-
}
REDLINE_EXPORT(half_atomic)

// The first reader writes while others may still read.
extern "C" __global__ void __launch_bounds__(32) write_after_reads(const int* x, int n, int* y) {
  __shared__ int head;
  if (threadIdx.x == 0) head = n;
  __syncthreads();
  int mine = __shfl_sync(~0u, head, threadIdx.x);  // <-
  if (threadIdx.x == 0) head = x[0];               // <-
  y[threadIdx.x] = mine;
}
REDLINE_EXPORT(write_after_reads)
