#include "emulator.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "example.cuh"
#include "runner.h"
#include "sanitizers.h"

// Plants each fault that the emulator, or a sanitizer with it, must find.
namespace torch_ext::test {
namespace {

using simt::kFullMask;
using simt::LaunchOptions;
using simt::LaunchSize;
using simt::Order;
using simt::Vector;

constexpr Order kOrders[] = {Order::kForward, Order::kReverse, Order::kShuffled};

// A fault that a sanitizer reports and dies of, in the build that has it.
#define EXPECT_REPORT(has_sanitizer, name, statement, report)             \
  do {                                                                    \
    if (!(has_sanitizer)) GTEST_SKIP() << "it takes " name " to find it"; \
    EXPECT_DEATH(statement, report);                                      \
  } while (false)

#define SKIP_UNDER_THREAD_SANITIZER() \
  if (simt::kThreadSanitizer) GTEST_SKIP() << "a race, of which ThreadSanitizer dies"

// That the statement fails with a message that has all of these words in it.
template <class Statement>
void expect_failure(const Statement& statement, const std::vector<std::string>& words) {
  try {
    statement();
  } catch (const simt::Failure& failure) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(failure.what()).find(word), std::string::npos) << word << "\n" << failure.what();
    return;
  }
  FAIL() << "nothing was found";
}

// ---- faults of a kernel with shared memory ----

// Three rows of two blocks, the second of them partial.
template <Fault kFault>
std::vector<float> neighbours(Order order) {
  constexpr int kRows = 3, kColumns = 100;
  std::vector<float> x(kRows * kColumns), y(kRows * kColumns);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13);
  const NeighbourParams<float> p{x.data(), y.data(), kRows, kColumns};
  simt::launch(neighbour_size(p), neighbour_kernel<float, kFault>, p, {order});
  return y;
}

TEST(Emulator, OrdersAgree) {
  for (Order order : kOrders) EXPECT_EQ(neighbours<Fault::kNone>(order), neighbours<Fault::kNone>(Order::kForward));
}

// ThreadSanitizer knows 8128 threads at a time.
TEST(Emulator, ManyBlocks) {
  constexpr int kColumns = 64 * 140;
  std::vector<float> x(kColumns, 1), y(kColumns);
  const NeighbourParams<float> p{x.data(), y.data(), 1, kColumns};
  simt::launch(neighbour_size(p), neighbour_kernel<float>, p);
  std::vector<float> expected(kColumns, 3);
  expected.front() = expected.back() = 2;
  EXPECT_EQ(y, expected);
}

// In how many of the three orders the result is wrong.
template <Fault kFault>
int orders_that_show() {
  int count = 0;
  for (Order order : kOrders) count += neighbours<kFault>(order) != neighbours<Fault::kNone>(order);
  return count;
}

TEST(Emulator, MissingBarriersShowInValues) {
  SKIP_UNDER_THREAD_SANITIZER();
  EXPECT_GE(orders_that_show<Fault::kNoBarrierBeforeRead>(), 2);
  EXPECT_GE(orders_that_show<Fault::kNoBarrierAfterRead>(), 2);
}

TEST(Emulator, MissingBarrierBeforeReadIsARace) {
  EXPECT_REPORT(simt::kThreadSanitizer, "ThreadSanitizer", neighbours<Fault::kNoBarrierBeforeRead>(Order::kForward),
                "data race");
}

TEST(Emulator, MissingBarrierAfterReadIsARace) {
  EXPECT_REPORT(simt::kThreadSanitizer, "ThreadSanitizer", neighbours<Fault::kNoBarrierAfterRead>(Order::kForward),
                "data race");
}

TEST(Emulator, UninitialisedSharedMemoryIsNaN) {
  const std::vector<float> y = neighbours<Fault::kUninitialised>(Order::kForward);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_FALSE(std::isnan(y[1]));
}

TEST(Emulator, SharedOverrun) {
  EXPECT_REPORT(simt::kAddressSanitizer, "AddressSanitizer", neighbours<Fault::kSharedOverrun>(Order::kForward),
                "In block .0, 0, 0., thread .1, 0, 0.:(.|\n)*heap-buffer-overflow");
}

TEST(Emulator, GlobalOverrun) {
  EXPECT_REPORT(simt::kAddressSanitizer, "AddressSanitizer", neighbours<Fault::kGlobalOverrun>(Order::kForward),
                "heap-buffer-overflow");
}

