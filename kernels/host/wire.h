// What goes between runner.cpp and Python: run.py and bug.py have the same structures and names, in this order.
#pragma once
#include <cstdint>

enum Bug : unsigned {
  FINE, OUT_OF_BOUNDS, SHARED_OUT_OF_BOUNDS, UNINITIALIZED, RACE, BLOCK_RACE, DIVERGENCE, MISALIGNED, LANE, IN_FLIGHT
};
enum Act : unsigned { NOTHING, READ, WRITE, ATOMIC, BARRIER, COLLECTIVE, RETURNED };

struct Place {
  Act act;
  unsigned thread, block, line;  // line and file where the shim knows them, else pc
  const char* file;
  uintptr_t pc;  // from the module's start
};
struct Report {
  Bug bug;
  unsigned places;
  Place place[4];
  int64_t buffer, offset, size;  // buffer -1: static shared memory, -2: dynamic
  const char* type;              // of the array whose bounds were left, where g++ knows it
};
struct Buffer {
  uintptr_t base;
  uint64_t bytes, read, written;
};
struct Launch {
  void (*call)(void**);
  void** args;
  Buffer* buffers;
  unsigned buffer_count, grid[3], block[3], smem, order;  // order: 0 forward, 1 reverse, 2 random
  uint64_t seed;
};
