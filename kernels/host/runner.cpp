// Runs a .cu on the CPU: blocks one after the other, threads as fibers in a chosen order.
//
// The .cu is compiled with -fsanitize=thread,bounds but linked with the __tsan_* and __ubsan_* of this file in place of
// the sanitizers' own, so each load and store arrives here with its address, size and program counter.
#include <algorithm>
#include <cstring>

#include "shadow.h"

struct uint3 { unsigned x, y, z; };
extern "C" uint3 threadIdx, blockIdx, blockDim, gridDim;  // const for the kernel, see device.h
uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
unsigned count, finished, arrived;  // of the block's threads

// ---- barriers and collectives
void meet() {
  if (doubt.bug) fail(UNINITIALIZED, {});
  for (Thread* t = threads; t < threads + count; ++t) t->state = Thread::READY, t->barrier_clock = t->clock++;
  arrived = 0;
}

// True once every live lane of t's mask waits for the same; then it is done for all of them.
bool complete(Thread* t) {
  Thread* warp = threads + id(t) / 32 * 32;
  void* operands[32] = {};
  unsigned lanes = count - id(warp) < 32 ? count - id(warp) : 32;
  for (unsigned i = 0; i < lanes; ++i) {
    Thread& other = warp[i];
    if (!(t->mask >> i & 1) || other.state == Thread::DONE) continue;
    if (other.state != Thread::IN_COLLECTIVE) return false;
    if (other.mask != t->mask || other.line != t->line || (other.file != t->file && strcmp(other.file, t->file)))
      fail(DIVERGENCE, {at(other), at(*t)});
    operands[i] = other.compute ? other.operand : &other;
  }
  if (t->compute) t->compute(operands);
  else  // __syncwarp: what each lane knew and did is before all of them
    for (unsigned j = 0; j < lanes; ++j) {
      unsigned newest = 0;
      for (unsigned i = 0; i < lanes; ++i)
        if (operands[i]) newest = std::max(newest, i == j ? warp[i].clock : warp[i].seen[j]);
      for (unsigned i = 0; i < lanes; ++i)
        if (operands[i]) warp[i].seen[j] = newest;
    }
  for (unsigned i = 0; i < lanes; ++i)
    if (operands[i]) warp[i].state = Thread::READY, warp[i].clock += !t->compute;
  return true;
}

void fiber_main() {
  for (;;) {
    launch.call(launch.args);
    current->state = Thread::DONE, ++finished;
    Thread* warp = threads + id(current) / 32 * 32;
    for (Thread* t = warp; t < warp + 32 && t < threads + count; ++t)  // a lane that leaves may be the last one awaited
      if (t->state == Thread::IN_COLLECTIVE) complete(t);
    yield();
  }
}

void deadlock() {
  report.bug = DIVERGENCE;
  for (Thread* t = threads; t < threads + count && report.places < 4; ++t) {
    Place p = at(*t);
    bool known = false;
    for (unsigned i = 0; i < report.places; ++i)
      known |= report.place[i].act == p.act && report.place[i].line == p.line;
    if (!known) report.place[report.places++] = p;
  }
}

// ---- asynchronous copies: a thread's own, in groups
struct Copy {
  void* to;
  const void *from, *pc;
  size_t size, zeros;
  unsigned group;
};
std::vector<Copy> copies[MAX_THREADS];
unsigned groups[MAX_THREADS];

void set_flying(const Copy& copy, bool flying) {
  auto offset = reinterpret_cast<uintptr_t>(copy.to) - shared_start;
  for (size_t i = 0; copy.pc && i < copy.size; ++i) shadows.back()[offset + i].flying = flying;
}

// ---- the scheduler
uint64_t random_state;
unsigned random_below(unsigned n) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return unsigned(random_state % n);
}
void arrange(std::vector<unsigned>& order) {
  if (launch.order == 2)
    for (unsigned i = unsigned(order.size()); i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
}
std::vector<unsigned> sequence(unsigned n) {
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) order[i] = launch.order == 1 ? n - 1 - i : i;
  return order;
}

void run_block(unsigned block, std::vector<unsigned>& order) {
  auto grid = launch.grid;
  blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
  block_number = block + 1, finished = arrived = 0;
  auto dynamic = reinterpret_cast<uintptr_t>(redline_dynamic_shared);  // garbage, as on the device: NaN where a float
  memset(reinterpret_cast<void*>(shared_start), 0xff, dynamic - shared_start);
  memset(reinterpret_cast<void*>(dynamic), 0xff, launch.smem);
  memset(reinterpret_cast<void*>(dynamic + MAX_DYNAMIC), 0xff, shared_start + shared_bytes - dynamic - MAX_DYNAMIC);
  for (unsigned i = 0; i < count; ++i) {
    threads[i].state = Thread::READY, threads[i].clock = 1, threads[i].barrier_clock = 0;
    memset(threads[i].seen, 0, sizeof(threads[i].seen));
    copies[i].clear(), groups[i] = 0;
  }
  while (finished < count) {
    arrange(order);
    bool moved = false;
    for (unsigned i : order) {
      if (threads[i].state != Thread::READY) continue;
      current = &threads[i], moved = true;
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      resume(current);
      current = report.bug ? nullptr : current;
      if (report.bug) return;
    }
    if (!moved) return deadlock();
  }
  report = doubt;
}
}  // namespace

