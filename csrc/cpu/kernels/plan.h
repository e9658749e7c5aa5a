#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include "../../core/dtype.h"
#include "../../core/geometry.h"
#include "../../core/view.h"

// How a pass walks over its axes, and how it is cut: all that is only integers and depends on no instruction set.
//
// A pass computes target positions from source positions. Target position phase + phases * j reads the source at
// j * stride + t * step + origin, weighted by kernel tap tap_first + t * tap_step, for t in [0, taps).
//   forward     one phase; stride, dilation and padding as they are
//   grad input  a phase per residue of the position modulo the stride: i + pad = o * stride + tap * dilation is solved
//               once, so that within a phase the taps are a dense progression and o moves with j
namespace torch_ext::cpu {

// Channels in one vector, in every instruction set.
template <class A>
inline constexpr int64_t kLanes = 32 / static_cast<int64_t>(sizeof(A));

// Elements in a cache line, and vectors whose elements are stored there.
template <class T>
inline constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
template <class T>
inline constexpr int64_t kVectorsInLine = kLine<T> / kLanes<Acc<T>>;

// What the lanes of a vector are, and where rows of the source are read.
enum class Order {
  kChannelsInPlace,  // channels, where they lie: adjacent in memory
  kColumnsInPlace,   // columns, likewise, in the type of the sums
  kPackedChannels,   // channels, in packed rows
  kPackedColumns,    // columns, in packed rows of one channel each
  kStagedChannels,   // as in place, in a copy of some rows of a few images
  kStagedColumns,    // likewise, of the images of some channels
};

constexpr bool is_packed(Order order) { return order == Order::kPackedChannels || order == Order::kPackedColumns; }
constexpr bool lanes_are_columns(Order order) {
  return order == Order::kColumnsInPlace || order == Order::kPackedColumns || order == Order::kStagedColumns;
}
constexpr bool is_staged(Order order) { return order == Order::kStagedChannels || order == Order::kStagedColumns; }

// Strides of a tensor, as far as the choice of an order goes.
struct Layout {
  int64_t channel, column;
};

template <class T>
Layout layout(const View<T>& view) {
  return {view.c, view.spatial[2]};
}

inline constexpr int64_t kMaxVectors = 64;      // in a block of channels
inline constexpr int64_t kMaxColumnTaps = 16;   // in place
inline constexpr int64_t kStripRows = 4;        // fewest in a strip: target rows summed at once, columns in place
inline constexpr int64_t kMaxReach = 16;        // columns from the first of them to the last, where columns are lanes
inline constexpr int64_t kTapsPerSum = 128;     // a sum starts from zero again after these, to stay exact
inline constexpr int64_t kMaxBlockTaps = 1024;  // of a weight gradient, times vectors
inline constexpr int64_t kMaxRows = 128;        // source rows that are packed at a time
inline constexpr int64_t kMaxGroup = 8;         // column phases that share packed rows
inline constexpr int64_t kMaxColumns = 128;
inline constexpr int64_t kMinColumns = 32;
inline constexpr int64_t kWeightBytes = 16 << 10;       // of a block of channels that is read in place
inline constexpr int64_t kRingBytes = 48 << 10;         // packed rows if one block holds all taps
inline constexpr int64_t kBlockedRingBytes = 24 << 10;  // packed rows if taps are cut into blocks: stays in L1
inline constexpr int64_t kTileBytes = 128 << 10;        // partial sums carried from tap block to tap block
// Input and output that may not be in a cache. In place, the hardware brings what is in L3 in time.
inline constexpr int64_t kPrefetchBytes = 20 << 20;
inline constexpr int64_t kPrefetchPackedBytes = 4 << 20;
inline constexpr int64_t kPrefetchedBlockBytes = 1 << 19;
inline constexpr int64_t kColumnsAhead = 32;         // prefetched where an image is one row
inline constexpr int64_t kPartWork = 1 << 17;        // multiply-adds that are worth an item: forward and grad input,
inline constexpr int64_t kGradPartWork = 1 << 18;    // grad weight
inline constexpr int64_t kBlockPositions = 1 << 15;  // of all channels of a block
inline constexpr int64_t kMaxPlanes = 64;            // images, or depths of them, of a weight gradient at a time
inline constexpr int64_t kStagedPositions = 1 << 9;  // of grad_output whose vectors are copied at a time
inline constexpr int64_t kStagedBlock = 1 << 14;     // numbers of a block of channels that are copied at a time
inline constexpr int64_t kMaxStaged = 1 << 16;       // numbers of one channel that may be
inline constexpr int64_t kStripPositions = 64;       // that all channels of a block meet: they stay in the L2 cache
inline constexpr int64_t kParts = 64;                // threads that the items should be able to feed

// Vectors of columns that may need masks, in place.
template <class A>
inline constexpr int64_t kMaxEdges = 2 * (kMaxReach / kLanes<A> + 2);

// Divisions take longer than all else in a walk, and most are by 1.
inline int64_t divide(int64_t a, int64_t b) { return b == 1 ? a : a / b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return divide(a - 1, b) + 1; }  // a, b >= 1
inline int64_t size(Range r) { return r.end > r.begin ? r.end - r.begin : 0; }

// Which of the positions first, first + unit, ... lie in [0, size), counted from the first.
inline Range positions_inside(int64_t first, int64_t unit, int64_t size) {
  return {first < 0 ? ceil_div(-first, unit) : 0, first < size ? divide(size - 1 - first, unit) + 1 : 0};
}

// Part `index` of [0, total) cut into `parts` nearly equal ranges.
inline Range part(int64_t total, int64_t parts, int64_t index) {
  const int64_t length = total / parts, rest = total % parts;
  const int64_t begin = index * length + std::min(index, rest);
  return {begin, begin + length + (index < rest)};
}

// x with a * x = 1 modulo m, for coprime a and m >= 1.
inline int64_t inverse(int64_t a, int64_t m) {
  int64_t r0 = m, r1 = a % m, x0 = 0, x1 = 1;
  while (r1 != 0) {
    const int64_t q = r0 / r1, r = r0 - q * r1, x = x0 - q * x1;
    r0 = r1, r1 = r, x0 = x1, x1 = x;
  }
  return x0 < 0 ? x0 + m : x0;
}

struct Phase {
  int64_t stride, step, origin;
  int64_t taps, tap_first, tap_step;

