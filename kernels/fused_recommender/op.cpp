// ai.redline::FusedRecommender as an ONNX Runtime custom operator; its inputs are told in operator.py.
#include <algorithm>
#include <memory>

#include "../embedding_interaction/op.h"
#include "../fused_mlp/op.h"
#include "kernel.h"

namespace redline {
namespace {

struct Kernel {
  static constexpr const char* kName = "FusedRecommender";
  static constexpr ort::Type kFirst = ort::kUndefined;

  ort::Api api;
  std::unique_ptr<RedlineFusedRecommender, void (*)(RedlineFusedRecommender*)> made{nullptr,
                                                                                    redline_fused_recommender_free};
  size_t first_dense = 1;              // input 0 is the ids
  std::vector<int64_t> dense_widths;
  int64_t columns = 0, n;
  bool squeeze;

  Kernel(const ort::Api& a, const ort::KernelInfo* info) : api(a), squeeze(api.attribute(info, "squeeze") != 0) {
    RedlineRecommender config{};
    config.interaction = read_interaction(api, info, first_dense);
    const RedlineInteraction& in = config.interaction;
    const auto top = read_layers(api, info, first_dense);
    int64_t dense_count = 0;
    for (int64_t v = 0; v < in.vector_count; ++v) dense_count = std::max(dense_count, -in.vectors[v]);
    for (int64_t t = 0; t < in.table_count; ++t) columns = std::max(columns, in.tables[3 * t] + 1);
    std::vector<std::vector<RedlineLayer>> bottoms;
    std::vector<RedlineChain> chains;
    for (int64_t d = 0; d < dense_count; ++d) bottoms.push_back(read_layers(api, info, first_dense));
    for (const auto& layers : bottoms) {
      chains.push_back({layers.data(), static_cast<int64_t>(layers.size())});
      dense_widths.push_back(layers.empty() ? in.dim : layers.front().k);
    }
    config.bottoms = chains.data();
    config.top = {top.data(), static_cast<int64_t>(top.size())};
    char why[256] = "";
    made.reset(redline_fused_recommender_create(&config, why, sizeof why));
    if (made == nullptr) throw std::invalid_argument(why);
    n = top.back().n;
    if (squeeze && n != 1) throw std::invalid_argument("squeeze of " + std::to_string(n) + " numbers a row, wanted 1");
  }

  void compute(ort::KernelContext* context) const {
    int64_t rows;
    const RedlineIds ids = read_ids(api, context, columns, &rows);
    std::vector<const float*> dense;
    for (size_t d = 0; d < dense_widths.size(); ++d)
      dense.push_back(read_dense(api, context, first_dense + d, rows, dense_widths[d]));
    const ort::Value* out = api.output(context, 0, squeeze ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, n});
    char why[256] = "";
    if (!redline_fused_recommender_run(made.get(), ids, dense.data(), rows, api.data<float>(out), why, sizeof why))
      throw std::invalid_argument(why);
  }
};

const ort::Registered<Kernel> registered;

}  // namespace
}  // namespace redline
