// Planted: accesses that a GPU would let pass or answer with garbage. `// <-` marks the line that must be named.
#include "../../../kernels/common/device.cuh"

// The last block has no guard.
extern "C" __global__ void __launch_bounds__(32) read_past_end(const float* x, int n, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] + n;  // <-
}
REDLINE_EXPORT(read_past_end)

extern "C" __global__ void __launch_bounds__(32) write_before_start(const float* x, int n, float* y) {
  int i = threadIdx.x;
  if (i < n) y[i - 1] = x[i];  // <-
}
REDLINE_EXPORT(write_before_start)

// The compiler knows the array's size.
extern "C" __global__ void __launch_bounds__(64) static_shared(const int* x, int n, int* y) {
  __shared__ int tile[32];
  tile[threadIdx.x] = x[threadIdx.x];  // <-
  __syncthreads();
  if (threadIdx.x < n) y[threadIdx.x] = tile[threadIdx.x];
}
REDLINE_EXPORT(static_shared)

// Only the launch knows it.
extern "C" __global__ void __launch_bounds__(64) dynamic_shared(const int* x, int n, int* y) {
  extern __shared__ int tile[];
  tile[threadIdx.x] = x[threadIdx.x];  // <-
  __syncthreads();
  if (threadIdx.x < n) y[threadIdx.x] = tile[threadIdx.x];
}
REDLINE_EXPORT(dynamic_shared)

// A slot that nobody wrote.
extern "C" __global__ void __launch_bounds__(32) uninitialized(const int* x, int n, int* y) {
  __shared__ int tile[33];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < n) y[threadIdx.x] = tile[threadIdx.x + 1];  // <-
}
REDLINE_EXPORT(uninitialized)

extern "C" __global__ void __launch_bounds__(32) misaligned(const int* x, int n, int* y) {
  int4 four = *reinterpret_cast<const int4*>(x + 1);  // <-
  if (threadIdx.x < n) y[threadIdx.x] = four.x + four.y + four.z + four.w;
}
REDLINE_EXPORT(misaligned)