TEST(Emulator, DivergentBarrier) {
  expect_failure([] { neighbours<Fault::kDivergentBarrier>(Order::kForward); },
                 {"block (0, 0, 0): thread (0, 0, 0) waits in __syncthreads at ",
                  "example.cuh:", ", but thread (1, 0, 0) waits in __syncthreads at "});
}

TEST(Emulator, BarrierThatOthersNeverReach) {
  expect_failure(
      [] { neighbours<Fault::kEarlyExit>(Order::kForward); },
      {"block (1, 0, 0): thread (0, 0, 0) waits in __syncthreads at ", ", but thread (36, 0, 0) has left the kernel"});
}

// ---- warps ----

enum class WarpFault { kNone, kPartialMask, kMissingLanes, kDivergentSites, kNoBarrier };

struct WarpParams {
  float* sum;       // one per warp
  int* last;        // one per thread: the number of the lane 31 higher, or its own
  float* reversed;  // one per thread
};

template <WarpFault kFault>
SIMT_GLOBAL void warp_kernel(WarpParams p) {
  float* shared = simt::shared<float>();
  const int thread = threadIdx.x, lane = thread % 32;
  if (kFault == WarpFault::kMissingLanes && lane == 31) return;
  float sum = thread;
  if (kFault == WarpFault::kDivergentSites && lane == 5) sum += __shfl_sync(kFullMask, sum, 0);
  for (int bits = 16; bits > 0; bits /= 2)
    sum += __shfl_xor_sync(kFault == WarpFault::kPartialMask ? 0xffffu : kFullMask, sum, bits);
  if (lane == 0) simt::st(p.sum + thread / 32, sum);
  simt::st(p.last + thread, __shfl_down_sync(kFullMask, thread, 31));
  shared[thread] = __shfl_sync(kFullMask, sum, 3) + lane;
  if (kFault != WarpFault::kNoBarrier) __syncwarp();
  simt::st(p.reversed + thread, shared[thread + 31 - 2 * lane]);
}

// Whether the results are right in every order.
template <WarpFault kFault>
bool run_warps(unsigned threads = 64) {
  bool right = true;
  for (Order order : kOrders) {
    std::vector<float> sum(2), reversed(threads);
    std::vector<int> last(threads);
    const WarpParams p{sum.data(), last.data(), reversed.data()};
    simt::launch({{1}, {threads}, threads * sizeof(float)}, warp_kernel<kFault>, p, {order});
    right &= sum[0] == 31 * 16 && sum[1] == 31 * 16 + 32 * 32;
    for (int i = 0; i < static_cast<int>(threads); ++i)
      right &= last[i] == (i % 32 == 0 ? i + 31 : i) && reversed[i] == sum[i / 32] + 31 - i % 32;
  }
  return right;
}

TEST(Emulator, Shuffles) { EXPECT_TRUE(run_warps<WarpFault::kNone>()); }

TEST(Emulator, PartialMask) {
  expect_failure(
      [] { run_warps<WarpFault::kPartialMask>(); },
      {"block (0, 0, 0), thread (0, 0, 0) at ", "emulator_test.cpp:", "__shfl_xor_sync with a mask that is not full"});
}

TEST(Emulator, ShuffleWithoutALane) {
  expect_failure([] { run_warps<WarpFault::kMissingLanes>(); },
                 {"thread (0, 0, 0) waits in __shfl_xor_sync at ", "thread (31, 0, 0) has left the kernel"});
}

TEST(Emulator, ShufflesApart) {
  expect_failure([] { run_warps<WarpFault::kDivergentSites>(); },
                 {"thread (0, 0, 0) waits in __shfl_xor_sync at ", "thread (5, 0, 0) waits in __shfl_sync at "});
}

TEST(Emulator, ShuffleInAPartOfAWarp) {
  expect_failure([] { run_warps<WarpFault::kNone>(48); }, {"thread (32, 0, 0)", "a warp of fewer than 32 threads"});
}

TEST(Emulator, MissingWarpBarrierShowsInValues) {
  SKIP_UNDER_THREAD_SANITIZER();
  EXPECT_FALSE(run_warps<WarpFault::kNoBarrier>());
}

// A shuffle gives the lanes a number, but orders no memory.
TEST(Emulator, MissingWarpBarrierIsARace) {
  EXPECT_REPORT(simt::kThreadSanitizer, "ThreadSanitizer", run_warps<WarpFault::kNoBarrier>(), "data race");
}

// ---- blocks ----

template <class T>
struct AddParams {
  T* sum;
};

