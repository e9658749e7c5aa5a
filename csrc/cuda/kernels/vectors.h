#pragma once

#include <cstdint>

#include "../../core/view.h"
#include "indexing.h"

// Vectors of channels that lie side by side.
namespace torch_ext::cuda {

// Whether every pixel's channels are whole vectors of 16 bytes.
template <class T>
bool has_whole_vectors(const View<T>& view, int64_t channels) {
  constexpr int kVector = 16 / sizeof(T);
  const auto fits = [](int64_t n) { return n % kVector == 0; };
  return view.c == 1 && fits(channels) && fits(view.n) && fits(view.spatial[0]) && fits(view.spatial[1]) &&
         fits(view.spatial[2]) && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// How many vectors a block has side by side: channels in equal parts, of whole sectors, of up to 128 bytes.
template <class T>
int choose_lanes(int channels, int vector) {
  const int bytes = vector * static_cast<int>(sizeof(T)), most = simt::min(32, 128 / bytes);
  const int vectors = static_cast<int>(simt::ceil_div(channels, vector));
  return simt::min(round_up(equal_pieces(vectors, most), 32 / bytes), most);
}

// Where the block's channel lies in a row of `lanes` vectors in shared memory. Lanes read 16 bytes at a time, side by
// side: of wider vectors first the first halves, then the others.
template <int V, class A>
SIMT_DEVICE int channel_slot(int channel, int lanes) {
  constexpr int kWidth = simt::min<int>(V, 16 / sizeof(A));
  const int lane = channel / V, of_vector = channel % V;
  return of_vector / kWidth * kWidth * lanes + lane * kWidth + of_vector % kWidth;
}

// A lane's vector, from the slot of its first channel.
template <int V, class A>
SIMT_DEVICE simt::Vector<A, V> read_channels(const A* row, int lanes) {
  constexpr int kWidth = simt::min<int>(V, 16 / sizeof(A));
  simt::Vector<A, V> values;
  SIMT_UNROLL
  for (int i = 0; i < V; i += kWidth) {
    const auto some = *reinterpret_cast<const simt::Vector<A, kWidth>*>(row + i * lanes);
    SIMT_UNROLL
    for (int k = 0; k < kWidth; ++k) values[i + k] = some[k];
  }
  return values;
}

// Some of a vector's numbers, from the first.
template <int N, class T, int V>
SIMT_DEVICE simt::Vector<T, N> part(const simt::Vector<T, V>& all, int first) {
  simt::Vector<T, N> some;
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) some[i] = all[first + i];
  return some;
}

// From global memory at any address, number by number; zero unless `inside`.
template <int V, class T>
SIMT_DEVICE simt::Vector<std::remove_const_t<T>, V> load_channels(T* p, bool inside) {
  simt::Vector<std::remove_const_t<T>, V> values;
  SIMT_UNROLL
  for (int v = 0; v < V; ++v) values[v] = simt::ld(p + v, inside);
  return values;
}

}  // namespace torch_ext::cuda