// ---- what device.h calls
namespace redline {
using Compute = void (*)(void**);
void touch_atomic(const void* p, size_t size, const void* pc) { touch(p, size, ATOMIC, pc, size); }
void touch_read(const void* p, size_t size, const void* pc) { touch(p, size, READ, pc, size); }
void bad_lane(int source, const char* file, unsigned line) { fail(LANE, {here(COLLECTIVE, file, line)}, 0, source); }
unsigned lane() { return id(current) % 32; }

void barrier(const char* file, unsigned line) {
  for (Thread* t = threads; arrived && t < threads + count; ++t) {
    if (t->state != Thread::AT_BARRIER) continue;
    if (t->line != line || strcmp(t->file, file)) fail(DIVERGENCE, {at(*t), here(BARRIER, file, line)});
    break;  // the others were compared with it
  }
  current->state = Thread::AT_BARRIER, current->file = file, current->line = line;
  if (++arrived == count) meet();  // a thread that has left is missed for ever: that block deadlocks
  else yield();
}

void collective(unsigned mask, Compute compute, void* operand, const char* file, unsigned line) {
  Thread* me = current;
  if (!(mask >> lane() & 1)) bad_lane(int(lane()), file, line);
  me->state = Thread::IN_COLLECTIVE, me->mask = mask, me->compute = compute, me->operand = operand;
  me->file = file, me->line = line;
  if (!complete(me)) yield();
}

void copy_async(void* to, const void* from, size_t size, size_t zeros, const void* pc) {
  Copy copy{to, from, pc, size, zeros, groups[id(current)]};
  if (pc) {
    touch(from, size - zeros, READ, pc, size);
    touch(to, size, WRITE, pc, size);
    set_flying(copy, true);
  }
  copies[id(current)].push_back(copy);
}
void commit_copies() { ++groups[id(current)]; }
void wait_copies(size_t newest) {
  auto& mine = copies[id(current)];
  size_t done = 0;
  for (; done < mine.size() && mine[done].group + newest < groups[id(current)]; ++done) {
    const Copy& copy = mine[done];
    memcpy(copy.to, copy.from, copy.size - copy.zeros);
    memset(static_cast<char*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
    set_flying(copy, false);
    if (copy.pc) touch(copy.to, copy.size, WRITE, copy.pc);
  }
  mine.erase(mine.begin(), mine.begin() + long(done));
}
}  // namespace redline

// ---- what g++ calls
#define PC __builtin_return_address(0)
#define ACCESS(size)                                                      \
  void __tsan_read##size(void* p) { touch(p, size, READ, PC, size); }     \
  void __tsan_write##size(void* p) { touch(p, size, WRITE, PC, size); }   \
  void __tsan_unaligned_read##size(void* p) { touch(p, size, READ, PC); } \
  void __tsan_unaligned_write##size(void* p) { touch(p, size, WRITE, PC); }
extern "C" {
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* p, size_t size) { touch(p, size, READ, PC); }
void __tsan_write_range(void* p, size_t size) { touch(p, size, WRITE, PC); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct Source { const char* file; unsigned line, column; };
struct Type { uint16_t kind, info; char name[1]; };
struct Bounds { Source source; Type *array, *index; };
void __ubsan_handle_out_of_bounds(Bounds* data, uintptr_t index) {
  if (!current) return;
  report.type = data->array->name;
  fail(SHARED_OUT_OF_BOUNDS, {here(NOTHING, data->source.file, data->source.line)}, -1, int64_t(index));
}

__attribute__((visibility("default"))) void redline_run(const Launch* what, Report* out) {
  *const_cast<volatile char*>(redline_dynamic_shared) = 0;  // a module's TLS exists once it was touched
  dl_iterate_phdr(find_module, nullptr);
  launch = *what, report = doubt = {};
  auto [x, y, z] = launch.block;
  count = x * y * z, blockDim = {x, y, z}, gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  random_state = launch.seed * 0x9e3779b97f4a7c15u + 1;
  make_stacks();
  for (unsigned i = 0; i < launch.buffer_count; ++i) make_shadow(launch.buffers[i].bytes);
  make_shadow(shared_bytes);
  for (unsigned i = 0; i < count; ++i) make_fiber(i, fiber_main);
  auto blocks = sequence(gridDim.x * gridDim.y * gridDim.z), order = sequence(count);
  arrange(blocks);
  for (unsigned block : blocks)
    if (!report.bug) run_block(block, order);
  current = nullptr;
  for (size_t i = 0; i < shadows.size(); ++i) munmap(shadows[i], shadow_bytes[i]);
  shadows.clear(), shadow_bytes.clear();
  *out = report;
}
}
