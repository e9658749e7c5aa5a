#pragma once

// Packing: rows of a tensor view, of any strides and storage type, to and from the order the kernels compute in.
//
//   channels are lanes   packed[v][column][lane] = tensor[n, channel(v, lane), d, h, column]
//   columns are lanes    packed[v][column] = tensor[n, channel(v), d, h, column]
//
// in Acc<T>, zero outside the image.
// A packed row is read many times and packed once. Lanes beyond the last channel are zero and never stored.
#include "simd.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Where the lanes of one vector lie in memory.
template <class A>
struct Lanes {
  int64_t offset[kLanes<A>] = {};
  int64_t count;
  bool adjacent;
  int64_t span;      // from the first to behind the last; more than a vector if they do not ascend
  int32_t index[8];  // for permute(), if the span is not longer than a vector: of 32-bit words

  Lanes() = default;
  Lanes(int64_t first, int64_t channels, ChannelMap map, int64_t channel_stride)
      : count(std::min(channels - first, kLanes<A>)) {
    for (int64_t i = 0; i < count; ++i) offset[i] = map(first + i) * channel_stride;
    finish();
  }

  // What follows from count and offset.
  void finish() {
    constexpr int64_t words = sizeof(A) / 4;
    adjacent = true;
    span = offset[count - 1] - offset[0] + 1;
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      const int64_t distance = i < count ? offset[i] - offset[0] : 0;
      adjacent &= i >= count || distance == i;
      if (0 < i && i < count && offset[i] < offset[i - 1]) span = kLanes<A> + 1;
      for (int64_t word = 0; word < words; ++word)
        index[i * words + word] =
            static_cast<int32_t>(0 <= distance && distance < kLanes<A> ? distance * words + word : 0);
    }
  }
};

// packed[column][lane] for `columns` columns that all exist, `pitch` numbers from column to column. What lies `ahead`
// elements further is prefetched, unless that is 0.
template <class T>
void pack_columns(const T* row, int64_t stride, const Lanes<Acc<T>>& lanes, int64_t columns, Acc<T>* packed,
                  int64_t pitch = kLanes<Acc<T>>, int64_t ahead = 0) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  if (lanes.adjacent && (lanes.count > 1 || stride != 1)) {
    row += lanes.offset[0];
    if (lanes.count == L)
      for (int64_t j = 0; j < columns; ++j) opaque(load_wide(row + j * stride)).store(packed + j * pitch);
    else
      for (int64_t j = 0; j < columns; ++j) load_partial(row + j * stride, lanes.count).store(packed + j * pitch);
  } else if (stride == 1) {
    for (int64_t j = 0; j < columns; j += L) {
      if (columns >= L && j > columns - L) j = columns - L;  // the last square overlaps the one before
      const int64_t n = columns - j < L ? columns - j : L;
      V square[L];
      if (n == L && lanes.count == L) {
        TORCH_EXT_UNROLL
        for (int64_t i = 0; i < L; ++i) square[i] = load_wide(row + lanes.offset[i] + j);
        if (ahead != 0 && j % kLine<T> == 0)
          for (int64_t i = 0; i < L; ++i) __builtin_prefetch(row + lanes.offset[i] + j + ahead);
        transpose(square);
        TORCH_EXT_UNROLL
        for (int64_t i = 0; i < L; ++i) square[i].store(packed + (j + i) * pitch);
        continue;
      }
      for (int64_t i = 0; i < L; ++i)
        square[i] = i < lanes.count ? load_partial(row + lanes.offset[i] + j, n) : V::zero();
      if (ahead != 0 && j % kLine<T> == 0)
        for (int64_t i = 0; i < lanes.count; ++i) __builtin_prefetch(row + lanes.offset[i] + j + ahead);
      transpose(square);
      for (int64_t i = 0; i < n; ++i) opaque(square[i]).store(packed + (j + i) * pitch);
    }
  } else if (lanes.span <= L) {  // a channel for several lanes
    row += lanes.offset[0];
    const Permutation<Acc<T>> permutation(lanes.index);
    for (int64_t j = 0; j < columns; ++j)
      permute(load_partial(row + j * stride, lanes.span), permutation).store(packed + j * pitch);
  } else {
    for (int64_t j = 0; j < columns; ++j, row += stride, packed += pitch) {
      for (int64_t i = 0; i < lanes.count; ++i) packed[i] = widen(row[lanes.offset[i]]);
      for (int64_t i = lanes.count; i < L; ++i) packed[i] = 0;
    }
  }
}

