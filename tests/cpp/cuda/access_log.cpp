#include "access_log.h"

#include <algorithm>
#include <tuple>

namespace torch_ext::simt {
namespace {

using Entry = ThreadLog::Entry;

auto instruction(const Entry& e) { return std::tuple(e.site.file, e.site.line, e.kind, e.epoch, e.count); }

// How many different sectors, which are added to `all`.
int64_t count_sectors(std::span<const Entry> entries, std::vector<uintptr_t>* all) {
  std::vector<uintptr_t> sectors;
  for (const Entry& e : entries)
    for (uintptr_t s = e.address / kSectorBytes; s <= (e.address + e.bytes - 1) / kSectorBytes; ++s)
      sectors.push_back(s);
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  all->insert(all->end(), sectors.begin(), sectors.end());
  return static_cast<int64_t>(sectors.size());
}

// How many different bytes; entries are in the order of their addresses.
int64_t count_bytes(std::span<const Entry> entries) {
  int64_t bytes = 0;
  uintptr_t end = 0;
  for (const Entry& e : entries) {
    const uintptr_t begin = std::max(e.address, end);
    end = std::max(e.address + e.bytes, end);
    bytes += static_cast<int64_t>(end - begin);
  }
  return bytes;
}

}  // namespace

void ThreadLog::add(const void* address, size_t bytes, Access kind, Site site) {
  auto count = std::find_if(counts_.begin(), counts_.end(), [&](const auto& c) { return c.first == site; });
  if (count == counts_.end()) count = counts_.insert(count, {site, 0});
  entries_.push_back({site, kind, epoch_, count->second++, reinterpret_cast<uintptr_t>(address), bytes});
}

void ThreadLog::barrier() {
  counts_.clear();
  ++epoch_;
}

void AccessLog::name(const void* begin, size_t bytes, std::string name) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  buffers_.push_back({address, address + bytes, std::move(name)});
}

const AccessLog::Buffer* AccessLog::find(uintptr_t address) const {
  for (const Buffer& b : buffers_)
    if (address >= b.begin && address < b.end) return &b;
  return nullptr;
}

Traffic AccessLog::traffic(const std::string& name, Access kind) const {
  const auto found = traffic_.find({name, kind});
  return found == traffic_.end() ? Traffic{} : found->second;
}

void AccessLog::add_block(std::span<const ThreadLog> threads) {
  std::map<Traffic*, std::vector<uintptr_t>> sectors_of_block;
  for (size_t first = 0; first < threads.size(); first += kWarpSize) {
    std::vector<Entry> warp;
    for (const ThreadLog& thread : threads.subspan(first, std::min<size_t>(kWarpSize, threads.size() - first)))
      for (const Entry& e : thread.entries())
        if (e.bytes > 0 && find(e.address)) warp.push_back(e);
    std::sort(warp.begin(), warp.end(), [](const Entry& a, const Entry& b) {
      return std::tuple_cat(instruction(a), std::tuple(a.address)) <
             std::tuple_cat(instruction(b), std::tuple(b.address));
    });
    for (auto begin = warp.begin(); begin != warp.end();) {
      const auto end = std::find_if(begin, warp.end(), [&](const Entry& e) {
        return instruction(e) != instruction(*begin) || find(e.address) != find(begin->address);
      });
      const std::span<const Entry> request(begin, end);
      Traffic& traffic = traffic_[{find(begin->address)->name, begin->kind}];
      ++traffic.requests;
      traffic.sectors += count_sectors(request, &sectors_of_block[&traffic]);
      traffic.ideal_sectors += ceil_div(count_bytes(request), kSectorBytes);
      begin = end;
    }
  }
  for (auto& [traffic, sectors] : sectors_of_block) {
    std::sort(sectors.begin(), sectors.end());
    traffic->bytes_moved += kSectorBytes * (std::unique(sectors.begin(), sectors.end()) - sectors.begin());
  }
}

}  // namespace torch_ext::simt
