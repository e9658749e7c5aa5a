#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <deque>
#include <exception>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <string>

#include "context.h"
#include "sanitizers.h"

// How ThreadSanitizer comes to know the order of things: a fiber is a thread of its own to it. Switching orders
// nothing. What came before the launch is before every thread, since their fibers are created then; a barrier orders
// what comes before it in one thread and after it in another; the end of the launch is after everything. Nothing orders
// two blocks, nor do shuffles, which on a GPU order no memory either.
namespace torch_ext::simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4 << 10;
// ThreadSanitizer knows 8128 threads; those of blocks long past are forgotten, and races with them go unseen.
constexpr size_t kMostFibers = 6000;

enum class State { kReady, kAtBlockBarrier, kInWarp, kDone };

struct Fiber {
  unsigned index;  // in the block
  Dim thread;
  State state = State::kReady;
  const char* name = "";  // of what it waits in,
  Site site{};            // and where
  uint64_t word = 0;      // given to the other lanes, then taken from the lane `source`
  unsigned source = 0;
  unsigned block_barriers = 0, warp_barriers = 0;
  Context context{};
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
};

// One region of memory for the stacks of a block, with a page between them that cannot be touched.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * (kGuardBytes + kStackBytes)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (size_t i = 0; i < count; ++i) mprotect((*this)[i] - kGuardBytes, kGuardBytes, PROT_NONE);
  }
  ~Stacks() {
    __asan_unpoison_memory_region(memory_, bytes_);  // what a fiber that was given up has left
    munmap(memory_, bytes_);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  char* operator[](size_t i) { return memory_ + i * (kGuardBytes + kStackBytes) + kGuardBytes; }

 private:
  size_t bytes_;
  char* memory_;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<ThreadLog> logs;
  std::unique_ptr<unsigned char[]> shared;  // of exactly its size, for AddressSanitizer
  // What barriers release and acquire: two of each, in turn, since a fast thread comes to the next barrier before a
  // slow one has left the last.
  char barrier_tags[2];
  std::vector<std::array<char, 2>> warp_tags;
};

struct Launch {
  Launch(const LaunchSize& s, void (*t)(const void*), const void* c, const LaunchOptions& o);
  ~Launch();

  const LaunchSize& size;
  void (*const thread)(const void*);
  const void* const call;
  const LaunchOptions& options;
  Block* block = nullptr;
  Fiber* fiber = nullptr;  // that runs
  std::exception_ptr error;
  // The host, while a fiber runs.
  Context context{};
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  // ThreadSanitizer's names for the host and for the fibers of the last blocks.
  void* tsan;
  std::deque<void*> tsan_fibers;
  char end_tag = 0;
};
Launch* launch_now = nullptr;

// ---- messages ----

std::string text(Dim d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}
std::string text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }
std::string this_block() { return "block " + text(emulator::place.block); }

std::string this_thread(Site site) {
  return this_block() + ", thread " + text(emulator::place.thread) + " at " + text(site) + ": ";
}

[[noreturn]] void fail_apart(const Fiber& waiting, const Fiber& other) {
  const auto waits = [](const Fiber& f) { return std::string("waits in ") + f.name + " at " + text(f.site); };
  throw Failure(this_block() + ": thread " + text(waiting.thread) + " " + waits(waiting) + ", but thread " +
                text(other.thread) + " " + (other.state == State::kDone ? "has left the kernel" : waits(other)));
}

// ---- switching ----

[[gnu::noinline]] UNSEEN_FUNCTION void to_fiber(Launch& launch, Fiber& fiber) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, kStackBytes);
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
  switch_context(&launch.context, &fiber.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

[[gnu::noinline]] UNSEEN_FUNCTION void to_host(Launch& launch, Fiber& fiber, bool for_good) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, launch.stack, launch.stack_bytes);
  __tsan_switch_to_fiber(launch.tsan, __tsan_switch_to_fiber_no_sync);
  switch_context(&fiber.context, &launch.context);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
}

UNSEEN_FUNCTION void run_fiber() {
  Launch& launch = *launch_now;
  Fiber& fiber = *launch.fiber;
  __sanitizer_finish_switch_fiber(nullptr, &launch.stack, &launch.stack_bytes);
  try {
    launch.thread(launch.call);
  } catch (...) {
    const Unseen unseen;
    launch.error = std::current_exception();
  }
  fiber.state = State::kDone;
  to_host(launch, fiber, true);
}

// What a fiber has done, to its end or until the launch was given up, comes before the end of the launch.
UNSEEN_FUNCTION void retire_fiber(Launch& launch, void* tsan) {
  __tsan_switch_to_fiber(tsan, __tsan_switch_to_fiber_no_sync);
  __tsan_release(&launch.end_tag);
  __tsan_switch_to_fiber(launch.tsan, __tsan_switch_to_fiber_no_sync);
  __tsan_destroy_fiber(tsan);
}

