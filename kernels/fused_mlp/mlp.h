// A packed chain of layers and what it does to one block of rows; FusedMlp is this, FusedRecommender begins and ends in it.
#pragma once
#include <string>
#include <vector>

#include "../common/buffer.h"
#include "../common/steps.h"
#include "kernel.h"

namespace redline {

constexpr int64_t kBlockRows = 96;

struct Packed {
  int64_t n, k, groups, panels;
  int activation;
  float output_scale;            // of the next layer's input; the last layer has none
  Buffer<Int8::Weight> weights;  // [panels][groups][columns of a panel][numbers of a group]
  Buffer<int32_t> start;         // [columns]: undoes kOffset
  Buffer<float> factor, bias;    // [columns]
  int64_t panel_bytes() const { return groups * 2 * kLanes * 4; }
  int64_t width() const { return panels * 2 * kLanes; }
};

class Mlp {
 public:
  Mlp(const RedlineLayer* layers, int64_t count);  // std::invalid_argument says what doesn't fit

  int64_t k() const { return layers_.front().k; }
  int64_t n() const { return layers_.back().n; }
  int64_t scratch_bytes() const { return 2 * steps_bytes() + kBlockRows * layers_.back().width() * 4; }

  // A row that enters: x [k] → steps in the scratch.
  void enter(const float* x, int64_t row, char* scratch) const {
    quantize_row(x, k(), input_scale_, reinterpret_cast<Step*>(scratch) + row * stride_);
  }
  // Up to kBlockRows entered rows → y [rows, n].
  void run(int64_t rows, float* y, char* scratch) const;

 private:
  int64_t steps_bytes() const { return kBlockRows * stride_ * static_cast<int64_t>(sizeof(Step)); }

  std::vector<Packed> layers_;
  float input_scale_;
  int64_t stride_ = 0;  // of a row of steps, in numbers
};

// Calls body(first row, rows) for even blocks: no block of few rows after full ones.
template <class Body>
void for_blocks(int64_t rows, Body body) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t b = 0; b < blocks; ++b) body(rows * b / blocks, rows * (b + 1) / blocks - rows * b / blocks);
}

}  // namespace redline