// The way back: rounds and stores.
template <class T>
void unpack_columns(const Acc<T>* packed, int64_t columns, const Lanes<Acc<T>>& lanes, int64_t stride, T* row,
                    int64_t ahead = 0, int64_t pitch = kLanes<Acc<T>>) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  if (lanes.adjacent && (lanes.count > 1 || stride != 1)) {
    row += lanes.offset[0];
    if (lanes.count == L)
      for (int64_t j = 0; j < columns; ++j) store_rounded(row + j * stride, opaque(V::load(packed + j * pitch)));
    else
      for (int64_t j = 0; j < columns; ++j) store_partial(row + j * stride, V::load(packed + j * pitch), lanes.count);
  } else if (stride == 1) {
    for (int64_t j = 0; j < columns; j += L) {
      if (columns >= L && j > columns - L) j = columns - L;
      const int64_t n = columns - j < L ? columns - j : L;
      V square[L];
      if (ahead != 0 && j % kLine<T> == 0)
        for (int64_t i = 0; i < lanes.count; ++i) __builtin_prefetch(row + lanes.offset[i] + j + ahead, 1);
      if (n == L && lanes.count == L) {
        TORCH_EXT_UNROLL
        for (int64_t i = 0; i < L; ++i) square[i] = V::load(packed + (j + i) * pitch);
        transpose(square);
        TORCH_EXT_UNROLL
        for (int64_t i = 0; i < L; ++i) store_rounded(row + lanes.offset[i] + j, square[i]);
        continue;
      }
      for (int64_t i = 0; i < L; ++i) square[i] = i < n ? opaque(V::load(packed + (j + i) * pitch)) : V::zero();
      transpose(square);
      for (int64_t i = 0; i < lanes.count; ++i) store_partial(row + lanes.offset[i] + j, square[i], n);
    }
  } else {
    for (int64_t j = 0; j < columns; ++j, row += stride, packed += pitch)
      for (int64_t i = 0; i < lanes.count; ++i) narrow(packed[i], row + lanes.offset[i]);
  }
}

template <bool kWrite, class T>
void prefetch_line(const T* line, int64_t elements) {
  for (int64_t i = 0; i < elements; i += kLine<T>) __builtin_prefetch(line + i, kWrite);
}

// The same for one channel, columns as lanes. Up to a vector beyond the last packed column is written, too.
template <class T>
void pack_line(const T* row, int64_t stride, int64_t columns, Acc<T>* packed, int64_t ahead = 0) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (ahead != 0) prefetch_line<false>(row + ahead, columns);
  int64_t j = 0;
  if (stride != 1) {
    for (; j < columns; ++j) packed[j] = widen(row[j * stride]);
  } else if (columns < L) {
    load_partial(row, columns).store(packed);
  } else {
    for (; j + L <= columns; j += L) opaque(load_wide(row + j)).store(packed + j);
    if (j < columns) load_wide(row + columns - L).store(packed + columns - L);
  }
}

template <class T>
void unpack_line(const Acc<T>* packed, int64_t columns, int64_t stride, T* row, int64_t ahead = 0) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  if (ahead != 0) prefetch_line<true>(row + ahead, columns);
  int64_t j = 0;
  if (stride != 1) {
    for (; j < columns; ++j) narrow(packed[j], row + j * stride);
  } else if (columns < L) {
    store_partial(row, load_partial(packed, columns), columns);
  } else {
    for (; j + L <= columns; j += L) store_rounded(row + j, opaque(V::load(packed + j)));
    if (j < columns) store_rounded(row + columns - L, V::load(packed + columns - L));
  }
}

// Zeros, in whole vectors.
template <class A>
void fill_zero(A* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<A>) opaque(Vec<A>::zero()).store(to + i);
}

// Whether each channel's image is one run of elements, and the next one's lies behind it.
template <class T>
bool is_contiguous(const View<T>& view, int64_t depth, int64_t height, int64_t width) {
  return view.c == depth * height * width && (width == 1 || view.spatial[2] == 1) &&
         (height == 1 || view.spatial[1] == width) && (depth == 1 || view.spatial[0] == height * width);
}

// What a plan's rows prefetch. The hardware does not see the next block of channels coming where its rows lie in many
// planes; of planes so large that they would leave the cache again before their use, the next row.
enum class Prefetch { kNothing, kRow, kBlock };

template <class Plan, class A, class B>
Prefetch what_to_prefetch(const Plan& plan, const View<A>& source, const View<B>& target) {
  const Axis &d = plan.axes[0], &h = plan.axes[1], &w = plan.axes[2];
  if (!plan.prefetch || !is_contiguous(source, d.source, h.source, w.source) ||
      !is_contiguous(target, d.target, h.target, w.target))
    return Prefetch::kNothing;
  const int64_t plane = d.source * h.source * w.source + d.target * h.target * w.target;
  const int64_t bytes = plane * static_cast<int64_t>(sizeof(A)), block = plan.channels.width * plan.channels.lanes;
  if (is_packed(plan.order) && block * bytes > kPrefetchedBlockBytes)  // there may be no next row
    return plan.batch * plan.channels.channels * bytes > kPrefetchBytes && h.source_stride() <= h.source
               ? Prefetch::kRow
               : Prefetch::kNothing;
  return plan.parts.d * plan.parts.h * plan.parts.w == 1 ? Prefetch::kBlock : Prefetch::kNothing;
}