  int64_t source(int64_t j, int64_t t) const { return j * stride + origin + t * step; }

  // The taps among `range` for which some of the positions first, ..., last (the sources of tap 0) hits [0, size).
  Range clip(int64_t first, int64_t last, int64_t size, Range range) const {
    int64_t begin = 0, end = 0;
    if (step > 0) {
      if (last < 0) begin = ceil_div(-last, step);
      if (first < size) end = divide(size - 1 - first, step) + 1;
    } else {
      if (first >= size) begin = divide(first - size, -step) + 1;
      if (last >= 0) end = divide(last, -step) + 1;
    }
    return {std::max(begin, range.begin), std::min({end, range.end, taps})};
  }

  // How many positions in a row, from the one that reads tap 0 at `first`, have the same taps `in` of `range` inside
  // [0, size).
  int64_t same_taps(int64_t first, int64_t size, Range range, Range in) const {
    int64_t count = std::numeric_limits<int64_t>::max() / 2;
    const auto leave = [&](int64_t bound, int64_t t) {  // the positions for which tap t is below a bound
      const int64_t source = first + t * step;
      if (source < bound) count = std::min(count, ceil_div(bound - source, stride));
    };
    for (int64_t t = range.begin; t < std::min(range.end, taps); ++t) leave(in.begin <= t && t < in.end ? size : 0, t);
    return count;
  }
};

struct Axis {
  bool transposed;
  int64_t target, source;  // sizes
  int64_t kernel, stride, dilation, pad;
  int64_t phases;    // target positions with the same remainder modulo this share their taps
  int64_t max_taps;  // of any phase
  int64_t unit;      // distance between the source positions of neighbouring taps
  int64_t classes;   // visited class by class (position modulo this), source positions move by multiples of unit

