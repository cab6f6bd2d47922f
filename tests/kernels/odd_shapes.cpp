// Reads lines "rows width width …" and runs FusedMlp on each in every format with every last activation, on two threads;
// for sanitizers.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "fused_mlp/kernel.h"

int main() {
  int ran = 0;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    int64_t rows, width;
    std::vector<int64_t> widths;
    words >> rows;
    while (words >> width) widths.push_back(width);
    for (int32_t which = 0; which < 9; ++which) {
      const int32_t format = which / 3, last = which % 3;
      const int64_t bytes = format == kRedlineInt8 ? 1 : format == kRedlineBf16 ? 2 : 4;
      std::vector<std::vector<int8_t>> weights;
      std::vector<std::vector<float>> floats;
      std::vector<RedlineLayer> layers;
      for (size_t i = 0; i + 1 < widths.size(); ++i) {
        const int64_t k = widths[i], n = widths[i + 1];
        weights.emplace_back(n * k * bytes);  // as floats: 0.02 and around
        for (size_t j = 0; j < weights.back().size(); ++j)
          weights.back()[j] = static_cast<int8_t>(format == kRedlineInt8 ? j * 37 + 11 : (j + 1) % bytes == 0 ? 0x3C : j);
        floats.emplace_back(n, 0.01f);
        layers.push_back({weights.back().data(), floats.back().data(), floats.back().data(), n, k, 0.05f,
                          i + 2 == widths.size() ? last : kRedlineRelu, format});
      }
      char why[256];
      RedlineFusedMlp* mlp = redline_fused_mlp_create(layers.data(), layers.size(), why, sizeof why);
      if (mlp == nullptr) return std::puts(why), 1;
      std::vector<float> x(rows * widths.front(), 1e30f), y(rows * widths.back()), z(y.size());
      for (size_t i = 0; i < x.size(); ++i)
        if (i % 3 != 0) x[i] = static_cast<float>(i % 17) - 8.0f;
      std::thread beside([&] { redline_fused_mlp_run(mlp, x.data(), rows, z.data()); });
      const bool good = redline_fused_mlp_run(mlp, x.data(), rows, y.data());
      beside.join();
      if (!good || y != z) return std::puts("two threads, two answers"), 1;
      redline_fused_mlp_free(mlp);
      ++ran;
    }
  }
  std::printf("ran %d\n", ran);
}
