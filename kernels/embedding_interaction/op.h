// An interaction as it stands among a node's constant inputs (operator.py), and a request's ids and dense vectors.
#pragma once
#include "../common/ort.h"
#include "kernel.h"

namespace redline {

// From input `at` on: table, row_scale, tables, vectors, lead, pairs. Moves `at` behind them.
RedlineInteraction read_interaction(const ort::Api& api, const ort::KernelInfo* info, size_t& at);

// Input `index`, [rows, at least `columns`] of int32 or int64 ([rows] counts as one column).
RedlineIds read_ids(const ort::Api& api, const ort::KernelContext* context, int64_t columns, int64_t* rows);

// Input `index`, [rows, width] float32.
const float* read_dense(const ort::Api& api, const ort::KernelContext* context, size_t index, int64_t rows,
                        int64_t width);

}  // namespace redline
