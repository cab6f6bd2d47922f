// ai.redline::FusedMlp as an ONNX Runtime custom operator; its inputs are told in operator.py.
#include "op.h"

#include <memory>

namespace redline {

int32_t format_of(int type, const std::string& what) {
  switch (type) {
    case ort::kInt8: return kRedlineInt8;
    case ort::kBfloat16: return kRedlineBf16;
    case ort::kFloat: return kRedlineFp32;
  }
  throw std::invalid_argument(what + " of element type " + std::to_string(type) + ", wanted int8, bfloat16 or float");
}

std::vector<RedlineLayer> read_layers(const ort::Api& api, const ort::KernelInfo* info, size_t& at) {
  const auto scales = api.vector<float>(info, at, ort::kFloat, "input_scales");
  const auto activations = api.vector<int64_t>(info, at + 1, ort::kInt64, "activations");
  if (activations.second != scales.second)
    throw std::invalid_argument("input_scales and activations must be as long as there are layers");
  at += 2;
  std::vector<RedlineLayer> layers;
  for (int64_t i = 0; i < scales.second; ++i, at += 3) {
    const ort::Value* weight = api.constant(info, at);
    const auto scale = api.vector<float>(info, at + 1, ort::kFloat, "weight_scale");
    const auto bias = api.vector<float>(info, at + 2, ort::kFloat, "bias");
    const auto shape = api.shape(weight);
    const int32_t format = format_of(api.type(weight), "layer " + std::to_string(i) + ": weight");
    if (shape.size() != 2 || scale.second != (format == kRedlineInt8 ? shape[0] : 0) || bias.second != shape[0])
      throw std::invalid_argument("layer " + std::to_string(i) +
                                  ": wanted weight [n, k], weight_scale [n] (of int8, else [0]), bias [n]");
    layers.push_back({api.data<char>(weight), scale.first, bias.first, shape[0], shape[1], scales.first[i],
                      static_cast<int32_t>(activations.first[i]), format});
  }
  return layers;
}

namespace {

struct Kernel {
  static constexpr const char* kName = "FusedMlp";
  static constexpr ort::Type kFirst = ort::kFloat;

  ort::Api api;
  std::unique_ptr<RedlineFusedMlp, void (*)(RedlineFusedMlp*)> mlp{nullptr, redline_fused_mlp_free};
  int64_t k, n;

  Kernel(const ort::Api& a, const ort::KernelInfo* info) : api(a) {
    size_t at = 1;  // input 0 is x
    const auto layers = read_layers(api, info, at);
    char why[256] = "";
    mlp.reset(redline_fused_mlp_create(layers.data(), layers.size(), why, sizeof why));
    if (mlp == nullptr) throw std::invalid_argument(why);
    k = layers.front().k;
    n = layers.back().n;
  }

  void compute(ort::KernelContext* context) const {
    auto [x, rows, shape] = api.rows(context, k);
    shape.back() = n;
    float* y = api.data<float>(api.output(context, 0, shape));
    if (!redline_fused_mlp_run(mlp.get(), x, rows, y)) throw std::bad_alloc();
  }
};

const ort::Registered<Kernel> registered;

}  // namespace
}  // namespace redline
