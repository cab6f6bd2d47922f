// ai.redline::FusedMlp as an ONNX Runtime custom operator; its inputs are told in operator.py.
#include "../common/ort.h"
#include "kernel.h"

namespace redline {
namespace {

constexpr const char* kName = "FusedMlp";
constexpr size_t kInputScales = 1, kActivations = 2, kFirstLayer = 3;  // input 0 is x

struct Kernel {
  ort::Api api;
  RedlineFusedMlp* mlp;
  int64_t k, n;
};

int64_t length(const ort::Api& api, const ort::Value* value, const char* what) {
  const auto shape = api.shape(value);
  if (shape.size() != 1) throw std::invalid_argument(std::string(what) + " must be a vector");
  return shape[0];
}

Kernel* make(const ort::Api& api, const ort::KernelInfo* info) {
  const ort::Value* scales = api.constant(info, kInputScales);
  const ort::Value* activations = api.constant(info, kActivations);
  const int64_t count = length(api, scales, "input_scales");
  if (length(api, activations, "activations") != count)
    throw std::invalid_argument("input_scales and activations must be as long as there are layers");
  std::vector<RedlineLayer> layers;
  for (int64_t i = 0; i < count; ++i) {
    const size_t at = kFirstLayer + 3 * i;
    const ort::Value *weight = api.constant(info, at), *scale = api.constant(info, at + 1),
                     *bias = api.constant(info, at + 2);
    const auto shape = api.shape(weight);
    if (shape.size() != 2 || length(api, scale, "weight_scale") != shape[0] || length(api, bias, "bias") != shape[0])
      throw std::invalid_argument("layer " + std::to_string(i) + ": wanted weight [n, k], weight_scale [n], bias [n]");
    layers.push_back({api.data<int8_t>(weight, ort::kInt8), api.data<float>(scale, ort::kFloat),
                      api.data<float>(bias, ort::kFloat), shape[0], shape[1],
                      api.data<float>(scales, ort::kFloat)[i],
                      static_cast<int32_t>(api.data<int64_t>(activations, ort::kInt64)[i])});
  }
  char why[256] = "";
  RedlineFusedMlp* mlp = redline_fused_mlp_create(layers.data(), count, why, sizeof why);
  if (mlp == nullptr) throw std::invalid_argument(why);
  return new Kernel{api, mlp, layers.front().k, layers.back().n};
}

void compute(Kernel& kernel, ort::KernelContext* context) {
  const ort::Value* x = kernel.api.input(context, 0);
  auto shape = kernel.api.shape(x);
  if (shape.empty() || shape.back() != kernel.k)
    throw std::invalid_argument("x [..., " + (shape.empty() ? std::string() : std::to_string(shape.back())) +
                                "], wanted [..., " + std::to_string(kernel.k) + "]");
  shape.back() = kernel.n;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  float* y = kernel.api.data<float>(kernel.api.output(context, 0, shape));
  if (!redline_fused_mlp_run(kernel.mlp, kernel.api.data<float>(x), rows, y)) throw std::bad_alloc();
}

}  // namespace

const ort::CustomOp* fused_mlp_op() {
  using Op = const ort::CustomOp*;
  static const ort::CustomOp op = [] {
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.name = [](Op) { return kName; };
    made.provider = [](Op) -> const char* { return nullptr; };  // the CPU
    made.input_type = [](Op, size_t i) -> int { return i == 0 ? ort::kFloat : ort::kUndefined; };
    made.input_count = [](Op) -> size_t { return 2; };
    made.output_type = [](Op, size_t) -> int { return ort::kFloat; };
    made.output_count = [](Op) -> size_t { return 1; };
    made.input_kind = [](Op, size_t i) -> int { return i == 0 ? ort::kRequired : ort::kVariadic; };
    made.output_kind = [](Op, size_t) -> int { return ort::kRequired; };
    made.input_memory = [](Op, size_t) -> int { return ort::kDefaultMemory; };
    made.variadic_inputs_least = [](Op) { return 5; };
    made.variadic_inputs_alike = [](Op) { return 0; };
    made.variadic_outputs_least = [](Op) { return 0; };
    made.variadic_outputs_alike = [](Op) { return 0; };
    made.start_version = [](Op) { return 1; };
    made.end_version = [](Op) { return 1; };
    made.create = [](Op, const void* slots, const ort::KernelInfo* info, void** kernel) {
      const ort::Api api(slots);
      return ort::guarded(api, kName, [&] { *kernel = make(api, info); });
    };
    made.compute = [](void* p, ort::KernelContext* context) {
      auto& kernel = *static_cast<Kernel*>(p);
      return ort::guarded(kernel.api, kName, [&] { compute(kernel, context); });
    };
    made.destroy = [](void* p) {
      auto* kernel = static_cast<Kernel*>(p);
      redline_fused_mlp_free(kernel->mlp);
      delete kernel;
    };
    return made;
  }();
  return &op;
}

}  // namespace redline
