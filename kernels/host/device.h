// CUDA's words for g++: what a .cu sees when it runs on the CPU. The runner behind it is runner.cpp.
//
// Memory accesses are not wrapped: -fsanitize=thread makes g++ announce each one to the runner. Only what is no plain
// load or store is written here: barriers, warp collectives, atomics, intrinsics.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // the module's TLS segment is the block's shared memory, templates included

// A shim is a real call in checked mode (so that its return address is the kernel's line) and free of instrumentation.
#ifdef __SANITIZE_THREAD__
#define REDLINE_SHIM __attribute__((noinline, no_sanitize("thread")))
#define REDLINE_ATOMIC_TOUCH(p) redline::touch_atomic(p, sizeof(*(p)), __builtin_return_address(0))
#else
#define REDLINE_SHIM inline
#define REDLINE_ATOMIC_TOUCH(p) (void)0
#endif
#define REDLINE_VISIBLE __attribute__((visibility("default")))
#define REDLINE_HERE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
#define REDLINE_VECTOR(T)                              \
  struct __align__(8) T##2 { T x, y; };                \
  struct __align__(16) T##4 { T x, y, z, w; };         \
  inline T##2 make_##T##2(T x, T y) { return {x, y}; } \
  inline T##4 make_##T##4(T x, T y, T z, T w) { return {x, y, z, w}; }
REDLINE_VECTOR(int)
REDLINE_VECTOR(float)

// Constant within a thread, so g++ may keep them in registers; the runner sets them before it resumes a fiber.
extern "C" const uint3 threadIdx, blockIdx;
extern "C" const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace redline {
void barrier(const char* file, unsigned line);
void touch_atomic(const void* p, size_t size, const void* pc);
void bad_lane(int lane, const char* file, unsigned line);
unsigned lane();

// Every lane of mask hands in its operand; the last to arrive computes for all. operands: 32, null where a lane is out.
using Compute = void (*)(void** operands);
void collective(unsigned mask, Compute compute, void* operand, const char* file, unsigned line);

template <class... A, size_t... I>
REDLINE_SHIM void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}
template <class... A> void call(void (*kernel)(A...), void** args) {
  call(kernel, args, std::index_sequence_for<A...>());
}

// One letter and the size an argument: p4 a pointer to 4-byte elements, i4 an int, f4 a float.
template <class T> int describe(char* text) {
  using Element = std::remove_pointer_t<T>;
  char kind = std::is_pointer_v<T> ? 'p' : std::is_floating_point_v<T> ? 'f' : 'i';
  return sprintf(text, "%c%d ", kind, int(sizeof(Element)));
}
template <class... A> const char* signature(void (*)(A...)) {
  static char text[8 * sizeof...(A) + 1];
  char* end = text;
  ((end += describe<A>(end)), ...);
  return text;
}
}  // namespace redline

#define REDLINE_EXPORT(kernel)                                                                        \
  extern "C" REDLINE_VISIBLE void redline_call_##kernel(void** args) { redline::call(kernel, args); } \
  extern "C" REDLINE_VISIBLE const char* redline_signature_##kernel() { return redline::signature(kernel); }

