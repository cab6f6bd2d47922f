// ai.redline::EmbeddingInteraction on the CPU: tables' rows and dense vectors meet in dot products, without leaving L1.
//
// Per row: copy its vectors side by side, transpose them in registers (16 vectors by 4 groups at a time) into the
// microkernel's panels, and multiply them by themselves: the lower triangle only, in tiles of up to 8 rows. A tile's
// store runs over the end of its row of the triangle; the next row overwrites that.
//
// FP32 and BF16 sum over the dimensions in order; a dense vector enters BF16 rounded. INT8: exact int32 sums times the
// two vectors' scales, the reference's bits. A dense vector gets the scale of its own largest number, so no neighbor
// matters.
//
// Roofline: reading the tables' rows at random (int8: a quarter of the bytes), then v²/2 · dim multiply-adds.
#include "interaction.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "../common/microkernel.h"

namespace redline {
namespace {

template <class V, int... I>
inline V interleaved(const V& a, const V& b, bool high, std::integer_sequence<int, I...>) {
  // Within each 128 bits: a0 b0 a1 b1, or a2 b2 a3 b3.
  constexpr int L = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, ((I / 4) * 4 + (I % 4) / 2 + (I % 2) * L)...);
  const V top = __builtin_shufflevector(a, b, ((I / 4) * 4 + 2 + (I % 4) / 2 + (I % 2) * L)...);
  return high ? top : low;
}
template <class V>
[[gnu::always_inline]] inline V interleaved(const V& a, const V& b, bool high) {
  return interleaved(a, b, high, std::make_integer_sequence<int, kLanes>{});
}

// Lane 4 q + c of the answer: 32-bit number c of the row at from + 4 q rows.
template <class V>
[[gnu::always_inline]] inline V quarters(const char* from, int64_t row_bytes) {
  using Four = Vector<int32_t, 4>;
  if constexpr (kLanes == 4) {
    return (V)load<Four>(from);
  } else {
    const auto pair = [&](const char* at) {
      return __builtin_shufflevector(load<Four>(at), load<Four>(at + 4 * row_bytes), 0, 1, 2, 3, 4, 5, 6, 7);
    };
    if constexpr (kLanes == 8)
      return (V)pair(from);
    else
      return (V)__builtin_shufflevector(pair(from), pair(from + 8 * row_bytes), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                                        13, 14, 15);
  }
}

// kLanes rows of `groups` 32-bit groups → one vector a group, `apart` bytes from the next.
template <class Format>
void transpose(const char* rows, int64_t row_bytes, int64_t groups, char* panel, int64_t apart) {
  using V = Vector<int32_t, kLanes>;
  for (int64_t g = 0; g < groups; g += 4, rows += 16) {
    V r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) r[i] = quarters<V>(rows + i * row_bytes, row_bytes);
    const V a = interleaved(r[0], r[2], false), b = interleaved(r[1], r[3], false);
    const V c = interleaved(r[0], r[2], true), d = interleaved(r[1], r[3], true);
    const V out[4] = {interleaved(a, b, false), interleaved(a, b, true), interleaved(c, d, false),
                      interleaved(c, d, true)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      store(panel + (g + i) * apart, Format::weights((typename Format::Groups)out[i]));
  }
}

constexpr int64_t triangle(int64_t i) { return i * (i - 1) / 2; }

template <class Format>
struct Product {  // of a row's vectors by themselves
  const char* vectors;   // [vectors][row_bytes]
  const char* panels;    // [panel][groups][2][kLanes]
  const typename Format::Accumulator* start;  // [panel][2]
  const float* scale;    // [vectors], INT8 only
  int64_t row_bytes, panel_bytes, groups;
  float* out;            // the lower triangle, row by row
};

// Vectors i … i + R - 1 with the V * kLanes vectors of this panel.
template <class Format, int R, int V>
void tile(const Product<Format>& p, int64_t i, int64_t panel) {
  typename Format::Accumulator sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = p.start[2 * panel + v];
  accumulate<Format, R, V>(sums, p.vectors + i * p.row_bytes, p.row_bytes, p.panels + panel * p.panel_bytes,
                           p.panel_bytes, p.groups);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t j = (2 * panel + v) * kLanes;
      Floats value;
      if constexpr (std::is_same_v<Format, Int8>)
        value = __builtin_convertvector(sums[r][v], Floats) * (p.scale[i + r] * load<Floats>(p.scale + j));
      else
        value = sums[r][v];
      store(p.out + triangle(i + r) + j, value);
    }
}

