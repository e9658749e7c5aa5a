#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "access_log.h"
#include "cuda/kernels/simt.h"

// Runs a CUDA kernel on the CPU, on one thread: each of its threads is a fiber, and one block after the other runs to
// its end. What it finds by itself is thrown as a Failure; what sanitizers find, they report.
namespace torch_ext::simt {

// In which order threads go from barrier to barrier, and blocks one after the other. A missing barrier may go unseen in
// one order, but hardly in all three.
enum class Order { kForward, kReverse, kShuffled };

struct LaunchOptions {
  Order order = Order::kForward;
  unsigned seed = 1;
  std::vector<Dim> only_blocks = {};  // all, if empty
  AccessLog* log = nullptr;
};

// The message names the block, the thread and the place in the source.
class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What launch() does: `thread` is what each thread runs.
void run_grid(const LaunchSize& size, void (*thread)(const void* call), const void* call, const LaunchOptions& options);

template <class Params>
void launch(const LaunchSize& size, void (*kernel)(Params), const std::type_identity_t<Params>& params,
            const LaunchOptions& options = {}) {
  static_assert(std::is_trivially_copyable_v<Params>, "the GPU copies parameters as bytes");
  static_assert(sizeof(Params) <= 4096, "what every GPU takes");
  struct Call {
    void (*kernel)(Params);
    Params params;
  };
  const Call call{kernel, params};
  const auto thread = [](const void* c) { static_cast<const Call*>(c)->kernel(static_cast<const Call*>(c)->params); };
  run_grid(size, thread, &call, options);
}

}  // namespace torch_ext::simt