template <class T, bool kAtomic>
SIMT_GLOBAL void add_kernel(AddParams<T> p) {
  if (kAtomic) atomicAdd(p.sum + threadIdx.x, T(1 + blockIdx.x));
  else simt::st(p.sum + threadIdx.x, simt::ld(p.sum + threadIdx.x) + T(1 + blockIdx.x));
}

template <class T, bool kAtomic>
void add_in_blocks() {
  std::vector<T> sum(32);
  simt::launch({{4}, {32}}, add_kernel<T, kAtomic>, {sum.data()});
  EXPECT_EQ(sum, std::vector<T>(32, T(10)));
}

TEST(Emulator, BlocksThatAddPlainlyRace) {
  const auto add = add_in_blocks<float, false>;
  EXPECT_REPORT(simt::kThreadSanitizer, "ThreadSanitizer", add(), "data race");
}

TEST(Emulator, AtomicAdd) {
  add_in_blocks<float, true>();
  add_in_blocks<double, true>();
  add_in_blocks<int, true>();
  add_in_blocks<unsigned long long, true>();
}

struct PlaceParams {
  int* seen;  // [grid, block]: how often
  int* order;
  int* count;
};

SIMT_GLOBAL void place_kernel(PlaceParams p) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(p.seen + block * threads + thread, 1);
  const int turn = atomicAdd(p.count, 1);
  simt::st(p.order + turn, block * threads + thread);
}

std::vector<int> places(const LaunchOptions& options, std::vector<int>* seen = nullptr) {
  const LaunchSize size = {{2, 3, 4}, {5, 6, 2}};
  std::vector<int> hits(24 * 60), order(24 * 60, -1);
  int count = 0;
  simt::launch(size, place_kernel, {hits.data(), order.data(), &count}, options);
  order.resize(count);
  if (seen) *seen = hits;
  return order;
}

TEST(Emulator, EveryThreadOfEveryBlockRunsOnce) {
  for (Order order : kOrders) {
    std::vector<int> seen;
    places({order}, &seen);
    EXPECT_EQ(seen, std::vector<int>(24 * 60, 1));
  }
}

TEST(Emulator, OrdersOfThreads) {
  const std::vector<int> forward = places({Order::kForward}), shuffled = places({Order::kShuffled});
  std::vector<int> reverse = places({Order::kReverse});
  EXPECT_TRUE(std::is_sorted(forward.begin(), forward.end()));
  std::reverse(reverse.begin(), reverse.end());
  EXPECT_EQ(reverse, forward);
  EXPECT_NE(shuffled, forward);
  EXPECT_EQ(shuffled, places({Order::kShuffled}));
  EXPECT_NE(shuffled, places({Order::kShuffled, 5}));
}

TEST(Emulator, OnlySomeBlocks) {
  const std::vector<int> order = places({Order::kForward, 1, {{1, 2, 3}, {0, 0, 0}}});
  ASSERT_EQ(order.size(), 120u);
  EXPECT_EQ(order[0], 23 * 60);
  EXPECT_EQ(order[60], 0);
}

// ---- global memory ----

template <class T>
struct StrideParams {
  const T* from;
  T* to;
  int from_stride, to_stride;
};

template <class V, class T>
SIMT_GLOBAL void stride_kernel(StrideParams<T> p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  simt::st(p.to + i * p.to_stride, simt::ld<V>(p.from + i * p.from_stride));
}

TEST(Emulator, Vectors) {
  alignas(16) double from[64], to[64] = {};
  for (int i = 0; i < 64; ++i) from[i] = i;
  simt::launch({{1}, {32}}, stride_kernel<Vector<double, 2>, double>, {from, to, 2, 2});
  for (int i = 0; i < 64; ++i) EXPECT_EQ(to[i], i);
}

TEST(Emulator, MisalignedVector) {
  alignas(16) float from[140] = {}, to[140];
  expect_failure(
      [&] {
        simt::launch({{1}, {32}}, stride_kernel<Vector<float, 4>, float>, {from + 2, to, 4, 4});
      },
      {"block (0, 0, 0), thread (0, 0, 0) at ",
       "emulator_test.cpp:", "16 bytes at an address that is no multiple of 16"});
}

struct NoParams {};
SIMT_GLOBAL void load_shared_kernel(NoParams) { simt::st(simt::shared<float>(), 1.0f); }

TEST(Emulator, SharedMemoryTakenForGlobal) {
  expect_failure(
      [] {
        simt::launch({{1}, {32}, 128}, load_shared_kernel, {});
      },
      {"emulator_test.cpp:", "this is shared"});
}

