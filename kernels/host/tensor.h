// half, bfloat16, asynchronous copies and tensor cores for g++, under CUDA's names (mma_*: under device.cuh's).
#pragma once
#include "device.h"

struct __half {
  _Float16 value;
  __half() = default;
  __half(float v) : value(_Float16(v)) {}
  operator float() const { return float(value); }
};
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float v) {
    unsigned u = __float_as_uint(v);
    bits = v != v ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);  // nearest, ties to even
  }
  operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
using half = __half;
#define REDLINE_PAIR(one, two, from, from_rn, to, pack, unpack)  \
  struct __align__(4) two { one x, y; };                         \
  inline one from(float v) { return one(v); }                    \
  inline one from_rn(float v) { return one(v); }                 \
  inline float to(one v) { return float(v); }                    \
  inline two pack(float x, float y) { return {one(x), one(y)}; } \
  inline float2 unpack(two v) { return {float(v.x), float(v.y)}; }
REDLINE_PAIR(__half, __half2, __float2half, __float2half_rn, __half2float, __floats2half2_rn, __half22float2)
REDLINE_PAIR(__nv_bfloat16, __nv_bfloat162, __float2bfloat16, __float2bfloat16_rn, __bfloat162float,
             __floats2bfloat162_rn, __bfloat1622float2)
using half2 = __half2;

// ---- cp.async: done only when it is waited for, so that a forgotten wait shows
namespace redline {
void copy_async(void* to, const void* from, size_t size, size_t zeros, const void* pc);
void commit_copies();
void wait_copies(size_t newest);
}  // namespace redline
REDLINE_SHIM void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
#ifdef __SANITIZE_THREAD__
  redline::copy_async(to, from, size, zeros, __builtin_return_address(0));
#else
  redline::copy_async(to, from, size, zeros, nullptr);
#endif
}
inline void __pipeline_commit() { redline::commit_copies(); }
inline void __pipeline_wait_prior(size_t newest) { redline::wait_copies(newest); }

// ---- mma.m16n8k16 (half, bfloat16) and m16n8k32 (int8): registers of 4 bytes, lanes as in the PTX manual
namespace redline {
template <class T, class In> struct Mma {
  static constexpr int PER = 4 / sizeof(In);  // numbers a register
  T (&d)[4];
  const unsigned (&a)[4], (&b)[2];

  static In number(unsigned reg, int i) {
    In numbers[PER];
    memcpy(numbers, &reg, 4);
    return numbers[i];
  }
  REDLINE_SHIM static void all(void** operands) {
    Mma** lanes = reinterpret_cast<Mma**>(operands);
    T a[16][8 * PER], b[8][8 * PER], out[32][4];
    for (int k = 0; k < 8 * PER; ++k) {
      int quad = k / PER % 4, high = k / (4 * PER), i = k % PER;
      for (int row = 0; row < 16; ++row) a[row][k] = T(number(lanes[row % 8 * 4 + quad]->a[row / 8 + 2 * high], i));
      for (int column = 0; column < 8; ++column) b[column][k] = T(number(lanes[column * 4 + quad]->b[high], i));
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int r = 0; r < 4; ++r) {
        int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
        T sum = lanes[lane]->d[r];
        for (int k = 0; k < 8 * PER; ++k) sum += a[row][k] * b[column][k];
        out[lane][r] = sum;
      }
    for (int lane = 0; lane < 32; ++lane) memcpy(lanes[lane]->d, out[lane], sizeof(out[lane]));
  }
};
}  // namespace redline
#define REDLINE_MMA(name, T, In)                                                                   \
  REDLINE_SHIM void name(T(&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], REDLINE_HERE) { \
    redline::Mma<T, In> mine{d, a, b};                                                             \
    redline::collective(~0u, redline::Mma<T, In>::all, &mine, file, line);                         \
  }
REDLINE_MMA(mma_f16, float, __half)
REDLINE_MMA(mma_bf16, float, __nv_bfloat16)
REDLINE_MMA(mma_s8, int, int8_t)

// ---- ldmatrix.x4: a lane hands in one row of 16 bytes
namespace redline {
void touch_read(const void* p, size_t size, const void* pc);
template <bool TRANSPOSED> struct Rows {
  unsigned (&b)[2][2];
  uint16_t row[8];
  REDLINE_SHIM static void all(void** operands) {
    Rows** lanes = reinterpret_cast<Rows**>(operands);
    for (int lane = 0; lane < 32; ++lane)
      for (int tile = 0; tile < 4; ++tile) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          int line = lane / 4, place = lane % 4 * 2 + i;
          pair[i] = TRANSPOSED ? lanes[tile * 8 + place]->row[line] : lanes[tile * 8 + line]->row[place];
        }
        memcpy(&lanes[lane]->b[tile / 2][tile % 2], pair, sizeof(pair));
      }
  }
};
}  // namespace redline
#ifdef __SANITIZE_THREAD__
#define REDLINE_READ_TOUCH(p, size) redline::touch_read(p, size, __builtin_return_address(0))
#else
#define REDLINE_READ_TOUCH(p, size) (void)0
#endif
#define REDLINE_LDMATRIX(name, transposed)                                             \
  REDLINE_SHIM void name(unsigned (&b)[2][2], const void* row, REDLINE_HERE) {         \
    REDLINE_READ_TOUCH(row, 16);                                                       \
    redline::Rows<transposed> mine{b, {}};                                             \
    memcpy(mine.row, row, sizeof(mine.row));                                           \
    redline::collective(~0u, redline::Rows<transposed>::all, &mine, file, line);       \
  }
REDLINE_LDMATRIX(ldmatrix, false)
REDLINE_LDMATRIX(ldmatrix_transposed, true)
