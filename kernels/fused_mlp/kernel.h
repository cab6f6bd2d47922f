// The C entry of ai.redline::FusedMlp. Everything in a made kernel is read-only but its pool of scratch, which has a
// lock: one kernel may run on any number of threads at once.
#pragma once
#include <stdint.h>

#include "../common/api.h"

enum RedlineActivation { kRedlineNone = 0, kRedlineRelu = 1, kRedlineSigmoid = 2 };

struct RedlineLayer {
  const void* weight;         // [n, k]: int8, bfloat16 or float
  const float* weight_scale;  // [n], INT8 only
  const float* bias;          // [n]
  int64_t n, k;
  float input_scale;   // of the int8 numbers that enter, INT8 only
  int32_t activation;  // sigmoid: of the last layer only
  int32_t format;      // RedlineFormat, the same in all layers
};

struct RedlineFusedMlp;

// Packs the layers; they may be freed afterwards. Returns the kernel, or null with the reason in `why`.
REDLINE_API RedlineFusedMlp* redline_fused_mlp_create(const RedlineLayer* layers, int64_t count, char* why,
                                                      int64_t why_size);
// x [rows, k of the first layer] → y [rows, n of the last]; rows may be 0. False: no memory.
REDLINE_API bool redline_fused_mlp_run(RedlineFusedMlp* mlp, const float* x, int64_t rows, float* y);
REDLINE_API void redline_fused_mlp_free(RedlineFusedMlp* mlp);

// The roofline: runs the format's dot instruction on registers alone; returns how many multiply-adds that were (0: this
// can't be told here).
REDLINE_API int64_t redline_peak(int32_t format, int64_t steps);