Launch::Launch(const LaunchSize& s, void (*t)(const void*), const void* c, const LaunchOptions& o)
    : size(s), thread(t), call(c), options(o), tsan(__tsan_get_current_fiber()) {
  launch_now = this;
}

Launch::~Launch() {
  for (void* fiber_of_block : tsan_fibers) retire_fiber(*this, fiber_of_block);
  __tsan_acquire(&end_tag);
  launch_now = nullptr;
}

// A thread waits until the host has made it ready again. The tag, if any, orders what the threads do.
UNSEEN_FUNCTION void wait(State state, const char* name, Site site, char* tag) {
  Launch& launch = *launch_now;
  Fiber& fiber = *launch.fiber;
  fiber.state = state;
  fiber.name = name;
  fiber.site = site;
  if (launch.options.log) {
    const Unseen unseen;
    launch.block->logs[fiber.index].barrier();
  }
  if (tag) __tsan_release(tag);
  to_host(launch, fiber, false);
  if (tag) __tsan_acquire(tag);
}

// ---- the host's side ----

void check(const LaunchSize& size, const LaunchOptions& options) {
  const auto refuse = [](const std::string& what) { throw Failure("launch: " + what); };
  const Dim g = size.grid, b = size.block;
  if (uint64_t{g.x} * g.y * g.z * b.x * b.y * b.z == 0)
    refuse("no blocks or no threads: " + text(g) + " of " + text(b));
  if (g.x > 0x7fffffffu) refuse("a grid of x = " + std::to_string(g.x) + ", at most 2^31 - 1 is possible");
  if (g.y > 65535 || g.z > 65535) refuse("a grid of " + text(g) + ", at most 65535 is possible in y and z");
  if (b.z > 64) refuse("a block of " + text(b) + " threads, at most 64 is possible in z");
  if (uint64_t{b.x} * b.y * b.z > 1024) refuse("a block of " + text(b) + " threads, at most 1024 are possible");
  if (size.shared_bytes > 99 << 10)
    refuse(std::to_string(size.shared_bytes) + " bytes of shared memory, at most 99 KiB are possible on every GPU");
  for (Dim block : options.only_blocks)
    if (block.x >= g.x || block.y >= g.y || block.z >= g.z)
      refuse("no block " + text(block) + " in a grid of " + text(g));
}

Dim unflatten(uint64_t index, Dim size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

template <class T>
void arrange(std::vector<T>& items, const LaunchOptions& options, unsigned seed) {
  if (options.order == Order::kReverse) std::reverse(items.begin(), items.end());
  if (options.order == Order::kShuffled) std::shuffle(items.begin(), items.end(), std::mt19937(seed));
}

void start_fiber(Launch& launch, Fiber& fiber, char* stack) {
  fiber.stack = stack;
  make_context(&fiber.context, stack, kStackBytes, run_fiber);
  if constexpr (kThreadSanitizer) {
    fiber.tsan = __tsan_create_fiber(0);
    __tsan_set_fiber_name(fiber.tsan, (this_block() + " thread " + text(fiber.thread)).c_str());
    launch.tsan_fibers.push_back(fiber.tsan);
  }
}

// No thread can go on: lets those go on whose block or warp is complete where they wait. False if all are done.
bool release(Block& block) {
  bool released = false;
  for (size_t first = 0; first < block.fibers.size(); first += kWarpSize) {
    const std::span<Fiber> warp(&block.fibers[first], std::min<size_t>(kWarpSize, block.fibers.size() - first));
    const auto in_warp = std::find_if(warp.begin(), warp.end(), [](auto& f) { return f.state == State::kInWarp; });
    if (in_warp == warp.end()) continue;
    for (const Fiber& other : warp)
      if (other.state != State::kInWarp || other.site != in_warp->site) fail_apart(*in_warp, other);
    uint64_t words[kWarpSize];
    for (size_t i = 0; i < warp.size(); ++i) words[i] = warp[i].word;
    for (Fiber& f : warp) f.word = words[f.source], f.state = State::kReady;
    released = true;
  }
  if (released) return true;
  const auto waiting =
      std::find_if(block.fibers.begin(), block.fibers.end(), [](auto& f) { return f.state != State::kDone; });
  if (waiting == block.fibers.end()) return false;
  for (const Fiber& other : block.fibers)
    if (other.state == State::kDone || other.site != waiting->site) fail_apart(*waiting, other);
  for (Fiber& f : block.fibers) f.state = State::kReady;
  return true;
}

void run_block(Launch& launch, Dim index, unsigned seed, Stacks& stacks) {
  const Dim size = launch.size.block;
  emulator::place = {{0, 0, 0}, index, size, launch.size.grid};
  const size_t threads = size_t{size.x} * size.y * size.z;
  while (!launch.tsan_fibers.empty() && launch.tsan_fibers.size() + threads > kMostFibers) {
    retire_fiber(launch, launch.tsan_fibers.front());
    launch.tsan_fibers.pop_front();
  }

  Block block;
  block.fibers.resize(threads);
  block.logs.resize(threads);
  block.warp_tags.resize(ceil_div(static_cast<int64_t>(threads), kWarpSize));
  block.shared.reset(new unsigned char[launch.size.shared_bytes]);
  std::fill_n(block.shared.get(), launch.size.shared_bytes, 0xff);  // NaN, if read before it is written
  launch.block = &block;
  std::vector<Fiber*> order;
  for (unsigned i = 0; i < threads; ++i) {
    block.fibers[i].index = i;
    block.fibers[i].thread = unflatten(i, size);
    start_fiber(launch, block.fibers[i], stacks[i]);
    order.push_back(&block.fibers[i]);
  }
  arrange(order, launch.options, seed);

  do {
    for (Fiber* fiber : order) {
      if (fiber->state != State::kReady) continue;
      launch.fiber = fiber;
      emulator::place.thread = fiber->thread;
      to_fiber(launch, *fiber);
      if (launch.error) std::rethrow_exception(launch.error);
    }
  } while (release(block));
  if (launch.options.log) launch.options.log->add_block(block.logs);
}

}  // namespace

