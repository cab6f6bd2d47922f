// ai.redline::FusedMlp on the CPU: a block of rows goes through all layers while its activations stay in cache.
//
// For a block of up to 96 rows: quantize x, then per layer and per panel of columns (16 KB of weights at k = 512: L1)
// walk the rows in tiles. What leaves a hidden layer is int8 again: sum · factor + bias, over the next layer's scale,
// clamped, rounded: ONNX's arithmetic step by step, each rounded on its own (-ffp-contract=off). So every ISA gives the
// bits of operator.py's reference (a sigmoid's are its own). Folding the scales, to spare the division, gained 1 %.
//
// Roofline: 2 rows · Σ n k operations against weights read once a block from L2: bound by the dot instruction from a
// dozen rows up; at one row by reading the weights.
#include "mlp.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "../common/microkernel.h"

namespace redline {
namespace {

using Format = Int8;

constexpr int64_t kMaxK = 131071;  // 128 · 128 · k stays in int32
constexpr int kPanelColumns = kPanel<Format>, kNumbers = kGroup<Format>;

Packed pack(const RedlineLayer& layer, float output_scale) {
  const int64_t groups = round_up(layer.k, kNumbers) / kNumbers;
  const int64_t panels = round_up(layer.n, kPanelColumns) / kPanelColumns, columns = panels * kPanelColumns;
  Packed packed{layer.n,
                layer.k,
                groups,
                panels,
                layer.activation,
                output_scale,
                zeros<Format::Weight>(columns * groups * kNumbers),
                zeros<int32_t>(columns),
                zeros<float>(columns),
                zeros<float>(columns)};
  for (int64_t j = 0; j < layer.n; ++j) {
    int32_t sum = 0;
    for (int64_t i = 0; i < layer.k; ++i) {
      const int8_t w = layer.weight[j * layer.k + i];
      const int64_t panel = j / kPanelColumns, group = panel * groups + i / kNumbers;
      packed.weights[(group * kPanelColumns + j % kPanelColumns) * kNumbers + i % kNumbers] = w;
      sum += w;
    }
    // Unsigned: 128 · sum may wrap, and so does the sum that it is taken off.
    packed.start[j] = static_cast<int32_t>(0u - static_cast<uint32_t>(Format::kOffset) * static_cast<uint32_t>(sum));
    packed.factor[j] = layer.input_scale * layer.weight_scale[j];
    packed.bias[j] = layer.bias[j];
  }
  return packed;
}

// exp by 2^whole · a polynomial (relative error 2e-7): the same bits on every ISA, which std::exp does not promise.
[[gnu::always_inline]] inline Floats sigmoid(const Floats& x) {
  const Floats t = smaller(larger(-x, -87.0f - Floats{}), 87.0f - Floats{});
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

struct Block {
  const Step* in;  // [rows][stride]
  Step* out;       // [rows][stride]: steps that the next layer takes
  float* values;                 // [rows][panels * kPanelColumns]: of the last layer, before its activation
  int64_t stride;
};

// R rows from `row` on, P panels from `panel` on.
template <int R, int P, bool kLast>
void tile(const Packed& layer, const Block& block, int64_t row, int64_t panel) {
  constexpr int V = 2 * P;
  const int64_t first = panel * kPanelColumns, width = layer.panels * kPanelColumns;
  Ints sums[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = load<Ints>(&layer.start[first + v * kLanes]);
  accumulate<Format, R, V>(sums, reinterpret_cast<const char*>(block.in + row * block.stride),
                           block.stride * sizeof(Step),
                           reinterpret_cast<const char*>(layer.weights.get()) + panel * layer.panel_bytes(),
                           layer.panel_bytes(), layer.groups);
  const float lowest = layer.activation == kRedlineRelu ? 0.0f : -128.0f;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const int64_t column = first + v * kLanes;
    const Floats factor = load<Floats>(&layer.factor[column]), bias = load<Floats>(&layer.bias[column]);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Floats value = __builtin_convertvector(sums[r][v], Floats) * factor + bias;
      if constexpr (kLast)
        store(block.values + (row + r) * width + column, value);
      else
        store(block.out + (row + r) * block.stride + column, quantized(value / layer.output_scale, lowest));
    }
  }
}

// The last layer's activation, and out of the padding: values [rows][width] → y [rows][n]; they may be the same.
void finish(const Packed& layer, const float* values, int64_t rows, int64_t width, float* y) {
  if (values == y && layer.activation == kRedlineNone) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < layer.n; i += kLanes) {
      Floats value = load<Floats>(values + r * width + i);
      if (layer.activation == kRedlineRelu) value = larger(value, Floats{});
      if (layer.activation == kRedlineSigmoid) value = sigmoid(value);
      float* to = y + r * layer.n + i;
      if (i + kLanes <= layer.n)
        store(to, value);
      else
        std::memcpy(to, &value, (layer.n - i) * sizeof(float));
    }
}

using Tile = void (*)(const Packed&, const Block&, int64_t, int64_t);
// Few rows: several panels at once, else the accumulators' latency shows.
template <int R>
constexpr int kWide = R == 1 ? 4 : R <= 3 && kLanes == 16 ? 2 : 1;

template <bool kLast, int... R>
struct Tiles {
  static constexpr Tile narrow[] = {tile<R + 1, 1, kLast>...};
  static constexpr Tile wide[] = {tile<R + 1, kWide<R + 1>, kLast>...};
};
template <bool kLast, int... R>
constexpr Tiles<kLast, R...> tiles(std::integer_sequence<int, R...>);

template <bool kLast>
void run_layer(const Packed& layer, const Block& block, int64_t rows) {
  using All = decltype(tiles<kLast>(std::make_integer_sequence<int, Format::kRows>{}));
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
}

void check(const RedlineLayer* layers, int64_t count) {
  if (count < 1) throw std::invalid_argument("no layers");
  const auto refuse = [](int64_t i, const std::string& what) {
    throw std::invalid_argument("layer " + std::to_string(i) + ": " + what);
  };
  for (int64_t i = 0; i < count; ++i) {
    const RedlineLayer& layer = layers[i];
    if (layer.n < 1 || layer.k < 1 || layer.k > kMaxK)
      refuse(i, "weight [" + std::to_string(layer.n) + ", " + std::to_string(layer.k) + "], wanted n > 0 and k in [1, " +
                    std::to_string(kMaxK) + "]");
    if (i > 0 && layer.k != layers[i - 1].n)
      refuse(i, "takes " + std::to_string(layer.k) + " numbers, the layer before gives " +
                    std::to_string(layers[i - 1].n));
    if (!(std::isfinite(layer.input_scale) && layer.input_scale > 0)) refuse(i, "input scale must be finite and above 0");
    if (layer.activation < kRedlineNone || layer.activation > kRedlineSigmoid ||
        (layer.activation == kRedlineSigmoid && i + 1 < count))
      refuse(i, "activation " + std::to_string(layer.activation) + " (a sigmoid ends a chain)");
  }
}

}  // namespace

