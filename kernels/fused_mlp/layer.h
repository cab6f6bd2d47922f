// One layer in a number format: weights packed into panels, and a block of rows walked through them in tiles.
#pragma once
#include <algorithm>
#include <utility>

#include "../common/buffer.h"
#include "../common/microkernel.h"
#include "../common/numbers.h"
#include "kernel.h"

namespace redline {

template <class Format>
struct Packed {
  int64_t n, k, groups, panels;
  int activation;
  float output_scale;                       // of the next layer's input, INT8 only
  Buffer<typename Format::Weight> weights;  // [panels][groups][columns of a panel][numbers of a group]
  Buffer<typename Format::Sum> start;       // [columns]: undoes kOffset; of floats the bias
  Buffer<float> factor, bias;               // [columns], INT8 only
  int64_t panel_bytes() const { return groups * kPanel * 4; }
  int64_t width() const { return panels * kPanel; }
};

template <class Format>
Packed<Format> pack(const RedlineLayer& layer, float output_scale) {
  using Weight = typename Format::Weight;
  constexpr bool kInt8 = std::is_same_v<Format, Int8>;
  constexpr int kNumbers = kGroup<Format>;
  const int64_t groups = round_up(layer.k, kNumbers) / kNumbers;
  const int64_t panels = round_up(layer.n, kPanel) / kPanel, columns = panels * kPanel;
  Packed<Format> packed{layer.n,
                        layer.k,
                        groups,
                        panels,
                        layer.activation,
                        output_scale,
                        zeros<Weight>(columns * groups * kNumbers),
                        zeros<typename Format::Sum>(columns),
                        zeros<float>(kInt8 ? columns : 0),
                        zeros<float>(kInt8 ? columns : 0)};
  for (int64_t j = 0; j < layer.n; ++j) {
    const auto* from = static_cast<const std::conditional_t<kInt8, int8_t, Weight>*>(layer.weight) + j * layer.k;
    for (int64_t i = 0; i < layer.k; ++i) {
      const int64_t group = j / kPanel * groups + i / kNumbers;
      packed.weights[(group * kPanel + j % kPanel) * kNumbers + i % kNumbers] = from[i];
    }
    if constexpr (kInt8) {
      uint32_t sum = 0;  // may wrap, and so does the sum that it is taken off
      for (int64_t i = 0; i < layer.k; ++i) sum += static_cast<uint32_t>(Format::kOffset * from[i]);
      packed.start[j] = static_cast<int32_t>(0u - sum);
      packed.factor[j] = layer.input_scale * layer.weight_scale[j];
      packed.bias[j] = layer.bias[j];
    } else {
      packed.start[j] = layer.bias[j];
    }
  }
  return packed;
}

template <class Format>
struct Block {
  const typename Format::Activation* in;  // [rows][stride]
  typename Format::Activation* out;       // [rows][stride]: what the next layer takes; null: this is the last
  float* values;                          // [rows][width]: the last layer's, before its activation
  int64_t stride;
};

// R rows from `row` on, P panels from `panel` on.
template <class Format, int R, int P>
void tile(const Packed<Format>& layer, const Block<Format>& block, int64_t row, int64_t panel) {
  using Accumulator = typename Format::Accumulator;
  constexpr int V = 2 * P;
  const int64_t first = panel * kPanel;
  Accumulator sums[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = load<Accumulator>(&layer.start[first + v * kLanes]);
  accumulate<Format, R, V>(sums, reinterpret_cast<const char*>(block.in + row * block.stride), block.stride * sizeof(*block.in),
                           reinterpret_cast<const char*>(layer.weights.get()) + panel * layer.panel_bytes(),
                           layer.panel_bytes(), layer.groups);
  const float lowest = layer.activation == kRedlineRelu ? 0.0f : kLowest<Format>;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const int64_t column = first + v * kLanes;
    Floats factor, bias;
    if constexpr (std::is_same_v<Format, Int8>)
      factor = load<Floats>(&layer.factor[column]), bias = load<Floats>(&layer.bias[column]);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Floats value;
      if constexpr (std::is_same_v<Format, Int8>)
        value = __builtin_convertvector(sums[r][v], Floats) * factor + bias;
      else
        value = sums[r][v];
      if (block.out == nullptr)
        store(block.values + (row + r) * layer.width() + column, value);
      else
        store(block.out + (row + r) * block.stride + column, narrowed<Format>(value, layer.output_scale, lowest));
    }
  }
}

template <class Format>
using Tile = void (*)(const Packed<Format>&, const Block<Format>&, int64_t, int64_t);
// Few rows: several panels at once, else the accumulators' latency shows.
template <int R>
constexpr int kWide = R == 1 ? 4 : R <= 3 && kLanes == 16 ? 2 : 1;

template <class Format, int... R>
struct Tiles {
  static constexpr Tile<Format> narrow[] = {tile<Format, R + 1, 1>...};
  static constexpr Tile<Format> wide[] = {tile<Format, R + 1, kWide<R + 1>>...};
};
template <class Format, int... R>
constexpr Tiles<Format, R...> tiles(std::integer_sequence<int, R...>);

template <class Format>
void run_layer(const Packed<Format>& layer, const Block<Format>& block, int64_t rows) {
  using All = decltype(tiles<Format>(std::make_integer_sequence<int, Format::kRows>{}));
  const int64_t count = round_up(rows, Format::kRows) / Format::kRows;
  const int wide = rows == 1 ? kWide<1> : rows <= 3 ? kWide<2> : 1;
  for (int64_t panel = 0; panel < layer.panels;) {
    const bool fits = panel + wide <= layer.panels;
    for (int64_t t = 0; t < count; ++t) {  // evenly: no tile of one row after full ones
      const int64_t row = rows * t / count, size = rows * (t + 1) / count - row;
      (fits ? All::wide : All::narrow)[size - 1](layer, block, row, panel);
    }
    panel += fits ? wide : 1;
  }
  // The next layer's last group may reach past n: infinity times a weight of zero must not get in there.
  if constexpr (std::is_same_v<Format, Bf16>)
    if (block.out != nullptr && layer.n % kGroup<Format> != 0)
      for (int64_t r = 0; r < rows; ++r) block.out[r * block.stride + layer.n] = 0;
}

// exp by 2^whole · a polynomial (relative error 2e-7): the same bits on every ISA, which std::exp does not promise.
[[gnu::always_inline]] inline Floats sigmoid(const Floats& x) {
  const Floats t = smaller(87.0f - Floats{}, larger(-87.0f - Floats{}, -x));
  const Floats shifted = t * 1.44269504f + 12582912.0f;
  const Floats whole = shifted - 12582912.0f;
  const Floats f = (t - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats p = 1.9875691500e-4f * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Ints power = ((Ints)shifted - 0x4B400000 + 127) << 23;
  return 1.0f / (1.0f + p * (Floats)power);
}

// The last layer's activation, and out of the padding: values [rows][width] → y [rows][n]; they may be the same.
inline void finish(int activation, int64_t n, const float* values, int64_t rows, int64_t width, float* y) {
  if (values == y && activation == kRedlineNone) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; i += kLanes) {
      Floats value = load<Floats>(values + r * width + i);
      if (activation == kRedlineRelu) value = larger(Floats{}, value);
      if (activation == kRedlineSigmoid) value = sigmoid(value);
      float* to = y + r * n + i;
      if (i + kLanes <= n)
        store(to, value);
      else
        std::memcpy(to, &value, (n - i) * sizeof(float));
    }
}

}  // namespace redline