template <class Format>
constexpr int kMostRows = std::min(8, Format::kRows);
template <class Format>
using Tile = void (*)(const Product<Format>&, int64_t, int64_t);
template <class Format, int V, int... R>
constexpr Tile<Format> tile_of(int rows, std::integer_sequence<int, R...>) {
  constexpr Tile<Format> all[] = {tile<Format, R + 1, V>...};
  return all[rows - 1];
}

template <class Format>
void multiply(const Product<Format>& p, int64_t vectors) {
  constexpr auto sizes = std::make_integer_sequence<int, kMostRows<Format>>{};
  for (int64_t span = 0; span * kLanes + 1 < vectors; ++span) {  // rows of the triangle that need span + 1 vectors
    const int64_t first = span * kLanes + 1, rows = std::min<int64_t>(kLanes, vectors - first);
    const int64_t count = round_up(rows, kMostRows<Format>) / kMostRows<Format>;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t i = first + rows * t / count, size = rows * (t + 1) / count - rows * t / count;
      // Downwards: only a row's last store runs over its end, into what the first panel then overwrites.
      for (int64_t panel = span / 2; panel >= 0; --panel)
        (2 * panel == span ? tile_of<Format, 1>(size, sizes) : tile_of<Format, 2>(size, sizes))(p, i, panel);
    }
  }
}

int64_t id_of(const RedlineIds& ids, int64_t at) {
  return ids.wide ? static_cast<const int64_t*>(ids.ids)[at] : static_cast<const int32_t*>(ids.ids)[at];
}

// An int8 row → the form in which the format's rows enter; the rest of [stride] becomes zero.
void widen(const int8_t* from, int64_t count, Int8::Activation* to, int64_t stride) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const auto wide = __builtin_convertvector(load<Vector<int8_t, kLanes>>(from + c), Vector<int16_t, kLanes>);
    store(to + c, __builtin_convertvector(wide + static_cast<int16_t>(Int8::kOffset), Numbers<Int8>));
  }
  for (; c < stride; ++c) to[c] = static_cast<Int8::Activation>((c < count ? from[c] : 0) + Int8::kOffset);
}

// → steps on the scale of its own largest number, which is returned; the rest of [stride] becomes zero.
float quantize_alone(const float* x, int64_t dim, Int8::Activation* to, int64_t stride) {
  Floats most{};
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    const Floats v = load<Floats>(x + c);
    most = larger(larger(v, -v), most);  // NaN: as if it were not there
  }
  float largest = 0.0f;
  for (; c < dim; ++c) largest = std::max(largest, std::fabs(x[c]));
  for (int lane = 0; lane < kLanes; ++lane) largest = std::max(largest, most[lane]);
  const float scale = largest > 0.0f ? largest / 127.0f : 1.0f;
  enter<Int8>(x, dim, scale, to);
  for (c = round_up(dim, kLanes); c < stride; ++c) to[c] = static_cast<Int8::Activation>(Int8::kOffset);
  return scale;
}

// A table's row → floats that go out as they are.
template <class Format>
void lead_row(const char* row, int64_t dim, float* out) {
  if constexpr (std::is_same_v<Format, Int8>) {
    float scale;
    std::memcpy(&scale, row, sizeof scale);
    for (int64_t c = 0; c < dim; ++c) out[c] = scale * reinterpret_cast<const int8_t*>(row + sizeof scale)[c];
  } else if constexpr (std::is_same_v<Format, Bf16>) {
    for (int64_t c = 0; c < dim; ++c) out[c] = widened(reinterpret_cast<const uint16_t*>(row)[c]);
  } else {
    std::memcpy(out, row, dim * sizeof(float));
  }
}

}  // namespace

