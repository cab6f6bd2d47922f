// ai.redline::EmbeddingInteraction as an ONNX Runtime custom operator; its inputs are told in operator.py.
#include "op.h"

#include <algorithm>
#include <memory>

#include "../fused_mlp/op.h"

namespace redline {
namespace {

std::string words(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

RedlineInteraction read_interaction(const ort::Api& api, const ort::KernelInfo* info, size_t& at) {
  const ort::Value *table = api.constant(info, at), *tables = api.constant(info, at + 2);
  const auto shape = api.shape(table), places = api.shape(tables);
  if (shape.size() != 2) throw std::invalid_argument("table " + words(shape) + ", wanted [rows, dim]");
  if (places.size() != 2 || places[1] != 3) throw std::invalid_argument("tables " + words(places) + ", wanted [n, 3]");
  const auto scale = api.vector<float>(info, at + 1, ort::kFloat, "row_scale");
  const int32_t format = format_of(api.type(table), "table");
  if (scale.second != (format == kRedlineInt8 ? shape[0] : 0))
    throw std::invalid_argument("row_scale: " + std::to_string(scale.second) + " numbers, wanted one a row of an int8 table, else none");
  const auto vectors = api.vector<int64_t>(info, at + 3, ort::kInt64, "vectors");
  const auto lead = api.vector<int64_t>(info, at + 4, ort::kInt64, "lead");
  const auto pairs = api.vector<int64_t>(info, at + 5, ort::kInt64, "pairs");
  at += 6;
  return {api.data<char>(table), scale.second > 0 ? scale.first : nullptr, api.data<int64_t>(tables, ort::kInt64),
          vectors.first, lead.first, pairs.first, shape[1], shape[0], places[0], vectors.second, lead.second,
          pairs.second, format};
}

RedlineIds read_ids(const ort::Api& api, const ort::KernelContext* context, int64_t columns, int64_t* rows) {
  const ort::Value* ids = api.input(context, 0);
  const auto shape = api.shape(ids);
  const int64_t width = shape.size() == 2 ? shape[1] : 1;
  if (shape.empty() || shape.size() > 2 || width < columns)
    throw std::invalid_argument("ids " + words(shape) + ", wanted [rows, " + std::to_string(columns) + "]");
  const int type = api.type(ids);
  if (type != ort::kInt32 && type != ort::kInt64) throw std::invalid_argument("ids must be int32 or int64");
  *rows = shape[0];
  return {api.data<char>(ids), width, type == ort::kInt64};
}

const float* read_dense(const ort::Api& api, const ort::KernelContext* context, size_t index, int64_t rows,
                        int64_t width) {
  const ort::Value* value = api.input(context, index);
  const auto shape = api.shape(value);
  if (shape != std::vector<int64_t>{rows, width})
    throw std::invalid_argument("input " + std::to_string(index) + " " + words(shape) + ", wanted " +
                                words({rows, width}));
  return api.data<float>(value, ort::kFloat);
}

namespace {

struct Kernel {
  static constexpr const char* kName = "EmbeddingInteraction";
  static constexpr ort::Type kFirst = ort::kUndefined;

  ort::Api api;
  std::unique_ptr<RedlineEmbeddingInteraction, void (*)(RedlineEmbeddingInteraction*)> made{
      nullptr, redline_embedding_interaction_free};
  size_t first_dense = 1, dense_count = 0;  // input 0 is the ids
  int64_t columns = 0, dim, width;

  Kernel(const ort::Api& a, const ort::KernelInfo* info) : api(a) {
    const RedlineInteraction config = read_interaction(api, info, first_dense);
    char why[256] = "";
    made.reset(redline_embedding_interaction_create(&config, why, sizeof why));
    if (made == nullptr) throw std::invalid_argument(why);
    for (int64_t v = 0; v < config.vector_count; ++v)
      dense_count = std::max<int64_t>(dense_count, -config.vectors[v]);
    for (int64_t t = 0; t < config.table_count; ++t) columns = std::max(columns, config.tables[3 * t] + 1);
    dim = config.dim;
    width = config.lead_count * dim + config.pair_count;
  }

  void compute(ort::KernelContext* context) const {
    int64_t rows;
    const RedlineIds ids = read_ids(api, context, columns, &rows);
    std::vector<const float*> dense;
    for (size_t d = 0; d < dense_count; ++d) dense.push_back(read_dense(api, context, first_dense + d, rows, dim));
    float* y = api.data<float>(api.output(context, 0, {rows, width}));
    char why[256] = "";
    if (!redline_embedding_interaction_run(made.get(), ids, dense.data(), rows, y, why, sizeof why))
      throw std::invalid_argument(why);
  }
};

const ort::Registered<Kernel> registered;

}  // namespace
}  // namespace redline
