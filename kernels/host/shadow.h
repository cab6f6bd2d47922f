// What is where in memory, and who touched each byte of it last: bounds, uninitialized reads, races, bytes.
//
// A cell of shadow a byte holds its last accesses with the clocks of their threads. Two accesses are ordered by a
// barrier between them, or within a warp by __syncwarp; without an order, and one of them a write, they are a race.
#pragma once
#include <link.h>

#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "fibers.h"
#include "wire.h"

constexpr unsigned MAX_DYNAMIC = 227 << 10;
alignas(128) thread_local char redline_dynamic_shared[MAX_DYNAMIC];  // every `extern __shared__ x[]` is renamed to it

namespace {
Launch launch;
Report report, doubt;   // doubt: the first read of shared memory that nobody wrote; a race if another thread still does
unsigned block_number;  // + 1: 0 is before all blocks

// ---- this module in memory
uintptr_t module_start, module_bytes, shared_start, shared_bytes;

int find_module(dl_phdr_info* info, size_t, void*) {
  auto here = reinterpret_cast<uintptr_t>(&find_module);
  uintptr_t end = 0, tls = 0;
  bool mine = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    auto& h = info->dlpi_phdr[i];
    if (h.p_type == PT_TLS) tls = h.p_memsz;
    if (h.p_type != PT_LOAD) continue;
    end = h.p_vaddr + h.p_memsz;
    mine |= here - info->dlpi_addr - h.p_vaddr < h.p_memsz;
  }
  if (!mine) return 0;
  module_start = info->dlpi_addr, module_bytes = end;
  shared_start = reinterpret_cast<uintptr_t>(info->dlpi_tls_data), shared_bytes = tls;
  return 1;
}

// ---- reports; a bug ends the launch: the fibers are left where they are
Place here(Act act, const void* pc) {
  return {act, id(current), block_number - 1, 0, nullptr, reinterpret_cast<uintptr_t>(pc) - module_start};
}
Place here(Act act, const char* file, unsigned line) { return {act, id(current), block_number - 1, line, file, 0}; }
Place at(const Thread& t) {
  if (t.state == Thread::DONE) return {RETURNED, id(&t), block_number - 1, 0, nullptr, 0};
  return {t.state == Thread::AT_BARRIER ? BARRIER : COLLECTIVE, id(&t), block_number - 1, t.line, t.file, 0};
}
void fail(Bug bug, std::initializer_list<Place> places, int64_t buffer = 0, int64_t offset = 0, int64_t size = 0) {
  if (doubt.bug && bug != RACE) {
    report = doubt;
  } else {
    report.bug = bug, report.buffer = buffer, report.offset = offset, report.size = size;
    for (auto& p : places) report.place[report.places++] = p;
  }
  yield();
}

// ---- shadow
struct Access {
  uint64_t act : 2, thread : 10, clock : 20, pc : 32;  // so a block may synchronize a million times
};
struct Cell {
  Access write, read, read2, foreign;  // two readers of different warps; foreign: what an earlier block did
  unsigned block, foreign_block;       // + 1; the block of the first three
  bool written, flying;                // flying: the target of an asynchronous copy that nobody waited for
};
std::vector<Cell*> shadows;  // one a buffer, then shared memory's
std::vector<size_t> shadow_bytes;

Cell* make_shadow(size_t bytes) {
  size_t all = (bytes + 1) * sizeof(Cell);
  void* p = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  shadows.push_back(static_cast<Cell*>(p)), shadow_bytes.push_back(all);
  return shadows.back();
}

bool ordered(Access past, Access now) {
  return past.thread == now.thread || past.clock <= threads[past.thread].barrier_clock ||
         (past.thread / 32 == now.thread / 32 && past.clock <= current->seen[past.thread % 32]);
}
bool conflict(Access a, Access b) {
  return a.act != NOTHING && (a.act != READ || b.act != READ) && !(a.act == ATOMIC && b.act == ATOMIC);
}