Interaction::Interaction(const RedlineInteraction& c)
    : dim_(c.dim), pair_count_(c.pair_count) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  if (dim_ < 1 || c.vector_count < 1) refuse("wanted at least one vector of at least one number");
  if (c.format == kRedlineInt8 && c.all > 0 && c.row_scale == nullptr) refuse("int8 rows without their scales");
  for (int64_t t = 0; t < c.table_count; ++t) {
    const Table table{c.tables[3 * t], c.tables[3 * t + 1], c.tables[3 * t + 2]};
    if (table.column < 0 || table.begin < 0 || table.size < 1 || table.size > c.all - table.begin)
      refuse("table " + std::to_string(t) + ": rows " + std::to_string(table.begin) + " to " +
             std::to_string(table.begin + table.size) + " of " + std::to_string(c.all));
    tables_.push_back(table);
  }
  for (int64_t v = 0; v < c.vector_count; ++v) {
    const int64_t source = c.vectors[v];
    if (source >= c.table_count) refuse("vector " + std::to_string(v) + " is of table " + std::to_string(source));
    dense_count_ = std::max(dense_count_, -source);
    vectors_.push_back(source);
  }
  for (int64_t l = 0; l < c.lead_count; ++l) {
    if (c.lead[l] < 0 || c.lead[l] >= c.vector_count) refuse("lead " + std::to_string(c.lead[l]) + " is no vector");
    lead_.push_back(c.lead[l]);
  }
  bool in_place = c.pair_count == triangle(c.vector_count);
  for (int64_t p = 0; p < c.pair_count; ++p) {
    const int64_t pair = c.pairs[p], i = pair / c.vector_count, j = pair % c.vector_count;
    if (pair < 0 || i >= c.vector_count || i == j) refuse("pair " + std::to_string(pair) + " is none of two vectors");
    place_.push_back(static_cast<int32_t>(triangle(std::max(i, j)) + std::min(i, j)));
    in_place = in_place && place_.back() == p;
  }
  if (in_place) place_.clear();
  switch (c.format) {
    case kRedlineInt8: take<Int8>(c); break;
    case kRedlineBf16: take<Bf16>(c); break;
    case kRedlineFp32: take<Fp32>(c); break;
    default: refuse("number format " + std::to_string(c.format) + ", wanted 0 int8, 1 bf16 or 2 fp32");
  }
}

// The least stride at which no row lies in more cache lines than it must.
int64_t whole_lines(int64_t bytes) {
  int64_t stride = 4;
  while (stride < bytes && stride < 64) stride *= 2;
  return stride < bytes ? round_up(bytes, 64) : stride;
}

template <class Format>
int64_t Interaction::groups() const {
  return round_up(dim_, 4 * kGroup<Format>) / kGroup<Format>;
}

template <class Format>
void Interaction::take(const RedlineInteraction& c) {
  constexpr bool kInt8 = std::is_same_v<Format, Int8>;
  compute_ = &Interaction::compute<Format>;
  row_bytes_ = dim_ * (kInt8 ? 1 : sizeof(typename Format::Activation));
  row_stride_ = whole_lines(row_bytes_ + (kInt8 ? sizeof(float) : 0));
  rows_ = zeros<char>(c.all * row_stride_);
  for (int64_t r = 0; r < c.all; ++r) {
    char* to = rows_.get() + r * row_stride_;
    if (kInt8) std::memcpy(to, c.row_scale + r, sizeof(float)), to += sizeof(float);
    std::memcpy(to, static_cast<const char*>(c.rows) + r * row_bytes_, row_bytes_);
  }
  const int64_t padded = round_up(static_cast<int64_t>(vectors_.size()), kPanel);
  // vectors, panels, starts, scales; the rows that padding adds stay zero
  const int64_t bytes =
      2 * padded * groups<Format>() * 4 + 2 * padded * 4 + round_up(triangle(padded) + 2 * kLanes, 16) * 4;
  scratch_bytes_ = round_up(bytes, 64);
}

void Interaction::look_up(const RedlineIds& ids, int64_t first, int64_t count, int64_t* found) const {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t t = 0; t < tables(); ++t) {
      const Table& table = tables_[t];
      const int64_t id = id_of(ids, (first + r) * ids.columns + table.column);
      if (id < 0 || id >= table.size)
        throw std::invalid_argument("feature " + std::to_string(t) + " (column " + std::to_string(table.column) +
                                    " of the ids), row " + std::to_string(first + r) + ": id " + std::to_string(id) +
                                    " is not in 0.." + std::to_string(table.size - 1));
      const int64_t at = table.begin + id;
      *found++ = at;
      for (int64_t b = 0; b < row_stride_; b += 64) __builtin_prefetch(rows_.get() + at * row_stride_ + b, 0, 2);
    }
}

