// Planted: barriers and collectives that not all threads meet. `// <-` marks the lines that must be named.
#include "../../../kernels/common/device.cuh"

extern "C" __global__ void __launch_bounds__(64) two_barriers(const int* x, int n, int* y) {
  if (threadIdx.x < n)
    __syncthreads();  // <-
  else
    __syncthreads();  // <-
  y[threadIdx.x] = x[threadIdx.x];
}
REDLINE_EXPORT(two_barriers)

// Half the block has returned.
extern "C" __global__ void __launch_bounds__(64) early_return(const int* x, int n, int* y) {
  if (threadIdx.x >= n) return;
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // <-
}
REDLINE_EXPORT(early_return)

// One warp waits at the barrier, the other for a lane that is at the barrier too.
extern "C" __global__ void __launch_bounds__(64) barrier_and_shuffle(const int* x, int n, int* y) {
  int value = x[threadIdx.x];
  if (threadIdx.x > n) value = __shfl_sync(~0u, value, 0);  // <-
  __syncthreads();  // <-
  y[threadIdx.x] = value;
}
REDLINE_EXPORT(barrier_and_shuffle)

// Lane 31 is not in the mask, and is read.
extern "C" __global__ void __launch_bounds__(32) outside_mask(const int* x, int n, int* y) {
  int value = x[threadIdx.x];
  if (threadIdx.x < n) value = __shfl_sync(0xffff, value, 31);  // <-
  y[threadIdx.x] = value;
}
REDLINE_EXPORT(outside_mask)
