// Reads lines that each describe an operator, and runs it on THREADS threads at once (the argument), every one with its
// own rows: under sanitizers and valgrind. Buffers have the exact size, so a stray access shows.
//
//   mlp rows format activation / widths…
//   interaction rows format dim / sizes… / vectors… / lead…
//   recommender rows format dim / sizes… / vectors… / lead… / top's widths after the first… [/ a bottom's widths…]…
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "fused_recommender/kernel.h"

namespace {

using Numbers = std::vector<int64_t>;
using Floats = std::vector<float>;
// (whose rows, with an id that no table has, y, why): false where the operator said no.
using Run = std::function<bool(int64_t seed, bool wrong, Floats& y, char* why)>;
constexpr int64_t kWhy = 256;

Floats some(int64_t count, int64_t seed) {
  Floats x(count, 1e30f);
  for (int64_t i = 0; i < count; ++i)
    if (i % 29 != 7) x[i] = static_cast<float>((i * 5 + seed * 3) % 17) - 8.0f;
  return x;
}

int64_t bytes_of(int32_t format) { return format == kRedlineInt8 ? 1 : format == kRedlineBf16 ? 2 : 4; }

// As floats: 0.01 and around.
std::vector<int8_t> numbers(int64_t count, int32_t format) {
  const int64_t bytes = bytes_of(format);
  std::vector<int8_t> made(count * bytes);
  for (size_t i = 0; i < made.size(); ++i)
    made[i] = static_cast<int8_t>(format == kRedlineInt8 ? i * 37 + 11 : (i + 1) % bytes == 0 ? 0x3C : i);
  return made;
}

struct Chain {
  std::vector<std::vector<int8_t>> weights;
  std::vector<Floats> floats;
  std::vector<RedlineLayer> layers;

  Chain(const Numbers& widths, int32_t format, int32_t last) {
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      const int64_t k = widths[i], n = widths[i + 1];
      weights.push_back(numbers(n * k, format));
      floats.emplace_back(n, 0.01f);
      RedlineLayer layer{};
      layer.weight = weights.back().data();
      layer.weight_scale = layer.bias = floats.back().data();
      layer.n = n, layer.k = k, layer.input_scale = 0.05f, layer.format = format;
      layer.activation = i + 2 == widths.size() ? last : static_cast<int32_t>(kRedlineRelu);
      layers.push_back(layer);
    }
  }
  RedlineChain get() const { return {layers.data(), static_cast<int64_t>(layers.size())}; }
};

struct Tables {
  int64_t rows, dim, all = 0, dense = 0;
  Numbers sizes, vectors, lead, tables, pairs;
  Floats scale;
  std::vector<int8_t> table;
  int32_t format;

  explicit Tables(const std::vector<Numbers>& parts)
      : rows(parts[0][0]), dim(parts[0][2]), sizes(parts[1]), vectors(parts[2]), lead(parts[3]),
        format(static_cast<int32_t>(parts[0][1])) {
    for (int64_t t = 0; t < count(); all += sizes[t++]) tables.insert(tables.end(), {t, all, sizes[t]});
    for (int64_t v : vectors) dense = std::max(dense, -v);
    const int64_t n = vectors.size();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < i; ++j) pairs.push_back(i * n + j);
    table = numbers(all * dim, format), scale.assign(format == kRedlineInt8 ? all : 0, 0.5f);
  }
  int64_t count() const { return sizes.size(); }
  int64_t width() const { return lead.size() * dim + pairs.size(); }
  RedlineInteraction get() const {
    return {table.data(), scale.empty() ? nullptr : scale.data(), tables.data(), vectors.data(), lead.data(),
            pairs.data(), dim, all, count(), static_cast<int64_t>(vectors.size()), static_cast<int64_t>(lead.size()),
            static_cast<int64_t>(pairs.size()), format};
  }
  // Both ends of every table among them; int32 for every other caller.
  template <class Call>
  bool ask(int64_t seed, bool wrong, const Numbers& widths, Call call) const {
    Numbers ids(rows * count());
    for (int64_t i = 0; i < rows * count(); ++i) {
      const int64_t size = sizes[i % count()], r = i / count() + seed;
      ids[i] = r % 3 == 0 ? 0 : r % 3 == 1 ? size - 1 : r % size;
    }
    if (wrong) ids.back() = sizes.back();
    const std::vector<int32_t> narrow(ids.begin(), ids.end());
    std::vector<Floats> values;
    std::vector<const float*> at;
    for (int64_t d = 0; d < dense; ++d) values.push_back(some(rows * widths[d], seed + d));
    for (const auto& v : values) at.push_back(v.data());
    const bool wide = seed % 2 == 0;
    return call(RedlineIds{wide ? static_cast<const void*>(ids.data()) : narrow.data(), count(), wide}, at.data());
  }
};

