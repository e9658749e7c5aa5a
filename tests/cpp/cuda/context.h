#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// A stack that is not running, and where on it to go on.
namespace torch_ext::simt {

#if defined(__x86_64__)

struct Context {
  void** top;
};

// Leaves the registers that a function must keep on this stack, and goes on where the other was left. The library's
// swapcontext makes a system call each time, which takes ten times as long as all else that the emulator does.
__attribute__((naked, noinline)) inline void switch_context(Context* /*from*/, const Context* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq (%rsi), %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

// As if `function`, which never returns, had been called from nowhere and then left: what is popped is six registers
// and its address, and a function starts with the stack's top 8 bytes off a multiple of 16.
inline void make_context(Context* context, char* stack, size_t bytes, void (*function)()) {
  void** const caller = reinterpret_cast<void**>(stack + bytes) - 1;
  caller[0] = nullptr;
  caller[-1] = reinterpret_cast<void*>(function);
  context->top = caller - 7;
  for (int i = 0; i < 6; ++i) context->top[i] = nullptr;
}

#else

struct Context {
  ucontext_t registers;
};

inline void switch_context(Context* from, const Context* to) { swapcontext(&from->registers, &to->registers); }

inline void make_context(Context* context, char* stack, size_t bytes, void (*function)()) {
  getcontext(&context->registers);
  context->registers.uc_stack.ss_sp = stack;
  context->registers.uc_stack.ss_size = bytes;
  makecontext(&context->registers, function, 0);
  context->registers.uc_stack = {};  // AddressSanitizer would take it for unused at each switch
}

#endif

}  // namespace torch_ext::simt
