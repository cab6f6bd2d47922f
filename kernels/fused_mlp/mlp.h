// A packed chain of layers and what it does to one block of rows; FusedMlp is this, FusedRecommender begins and ends in it.
#pragma once
#include <cstdint>
#include <memory>

#include "kernel.h"

namespace redline {

constexpr int64_t kBlockRows = 96;

// Knows its number format; what enters and what comes out are floats in each.
class Mlp {
 public:
  virtual ~Mlp() = default;
  virtual int64_t k() const = 0;
  virtual int64_t n() const = 0;
  virtual int64_t scratch_bytes() const = 0;
  // x [k] becomes this row in the scratch.
  virtual void enter(const float* x, int64_t row, char* scratch) const = 0;
  // Up to kBlockRows entered rows → y [rows, n].
  virtual void run(int64_t rows, float* y, char* scratch) const = 0;
};

// std::invalid_argument says what doesn't fit.
std::unique_ptr<Mlp> make_mlp(const RedlineLayer* layers, int64_t count);

// Calls body(first row, rows) for even blocks: no block of few rows after full ones.
template <class Body>
void for_blocks(int64_t rows, Body body) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t b = 0; b < blocks; ++b) body(rows * b / blocks, rows * (b + 1) / blocks - rows * b / blocks);
}

}  // namespace redline