  Phase phase(int64_t index) const {
    if (!transposed) return {stride, dilation, -pad, kernel, 0, 1};
    if (stride == 1) return {1, -dilation, index + pad, kernel, 0, 1};
    const int64_t divisor = std::gcd(stride, dilation), period = stride / divisor, residue = index + pad;
    if (residue % divisor != 0) return {1, -unit, 0, 0, 0, 1};
    const __int128 product = __int128(residue / divisor % period) * inverse(dilation / divisor, period);
    const int64_t tap = static_cast<int64_t>(product % period);
    if (tap >= kernel) return {1, -unit, 0, 0, 0, 1};
    return {1, -unit, (residue - tap * dilation) / stride, (kernel - 1 - tap) / period + 1, tap, period};
  }

  // Phase of a target position, and its j within the phase.
  int64_t phase_of(int64_t position) const { return phases == 1 ? 0 : position % phases; }
  int64_t index_of(int64_t position) const { return phases == 1 ? position : position / phases; }

  // Number of target positions of a phase.
  int64_t count(int64_t phase) const { return phase < target ? (target - 1 - phase) / phases + 1 : 0; }
  int64_t source_stride() const { return transposed ? 1 : stride; }
  // Without phases: the source positions from the first to the last that a range of target positions meets.
  Range met(Range targets) const {
    const Phase p = phase(0);
    const int64_t first = p.source(targets.begin, 0), last = p.source(targets.end - 1, 0),
                  reach = (p.taps - 1) * p.step;
    return {std::max<int64_t>(0, first + std::min<int64_t>(0, reach)),
            std::min(source, last + std::max<int64_t>(0, reach) + 1)};
  }
  // Forward: how many these are at most, of `count` target positions in `runs` runs.
  int64_t most_met(int64_t count, int64_t runs) const {
    return std::min((count - runs) * stride + runs * ((kernel - 1) * dilation + 1), runs * source);
  }
  // Forward: from a target row to the next of its class, in steps from tap to tap.
  int64_t row_step() const { return stride / std::gcd(stride, dilation); }
};

// The taps of one target position along an axis that hit the image, in the order of their source positions: the source
// position, the kernel's tap, and the ring's slot. Source rows of one phase in neighbouring slots never meet in a ring
// that has a slot for each tap.
struct TapWalk {
  int64_t count = 0;
  int64_t source = 0, tap = 0, slot = 0;
  int64_t step = 0, tap_step = 0, slots = 1;

  TapWalk() = default;
  TapWalk(const Axis& axis, int64_t position, Range block, int64_t ring_slots) : slots(ring_slots) {
    const Phase phase = axis.phase(axis.phase_of(position));
    const int64_t first = phase.source(axis.index_of(position), 0);
    const Range taps = phase.clip(first, first, axis.source, block);
    count = size(taps);
    if (count == 0) return;
    const int64_t forward = phase.step > 0 ? 1 : -1, t = phase.step > 0 ? taps.begin : taps.end - 1;
    source = first + t * phase.step;
    step = forward * phase.step;
    tap = phase.tap_first + t * phase.tap_step;
    tap_step = forward * phase.tap_step;
    slot = slots == 1 ? 0 : divide(source, axis.unit) % slots;
  }

  void next() {
    if (--count == 0) return;
    source += step;
    tap += tap_step;
    slot = slot + 1 == slots ? 0 : slot + 1;
  }
};

inline Axis forward_axis(const ConvGeometry<int64_t>& g, int i) {
  const int64_t common = std::gcd(g.stride[i], g.dilation[i]);
  return {.transposed = false,
          .target = g.out[i],
          .source = g.in[i],
          .kernel = g.kernel[i],
          .stride = g.stride[i],
          .dilation = g.dilation[i],
          .pad = g.pad_before[i],
          .phases = 1,
          .max_taps = g.kernel[i],
          .unit = g.dilation[i],
          .classes = std::min(g.dilation[i] / common, g.out[i])};
}

inline Axis grad_input_axis(const ConvGeometry<int64_t>& g, int i) {
  const int64_t common = std::gcd(g.stride[i], g.dilation[i]), unit = g.dilation[i] / common;
  int64_t classes;  // neighbouring phases share source rows, unless their taps interleave
  if (__builtin_mul_overflow(unit, g.stride[i], &classes)) classes = g.in[i];
  if (unit == 1) classes = 1;
  return {.transposed = true,
          .target = g.in[i],
          .source = g.out[i],
          .kernel = g.kernel[i],
          .stride = g.stride[i],
          .dilation = g.dilation[i],
          .pad = g.pad_before[i],
          .phases = g.stride[i],
          .max_taps = ceil_div(g.kernel[i], g.stride[i] / common),
          .unit = unit,
          .classes = std::min(classes, g.in[i])};
}

// Tiles of columns and blocks of taps, chosen so that the packed rows of a block and tile stay in cache.
struct Tiling {
  int64_t columns;        // positions j of each column phase in a tile
  int64_t terms;          // source channels (per target channel) in a block
  Triple<int64_t> taps;   // taps in a block
  Triple<int64_t> slots;  // ring slots: depths, rows; and packed columns in a row
  bool single;            // one block holds all taps