template <class Format>
void Interaction::compute(const int64_t* found, const float* const* dense, float* out, char* scratch) const {
  using Activation = typename Format::Activation;
  constexpr bool kInt8 = std::is_same_v<Format, Int8>;
  const int64_t count = static_cast<int64_t>(vectors_.size()), padded = round_up(count, kPanel);
  const int64_t row_bytes = groups<Format>() * 4, stride = groups<Format>() * kGroup<Format>;
  auto* staged = reinterpret_cast<Activation*>(scratch);
  char* panels = scratch + padded * row_bytes;
  auto* start = reinterpret_cast<typename Format::Accumulator*>(panels + padded * row_bytes);
  auto* scale = reinterpret_cast<float*>(start) + padded;
  float* lower = scale + padded;

  for (int64_t v = 0; v < count; ++v) {
    Activation* to = staged + v * stride;
    const int64_t source = vectors_[v];
    if constexpr (kInt8) {
      if (source < 0) {
        scale[v] = quantize_alone(dense[-1 - source], dim_, to, stride);
      } else {
        const char* row = row_of(found[source]);
        std::memcpy(&scale[v], row, sizeof(float));
        widen(reinterpret_cast<const int8_t*>(row + sizeof(float)), dim_, to, stride);
      }
    } else if (std::is_same_v<Format, Bf16> && source < 0) {
      enter<Format>(dense[-1 - source], dim_, 1.0f, to);  // its zeros may reach into the next, not written yet
    } else {
      const void* from = source < 0 ? dense[-1 - source] : static_cast<const void*>(row_of(found[source]));
      std::memcpy(to, from, row_bytes_);
    }
  }
  for (size_t l = 0; l < lead_.size(); ++l) {
    const int64_t source = vectors_[lead_[l]];
    if (source < 0)
      std::memcpy(out + l * dim_, dense[-1 - source], dim_ * sizeof(float));
    else
      lead_row<Format>(row_of(found[source]), dim_, out + l * dim_);
  }
  if (pair_count_ == 0) return;

  const int64_t panel_bytes = 2 * kLanes * row_bytes;
  for (int64_t v = 0; v * kLanes + 1 < count; ++v) {
    char* panel = panels + (v / 2) * panel_bytes + (v % 2) * kLanes * 4;
    transpose<Format>(reinterpret_cast<const char*>(staged + v * kLanes * stride), row_bytes, groups<Format>(), panel,
                      2 * kLanes * 4);
    typename Format::Accumulator begin{};
    if constexpr (Format::kOffset != 0) {  // what the offset in every activation adds
      const typename Format::Accumulator offset = static_cast<int32_t>(0x01010101u * Format::kOffset) - Ints{};
      for (int64_t g = 0; g < groups<Format>(); ++g)
        Format::dot(begin, offset, load<typename Format::Accumulator>(panel + g * 2 * kLanes * 4));
      begin = -begin;
    }
    start[v] = begin;
  }
  float* dots = out + static_cast<int64_t>(lead_.size()) * dim_;
  multiply(Product<Format>{scratch, panels, start, scale, row_bytes, panel_bytes, groups<Format>(),
                           place_.empty() ? dots : lower},
           count);
  for (size_t p = 0; p < place_.size(); ++p) dots[p] = lower[place_[p]];
}

}  // namespace redline

using namespace redline;

struct RedlineEmbeddingInteraction {
  Interaction interaction;
  Pool pool;
};

RedlineEmbeddingInteraction* redline_embedding_interaction_create(const RedlineInteraction* config, char* why,
                                                                  int64_t why_size) try {
  return new RedlineEmbeddingInteraction{Interaction(*config), {}};
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "EmbeddingInteraction: %s", e.what());
  return nullptr;
}

bool redline_embedding_interaction_run(RedlineEmbeddingInteraction* made, RedlineIds ids, const float* const* dense,
                                       int64_t rows, float* y, char* why, int64_t why_size) try {
  constexpr int64_t kRows = 64;
  const Interaction& in = made->interaction;
  const int64_t width = in.width(), scratch_bytes = in.scratch_bytes();
  const int64_t out_bytes = round_up(in.out_numbers() * 4, 64);
  const int64_t found_bytes = kRows * in.tables() * 8, row_count = std::max<int64_t>(in.dense_count(), 1) * 8;
  auto memory = made->pool.take(scratch_bytes + out_bytes + found_bytes + row_count);
  auto* out = reinterpret_cast<float*>(memory.get() + scratch_bytes);
  auto* found = reinterpret_cast<int64_t*>(memory.get() + scratch_bytes + out_bytes);
  auto** row = reinterpret_cast<const float**>(memory.get() + scratch_bytes + out_bytes + found_bytes);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    in.look_up(ids, first, count, found);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < in.dense_count(); ++d) row[d] = dense[d] + (first + r) * in.dim();
      in.row(found + r * in.tables(), row, out, memory.get());
      std::memcpy(y + (first + r) * width, out, width * sizeof(float));
    }
  }
  made->pool.give(std::move(memory));
  return true;
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "%s", e.what());
  return false;
}

void redline_embedding_interaction_free(RedlineEmbeddingInteraction* made) { delete made; }
