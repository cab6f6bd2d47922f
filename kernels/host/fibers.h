// A fiber a thread of the block: state, stacks, and a switch of ten instructions.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace {
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = (96 << 10) + 192;  // off a power of two: equal stack depths must not share a cache set

struct Thread {
  void* sp;
  enum { READY, AT_BARRIER, IN_COLLECTIVE, DONE } state;
  unsigned clock, barrier_clock;  // own time; own time when the block last met
  unsigned seen[32];              // the time of each lane of the warp that is known to be before
  unsigned mask, line;            // of what it waits for
  const char* file;
  void (*compute)(void**);
  void* operand;
};
Thread threads[MAX_THREADS], *current;
char* stacks;

unsigned id(const Thread* t) { return unsigned(t - threads); }

void make_stacks() {
  if (stacks) return;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) __builtin_trap();
  stacks = static_cast<char*>(p);
}

#ifdef __x86_64__
void* scheduler_sp;
extern "C" void redline_switch(void** save, void* to);
asm(R"(
.text
.type redline_switch, @function
redline_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
void make_fiber(unsigned i, void (*entry)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stacks) + (i + 1) * STACK) & ~uintptr_t(15));
  *--top = nullptr;  // as if called: the stack is off 16 by 8
  *--top = reinterpret_cast<void*>(entry);
  threads[i].sp = top - 6;
}
void resume(Thread* t) { redline_switch(&scheduler_sp, t->sp); }
void yield() { redline_switch(&current->sp, scheduler_sp); }
#else
ucontext_t scheduler_context, contexts[MAX_THREADS];
void make_fiber(unsigned i, void (*entry)()) {
  getcontext(&contexts[i]);
  contexts[i].uc_stack.ss_sp = stacks + i * STACK;
  contexts[i].uc_stack.ss_size = STACK;
  makecontext(&contexts[i], entry, 0);
}
void resume(Thread* t) { swapcontext(&scheduler_context, &contexts[t - threads]); }
void yield() { swapcontext(&contexts[current - threads], &scheduler_context); }
#endif
}  // namespace
