#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels/simt.h"

// What global memory sees of a kernel: the 32-byte sectors that each instruction of a warp asks for.
namespace torch_ext::simt {

inline constexpr int64_t kSectorBytes = 32;

// The accesses of one thread, in order.
class ThreadLog {
 public:
  // The same instruction in two threads is the one at the same place in the source, of the same count since the last
  // barrier. `bytes` may be 0, for a thread that takes no part.
  struct Entry {
    Site site;
    Access kind;
    unsigned epoch, count;
    uintptr_t address;
    size_t bytes;
  };

  void add(const void* address, size_t bytes, Access kind, Site site);
  void barrier();
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
  std::vector<std::pair<Site, unsigned>> counts_;
  unsigned epoch_ = 0;
};

// The loads of a buffer, its stores, or the atomic ones, in one launch or several.
struct Traffic {
  int64_t requests = 0;       // instructions of a warp
  int64_t sectors = 0;        // that they ask for
  int64_t ideal_sectors = 0;  // that the bytes they ask for would fill
  int64_t bytes_moved = 0;    // sectors, each once for every block that asks for it

  double sectors_per_request() const { return static_cast<double>(sectors) / static_cast<double>(requests); }
  double sectors_over_ideal() const { return static_cast<double>(sectors) / static_cast<double>(ideal_sectors); }
};

class AccessLog {
 public:
  // What lies in no named buffer is not counted.
  void name(const void* begin, size_t bytes, std::string name);
  void clear() { traffic_.clear(); }
  Traffic traffic(const std::string& name, Access kind) const;

  // For the emulator, after each block: its threads in the order of their numbers.
  void add_block(std::span<const ThreadLog> threads);

 private:
  struct Buffer {
    uintptr_t begin, end;
    std::string name;
  };
  const Buffer* find(uintptr_t address) const;

  std::vector<Buffer> buffers_;
  std::map<std::pair<std::string, Access>, Traffic> traffic_;
};

}  // namespace torch_ext::simt