Mlp::Mlp(const RedlineLayer* layers, int64_t count) {
  check(layers, count);
  input_scale_ = layers[0].input_scale;
  for (int64_t i = 0; i < count; ++i) {
    layers_.push_back(pack(layers[i], i + 1 < count ? layers[i + 1].input_scale : 1.0f));
    for (int64_t width : {layers[i].k, layers[i].n}) stride_ = std::max(stride_, round_up(width, kPanelColumns));
  }
  // An odd number of cache lines: rows a power of two apart would share L1 sets.
  const int64_t line = 64 / sizeof(Step);
  stride_ = (round_up(stride_, line) / line | 1) * line;
}

void Mlp::run(int64_t rows, float* y, char* scratch) const {
  auto* in = reinterpret_cast<Step*>(scratch);
  auto* out = reinterpret_cast<Step*>(scratch + steps_bytes());
  const Packed& last = layers_.back();
  float* values = last.width() == last.n ? y : reinterpret_cast<float*>(scratch + 2 * steps_bytes());
  for (size_t i = 0; i + 1 < layers_.size(); ++i) {
    run_layer<false>(layers_[i], Block{in, out, nullptr, stride_}, rows);
    std::swap(in, out);
  }
  run_layer<true>(last, Block{in, nullptr, values, stride_}, rows);
  finish(last, values, rows, last.width(), y);
}

}  // namespace redline

using namespace redline;

struct RedlineFusedMlp {
  Mlp mlp;
  Pool pool;
};

RedlineFusedMlp* redline_fused_mlp_create(const RedlineLayer* layers, int64_t count, char* why, int64_t why_size) try {
  return new RedlineFusedMlp{{layers, count}, {}};
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "FusedMlp: %s", e.what());
  return nullptr;
}

bool redline_fused_mlp_run(RedlineFusedMlp* made, const float* x, int64_t rows, float* y) try {
  const Mlp& mlp = made->mlp;
  auto scratch = made->pool.take(mlp.scratch_bytes());
  for_blocks(rows, [&](int64_t first, int64_t count) {
    for (int64_t r = 0; r < count; ++r) mlp.enter(x + (first + r) * mlp.k(), r, scratch.get());
    mlp.run(count, y + first * mlp.n(), scratch.get());
  });
  made->pool.give(std::move(scratch));
  return true;
} catch (const std::exception&) {
  return false;
}

void redline_fused_mlp_free(RedlineFusedMlp* made) { delete made; }

int64_t redline_int8_peak(int64_t steps) {
#if defined(__AVX512VNNI__)
  constexpr int kSums = 2 * Format::kRows;
  Ints sums[kSums], a = Ints{} + 1, w = Ints{} + 2;
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sums[i] = Ints{} + i;
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(w));
  return steps * kSums * kLanes * kNumbers;
#else
  return 0 * steps;
#endif
}
