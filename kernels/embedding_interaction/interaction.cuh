// Look up, dot products of pairs, concat: a row by a warp. EmbeddingInteraction is this, FusedRecommender has it among
// its MLPs.
//
// The row's vectors lie side by side in shared memory, in chunks of 16 bytes, an odd number of them apart: lanes that
// read neighboring vectors meet no bank twice. A lane owns a pair; neighbors share its first vector, so that is one
// broadcast. Zeros pad vectors to whole chunks, in the table too.
#pragma once
#include "../common/steps.cuh"

struct Int8 {  // sums are exact
  using Number = signed char;
  using Chunk = int4;
  using Sum = int;
  static constexpr bool SCALED = true;

  static __device__ __forceinline__ Sum dot(Chunk a, Chunk b, Sum sum) { return dot16(a, b, sum); }
  static __device__ __forceinline__ float value(Sum sum, float a, float b) {
    return __fmul_rn(__int2float_rn(sum), __fmul_rn(a, b));
  }
};

struct Fp32 {  // sums run over the dimensions in order, product and sum rounded each
  using Number = float;
  using Chunk = float4;
  using Sum = float;
  static constexpr bool SCALED = false;

  static __device__ __forceinline__ Sum dot(Chunk a, Chunk b, Sum sum) {
    sum = __fadd_rn(sum, __fmul_rn(a.x, b.x));
    sum = __fadd_rn(sum, __fmul_rn(a.y, b.y));
    sum = __fadd_rn(sum, __fmul_rn(a.z, b.z));
    return __fadd_rn(sum, __fmul_rn(a.w, b.w));
  }
};

template <class Format>
struct Interaction {
  using Number = typename Format::Number;
  static constexpr int NUMBERS = 16 / sizeof(Number);  // a chunk

  const int* ids;            // [rows, columns]; wide: int64, in two words each
  const Number* table;       // [all, chunks · NUMBERS], every table below the other
  const float* row_scale;    // [all], or unused
  const long long* tables;   // [tables, 3]: which column of ids, first row, rows
  const int2* places;        // looked up: (vector, table) · entered: (vector, dense vector) ·
                             // leads: (vector, dense vector or -1) · pairs of vectors
  int wide, columns, dim, table_count, looked_up, entered, leads, pairs;

  // dense(d, k): number k of the row's dense vector d → out(place, value). scratch: staged vectors, then where each
  // table's row is, then the vectors' scales. fault: the least row · tables + table whose id is in no table; the
  // table's first row stands in for it.
  template <class Dense, class Out>
  __device__ __forceinline__ void row(int row, int4* scratch, long long* fault, Dense dense, Out out) const {
    const int lane = threadIdx.x % 32, chunks = (dim + NUMBERS - 1) / NUMBERS, stride = chunks | 1;
    auto* staged = reinterpret_cast<typename Format::Chunk*>(scratch);
    auto* found = reinterpret_cast<long long*>(scratch + (looked_up + entered) * stride);
    auto* scale = reinterpret_cast<float*>(found + table_count);

    for (int t = lane; t < table_count; t += 32) {
      const long long id = id_at(size_t(row) * columns + tables[3 * t]);
      const bool there = id >= 0 && id < tables[3 * t + 2];
      if (!there) atomicMin(fault, static_cast<long long>(row) * table_count + t);
      found[t] = tables[3 * t + 1] + (there ? id : 0);
    }
    __syncwarp();  // every lane knows where its rows are, and has left the row before this one

    for (int i = lane; i < looked_up * chunks; i += 32) {
      const int2 place = places[i / chunks];
      const int c = i % chunks;
      const long long at = found[place.y];
      staged[place.x * stride + c] = reinterpret_cast<const typename Format::Chunk*>(table)[at * chunks + c];
      if (Format::SCALED && c == 0) scale[place.x] = row_scale[at];
    }
    for (int e = 0; e < entered; ++e) {
      const int2 place = places[looked_up + e];
      const float own = Format::SCALED ? own_scale(place.y, dense) : 1.f;
      auto* to = reinterpret_cast<Number*>(staged + place.x * stride);
      for (int k = lane; k < chunks * NUMBERS; k += 32) to[k] = k < dim ? step(dense(place.y, k), own) : Number(0);
      if (Format::SCALED && lane == 0) scale[place.x] = own;
    }
    __syncwarp();  // the vectors are there

    const int2 *lead = places + looked_up + entered, *pair = lead + leads;
    for (int i = lane; i < leads * dim; i += 32) {
      const int2 place = lead[i / dim];
      const int k = i % dim;
      const Number* from = reinterpret_cast<const Number*>(staged + place.x * stride);
      out(i, place.y >= 0 ? dense(place.y, k) : Format::SCALED ? __fmul_rn(float(from[k]), scale[place.x]) : from[k]);
    }
    for (int p = lane; p < pairs; p += 32) {
      const int i = pair[p].x, j = pair[p].y;
      typename Format::Sum sum = 0;
      for (int c = 0; c < chunks; ++c) sum = Format::dot(staged[i * stride + c], staged[j * stride + c], sum);
      if constexpr (Format::SCALED)
        out(leads * dim + p, Format::value(sum, scale[i], scale[j]));
      else
        out(leads * dim + p, sum);
    }
  }

 private:
  __device__ __forceinline__ long long id_at(size_t i) const {
    return wide ? reinterpret_cast<const long long*>(ids)[i] : ids[i];
  }
  static __device__ __forceinline__ Number step(float value, float scale) {
    if constexpr (Format::SCALED)
      return quantize(value, scale);
    else
      return value;
  }
  // Of the warp: the vector's largest number becomes 127. NaN: as if it were not there.
  template <class Dense>
  __device__ __forceinline__ float own_scale(int d, Dense dense) const {
    float largest = 0.f;
    for (int k = threadIdx.x % 32; k < dim; k += 32) largest = fmaxf(largest, fabsf(dense(d, k)));
    for (int apart = 16; apart > 0; apart /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
    return largest > 0.f ? __fdiv_rn(largest, 127.f) : 1.f;
  }
};