  int64_t rows() const { return terms * slots[0] * slots[1]; }
  int64_t ring() const { return rows() * slots[2]; }  // packed columns
};

namespace detail {

// Source columns that a tile of `columns` positions and `taps` taps touches, when taps outside the image are left out.
inline int64_t packed_columns(const Axis& axis, int64_t columns, int64_t taps, int64_t group) {
  const __int128 reach = __int128(columns - 1) * axis.source_stride();
  const __int128 all = reach + __int128(taps - 1) * axis.unit + 1 + (group > 1);
  const __int128 clipped = axis.source + 2 * reach;
  return static_cast<int64_t>(std::min({all, clipped, __int128(1) << 32}));
}

inline void set_slots(const Triple<Axis>& axes, int64_t group, Tiling* t) {
  for (int i = 0; i < 2; ++i) t->slots[i] = std::min(t->taps[i], (axes[i].source - 1) / axes[i].unit + 1);
  t->slots[2] = packed_columns(axes[2], t->columns, t->taps[2], group);
}

inline int64_t half(int64_t n) { return (n + 1) / 2; }

}  // namespace detail

// group: column phases in a tile; pixel_bytes: one packed column of a block of channels; max_block: taps in a block.
inline Tiling make_tiling(const Triple<Axis>& axes, int64_t terms, int64_t group, int64_t pixel_bytes,
                          int64_t max_columns, int64_t max_block = std::numeric_limits<int64_t>::max()) {
  using detail::half;
  const auto fits = [&](Tiling& t, int64_t bytes) {
    detail::set_slots(axes, group, &t);
    // Every factor is at most 2^32 or small, but their product may not fit.
    const __int128 ring = __int128(t.terms) * t.slots[0] * t.slots[1] * t.slots[2] * pixel_bytes;
    const __int128 rows = __int128(t.terms) * t.taps[0] * t.taps[1];
    return ring <= bytes && rows <= kMaxRows && rows * t.taps[2] <= max_block;
  };
  const Axis& w = axes[2];
  Tiling t{.columns = std::min(w.count(0), std::max<int64_t>(1, max_columns / group)),
           .terms = terms,
           .taps = {{axes[0].max_taps, axes[1].max_taps, w.max_taps}},
           .slots = {},
           .single = true};
  for (Tiling tile = t;; tile.columns = half(tile.columns)) {
    if (fits(tile, kRingBytes)) return tile;
    if (tile.columns * group <= kMinColumns) break;
  }
  // Distant taps share no columns: packing what lies between them would be waste.
  const __int128 reach = std::max<__int128>(__int128(t.columns) * w.source_stride(), 64);
  while (t.taps[2] > 1 && __int128(t.taps[2] - 1) * w.unit > reach) t.taps[2] = half(t.taps[2]);
  while (!fits(t, kBlockedRingBytes)) {
    if (t.terms > 1) t.terms = half(t.terms);
    else if (t.taps[0] > 1) t.taps[0] = half(t.taps[0]);
    else if (t.taps[1] > 1) t.taps[1] = half(t.taps[1]);
    else if (t.columns > 1) t.columns = half(t.columns);
    else if (t.taps[2] > 1) t.taps[2] = half(t.taps[2]);
    else break;
  }
  t.single =
      t.terms == terms && t.taps[0] == axes[0].max_taps && t.taps[1] == axes[1].max_taps && t.taps[2] == w.max_taps;
  return t;
}

// A tiling in which columns are lanes also holds what the last vector reads and the packing writes beyond the columns.
inline void round_columns(Tiling* t, int64_t lanes) {
  t->slots[2] = ceil_div(t->slots[2] + lanes - 1, lanes) * lanes + lanes;
}

// A tiling that keeps the source rows of `rows` target rows, each `advance` slots after the one before.
inline void add_rows(Tiling* t, const Axis& h, int64_t rows) {
  const int64_t advance = h.source_stride() / std::gcd(h.source_stride(), h.unit);
  t->slots[1] = std::min(t->slots[1] + (rows - 1) * advance, (h.source - 1) / h.unit + 1);
}

// How positions are cut into parts that are independent pieces of work.
struct Parts {
  int64_t n, d, h, w;

