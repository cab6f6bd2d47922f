// Layers as they stand among a node's constant inputs (operator.py): FusedMlp's, and those within FusedRecommender.
#pragma once
#include "../common/ort.h"
#include "kernel.h"

namespace redline {

// A RedlineFormat by a constant's element type.
int32_t format_of(int type, const std::string& what);

// From input `at` on: input_scales, activations, then weight, weight_scale, bias a layer. Moves `at` behind them.
std::vector<RedlineLayer> read_layers(const ort::Api& api, const ort::KernelInfo* info, size_t& at);

}  // namespace redline
