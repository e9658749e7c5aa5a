#pragma once

// simt.h for any C++ compiler: CUDA's names, as far as kernels use them, and what the emulator defines for them
// (tests/cpp/cuda/emulator.cpp). Every name that has to do with other threads or with memory takes the place in the
// source where it stands, to find the same instruction in other threads, and for messages.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt_rounding.h"
#include "simt_types.h"

#define SIMT_GLOBAL
#define SIMT_DEVICE inline
#define SIMT_LAUNCH_BOUNDS(...)
#define SIMT_UNROLL

namespace torch_ext::simt {

struct Site {
  const char* file;
  int line;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  friend bool operator==(const Site&, const Site&) = default;
};

enum class Access { kLoad, kStore, kAtomic };

namespace emulator {

// Where the running thread is.
struct Place {
  Dim thread, block, block_size, grid_size;
};
extern Place place;

void* shared_memory();
// What a thread is about to do: `bytes` at an address, none if it only takes its turn.
void access(const void* address, size_t bytes, size_t alignment, Access kind, Site site);
void block_barrier(Site site);
void warp_barrier(Site site);
// Gives all lanes of the warp a word, and returns the one that the lane `source` gave.
uint64_t exchange(const char* name, unsigned mask, uint64_t word, unsigned source, Site site);

template <class T>
T exchange(const char* name, unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = exchange(name, mask, word, source, site);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

inline unsigned lane() {
  const Place& p = place;
  return ((p.thread.z * p.block_size.y + p.thread.y) * p.block_size.x + p.thread.x) % kWarpSize;
}

}  // namespace emulator

template <class T>
T* shared() {
  return static_cast<T*>(emulator::shared_memory());
}

// Number by number, so that sanitizers see each.
template <class V = void, class T>
Moved<V, T> ld(T* p, bool inside = true, Site site = Site::here()) {
  using Value = Moved<V, T>;
  emulator::access(p, inside ? sizeof(Value) : 0, alignof(Value), Access::kLoad, site);
  Value value{};
  if (!inside) return value;
  if constexpr (std::is_same_v<Value, std::remove_const_t<T>>) value = *p;
  else
    for (int i = 0; i < V::kSize; ++i) value[i] = p[i];
  return value;
}

template <class T, class V>
void st(T* p, const V& value, bool inside = true, Site site = Site::here()) {
  using Value = Moved<V, T>;
  emulator::access(p, inside ? sizeof(Value) : 0, alignof(Value), Access::kStore, site);
  if (!inside) return;
  if constexpr (std::is_same_v<Value, T>) *p = value;
  else
    for (int i = 0; i < V::kSize; ++i) p[i] = value[i];
}

using host::narrow;
using host::widen;

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

}  // namespace torch_ext::simt

inline const torch_ext::simt::Dim& threadIdx = torch_ext::simt::emulator::place.thread;
inline const torch_ext::simt::Dim& blockIdx = torch_ext::simt::emulator::place.block;
inline const torch_ext::simt::Dim& blockDim = torch_ext::simt::emulator::place.block_size;
inline const torch_ext::simt::Dim& gridDim = torch_ext::simt::emulator::place.grid_size;

inline void __syncthreads(torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  torch_ext::simt::emulator::block_barrier(site);
}

inline void __syncwarp(torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  torch_ext::simt::emulator::warp_barrier(site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  return torch_ext::simt::emulator::exchange("__shfl_sync", mask, value, lane % 32u, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  const unsigned source = (torch_ext::simt::emulator::lane() ^ bits) % 32;
  return torch_ext::simt::emulator::exchange("__shfl_xor_sync", mask, value, source, site);
}

// Lanes that are not there give way to the lane itself.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  const unsigned lane = torch_ext::simt::emulator::lane(), source = lane + delta < 32 ? lane + delta : lane;
  return torch_ext::simt::emulator::exchange("__shfl_down_sync", mask, value, source, site);
}

// Relaxed, as on the GPU: it orders nothing else.
template <class T>
T atomicAdd(T* p, T value, torch_ext::simt::Site site = torch_ext::simt::Site::here()) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, int> ||
                std::is_same_v<T, unsigned long long>);
  torch_ext::simt::emulator::access(p, sizeof(T), sizeof(T), torch_ext::simt::Access::kAtomic, site);
  return std::atomic_ref<T>(*p).fetch_add(value, std::memory_order_relaxed);
}
