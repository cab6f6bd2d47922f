// Look up, dot products of pairs, concat, for one row at a time; EmbeddingInteraction is this, FusedRecommender has it
// between its MLPs.
#pragma once
#include <string>
#include <vector>

#include "../common/buffer.h"
#include "../common/numbers.h"
#include "kernel.h"

namespace redline {

class Interaction {
 public:
  explicit Interaction(const RedlineInteraction& config);  // std::invalid_argument says what doesn't fit

  int64_t dim() const { return dim_; }
  int64_t tables() const { return static_cast<int64_t>(tables_.size()); }
  int64_t dense_count() const { return dense_count_; }
  int64_t width() const { return static_cast<int64_t>(lead_.size()) * dim_ + pair_count_; }
  int64_t out_numbers() const { return width() + 2 * kLanes; }  // room that a row needs: stores run over its end
  int64_t scratch_bytes() const { return scratch_bytes_; }

  // ids of `count` rows from `first` on → where each table's row begins, found [count][tables]; what is found is on its
  // way into the cache when this returns. Throws std::invalid_argument with feature, row and value.
  void look_up(const RedlineIds& ids, int64_t first, int64_t count, int64_t* found) const;
  // dense[d]: this row's dense vector d.
  void row(const int64_t* found, const float* const* dense, float* out, char* scratch) const {
    (this->*compute_)(found, dense, out, scratch);
  }

 private:
  struct Table {
    int64_t column, begin, size;
  };

  template <class Format>
  void take(const RedlineInteraction& config);
  template <class Format>
  void compute(const int64_t* found, const float* const* dense, float* out, char* scratch) const;
  const char* row_of(int64_t at) const { return rows_.get() + at * row_stride_; }
  template <class Format>
  int64_t groups() const;  // of a vector, a multiple of four

  void (Interaction::*compute_)(const int64_t*, const float* const*, float*, char*) const = nullptr;
  Buffer<char> rows_;  // [all][row_stride_]: a row; of int8 its scale, too, so that both come with one cache line
  int64_t dim_, row_bytes_ = 0, row_stride_ = 0, scratch_bytes_ = 0, dense_count_ = 0, pair_count_;
  std::vector<Table> tables_;
  std::vector<int64_t> vectors_, lead_;
  std::vector<int32_t> place_;  // of each pair in the lower triangle; empty: they lie as they go out
};

}  // namespace redline
