// The C entry of ai.redline::EmbeddingInteraction. As with FusedMlp, one kernel may run on any number of threads at once.
#pragma once
#include <stdint.h>

#include "../common/api.h"

struct RedlineInteraction {
  const void* rows;         // [all, dim], every table below the other; int8, bfloat16 or float
  const float* row_scale;   // [all], INT8 only, else null
  const int64_t* tables;    // [tables, 3]: which column of ids, first row, rows
  const int64_t* vectors;   // [vectors]: the table, or -1 - d for dense vector d
  const int64_t* lead;      // [leads]: vectors that go out as they are
  const int64_t* pairs;     // [pairs]: i * vectors + j of each dot product that goes out, i and j not the same
  int64_t dim, all, table_count, vector_count, lead_count, pair_count;
  int32_t format;  // RedlineFormat
};

struct RedlineIds {
  const void* ids;  // [rows, columns]
  int64_t columns;
  int32_t wide;  // int64, else int32
};

struct RedlineEmbeddingInteraction;

REDLINE_API RedlineEmbeddingInteraction* redline_embedding_interaction_create(const RedlineInteraction* config, char* why,
                                                                              int64_t why_size);
// dense: one [rows, dim] a dense vector → y [rows, leads * dim + pairs]. False: `why` says what is wrong with the ids.
REDLINE_API bool redline_embedding_interaction_run(RedlineEmbeddingInteraction* made, RedlineIds ids,
                                                   const float* const* dense, int64_t rows, float* y, char* why,
                                                   int64_t why_size);
REDLINE_API void redline_embedding_interaction_free(RedlineEmbeddingInteraction* made);
