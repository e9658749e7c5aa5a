#pragma once

#include "../../core/view.h"
#include "indexing.h"

// Boxes of a tensor [plane, d, h, w], moved between global and shared memory by all threads of a block, `vector`
// numbers at a time: neighbouring threads move neighbouring columns.
namespace torch_ext::cuda {

struct Box {
  Triple<int> size;
  int vectors, vector;  // of a row, and how many numbers of one
  Divisor by_vectors, by_rows, by_depth;

  Box() = default;
  // The row's size is rounded up to whole vectors.
  Box(const Triple<int>& s, int v)
      : size(s),
        vectors(static_cast<int>(simt::ceil_div(s[2], v))),
        vector(v),
        by_vectors(vectors),
        by_rows(s[1]),
        by_depth(s[0]) {}

  SIMT_DEVICE int count(int planes) const { return planes * size[0] * size[1] * vectors; }
};

// Where a vector of a box lies: in the row-th row of all planes, and there in a column.
struct InBox {
  int plane, depth, height, column, row;
};

SIMT_DEVICE InBox in_box(const Box& box, int index) {
  InBox at;
  at.row = box.by_vectors.divide(&index);
  at.column = index * box.vector;
  at.height = at.row;
  at.depth = box.by_rows.divide(&at.height);
  at.plane = box.by_depth.divide(&at.depth);
  return at;
}

// Which plane of a view is a box's i-th: (first + i * factor) / divisor.
struct Planes {
  int first, factor, divisor;

  SIMT_DEVICE int operator[](int i) const {
    const int plane = first + i * factor;
    return divisor == 1 ? plane : plane / divisor;
  }
};

// A view as a box sees it, which begins somewhere in its planes, maybe outside.
template <class T>
struct Region {
  T* data;
  int64_t plane_stride;
  Triple<int64_t> strides;
  Triple<int> first, sizes;  // of the box, and of the view
  int planes;                // that are there; of other planes nothing is read or written
  Planes which;

  // Of whole vectors: their first number is inside if all are.
  SIMT_DEVICE bool inside(const InBox& at) const {
    return at.plane < planes && within(at.depth, 0) && within(at.height, 1) && within(at.column, 2);
  }
  SIMT_DEVICE T* at(const InBox& a) const {
    return data + which[a.plane] * plane_stride + (first[0] + a.depth) * strides[0] +
           (first[1] + a.height) * strides[1] + (first[2] + a.column) * strides[2];
  }

 private:
  SIMT_DEVICE bool within(int i, int axis) const {
    return static_cast<unsigned>(first[axis] + i) < static_cast<unsigned>(sizes[axis]);
  }
};

// Calls store(where, vector) for every vector of the box, zero outside of the region. A thread has kBatch loads on
// their way at a time.
template <int V, int kBatch, class T, class Store>
SIMT_DEVICE void load_vectors(const Box& box, int planes, const Region<T>& from, const Store& store) {
  const int count = box.count(planes), threads = blockDim.x;
  for (int begin = threadIdx.x; begin < count; begin += kBatch * threads) {
    simt::Vector<std::remove_const_t<T>, V> values[kBatch];
    InBox at[kBatch];
    SIMT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int index = begin + i * threads;
      at[i] = in_box(box, index);
      values[i] =
          simt::ld<simt::Vector<std::remove_const_t<T>, V>>(from.at(at[i]), index < count && from.inside(at[i]));
    }
    SIMT_UNROLL
    for (int i = 0; i < kBatch; ++i)
      if (begin + i * threads < count) store(at[i], simt::widen(values[i]));
  }
}

// Calls st for every vector of the box that is inside, of load(where, Constant<V>()).
template <int V, class T, class Load>
SIMT_DEVICE void store_vectors(const Box& box, int planes, const Region<T>& to, const Load& load) {
  const int count = box.count(planes);
  for (int index = threadIdx.x; index < count; index += blockDim.x) {
    const InBox at = in_box(box, index);
    simt::st(to.at(at), load(at, Constant<V>()), to.inside(at));
  }
}

// Calls body(Constant<V>()) for the box's vector, one of those that T has.
template <class T, int V = 16 / sizeof(T), class Body>
SIMT_DEVICE void with_vector(int vector, const Body& body) {
  if constexpr (V > 1) {
    if (vector < V) return with_vector<T, V / 2>(vector, body);
  }
  body(Constant<V>());
}

template <int kBatch = 4, class T, class Store>
SIMT_DEVICE void load_box(const Box& box, int planes, const Region<T>& from, const Store& store) {
  with_vector<std::remove_const_t<T>>(
      box.vector, [&](auto vector) { load_vectors<decltype(vector)::kValue, kBatch>(box, planes, from, store); });
}

template <class T, class Load>
SIMT_DEVICE void store_box(const Box& box, int planes, const Region<T>& to, const Load& load) {
  with_vector<T>(box.vector, [&](auto vector) { store_vectors<decltype(vector)::kValue>(box, planes, to, load); });
}

}  // namespace torch_ext::cuda