// Numbers beyond the 2^31st, of which only what is touched is in memory.
template <class Index>
uint16_t copy_last_block() {
  const int64_t count = (int64_t{1} << 31) + 1024;
  const auto x = device::reserve(2 * count), y = device::reserve(2 * count);
  const CopyParams<Half> p{reinterpret_cast<Half*>(x.get()), reinterpret_cast<Half*>(y.get()), count};
  reinterpret_cast<Half*>(x.get())[count - 1] = {42};
  const LaunchSize size = copy_size(p);
  simt::launch(size, copy_kernel<Index, Half>, p, {Order::kForward, 1, {{size.grid.x - 1, 0, 0}}});
  return p.y[count - 1].bits;
}

TEST(Emulator, LargeTensors) { EXPECT_EQ(copy_last_block<int64_t>(), 42); }

TEST(Emulator, IndexOf32Bits) {
  EXPECT_REPORT(simt::kAddressSanitizer, "UndefinedBehaviorSanitizer", copy_last_block<int>(),
                "signed integer overflow");
}

// ---- traffic ----

template <class V = float>
simt::Traffic traffic_of_copy(simt::Access kind, int from_offset, int from_stride, int to_stride) {
  struct alignas(256) Line {
    float value[1024];
  };
  const auto from = std::make_unique<Line>(), to = std::make_unique<Line>();
  simt::AccessLog log;
  log.name(from.get(), sizeof(Line), "from");
  log.name(to.get(), sizeof(Line), "to");
  const StrideParams<float> p{from->value + from_offset, to->value, from_stride, to_stride};
  simt::launch({{2}, {64}}, stride_kernel<V, float>, p, {Order::kShuffled, 1, {}, &log});
  return log.traffic(kind == simt::Access::kLoad ? "from" : "to", kind);
}

TEST(Emulator, SectorsPerRequest) {
  using Four = Vector<float, 4>;
  const simt::Access load = simt::Access::kLoad, store = simt::Access::kStore;
  const simt::Traffic dense = traffic_of_copy(load, 0, 1, 1);
  EXPECT_EQ(dense.requests, 4);
  EXPECT_EQ(dense.sectors_per_request(), 4);
  EXPECT_EQ(dense.sectors_over_ideal(), 1);
  EXPECT_EQ(dense.bytes_moved, 512);
  const simt::Traffic shifted = traffic_of_copy(load, 1, 1, 1);
  EXPECT_EQ(shifted.sectors_per_request(), 5);
  EXPECT_EQ(shifted.sectors_over_ideal(), 1.25);
  EXPECT_EQ(shifted.bytes_moved, 2 * 9 * 32);
  const simt::Traffic strided = traffic_of_copy(load, 0, 8, 1);
  EXPECT_EQ(strided.sectors_per_request(), 32);
  EXPECT_EQ(strided.sectors_over_ideal(), 8);
  EXPECT_EQ(traffic_of_copy(store, 0, 1, 8).sectors_over_ideal(), 8);
  EXPECT_EQ(traffic_of_copy(load, 0, 0, 1).sectors_over_ideal(), 1);  // all lanes load the same number
  EXPECT_EQ(traffic_of_copy<Four>(load, 0, 4, 4).sectors_per_request(), 16);
  EXPECT_EQ(traffic_of_copy<Four>(load, 4, 4, 4).sectors_per_request(), 17);
  EXPECT_EQ(traffic_of_copy<Four>(store, 4, 4, 4).sectors_per_request(), 16);
}

// A loop in which lanes take part now and then: a load that is told so stays in step with those of other lanes.
struct StepParams {
  const float* x;
  float* y;
};
SIMT_GLOBAL void step_kernel(StepParams p) {
  float sum = 0;
  for (int i = 0; i < 3; ++i) sum += simt::ld(p.x + 32 * i + threadIdx.x, (threadIdx.x + i) % 2 == 0);
  simt::st(p.y + threadIdx.x, sum, threadIdx.x < 8);
}

TEST(Emulator, LanesThatTakeNoPart) {
  std::vector<float> x(96, 1), y(32);
  simt::AccessLog log;
  log.name(x.data(), 96 * sizeof(float), "x");
  log.name(y.data(), 32 * sizeof(float), "y");
  simt::launch({{1}, {32}}, step_kernel, {x.data(), y.data()}, {Order::kForward, 1, {}, &log});
  EXPECT_EQ(y[0] + y[1], 3);
  EXPECT_EQ(y[8], 0);
  EXPECT_EQ(log.traffic("x", simt::Access::kLoad).requests, 3);
  EXPECT_EQ(log.traffic("y", simt::Access::kStore).requests, 1);
}