// ---- barriers
inline void __syncthreads(REDLINE_HERE) { redline::barrier(file, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __syncwarp(unsigned mask = ~0u, REDLINE_HERE) { redline::collective(mask, nullptr, nullptr, file, line); }

// ---- warp collectives; none but __syncwarp orders memory, as on the device
namespace redline {
template <class T> struct Shuffle { T value; int source; };
template <class T> REDLINE_SHIM void shuffle_all(void** operands) {
  T results[32];
  for (int i = 0; i < 32; ++i)
    if (auto* me = static_cast<Shuffle<T>*>(operands[i])) {
      auto* from = static_cast<Shuffle<T>*>(operands[me->source]);
      if (from) results[i] = from->value;
      me->source = from ? me->source : -1;
    }
  for (int i = 0; i < 32; ++i)
    if (operands[i]) static_cast<Shuffle<T>*>(operands[i])->value = results[i];
}
template <class T> REDLINE_SHIM T shuffle(unsigned mask, T value, int source, const char* file, unsigned line) {
  Shuffle<T> mine{value, source};
  collective(mask, shuffle_all<T>, &mine, file, line);
  if (mine.source < 0) bad_lane(source, file, line);
  return mine.value;
}
template <class T, class F> REDLINE_SHIM void fold_all(void** operands) {
  T* folded = nullptr;
  for (int i = 0; i < 32; ++i)
    if (auto* value = static_cast<T*>(operands[i])) {
      if (folded) *folded = F::fold(*folded, *value);
      else folded = value;
    }
  for (int i = 0; i < 32; ++i)
    if (operands[i]) *static_cast<T*>(operands[i]) = *folded;
}
}  // namespace redline

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, REDLINE_HERE) {
  int me = redline::lane();
  return redline::shuffle(mask, v, (me & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, REDLINE_HERE) {
  int me = redline::lane(), source = me - int(delta);
  return redline::shuffle(mask, v, source < (me & ~(width - 1)) ? me : source, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, REDLINE_HERE) {
  int me = redline::lane(), source = me + int(delta);
  return redline::shuffle(mask, v, source > (me | (width - 1)) ? me : source, file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, REDLINE_HERE) {
  int me = redline::lane(), source = me ^ lanes;
  return redline::shuffle(mask, v, source > (me | (width - 1)) ? me : source, file, line);
}

#define REDLINE_FOLD(T, name, expression)                                      \
  inline T name(unsigned mask, T value, REDLINE_HERE) {                        \
    struct Fold { static T fold(T a, T b) { return expression; } };            \
    redline::collective(mask, redline::fold_all<T, Fold>, &value, file, line); \
    return value;                                                              \
  }
REDLINE_FOLD(int, __reduce_add_sync, a + b)
REDLINE_FOLD(int, __reduce_max_sync, std::max(a, b))
REDLINE_FOLD(int, __reduce_min_sync, std::min(a, b))
REDLINE_FOLD(unsigned, redline_or_sync, a | b)
inline unsigned __ballot_sync(unsigned mask, int predicate, REDLINE_HERE) {
  return redline_or_sync(mask, predicate ? 1u << redline::lane() : 0u, file, line);
}
inline int __any_sync(unsigned mask, int p, REDLINE_HERE) { return __ballot_sync(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, REDLINE_HERE) { return __ballot_sync(mask, !p, file, line) == 0; }

// ---- atomics: fibers don't preempt, so a plain read-modify-write is one; the runner knows not to call it a race
#define REDLINE_ATOMIC(name, expression)                                  \
  template <class T> REDLINE_SHIM T name(T* p, std::common_type_t<T> v) { \
    REDLINE_ATOMIC_TOUCH(p);                                              \
    T old = *p;                                                           \
    *p = T(expression);                                                   \
    return old;                                                           \
  }
REDLINE_ATOMIC(atomicAdd, old + v)
REDLINE_ATOMIC(atomicSub, old - v)
REDLINE_ATOMIC(atomicMax, std::max(old, v))
REDLINE_ATOMIC(atomicMin, std::min(old, v))
REDLINE_ATOMIC(atomicAnd, old & v)
REDLINE_ATOMIC(atomicOr, old | v)
REDLINE_ATOMIC(atomicXor, old ^ v)
REDLINE_ATOMIC(atomicExch, v)
template <class T> REDLINE_SHIM T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  REDLINE_ATOMIC_TOUCH(p);
  T old = *p;
  if (old == expected) *p = v;
  return old;
}

// ---- arithmetic
using std::max;
using std::min;
template <class T> inline T __ldg(const T* p) { return *p; }
template <class To, class From> inline To redline_bits(From v) {
  To out;
  memcpy(&out, &v, sizeof(out));
  return out;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c = int(unsigned(c) + unsigned(int8_t(a >> i) * int8_t(b >> i)));
  return c;
}
inline int __float_as_int(float v) { return redline_bits<int>(v); }
inline float __int_as_float(int v) { return redline_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return redline_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return redline_bits<float>(v); }
inline int __float2int_rn(float v) {
  if (v != v) return 0;
  return v >= 2147483648.f ? INT32_MAX : v < -2147483648.f ? INT32_MIN : int(lrintf(v));
}
inline float __int2float_rn(int v) { return float(v); }
inline float __fmul_rn(float a, float b) { return a * b; }  // never contracted to an fma: -ffp-contract=off
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.f / sqrtf(v); }
inline float exp2_fast(float v) { return exp2f(v); }  // device.cuh's
#define __expf(v) expf(v)  // glibc declares this name and exports no such symbol
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