void check_cell(Cell& cell, Access now, bool global, int64_t buffer, int64_t offset) {
  auto place = [](Access a, unsigned block) {
    return Place{Act(a.act), unsigned(a.thread), block - 1, 0, nullptr, a.pc};
  };
  auto mine = place(now, block_number);
  if (cell.block != block_number) {
    if (!global) cell = {};
    else if (cell.write.act) cell.foreign = cell.write, cell.foreign_block = cell.block;
    else if (!cell.foreign.act) cell.foreign = cell.read, cell.foreign_block = cell.block;
    cell.write = cell.read = cell.read2 = {};
    cell.block = block_number;
  }
  if (cell.flying) fail(IN_FLIGHT, {place(cell.write, block_number), mine}, buffer, offset);
  if (conflict(cell.foreign, now)) fail(BLOCK_RACE, {place(cell.foreign, cell.foreign_block), mine}, buffer, offset);
  for (Access a : {cell.write, cell.read, cell.read2})
    if (conflict(a, now) && !ordered(a, now)) fail(RACE, {place(a, block_number), mine}, buffer, offset);
  if (now.act == READ) {
    if (!global && !cell.written && !doubt.bug) doubt = {UNINITIALIZED, 1, {mine}, buffer, offset, 0, nullptr};
    bool first = !cell.read.act || ordered(cell.read, now);
    bool second = !cell.read2.act || ordered(cell.read2, now) || cell.read2.thread / 32 == cell.read.thread / 32;
    if (first) cell.read = now;
    else if (second) cell.read2 = now;
  } else {
    cell.written = true;
    bool just_written = cell.write.act == WRITE && cell.write.thread == now.thread && cell.write.clock == now.clock;
    if (now.act == WRITE || !just_written) cell.write = now;  // an atomic must not hide a plain write before it
  }
}

void touch(const void* p, size_t size, Act act, const void* pc, size_t aligned = 1) {
  auto at = reinterpret_cast<uintptr_t>(p);
  if (!current || at - reinterpret_cast<uintptr_t>(stacks) < MAX_THREADS * STACK) return;  // local memory
  auto dynamic = reinterpret_cast<uintptr_t>(redline_dynamic_shared);
  int64_t buffer = -1, offset = int64_t(at - shared_start);
  Cell* cells = shadows.back();
  if (at - shared_start < shared_bytes) {
    uintptr_t end = shared_start + shared_bytes;
    if (at - dynamic < MAX_DYNAMIC) buffer = -2, offset = int64_t(at - dynamic), end = dynamic + launch.smem;
    if (at + size > end) fail(SHARED_OUT_OF_BOUNDS, {here(act, pc)}, buffer, offset, int64_t(launch.smem));
    cells += at - shared_start;
  } else {
    unsigned i = 0, nearest = 0;
    auto distance = [&](unsigned k) {
      auto& [base, bytes, read, written] = launch.buffers[k];
      return at < base ? base - at : at + size > base + bytes ? at + size - base - bytes : 0;
    };
    for (; i < launch.buffer_count && distance(i); ++i)
      if (distance(i) < distance(nearest)) nearest = i;
    if (i == launch.buffer_count) {
      if (at - module_start < module_bytes) return;  // __constant__ and __device__ variables
      auto near = launch.buffer_count ? int64_t(at - launch.buffers[nearest].base) : 0;
      fail(OUT_OF_BOUNDS, {here(act, pc)}, nearest, near, int64_t(size));
    }
    buffer = i, offset = int64_t(at - launch.buffers[i].base), cells = shadows[i] + offset;
    if (act != WRITE) launch.buffers[i].read += size;
    if (act != READ) launch.buffers[i].written += size;
  }
  if (at % aligned) fail(MISALIGNED, {here(act, pc)}, buffer, offset, int64_t(aligned));
  Access now{act, id(current), current->clock, uint32_t(reinterpret_cast<uintptr_t>(pc) - module_start)};
  for (size_t k = 0; k < size; ++k) check_cell(cells[k], now, buffer >= 0, buffer, offset + int64_t(k));
}
}  // namespace