// Blocks that load the same sectors move them twice.
TEST(Emulator, BytesMoved) {
  simt::AccessLog log;
  std::vector<float> x(3 * 128), y(3 * 128);
  log.name(x.data(), x.size() * sizeof(float), "x");
  const NeighbourParams<float> p{x.data(), y.data(), 3, 128};
  simt::launch(neighbour_size(p), neighbour_kernel<float>, p, {Order::kForward, 1, {}, &log});
  const int64_t compulsory = 3 * 128 * 4, from_the_other_block = 2 * 3 * 32;
  const bool whole_sectors = reinterpret_cast<uintptr_t>(x.data()) % 32 == 0;
  EXPECT_EQ(log.traffic("x", simt::Access::kLoad).bytes_moved - compulsory, from_the_other_block) << whole_sectors;
}

// ---- the runner ----

// The messages of the failures in a statement.
template <class Statement>
std::vector<std::string> failures_in(const Statement& statement) {
  ::testing::TestPartResultArray results;
  {
    const ::testing::ScopedFakeTestPartResultReporter reporter(&results);
    statement();
  }
  std::vector<std::string> messages;
  for (int i = 0; i < results.size(); ++i) messages.emplace_back(results.GetTestPartResult(i).message());
  return messages;
}

TEST(Emulator, TheRunnerComparesOrders) {
  SKIP_UNDER_THREAD_SANITIZER();
  const auto messages = failures_in([] {
    Runner gpu;
    std::vector<float> x(100);
    for (int i = 0; i < 100; ++i) x[i] = static_cast<float>(i);
    const NeighbourParams<float> p{gpu.input("x", x), gpu.output<float>("y", 100), 1, 100};
    gpu.run(neighbour_size(p), neighbour_kernel<float, Fault::kNoBarrierBeforeRead>, p);
  });
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_NE(messages[0].find("y depends on the order of the threads: forward and reverse differ"), std::string::npos);
  EXPECT_NE(messages[1].find("y depends on the order of the threads: forward and shuffled differ"), std::string::npos);
}

TEST(Emulator, TheRunnerLimitsTraffic) {
  Runner gpu;
  const StrideParams<float> p{gpu.input("x", std::vector<float>(256)), gpu.output<float>("y", 32), 8, 1};
  gpu.run({{1}, {32}}, stride_kernel<float, float>, p);
  EXPECT_TRUE(failures_in([&] { gpu.expect_loads(p.from, 8, 1); }).empty());
  EXPECT_EQ(failures_in([&] { gpu.expect_loads(p.from, 7, 1); }).size(), 1u);
  EXPECT_EQ(failures_in([&] { gpu.expect_loads(p.from, 8, 0.9); }).size(), 1u);
  EXPECT_EQ(failures_in([&] { gpu.expect_stores(p.from, 8, 1); }).size(), 1u);  // there are none
}

// ---- limits ----

SIMT_GLOBAL void empty_kernel(NoParams) {}

TEST(Emulator, LimitsOfALaunch) {
  const auto refused = [](const LaunchSize& size, const std::string& words) {
    expect_failure([&] { simt::launch(size, empty_kernel, {}); }, {"launch: ", words});
  };
  refused({{1}, {33, 32}}, "a block of (33, 32, 1) threads, at most 1024 are possible");
  refused({{1}, {1, 1, 65}}, "at most 64 is possible in z");
  refused({{1, 65536}, {32}}, "at most 65535 is possible in y and z");
  refused({{1, 1, 65536}, {32}}, "at most 65535 is possible in y and z");
  refused({{1u << 31}, {32}}, "at most 2^31 - 1 is possible");
  refused({{0}, {32}}, "no blocks or no threads");
  refused({{1}, {32}, (99 << 10) + 1}, "at most 99 KiB are possible");
  expect_failure(
      [] {
        simt::launch({{2}, {32}}, empty_kernel, {}, {Order::kForward, 1, {{2, 0, 0}}});
      },
      {"no block (2, 0, 0) in a grid of (2, 1, 1)"});
  simt::launch({{1, 2, 3}, {4, 4, 64}, 99 << 10}, empty_kernel, {});
}

}  // namespace
}  // namespace torch_ext::test