template <class Kernel>
std::shared_ptr<Kernel> made(Kernel* kernel, void (*release)(Kernel*), const char* why) {
  if (kernel == nullptr) std::puts(why), std::exit(1);
  return {kernel, release};
}

Run mlp(const std::vector<Numbers>& parts) {
  char why[kWhy] = "";
  const int64_t rows = parts[0][0], k = parts[1].front(), n = parts[1].back();
  const Chain chain(parts[1], static_cast<int32_t>(parts[0][1]), static_cast<int32_t>(parts[0][2]));
  const auto kernel =
      made(redline_fused_mlp_create(chain.layers.data(), chain.layers.size(), why, kWhy), redline_fused_mlp_free, why);
  return [=](int64_t seed, bool, Floats& y, char*) {
    const Floats x = some(rows * k, seed);
    y.assign(rows * n, 0.0f);
    return redline_fused_mlp_run(kernel.get(), x.data(), rows, y.data());
  };
}

Run interaction(const std::vector<Numbers>& parts) {
  char why[kWhy] = "";
  const auto tables = std::make_shared<Tables>(parts);
  const auto config = tables->get();
  const auto kernel =
      made(redline_embedding_interaction_create(&config, why, kWhy), redline_embedding_interaction_free, why);
  return [=](int64_t seed, bool wrong, Floats& y, char* said) {
    y.assign(tables->rows * tables->width(), 0.0f);
    return tables->ask(seed, wrong, Numbers(tables->dense, tables->dim), [&](RedlineIds ids, const float* const* dense) {
      return redline_embedding_interaction_run(kernel.get(), ids, dense, tables->rows, y.data(), said, kWhy);
    });
  };
}

Run recommender(const std::vector<Numbers>& parts) {
  char why[kWhy] = "";
  const auto tables = std::make_shared<Tables>(parts);
  Numbers top{tables->width()}, widths(tables->dense, tables->dim);
  top.insert(top.end(), parts[4].begin(), parts[4].end());
  const Chain last(top, tables->format, kRedlineSigmoid);
  std::vector<Chain> bottoms;
  std::vector<RedlineChain> chains;
  for (int64_t d = 0; d < tables->dense; ++d) {  // one without a bottom enters as it is
    bottoms.emplace_back(d + 5 < static_cast<int64_t>(parts.size()) ? parts[d + 5] : Numbers{}, tables->format, kRedlineRelu);
    chains.push_back(bottoms.back().get());
    if (!bottoms.back().layers.empty()) widths[d] = parts[d + 5].front();
  }
  const RedlineRecommender config{tables->get(), chains.data(), last.get()};
  const auto kernel = made(redline_fused_recommender_create(&config, why, kWhy), redline_fused_recommender_free, why);
  return [=, n = top.back()](int64_t seed, bool wrong, Floats& y, char* said) {
    y.assign(tables->rows * n, 0.0f);
    return tables->ask(seed, wrong, widths, [&](RedlineIds ids, const float* const* dense) {
      return redline_fused_recommender_run(kernel.get(), ids, dense, tables->rows, y.data(), said, kWhy);
    });
  };
}

// To the bit: a sum of floats may be none.
bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// What each thread should answer is asked for alone first; then all at once, and every third thread errs in between.
bool agree(const Run& run, int64_t threads, bool can_err) {
  std::vector<Floats> wanted(threads);
  std::vector<std::thread> running;
  std::vector<int> good(threads, 0);
  char why[kWhy] = "";
  for (int64_t t = 0; t < threads; ++t)
    if (!run(t, false, wanted[t], why)) return std::puts(why), false;
  for (int64_t t = 0; t < threads; ++t)
    running.emplace_back([&, t] {
      Floats y;
      char said[kWhy] = "";
      const auto right = [&] { return run(t, false, y, said) && same(y, wanted[t]); };
      const auto refused = [&] { return !run(t, true, y, said) && std::strstr(said, "is not in 0..") != nullptr; };
      good[t] = right() && (!can_err || t % 3 != 0 || (refused() && right()));
    });
  for (auto& thread : running) thread.join();
  return std::count(good.begin(), good.end(), 1) == threads;
}

}  // namespace

int main(int, char** arguments) {
  const int64_t threads = std::stoll(arguments[1]);
  int ran = 0;
  for (std::string line; std::getline(std::cin, line); ++ran) {
    std::istringstream words(line);
    std::string kind, word;
    std::vector<Numbers> parts(1);
    for (words >> kind; words >> word;)
      if (word == "/") parts.emplace_back();
      else parts.back().push_back(std::stoll(word));
    const Run run = kind == "mlp" ? mlp(parts) : kind == "interaction" ? interaction(parts) : recommender(parts);
    if (!agree(run, threads, kind != "mlp" && parts[0][0] > 0))
      return std::printf("another answer, or none: %s\n", line.c_str()), 1;
  }
  std::printf("ran %d\n", ran);
}
