#pragma once

// Packing: rows of a tensor view, of any strides and storage type, to and from the order the kernels compute in.
//
//   packed[v][column][lane] = tensor[n, channel(v, lane), d, h, column]     in Acc<T>, zero outside the image
//
// A packed row is read many times and packed once. Lanes beyond the last channel are zero and never stored.
#include "simd.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Where the lanes of one vector lie in memory.
template <class A>
struct Lanes {
  int64_t offset[kLanes<A>];
  int64_t count;
  bool adjacent;

  Lanes() = default;
  Lanes(int64_t first, int64_t channels, ChannelMap map, int64_t channel_stride)
      : count(channels - first < kLanes<A> ? channels - first : kLanes<A>), adjacent(true) {
    for (int64_t i = 0; i < count; ++i) {
      offset[i] = map(first + i) * channel_stride;
      adjacent &= offset[i] == offset[0] + i;
    }
  }
};

// packed[column][lane] for `columns` columns that all exist.
template <class T>
void pack_columns(const T* row, int64_t stride, const Lanes<Acc<T>>& lanes, int64_t columns, Acc<T>* packed) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  if (lanes.adjacent && (lanes.count > 1 || stride != 1)) {
    row += lanes.offset[0];
    if (lanes.count == L)
      for (int64_t j = 0; j < columns; ++j) load_wide(row + j * stride).store(packed + j * L);
    else
      for (int64_t j = 0; j < columns; ++j) load_partial(row + j * stride, lanes.count).store(packed + j * L);
  } else if (stride == 1) {
    for (int64_t j = 0; j < columns; j += L) {
      if (columns >= L && j > columns - L) j = columns - L;  // the last square overlaps the one before
      const int64_t n = columns - j < L ? columns - j : L;
      V square[L];
      for (int64_t i = 0; i < L; ++i)
        square[i] = i >= lanes.count ? V::zero()
                    : n == L         ? load_wide(row + lanes.offset[i] + j)
                                     : load_partial(row + lanes.offset[i] + j, n);
      transpose(square);
      for (int64_t i = 0; i < n; ++i) square[i].store(packed + (j + i) * L);
    }
  } else {
    for (int64_t j = 0; j < columns; ++j, row += stride, packed += L) {
      for (int64_t i = 0; i < lanes.count; ++i) packed[i] = widen(row[lanes.offset[i]]);
      for (int64_t i = lanes.count; i < L; ++i) packed[i] = 0;
    }
  }
}

// The way back: rounds and stores.
template <class T>
void unpack_columns(const Acc<T>* packed, int64_t columns, const Lanes<Acc<T>>& lanes, int64_t stride, T* row) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  if (lanes.adjacent && (lanes.count > 1 || stride != 1)) {
    row += lanes.offset[0];
    if (lanes.count == L)
      for (int64_t j = 0; j < columns; ++j) store_rounded(row + j * stride, V::load(packed + j * L));
    else
      for (int64_t j = 0; j < columns; ++j) store_partial(row + j * stride, V::load(packed + j * L), lanes.count);
  } else if (stride == 1) {
    for (int64_t j = 0; j < columns; j += L) {
      if (columns >= L && j > columns - L) j = columns - L;
      const int64_t n = columns - j < L ? columns - j : L;
      V square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = i < n ? V::load(packed + (j + i) * L) : V::zero();
      transpose(square);
      for (int64_t i = 0; i < lanes.count; ++i) {
        if (n == L) store_rounded(row + lanes.offset[i] + j, square[i]);
        else store_partial(row + lanes.offset[i] + j, square[i], n);
      }
    }
  } else {
    for (int64_t j = 0; j < columns; ++j, row += stride, packed += L)
      for (int64_t i = 0; i < lanes.count; ++i) narrow(packed[i], row + lanes.offset[i]);
  }
}

// Columns [begin, end) of a row of `size` columns; those outside of it are zero.
template <class T>
void pack_row(const T* row, int64_t stride, const Lanes<Acc<T>>& lanes, int64_t size, Range range, Acc<T>* packed) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const int64_t begin = range.begin < 0 ? 0 : range.begin, end = range.end < size ? range.end : size;
  int64_t column = range.begin;
  for (; column < begin && column < range.end; ++column, packed += L) Vec<Acc<T>>::zero().store(packed);
  if (begin < end) {
    pack_columns(row + begin * stride, stride, lanes, end - begin, packed);
    packed += (end - begin) * L;
    column = end;
  }
  for (; column < range.end; ++column, packed += L) Vec<Acc<T>>::zero().store(packed);
}

// A direct-mapped cache of packed source rows. Source rows that the taps of one target row need have different slots,
// and rows are visited in an order in which each is packed once per tile and block of taps.
template <class T>
class PackedRing {
 public:
  using A = Acc<T>;

  PackedRing(const Triple<Axis>& axes, const Tiling& tiling, A* scratch)
      : axes_(axes), tiling_(tiling), ring_(scratch) {}

  void set_channels(View<const T> source, int64_t n, Channels channels, int64_t block, ChannelMap map) {
    source_ = source;
    source_.data = source.data + n * source.n;
    vectors_ = channels.vectors(block);
    for (int64_t v = 0; v < vectors_; ++v)
      lanes_[v] = Lanes<A>((block * channels.block_vectors() + v) * kLanes<A>, channels.channels, map, source.c);
  }

  // Forgets all rows; those packed from now on hold these columns.
  void set_columns(Range columns) {
    columns_ = columns;
    for (int64_t i = 0; i < tiling_.rows(); ++i) tags_[i] = -1;
  }

  int64_t vector_stride() const { return (columns_.end - columns_.begin) * kLanes<A>; }

  // Row [vector][column][lane] of a term, which has slot `term_slot`, at the source positions of two walks.
  const A* row(int64_t term_slot, int64_t term, const TapWalk& d, const TapWalk& h) {
    const int64_t slot = (term_slot * tiling_.slots[0] + d.slot) * tiling_.slots[1] + h.slot;
    const int64_t tag = d.source * axes_[1].source + h.source;
    A* packed = ring_ + slot * (tiling_.slots[2] * kLanes<A>)*vectors_;
    if (tags_[slot] != tag) {
      tags_[slot] = tag;
      const T* from = source_.data + term * source_.c + d.source * source_.spatial[0] + h.source * source_.spatial[1];
      for (int64_t v = 0; v < vectors_; ++v)
        pack_row(from, source_.spatial[2], lanes_[v], axes_[2].source, columns_, packed + v * vector_stride());
    }
    return packed;
  }

 private:
  const Triple<Axis>& axes_;
  const Tiling& tiling_;
  A* ring_;
  View<const T> source_{};
  Lanes<A> lanes_[kMaxVectors];
  int64_t vectors_ = 0;
  Range columns_{};
  int64_t tags_[kMaxRows];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