  int64_t count() const { return n * d * h * w; }
};

// At least `needed` parts in all where the sizes allow it, rows of `shortest` positions and longer.
inline int64_t cut(int64_t* needed, int64_t size, int64_t shortest) {
  const int64_t parts = std::clamp<int64_t>(*needed, 1, std::max<int64_t>(1, size / shortest));
  *needed = ceil_div(*needed, parts);
  return parts;
}

// One axis of channels cut into vectors, and these into blocks.
struct Channels {
  int64_t channels;
  int64_t lanes;  // channels in a vector
  int64_t width;  // vectors in a block
  bool overlap;   // the last vector is a whole one: it overlaps the one before, in the same block

  int64_t all_vectors() const { return ceil_div(channels, lanes); }
  int64_t blocks() const { return ceil_div(overlap ? channels / lanes : all_vectors(), width); }
  int64_t max_vectors() const { return width + overlap; }
  int64_t vectors(int64_t block) const { return block + 1 < blocks() ? width : all_vectors() - block * width; }
  int64_t first(int64_t vector) const { return overlap ? std::min(vector * lanes, channels - lanes) : vector * lanes; }
};

// Blocks of nearly the same number of vectors, at most `most` and at least `least`, many enough for `parts` parts.
inline Channels cut_channels(int64_t channels, int64_t lanes, bool whole_vectors, int64_t least, int64_t most,
                             int64_t parts) {
  Channels c{channels, lanes, 1, whole_vectors && channels % lanes != 0};
  const int64_t whole = c.overlap ? channels / lanes : c.all_vectors();
  const int64_t blocks = std::max(ceil_div(whole, most), std::min(parts, ceil_div(whole, least)));
  c.width = ceil_div(whole, blocks);
  return c;
}

// Which channel belongs to a lane: the first of its group, plus the term. `over` lanes make a group, of `times`
// channels. "Wide" is the side with more channels.
struct ChannelMap {
  int64_t times, over;

  int64_t operator()(int64_t lane) const { return divide(lane, over) * times; }
};

// Items that a pass should have: each with some multiply-adds, so that it is worth its overhead.
inline int64_t wanted_parts(const ConvGeometry<int64_t>& g, int64_t part_work) {
  const double channels =
      static_cast<double>(g.out_channels) * g.in_per_group() * g.kernel[0] * g.kernel[1] * g.kernel[2];
  const double work = channels * g.batch * g.out[0] * g.out[1] * g.out[2] / static_cast<double>(part_work);
  return work < kParts ? std::max<int64_t>(1, static_cast<int64_t>(work)) : kParts;
}

inline bool output_is_wide(const ConvGeometry<int64_t>& g) { return g.groups == g.in_channels; }
inline int64_t multiplier(const ConvGeometry<int64_t>& g) {
  return output_is_wide(g) ? g.out_channels / g.groups : g.in_channels / g.groups;
}
// Of the two kinds of geometry that the depthwise kernels take: see groups_share_vectors.
inline bool is_grouped(const ConvGeometry<int64_t>& g) { return g.in_per_group() > 1 && g.out_per_group() > 1; }
inline int64_t wide_channels(const ConvGeometry<int64_t>& g) { return g.groups * multiplier(g); }
inline int64_t kernel_taps(const ConvGeometry<int64_t>& g) { return g.kernel[0] * g.kernel[1] * g.kernel[2]; }

}  // namespace torch_ext::cpu
