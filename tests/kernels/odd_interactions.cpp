// Reads lines "format rows dim sizes… / vectors… / lead…" and runs EmbeddingInteraction on each, on two threads; for
// sanitizers.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "embedding_interaction/kernel.h"

static std::vector<int64_t> numbers(std::istream& words) {
  std::vector<int64_t> found;
  for (std::string word; words >> word && word != "/";) found.push_back(std::stoll(word));
  return found;
}

int main() {
  int ran = 0;
  for (std::string line; std::getline(std::cin, line); ++ran) {
    std::istringstream words(line);
    int64_t rows, dim;
    int32_t format;
    words >> format >> rows >> dim;
    const auto sizes = numbers(words), vectors = numbers(words), lead = numbers(words);
    const int64_t n = vectors.size(), count = sizes.size();
    std::vector<int64_t> tables, pairs, ids(rows * count);
    int64_t all = 0, dense_count = 0;
    for (int64_t t = 0; t < count; all += sizes[t++]) tables.insert(tables.end(), {t, all, sizes[t]});
    for (int64_t v : vectors) dense_count = std::max(dense_count, -v);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < i; ++j) pairs.push_back(i * n + j);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < count; ++t) ids[r * count + t] = r % 2 ? sizes[t] - 1 : 0;
    std::vector<float> floats(all * dim, 0.25f), scale(all, 0.5f);
    std::vector<int8_t> steps(all * dim, 3);
    std::vector<uint16_t> halves(all * dim, 0x3E80);
    const void* tables_of[] = {steps.data(), halves.data(), floats.data()};
    std::vector<std::vector<float>> dense(dense_count, std::vector<float>(rows * dim, 1.5f));
    std::vector<const float*> at;
    for (const auto& d : dense) at.push_back(d.data());
    const RedlineInteraction config{tables_of[format], format == kRedlineInt8 ? scale.data() : nullptr, tables.data(), vectors.data(), lead.data(),
                                    pairs.data(), dim, all, count, n, static_cast<int64_t>(lead.size()),
                                    static_cast<int64_t>(pairs.size()), format};
    char why[256] = "", other[256] = "";
    auto* made = redline_embedding_interaction_create(&config, why, sizeof why);
    if (made == nullptr) return std::puts(why), 1;
    const RedlineIds asked{ids.data(), count, 1};
    std::vector<float> y(rows * (lead.size() * dim + pairs.size())), z(y.size());
    std::thread beside(
        [&] { redline_embedding_interaction_run(made, asked, at.data(), rows, z.data(), other, sizeof other); });
    const bool good = redline_embedding_interaction_run(made, asked, at.data(), rows, y.data(), why, sizeof why);
    beside.join();
    if (!good || y != z) return std::puts("two threads, two answers"), 1;
    if (rows > 0) {
      ids.back() = sizes.back();
      if (redline_embedding_interaction_run(made, asked, at.data(), rows, y.data(), why, sizeof why))
        return std::puts("an id that no table has"), 1;
    }
    redline_embedding_interaction_free(made);
  }
  std::printf("ran %d\n", ran);
}
