#pragma once

#include <cstdint>
#include <numeric>

#include "../../core/geometry.h"
#include "../../core/view.h"
#include "indexing.h"

// Vectors of channels that lie side by side.
namespace torch_ext::cuda {

// Whether every pixel's channels are whole vectors of so many.
template <class T>
bool has_whole_vectors(const View<T>& view, int vector) {
  const auto fits = [&](int64_t n) { return n % vector == 0; };
  return view.c == 1 && fits(view.n) && fits(view.spatial[0]) && fits(view.spatial[1]) && fits(view.spatial[2]) &&
         reinterpret_cast<uintptr_t>(view.data) % (vector * sizeof(T)) == 0;
}

// A thread has a vector of channels, of up to 16 bytes, whose i-th meets the i-th of a vector of the other tensor; of
// groups a shorter one, each of which meets all of the other's, `terms`.
struct VectorSize {
  int channels, terms;
};

template <class T, class U>
VectorSize choose_vector(const ConvGeometry<int64_t>& g, const View<const T>& source, const View<U>& target) {
  const auto fits = [&](int vector, int64_t a, int64_t b) {
    return a % vector == 0 && b % vector == 0 && has_whole_vectors(source, vector) && has_whole_vectors(target, vector);
  };
  constexpr int kWhole = 16 / sizeof(T);
  if (g.in_per_group() * g.out_per_group() == 1) return {fits(kWhole, g.groups, g.groups) ? kWhole : 1, 1};
  int vector = 16 / sizeof(Acc<T>);
  while (!fits(vector, g.in_per_group(), g.out_per_group())) vector /= 2;
  return {vector, vector};
}

// Positions of a thread: fewer of wide vectors, for the registers.
template <class T>
TORCH_EXT_HOST_DEVICE constexpr int channel_run(int vector) {
  return vector * sizeof(Acc<T>) > 8 ? 4 : 7;
}

// Calls body(Constant<channels>(), Constant<terms>()) for a vector that T has.
template <class T, class Body>
void with_vector_size(const VectorSize& vector, const Body& body) {
  constexpr int kWhole = 16 / sizeof(T), kMost = 16 / sizeof(Acc<T>);
  if (vector.channels == 1) return body(Constant<1>(), Constant<1>());
  if (vector.terms == 1) return body(Constant<kWhole>(), Constant<1>());
  if (vector.terms == 2) return body(Constant<2>(), Constant<2>());
  if constexpr (kMost > 2) body(Constant<kMost>(), Constant<kMost>());
}

// How many vectors a block has side by side: channels in equal parts, of whole sectors and, if these are not too many
// for a block, whole groups, of up to 128 bytes if such fit.
template <class T>
int choose_lanes(int channels, int per_group, int vector) {
  const int bytes = vector * static_cast<int>(sizeof(T)), most = simt::min(32, 128 / bytes);
  const int vectors = static_cast<int>(simt::ceil_div(channels, vector));
  int whole = std::lcm(32 / bytes, simt::max(per_group / vector, 1));
  if (whole > 128) whole = 32 / bytes;
  const int lanes = simt::max(most / whole, 1) * whole;
  return simt::min(round_up(equal_pieces(vectors, lanes), whole), lanes);
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
