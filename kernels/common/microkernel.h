// One tile of a matrix product: up to kRows rows by V vectors of columns, accumulated in registers.
//
//   activations  [rows][stride]  groups of 32 bits, row by row
//   weights      [panel][group][kPanel columns]  groups of 32 bits; a panel is two vectors wide
//
// A step of the inner loop loads V vectors of weights and broadcasts one group a row: for INT8 on AVX-512,
// 12 x 2 vpdpbusd (1,536 multiply-adds) for 14 loads, 24 of 32 registers being accumulators.
#pragma once
#include "formats.h"

namespace redline {

constexpr int kPanel = 2 * kLanes;  // columns

template <class Format>
constexpr int kGroup = 4 / static_cast<int>(sizeof(typename Format::Weight));  // numbers

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// sums[r][v] += activations of row r · columns of vector v.
template <class Format, int R, int V>
[[gnu::always_inline]] inline void accumulate(typename Format::Accumulator (&sums)[R][V], const char* activations,
                                              int64_t row_bytes, const char* weights, int64_t panel_bytes,
                                              int64_t groups) {
  using Groups = typename Format::Groups;
  constexpr int kBases = (R + 2) / 3;  // a base serves three rows by x86's own addressing: base, + stride, + 2 stride
  const char* base[kBases];
#pragma GCC unroll 8
  for (int b = 0; b < kBases; ++b) base[b] = activations + 3 * b * row_bytes;
  for (int64_t g = 0; g < groups; ++g) {
    Groups column[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      column[v] = load<Groups>(weights + (v / 2) * panel_bytes + (v % 2) * sizeof(Groups));
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Groups row = spread<Groups>(base[r / 3] + (r % 3) * row_bytes);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) Format::dot(sums[r][v], row, column[v]);
    }
    weights += 2 * sizeof(Groups);
#pragma GCC unroll 8
    for (int b = 0; b < kBases; ++b) base[b] += 4;
  }
}

}  // namespace redline
