// Memory on a cache line, and a pool of it: a call takes scratch and gives it back, so that many may run at once.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace redline {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> zeros(int64_t count) {
  const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (p == nullptr) throw std::bad_alloc();
  std::memset(p, 0, bytes);
  return Buffer<T>(static_cast<T*>(p));
}

class Pool {
 public:
  Buffer<char> take(int64_t bytes) {  // always the same number
    {
      const std::lock_guard<std::mutex> hold(lock_);
      if (!free_.empty()) {
        auto taken = std::move(free_.back());
        free_.pop_back();
        return taken;
      }
    }
    return zeros<char>(bytes);
  }
  void give(Buffer<char> taken) {
    const std::lock_guard<std::mutex> hold(lock_);
    free_.push_back(std::move(taken));
  }

 private:
  std::mutex lock_;
  std::vector<Buffer<char>> free_;
};

}  // namespace redline