// Source rows as the kernels read them: where they lie (kChannelsInPlace), or from a direct-mapped cache of packed
// rows. Source rows that the taps of one target row need have different slots, and rows are visited in an order in
// which each is packed once per tile and block of taps.
template <class T, Order kOrder>
class SourceRows {
 public:
  using A = Acc<T>;
  using Stored = std::conditional_t<is_packed(kOrder), A, T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kPixel = lanes_are_columns(kOrder) ? 1 : L;

  SourceRows(const Triple<Axis>& axes, const Tiling& tiling, A* scratch)
      : axes_(axes), tiling_(tiling), ring_(scratch) {}

  // ahead: see pack_columns.
  void set_channels(View<const T> source, int64_t n, const Channels& channels, int64_t block, ChannelMap map,
                    int64_t ahead) {
    ahead_ = ahead;
    source_ = source;
    source_.data = source.data + n * source.n;
    vectors_ = channels.vectors(block);
    const int64_t first = block * channels.width;
    for (int64_t v = 0; v < vectors_; ++v) {
      if constexpr (kOrder == Order::kPackedChannels)
        lanes_[v] = Lanes<A>((first + v) * L, channels.channels, map, source.c);
      else line_[v] = (kOrder == Order::kChannelsInPlace ? channels.first(first + v) : map(first + v)) * source.c;
      vector_[v] = is_packed(kOrder) ? v * tiling_.slots[2] * kPixel : line_[v];
    }
  }

  // Forgets all rows; those packed from now on hold these columns.
  void set_columns(Range columns) {
    columns_ = columns;
    existing_.begin = std::clamp<int64_t>(0, columns.begin, columns.end);
    existing_.end = std::clamp(axes_[2].source, existing_.begin, columns.end);
    if constexpr (is_packed(kOrder))
      for (int64_t i = 0; i < tiling_.rows(); ++i) tags_[i] = -1;
  }

  // Elements from column to column.
  int64_t pixel() const { return is_packed(kOrder) ? kPixel : source_.spatial[2]; }
  // Where each vector of channels lies in a row.
  const int64_t* vectors() const { return vector_; }
  // The column at which a row starts.
  int64_t first_column() const { return is_packed(kOrder) ? columns_.begin : 0; }

  // Row of a term, which has slot `term_slot`, at the source positions of two walks.
  const Stored* row(int64_t term_slot, int64_t term, const TapWalk& d, const TapWalk& h) {
    const T* from = source_.data + term * source_.c + d.source * source_.spatial[0] + h.source * source_.spatial[1];
    if constexpr (!is_packed(kOrder)) {
      return from;
    } else {
      const int64_t slot = (term_slot * tiling_.slots[0] + d.slot) * tiling_.slots[1] + h.slot;
      const int64_t tag = d.source * axes_[1].source + h.source;
      A* packed = ring_ + slot * vectors_ * tiling_.slots[2] * kPixel;
      if (tags_[slot] != tag) {
        tags_[slot] = tag;
        pack(from, packed);
      }
      return packed;
    }
  }

 private:
  // Zeros where there are no columns, in whole vectors: up to a vector beyond the end is written, too.
  void pack(const T* from, A* packed) const {
    const int64_t stride = source_.spatial[2], first = existing_.begin - columns_.begin, count = size(existing_);
    from += existing_.begin * stride;
    for (int64_t v = 0; v < vectors_; ++v, packed += tiling_.slots[2] * kPixel) {
      fill_zero(packed, first * kPixel);
      if (count > 0) {
        if constexpr (kOrder == Order::kPackedColumns)
          pack_line(from + line_[v], stride, count, packed + first, ahead_);
        else pack_columns(from, stride, lanes_[v], count, packed + first * kPixel, L, ahead_);
      }
      fill_zero(packed + (first + count) * kPixel, (columns_.end - existing_.end) * kPixel);
    }
  }

  const Triple<Axis>& axes_;
  const Tiling& tiling_;
  A* ring_;
  View<const T> source_{};
  int64_t vectors_ = 0, ahead_ = 0;
  Range columns_{}, existing_{};                     // what packed rows hold, and what of it the image has
  int64_t vector_[kMaxVectors], line_[kMaxVectors];  // where they lie in a row, and in the tensor
  Lanes<A> lanes_[kMaxVectors];
  int64_t tags_[kMaxRows];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
