// ai.redline::FusedRecommender on the CPU: a block of up to 96 rows goes through the whole model while it stays in cache.
//
// Per block: ask for the tables' rows (they arrive while the bottom MLPs compute), bottom MLPs, then row by row the
// interaction, whose floats leave L1 only as numbers of the top MLP's format; top MLP. The parts are FusedMlp's and
// EmbeddingInteraction's own, so the answer's bits are those of the three nodes one after another.
//
// Roofline: the sum of the parts'; from a dozen rows up the layers' dot instructions are most of it.
#include "kernel.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>

#include "../common/microkernel.h"
#include "../embedding_interaction/interaction.h"
#include "../fused_mlp/mlp.h"

using namespace redline;

struct RedlineFusedRecommender {
  Interaction interaction;
  std::vector<std::unique_ptr<Mlp>> bottoms;  // null: its dense vector enters as it is
  std::unique_ptr<Mlp> top;
  Pool pool;
  // where in the scratch: bottoms' own, the top's, the interaction's, dense vectors, one row, what was looked up
  int64_t top_at, interaction_at, dense_at, row_at, found_at, pointers_at, bytes;

  explicit RedlineFusedRecommender(const RedlineRecommender& c)
      : interaction(c.interaction), top(make_mlp(c.top.layers, c.top.count)) {
    int64_t most = 0;
    for (int64_t d = 0; d < interaction.dense_count(); ++d) {
      std::unique_ptr<Mlp> mlp;
      if (c.bottoms[d].count > 0) mlp = make_mlp(c.bottoms[d].layers, c.bottoms[d].count);
      if (mlp && mlp->n() != interaction.dim())
        throw std::invalid_argument("dense vector " + std::to_string(d) + " is " + std::to_string(mlp->n()) +
                                    " wide, the tables are " + std::to_string(interaction.dim()));
      most = std::max(most, mlp ? mlp->scratch_bytes() : 0);
      bottoms.push_back(std::move(mlp));
    }
    if (top->k() != interaction.width())
      throw std::invalid_argument("the top MLP takes " + std::to_string(top->k()) + " numbers, the interaction gives " +
                                  std::to_string(interaction.width()));
    const auto line = [](int64_t n) { return round_up(n, 64); };
    const int64_t count = interaction.dense_count();
    top_at = line(most);
    interaction_at = top_at + line(top->scratch_bytes());
    dense_at = interaction_at + line(interaction.scratch_bytes());
    row_at = dense_at + line(count * kBlockRows * interaction.dim() * 4);
    found_at = row_at + line(interaction.out_numbers() * 4);
    pointers_at = found_at + line(kBlockRows * interaction.tables() * 8);
    bytes = pointers_at + line(count * 8);
  }

  void run_block(const RedlineIds& ids, const float* const* dense, int64_t first, int64_t rows, float* y,
                 char* memory) const {
    auto* found = reinterpret_cast<int64_t*>(memory + found_at);
    auto* values = reinterpret_cast<float*>(memory + dense_at);
    auto* row = reinterpret_cast<float*>(memory + row_at);
    auto** vectors = reinterpret_cast<const float**>(memory + pointers_at);
    const int64_t dim = interaction.dim();
    interaction.look_up(ids, first, rows, found);
    for (size_t d = 0; d < bottoms.size(); ++d)
      if (const auto& mlp = bottoms[d]) {
        for (int64_t r = 0; r < rows; ++r) mlp->enter(dense[d] + (first + r) * mlp->k(), r, memory);
        mlp->run(rows, values + d * kBlockRows * dim, memory);
      }
    for (int64_t r = 0; r < rows; ++r) {
      for (size_t d = 0; d < bottoms.size(); ++d)
        vectors[d] = bottoms[d] ? values + (d * kBlockRows + r) * dim : dense[d] + (first + r) * dim;
      interaction.row(found + r * interaction.tables(), vectors, row, memory + interaction_at);
      top->enter(row, r, memory + top_at);
    }
    top->run(rows, y + first * top->n(), memory + top_at);
  }
};

RedlineFusedRecommender* redline_fused_recommender_create(const RedlineRecommender* config, char* why,
                                                          int64_t why_size) try {
  return new RedlineFusedRecommender(*config);
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "FusedRecommender: %s", e.what());
  return nullptr;
}

bool redline_fused_recommender_run(RedlineFusedRecommender* made, RedlineIds ids, const float* const* dense,
                                   int64_t rows, float* y, char* why, int64_t why_size) try {
  auto memory = made->pool.take(made->bytes);
  for_blocks(rows,
             [&](int64_t first, int64_t count) { made->run_block(ids, dense, first, count, y, memory.get()); });
  made->pool.give(std::move(memory));
  return true;
} catch (const std::exception& e) {
  std::snprintf(why, why_size, "%s", e.what());
  return false;
}

void redline_fused_recommender_free(RedlineFusedRecommender* made) { delete made; }