void run_grid(const LaunchSize& size, void (*thread)(const void*), const void* call, const LaunchOptions& options) {
  const Unseen unseen;
  check(size, options);
  Launch launch{size, thread, call, options};

  std::vector<Dim> blocks = options.only_blocks;
  if (blocks.empty())
    for (uint64_t i = 0; i < uint64_t{size.grid.x} * size.grid.y * size.grid.z; ++i)
      blocks.push_back(unflatten(i, size.grid));
  arrange(blocks, options, options.seed);

  std::unique_ptr<Stacks> stacks;
  unsigned seed = options.seed;
  for (Dim block : blocks) {
    // To ThreadSanitizer a stack that another fiber has used is memory that both have used.
    if (!stacks || kThreadSanitizer)
      stacks = std::make_unique<Stacks>(size_t{size.block.x} * size.block.y * size.block.z);
    run_block(launch, block, ++seed, *stacks);
  }
}

// ---- what kernels call ----

namespace emulator {

Place place;

void* shared_memory() { return launch_now->block->shared.get(); }

UNSEEN_FUNCTION void access(const void* address, size_t bytes, size_t alignment, Access kind, Site site) {
  Block& block = *launch_now->block;
  const auto at = reinterpret_cast<uintptr_t>(address), shared = reinterpret_cast<uintptr_t>(block.shared.get());
  const bool misaligned = bytes > 0 && at % alignment != 0;
  const bool in_shared =
      bytes > 0 && kind != Access::kAtomic && at >= shared && at < shared + launch_now->size.shared_bytes;
  if (!misaligned && !in_shared && !launch_now->options.log) return;
  const Unseen unseen;
  if (misaligned)
    throw Failure(this_thread(site) + std::to_string(bytes) + " bytes at an address that is no multiple of " +
                  std::to_string(alignment));
  if (in_shared) throw Failure(this_thread(site) + "ld and st are for global memory, this is shared");
  block.logs[launch_now->fiber->index].add(address, bytes, kind, site);
}

UNSEEN_FUNCTION void block_barrier(Site site) {
  char* tags = launch_now->block->barrier_tags;
  wait(State::kAtBlockBarrier, "__syncthreads", site, &tags[launch_now->fiber->block_barriers++ % 2]);
}

UNSEEN_FUNCTION void warp_barrier(Site site) {
  Fiber& fiber = *launch_now->fiber;
  fiber.source = fiber.index % kWarpSize;
  char* tags = launch_now->block->warp_tags[fiber.index / kWarpSize].data();
  wait(State::kInWarp, "__syncwarp", site, &tags[fiber.warp_barriers++ % 2]);
}

UNSEEN_FUNCTION uint64_t exchange(const char* name, unsigned mask, uint64_t word, unsigned source, Site site) {
  Fiber& fiber = *launch_now->fiber;
  {
    const Unseen unseen;
    if (mask != kFullMask) throw Failure(this_thread(site) + name + " with a mask that is not full");
    if (launch_now->block->fibers.size() / kWarpSize == fiber.index / kWarpSize)
      throw Failure(this_thread(site) + name + " in a warp of fewer than 32 threads");
  }
  fiber.word = word;
  fiber.source = source;
  wait(State::kInWarp, name, site, nullptr);
  return fiber.word;
}

}  // namespace emulator
}  // namespace torch_ext::simt

// What the sanitizers' runtimes ask for. The first race ends the program, as the first fault in memory does.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
extern "C" void __asan_on_error() {
  using torch_ext::simt::emulator::place;
  if (torch_ext::simt::launch_now)
    std::fprintf(stderr, "In block (%u, %u, %u), thread (%u, %u, %u):\n", place.block.x, place.block.y, place.block.z,
                 place.thread.x, place.thread.y, place.thread.z);
}
