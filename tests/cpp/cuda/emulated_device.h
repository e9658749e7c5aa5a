#pragma once

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "access_log.h"
#include "emulator.h"
#include "sanitizers.h"

// What runner.h needs of a device, on the emulator.
namespace torch_ext::test::device {

inline constexpr int kOrders = simt::kThreadSanitizer ? 1 : 3;  // a race is one in any order

inline constexpr const char* kOrderNames[] = {"forward", "reverse", "shuffled"};

inline bool exists() { return true; }

// Of exactly this size, for AddressSanitizer, and as aligned as the GPU's.
inline std::shared_ptr<char> allocate(size_t bytes) {
  constexpr std::align_val_t kAlignment{256};
  return {static_cast<char*>(::operator new(bytes, kAlignment)), [](char* p) { ::operator delete(p, kAlignment); }};
}

inline std::shared_ptr<char> reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<char*>(p), [bytes](char* memory) { munmap(memory, bytes); }};
}

inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

template <class Params>
void launch(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params, int order,
            const std::vector<simt::Dim>& only_blocks, simt::AccessLog* log) {
  simt::launch(size, kernel, params, {static_cast<simt::Order>(order), 1, only_blocks, log});
}

class Log : public simt::AccessLog {
 public:
  void expect_loads(const std::string& name, double sectors, double bytes) const {
    expect(name, simt::Access::kLoad, sectors, bytes);
  }
  void expect_stores(const std::string& name, double sectors, double bytes) const {
    expect(name, simt::Access::kStore, sectors, bytes);
  }

 private:
  void expect(const std::string& name, simt::Access kind, double sectors, double bytes) const {
    const simt::Traffic t = traffic(name, kind);
    if (t.requests == 0) {
      ADD_FAILURE() << "no traffic of " << name;
      return;
    }
    if (std::getenv("TORCH_EXT_TRAFFIC"))
      std::printf("%s of %s: %.2f sectors a request, %.2f of ideal, %.2f of the bytes allowed\n",
                  kind == simt::Access::kLoad ? "loads" : "stores", name.c_str(), t.sectors_per_request(),
                  t.sectors_over_ideal(), static_cast<double>(t.bytes_moved) / bytes);
    EXPECT_LE(t.sectors_over_ideal(), sectors) << name << ": " << t.sectors_per_request() << " sectors per request";
    EXPECT_LE(static_cast<double>(t.bytes_moved), bytes) << name << ": bytes moved";
  }
};

}  // namespace torch_ext::test::device
