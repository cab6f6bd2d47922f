// The C entry of ai.redline::FusedRecommender. One kernel may run on any number of threads at once.
#pragma once
#include "../embedding_interaction/kernel.h"
#include "../fused_mlp/kernel.h"

struct RedlineChain {
  const RedlineLayer* layers;
  int64_t count;  // of a dense vector's chain 0: it enters as it is
};

struct RedlineRecommender {
  RedlineInteraction interaction;  // its table must outlive the kernel
  const RedlineChain* bottoms;     // one a dense vector; each ends in dim numbers
  RedlineChain top;                // begins with what the interaction gives
};

struct RedlineFusedRecommender;

REDLINE_API RedlineFusedRecommender* redline_fused_recommender_create(const RedlineRecommender* config, char* why,
                                                                      int64_t why_size);
// dense: [rows, k of its chain, or dim] each → y [rows, n of top's last layer]. False: `why` says what is wrong.
REDLINE_API bool redline_fused_recommender_run(RedlineFusedRecommender* made, RedlineIds ids, const float* const* dense,
                                               int64_t rows, float* y, char* why, int64_t why_size);
REDLINE_API void redline_fused_recommender_free(RedlineFusedRecommender* made);
