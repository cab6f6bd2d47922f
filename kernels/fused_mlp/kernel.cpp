// ai.redline::FusedMlp on the CPU: a block of rows goes through all layers while its activations stay in cache.
//
// For a block of up to 96 rows: x enters in the layers' number format, then per layer and per panel of columns (INT8 at
// k = 512: 16 KB of weights, L1) walk the rows in tiles. INT8: what leaves a hidden layer is int8 again: sum · factor +
// bias, over the next layer's scale, clamped, rounded: ONNX's arithmetic step by step, each rounded on its own
// (-ffp-contract=off). So every ISA gives the bits of operator.py's reference (a sigmoid's are its own). Folding the
// scales, to spare the division, gained 1 %. BF16 and FP32: fp32 sums that start from the bias; BF16 rounds what leaves.
//
// Roofline: 2 rows · Σ n k operations against weights read once a block from L2: bound by the dot instruction from a
// dozen rows up; at one row by reading the weights.
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"
#include "mlp.h"

namespace redline {
namespace {

constexpr int64_t kMaxK = 131071;  // 128 · 128 · k stays in int32

template <class Format>
class Chain : public Mlp {
  using Number = typename Format::Activation;

 public:
  Chain(const RedlineLayer* layers, int64_t count) : input_scale_(layers[0].input_scale) {
    for (int64_t i = 0; i < count; ++i) {
      layers_.push_back(pack<Format>(layers[i], i + 1 < count ? layers[i + 1].input_scale : 1.0f));
      for (int64_t width : {layers[i].k, layers[i].n}) stride_ = std::max(stride_, round_up(width, kPanel));
    }
    // An odd number of cache lines: rows a power of two apart would share L1 sets.
    const int64_t line = 64 / sizeof(Number);
    stride_ = (round_up(stride_, line) / line | 1) * line;
  }
  int64_t k() const override { return layers_.front().k; }
  int64_t n() const override { return layers_.back().n; }
  int64_t scratch_bytes() const override { return 2 * rows_bytes() + kBlockRows * layers_.back().width() * 4; }

  void enter(const float* x, int64_t row, char* scratch) const override {
    redline::enter<Format>(x, k(), input_scale_, reinterpret_cast<Number*>(scratch) + row * stride_);
  }
  void run(int64_t rows, float* y, char* scratch) const override {
    auto* in = reinterpret_cast<Number*>(scratch);
    auto* out = reinterpret_cast<Number*>(scratch + rows_bytes());
    const Packed<Format>& last = layers_.back();
    float* values = last.width() == last.n ? y : reinterpret_cast<float*>(scratch + 2 * rows_bytes());
    for (size_t i = 0; i + 1 < layers_.size(); ++i) {
      run_layer(layers_[i], Block<Format>{in, out, nullptr, stride_}, rows);
      std::swap(in, out);
    }
    run_layer(last, Block<Format>{in, nullptr, values, stride_}, rows);
    finish(last.activation, last.n, values, rows, last.width(), y);
  }

 private:
  int64_t rows_bytes() const { return kBlockRows * stride_ * static_cast<int64_t>(sizeof(Number)); }

  std::vector<Packed<Format>> layers_;
  float input_scale_;
  int64_t stride_ = 0;  // of a row of activations, in numbers
};

void check(const RedlineLayer* layers, int64_t count) {
  if (count < 1) throw std::invalid_argument("no layers");
  const auto refuse = [](int64_t i, const std::string& what) {
    throw std::invalid_argument("layer " + std::to_string(i) + ": " + what);
  };
  for (int64_t i = 0; i < count; ++i) {
    const RedlineLayer& layer = layers[i];
    const bool int8 = layer.format == kRedlineInt8;
    if (layer.format < kRedlineInt8 || layer.format > kRedlineFp32 || layer.format != layers[0].format)
      refuse(i, "number format " + std::to_string(layer.format) + ", wanted one for all layers: 0 int8, 1 bf16, 2 fp32");
    if (layer.n < 1 || layer.k < 1 || (int8 && layer.k > kMaxK))
      refuse(i, "weight [" + std::to_string(layer.n) + ", " + std::to_string(layer.k) + "], wanted n and k above 0" +
                    (int8 ? ", k at most " + std::to_string(kMaxK) : ""));
    if (i > 0 && layer.k != layers[i - 1].n)
      refuse(i, "takes " + std::to_string(layer.k) + " numbers, the layer before gives " +
                    std::to_string(layers[i - 1].n));
    if (int8 && !(std::isfinite(layer.input_scale) && layer.input_scale > 0))
      refuse(i, "input scale must be finite and above 0");
    if (layer.activation < kRedlineNone || layer.activation > kRedlineSigmoid ||
        (layer.activation == kRedlineSigmoid && i + 1 < count))
      refuse(i, "activation " + std::to_string(layer.activation) + " (a sigmoid ends a chain)");
  }
}

}  // namespace

std::unique_ptr<Mlp> make_mlp(const RedlineLayer* layers, int64_t count) {
  check(layers, count);
  switch (layers[0].format) {
    case kRedlineBf16: return std::make_unique<Chain<Bf16>>(layers, count);
    case kRedlineFp32: return std::make_unique<Chain<Fp32>>(layers, count);
    default: return std::make_unique<Chain<Int8>>(layers, count);
  }
}

}  // namespace redline

using namespace redline;

struct RedlineFusedMlp {
  std::unique_ptr<Mlp> mlp;
  Pool pool;
};

RedlineFusedMlp* redline_fused_mlp_create(const RedlineLayer* layers, int64_t count, char* why, int64_t why_size) try {
  return new RedlineFusedMlp{make_mlp(layers, count), {}};
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "FusedMlp: %s", e.what());
  return nullptr;
}

bool redline_fused_mlp_run(RedlineFusedMlp* made, const float* x, int64_t rows, float* y) try {
  const Mlp& mlp = *made->mlp;
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

namespace {

// Multiply-adds of a loop that only computes: a tile's sums, and operands that the compiler can't foresee.
template <class Format>
int64_t peak(int64_t steps) {
#if defined(__x86_64__) && !defined(REDLINE_WIDE)
  typename Format::Accumulator sums[Format::kRows][2] = {};
  typename Format::Groups row{}, column[2] = {};
  asm volatile("" : "+v"(column[0]), "+v"(column[1]));
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 12
    for (int r = 0; r < Format::kRows; ++r) {
      asm volatile("" : "+v"(row));
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) Format::dot(sums[r][v], row, column[v]);
    }
#pragma GCC unroll 12
  for (int r = 0; r < Format::kRows; ++r) asm volatile("" : : "v"(sums[r][0]), "v"(sums[r][1]));
  return steps * Format::kRows * 2 * kLanes * kGroup<Format>;
#else
  return 0 * steps;
#endif
}

}  // namespace

int64_t redline_peak(int32_t format, int64_t steps) {
  return format == kRedlineBf16 ? peak<Bf16>(steps) : format == kRedlineFp32 ? peak<Fp32>(steps) : peak<Int8>(steps);
}
