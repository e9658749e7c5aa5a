#pragma once

#include <concepts>

#include "orders.h"

// The plans of the passes: made from the geometry alone, so that every thread, instruction set and run agrees on them.
namespace torch_ext::cpu {

// A rectangle of work of one pass.
struct Box {
  Range n, d, h, w;
};

inline Box box(const Parts& parts, int64_t n, int64_t d, int64_t h, int64_t w, int64_t index) {
  const int64_t iw = index % parts.w, ih = index / parts.w % parts.h, id = index / parts.w / parts.h % parts.d;
  return {part(n, parts.n, index / parts.w / parts.h / parts.d), part(d, parts.d, id), part(h, parts.h, ih),
          part(w, parts.w, iw)};
}

// Forward and grad input.
struct CorrelatePlan {
  Order order;
  Triple<Axis> axes;
  Channels channels;  // of the target
  ChannelMap map;     // from target to source; of whole vectors if their groups share them
  bool transposed;
  bool shares_vectors;     // the terms of a group are lanes of the vector that its targets are
  int64_t targets, terms;  // channels of a group, in target and source
  int64_t group;           // column phases that are computed together
  int64_t batch;
  int64_t lanes;  // in a vector, whatever they are
  Tiling tiling;
  Parts parts;
  int64_t target_rows;  // that are summed at once, 1 or 2
  int64_t tile_rows;    // target rows whose sums are kept: all of an item if its taps come in blocks
  bool prefetch;        // source rows ahead of their use: tensors do not fit in a cache

  Triple<int64_t> kernel() const { return {{axes[0].kernel, axes[1].kernel, axes[2].kernel}}; }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t ring_terms() const { return shares_vectors ? 1 : terms; }
  // Columns of a tile in memory; the last vector of columns may be a part.
  int64_t tile_columns() const {
    return lanes_are_columns(order) ? ceil_div(tiling.columns, lanes) * lanes : tiling.columns * group;
  }
  int64_t items() const { return parts.count() * channels.blocks(); }
  // In elements. In scratch lie the bias; the tile and the ring, or the copy of the source.
  int64_t ring_size() const { return !is_packed(order) ? 0 : tiling.ring() * channels.max_vectors() * channels.lanes; }
  int64_t tile_size() const {
    return !is_packed(order) ? 0 : tile_rows * tile_columns() * channels.max_vectors() * channels.lanes;
  }
  int64_t bias_size() const { return channels.max_vectors() * lanes; }
  int64_t source_plane() const { return axes[0].source * axes[1].source * axes[2].source; }
  int64_t stage_size() const {
    const int64_t most = map.over > 1 ? (channels.width - 1) / map.over + 2 : channels.width * terms;  // channels
    return !is_staged(order) ? 0 : most * source_plane() + lanes;
  }
  int64_t scratch_size() const { return bias_size() + tile_size() + ring_size() + stage_size(); }
  int64_t weight_size() const {
    return channels.all_vectors() * channels.lanes * terms * taps() + lanes;
  }  // see pack_line
  Box item_box(int64_t item) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].count(0), item / channels.blocks());
  }
};

namespace detail {

// Vectors of packed channels in a block: many if channels are adjacent in memory or rows are short, so that there is
// some work for each row.
inline int64_t packed_vectors(int64_t columns, Layout a, Layout b) {
  return channels_are_adjacent(a, b) ? 8 : std::clamp<int64_t>(64 / columns, 2, 16);
}

// Few channels at a time are read and written nearly in the order of memory; many cost less for each row.
inline int64_t channels_at_once(const Triple<Axis>& axes, int64_t least) {
  return std::clamp<int64_t>(kBlockPositions / (axes[1].target * axes[2].target), least, 16);
}

// Whether input and output may not be in a cache.
template <class T>
bool is_large(const ConvGeometry<int64_t>& g, Order order) {
  const int64_t in = g.batch * g.in_channels * g.in[0] * g.in[1] * g.in[2];
  const int64_t out = g.batch * g.out_channels * g.out[0] * g.out[1] * g.out[2];
  return in + out > (is_packed(order) || order == Order::kStagedColumns ? kPrefetchPackedBytes : kPrefetchBytes) /
                        static_cast<int64_t>(sizeof(T));
}

}  // namespace detail

// Whether several small groups fill a vector, in source and target alike: a depthwise convolution but for the lanes of
// the source that each target meets.
template <class T>
bool groups_share_vectors(const ConvGeometry<int64_t>& g, Layout source, Layout target) {
  const int64_t channels = g.in_per_group(), lanes = kLanes<Acc<T>>;
  return channels == g.out_per_group() && 1 < channels && channels < lanes && lanes % channels == 0 &&
         g.in_channels >= lanes && detail::channels_are_adjacent(source, target) && g.kernel[2] <= 5 &&
         channels * g.kernel[0] * g.kernel[1] <= kMaxRows;
}

// Of a depthwise convolution, or one whose groups share vectors.
template <class T>
CorrelatePlan plan_correlate(const ConvGeometry<int64_t>& g, bool transposed, Layout source, Layout target) {
  using A = Acc<T>;
  CorrelatePlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = transposed ? grad_input_axis(g, i) : forward_axis(g, i);
  p.transposed = transposed;
  p.targets = transposed ? g.in_per_group() : g.out_per_group();
  p.terms = transposed ? g.out_per_group() : g.in_per_group();
  p.shares_vectors = is_grouped(g);
  p.map = p.shares_vectors ? ChannelMap{1, 1} : ChannelMap{p.terms, p.targets};
  const int64_t channels = g.groups * p.targets;
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  const Axis& w = p.axes[2];
  const bool convert = !std::same_as<T, A>;
  const bool channels_in_place =
      p.targets == p.terms &&
      detail::reads_channels_in_place(p.axes, channels, p.terms, p.lanes, source, target, sizeof(T), convert);
  // 16-bit types have no masked loads for the edges: their images are widened first.
  const bool strips_of_columns = !p.shares_vectors &&
                                 detail::has_strips_of_columns(p.axes, p.terms, p.lanes, source, target) &&
                                 (!convert || p.terms * p.source_plane() <= kMaxStaged);
  p.order = channels_in_place   ? Order::kChannelsInPlace
            : strips_of_columns ? convert ? Order::kStagedColumns : Order::kColumnsInPlace
            : !p.shares_vectors && detail::columns_are_lanes(w, channels, p.lanes, source, target)
                ? Order::kPackedColumns
                : Order::kPackedChannels;

  p.prefetch = detail::is_large<T>(g, p.order);
  const int64_t wanted = wanted_parts(g, kPartWork);
  int64_t needed = ceil_div(wanted, g.batch);
  const int64_t phases = std::min(w.phases, w.target);
  p.group = phases <= kMaxGroup && (channels_in_place || w.unit == 1) ? phases : 1;
  const Triple<int64_t> all_taps{{p.axes[0].max_taps, p.axes[1].max_taps, w.max_taps}};
  switch (p.order) {
    case Order::kChannelsInPlace:
      p.channels =
          cut_channels(channels, p.lanes, true, 8, std::min(kWeightBytes / (32 * p.terms * p.taps()), kMaxVectors - 1),
                       ceil_div(needed, p.axes[0].target * p.axes[1].target));
      p.tiling = {w.count(0), 1, all_taps, {{1, 1, 0}}, true};
      break;
    case Order::kColumnsInPlace:
    case Order::kStagedColumns:
      // Few channels at a time are read and written nearly in the order of memory; many cost less for each row.
      p.channels = cut_channels(channels, 1, false, 1,
                                convert ? std::clamp<int64_t>(kStagedBlock / (p.terms * p.source_plane()), 1, 16)
                                        : detail::channels_at_once(p.axes, 1),
                                needed);
      p.tiling = {w.count(0), p.terms, all_taps, {{1, 1, 0}}, true};
      break;
    case Order::kPackedChannels:
    case Order::kStagedChannels: {                                             // not in this pass
      const int64_t columns = p.group > 1 ? ceil_div(w.source, 2) : w.target;  // phases share rows of the source
      p.channels = cut_channels(channels, p.lanes, false, 2, detail::packed_vectors(columns, source, target), needed);
      p.tiling = make_tiling(p.axes, p.ring_terms(), p.group, p.channels.width * 32, kMaxColumns);
      break;
    }
    case Order::kPackedColumns: {
      const int64_t columns = p.axes[0].kernel * p.axes[1].kernel == 1 ? 4 * kMaxColumns : kMaxColumns;
      p.channels =
          cut_channels(channels, 1, false, 8, p.prefetch ? std::clamp<int64_t>(448 / w.target, 8, 16) : 16, needed);
      p.tiling = make_tiling(p.axes, p.terms, 1, p.channels.width * static_cast<int64_t>(sizeof(A)),
                             columns * p.lanes / p.channels.width);
      round_columns(&p.tiling, p.lanes);
      break;
    }
  }

  needed = ceil_div(needed, p.channels.blocks());
  p.parts.n = g.batch;
  p.parts.d = cut(&needed, p.axes[0].target, 1);
  p.parts.h = cut(&needed, p.axes[1].target,
                  channels_in_place   ? 1
                  : strips_of_columns ? kStripRows * p.axes[1].classes
                                      : 4);
  p.parts.w = cut(&needed, w.count(0), 64);
  // Two target rows share the loads of their source rows, where lanes being columns makes loads dear.
  Tiling two = p.tiling;
  add_rows(&two, p.axes[1], 2);
  const int64_t ring_bytes = two.ring() * p.channels.width * static_cast<int64_t>(sizeof(A));
  const bool shared = two.slots[1] < 2 * p.tiling.slots[1];
  const bool pairs = p.order == Order::kPackedColumns && p.axes[1].target > 1 && shared && two.rows() <= kMaxRows &&
                     ring_bytes <= 2 * kRingBytes;
  if (pairs) p.tiling = two;
  p.target_rows = p.tile_rows = pairs ? 2 : 1;
  if (!p.tiling.single) {
    const int64_t row_bytes = p.tile_columns() * p.channels.width * p.channels.lanes * static_cast<int64_t>(sizeof(A));
    const int64_t rows = std::max<int64_t>(1, kTileBytes / row_bytes);
    p.parts.d = p.axes[0].target;
    p.parts.h = std::max(p.parts.h, ceil_div(p.axes[1].target, rows));
    p.tile_rows = ceil_div(p.axes[1].target, p.parts.h);
  }
  return p;
}

// What neighbouring rows of the kernel have in common: a source row that they meet at neighbouring rows of grad_output,
// if these are one step apart in the input; else a row of grad_output.
enum class Shared { kSource, kFactor };

// Grad weight: channels are the wide side's, which are also the weight's.
struct GradWeightPlan {
  Order order;
  Triple<Axis> axes;  // target: grad_output, source: input
  Channels channels;
  ChannelMap output_map, input_map;
  int64_t multiplier;  // or the channels of a group that shares vectors
  bool wide_output;
  int64_t terms;  // inputs of a group that shares vectors, else 1
  int64_t batch;
  int64_t lanes;  // in a vector, whatever they are
  Tiling tiling;
  int64_t positions_at_once;  // in strips: of grad_output that all vectors of a block meet before the next ones
  int64_t tile_rows;          // rows of grad_output whose products are summed in registers
  Shared shared;
  // A row of zeros stands for rows outside the image: few runs pay for short ones. As with columns outside, an infinite
  // grad_output makes NaN of the weights that meet it there.
  bool zero_rows;
  bool prefetch;  // as in CorrelatePlan
  Parts parts;

  Triple<int64_t> kernel() const { return {{axes[0].kernel, axes[1].kernel, axes[2].kernel}}; }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t block_taps() const { return terms * tiling.taps[0] * tiling.taps[1] * tiling.taps[2]; }
  int64_t items() const { return parts.count() * channels.blocks(); }
  // Columns of a packed row of grad_output; the last vector of columns may be a part.
  int64_t row_columns() const {
    return order == Order::kPackedColumns ? ceil_div(tiling.columns, lanes) * lanes : tiling.columns;
  }
  // In elements. In scratch lie for each tap of a block a short sum, a total and its error; packed rows of grad_output;
  // and the ring or copy.
  int64_t sums_size() const {
    return 3 * block_taps() * (order == Order::kColumnsInPlace ? 1 : channels.max_vectors()) * lanes;
  }
  int64_t rows_size() const {
    return !is_packed(order) ? 0 : tile_rows * row_columns() * channels.max_vectors() * channels.lanes;
  }
  int64_t ring_size() const { return !is_packed(order) ? 0 : tiling.ring() * channels.max_vectors() * channels.lanes; }
  int64_t zero_row_size() const { return zero_rows ? tiling.slots[2] * channels.max_vectors() * channels.lanes : 0; }
  // Strips of 4 rows at least, and what they meet of the input. Tiles are nearly of the same size.
  int64_t stage_size() const {
    if (!is_staged(order)) return 0;
    const Axis &h = axes[1], &w = axes[2];
    const int64_t fewest_columns = std::min(w.target / parts.w, ceil_div(tiling.columns, 2));
    const int64_t most_rows = std::max(kStripRows, positions_at_once / fewest_columns);
    const int64_t planes = std::clamp<int64_t>(most_rows / (h.target / parts.h), 1, kMaxPlanes);
    const int64_t rows = std::min(most_rows, planes * ceil_div(h.target, parts.h));
    return (rows * tiling.columns + h.most_met(rows, planes) * w.most_met(tiling.columns, 1)) * lanes;
  }
  int64_t scratch_size() const { return sums_size() + rows_size() + zero_row_size() + ring_size() + stage_size(); }
  int64_t slice_size() const { return channels.all_vectors() * channels.lanes * terms * taps(); }
  int64_t partial_sums_size() const { return parts.count() * slice_size(); }
  Box slice_box(int64_t slice) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].target, slice);
  }
};

inline constexpr int64_t kSumPositions = 512;  // of grad_output, summed in registers
inline constexpr int64_t kShortSum = 2048;     // positions whose sums are added before they go to a total
inline constexpr int64_t kMaxSumColumns = 64;
inline constexpr int64_t kMaxTileRows = 16;
inline constexpr int64_t kSlicePositions = 1024;  // a slice has more, so that its borders cost little

// Slices are for the threads when there are few blocks of channels.
inline Parts cut_slices(int64_t needed, int64_t n, const Triple<int64_t>& size) {
  Parts parts;
  parts.n = cut(&needed, n, 1);
  parts.d = cut(&needed, size[0], 1);
  parts.h = cut(&needed, size[1], 4);
  parts.w = cut(&needed, size[2], 64);
  return parts;
}

// As groups_share_vectors, where both tensors are read in place.
template <class T>
bool grad_weight_shares_vectors(const ConvGeometry<int64_t>& g, Layout grad_output, Layout input) {
  const Triple<Axis> axes{{forward_axis(g, 0), forward_axis(g, 1), forward_axis(g, 2)}};
  return groups_share_vectors<T>(g, input, grad_output) && g.kernel[1] == 3 &&
         detail::sums_channels_in_place(axes, g.in_channels, kLanes<Acc<T>>, input, grad_output,
                                        g.in_channels * static_cast<int64_t>(sizeof(T)));
}

// Of a depthwise convolution, or one whose groups share vectors.
template <class T>
GradWeightPlan plan_grad_weight(const ConvGeometry<int64_t>& g, Layout grad_output, Layout input) {
  using A = Acc<T>;
  GradWeightPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = forward_axis(g, i);
  const int64_t m = multiplier(g), channels = wide_channels(g);
  const bool shares_vectors = is_grouped(g);
  p.output_map = output_is_wide(g) || shares_vectors ? ChannelMap{1, 1} : ChannelMap{1, m};
  p.input_map = output_is_wide(g) ? ChannelMap{1, m} : ChannelMap{1, 1};
  p.multiplier = m;
  p.wide_output = output_is_wide(g);
  p.terms = shares_vectors ? m : 1;
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  const Axis &h = p.axes[1], &w = p.axes[2];
  const bool convert = !std::same_as<T, A>;
  const int64_t pixel_bytes = channels * static_cast<int64_t>(sizeof(T));
  const bool channels_in_place =
      shares_vectors ||
      (m == 1 && detail::sums_channels_in_place(p.axes, channels, p.lanes, input, grad_output, pixel_bytes));
  const int64_t positions = g.batch * g.out[0] * g.out[1] * g.out[2];
  const bool adjacent = detail::channels_are_adjacent(input, grad_output);
  const bool staged = detail::sums_staged_channels(p.axes, channels, p.lanes, adjacent && m == 1);
  const bool columns_in_place =
      !convert && detail::sums_columns_in_place(p.axes, p.lanes, positions, input, grad_output, staged);
  p.order = channels_in_place                                                     ? Order::kChannelsInPlace
            : columns_in_place                                                    ? Order::kColumnsInPlace
            : staged                                                              ? Order::kStagedChannels
            : detail::columns_are_lanes(w, channels, p.lanes, input, grad_output) ? Order::kPackedColumns
                                                                                  : Order::kPackedChannels;

  const int64_t wanted = wanted_parts(g, kGradPartWork);
  // Adjacent channels come best in long pieces: rather slices that are whole images than blocks.
  const int64_t images = adjacent ? std::min(g.batch, positions / (kSlicePositions / 4)) : 0;
  const int64_t slices = std::clamp<int64_t>(std::max(positions / kSlicePositions, images), 1, wanted);
  const int64_t blocks = ceil_div(wanted, slices);
  int64_t packed_bytes = 1, max_columns = kMaxSumColumns;  // of a column of a block
  switch (p.order) {
    case Order::kChannelsInPlace:
      p.channels = cut_channels(channels, p.lanes, true, 2,
                                std::clamp<int64_t>(kMaxBlockTaps / p.terms / p.taps(), 1, 16), blocks);
      break;
    case Order::kPackedChannels:
      p.channels = cut_channels(channels, p.lanes, false, adjacent ? 8 : 2,
                                detail::packed_vectors(w.target, input, grad_output), blocks);
      packed_bytes = p.channels.width * 32;
      break;
    case Order::kStagedChannels:
      p.channels =
          cut_channels(channels, p.lanes, false, 1, std::clamp<int64_t>(kMaxBlockTaps / p.taps(), 1, 16), blocks);
      break;
    case Order::kColumnsInPlace:
    case Order::kStagedColumns:  // not in this pass
      p.channels = cut_channels(channels, 1, false, 4, detail::channels_at_once(p.axes, 4), blocks);
      break;
    case Order::kPackedColumns:
      p.channels = cut_channels(channels, 1, false, 4, 8, blocks);
      packed_bytes = p.channels.width * static_cast<int64_t>(sizeof(A));
      max_columns = kMaxSumColumns * p.lanes;
      break;
  }
  p.positions_at_once = kShortSum;
  if (is_packed(p.order)) {
    p.tiling =
        make_tiling(p.axes, 1, 1, packed_bytes, max_columns, std::max<int64_t>(1, kMaxBlockTaps / p.channels.width));
  } else {
    p.tiling = {std::min(w.target, kShortSum / 4), 1, p.kernel(), {{1, 1, 0}}, true};  // 4 rows are a short sum
  }
  if (channels_in_place) {
    // Where the taps pass over a strip several times, it stays in L1; so that its positions stay in L2 for all channels
    // of a block, they are few.
    const bool passes = w.kernel > detail::grad_taps_at_once(h.kernel);
    const int64_t columns = passes ? std::max<int64_t>(7, detail::columns_in_cache(h, pixel_bytes)) : kSumPositions / 4;
    p.tiling.columns = std::min(w.target, columns);
    p.positions_at_once = passes ? kStripPositions : 4 * kStripPositions;
  }
  if (is_staged(p.order)) {
    const int64_t columns = std::min(w.target, std::max<int64_t>(1, kShortSum / 4 / w.stride));
    p.tiling.columns = columns;
    p.positions_at_once = kStagedPositions * 4 * columns / std::max(4 * columns, w.most_met(columns, 1));
  }
  if (p.order == Order::kPackedColumns) round_columns(&p.tiling, p.lanes);

  // Rows whose taps interleave with no others' are summed together.
  const int64_t vectors = ceil_div(p.tiling.columns, lanes_are_columns(p.order) ? p.lanes : 1);
  p.tile_rows = std::clamp<int64_t>(kSumPositions / vectors, 1, std::min(kMaxTileRows, h.target));
  for (const Tiling one = p.tiling;; --p.tile_rows) {
    p.tiling = one;
    add_rows(&p.tiling, h, p.tile_rows);
    const bool fits = p.tiling.rows() <= kMaxRows && p.tiling.ring() * packed_bytes <= 2 * kRingBytes;
    if (p.tile_rows == 1 || fits || !is_packed(p.order)) break;
  }
  p.zero_rows = is_packed(p.order) && h.target <= kMaxTileRows && 2 * h.kernel <= h.target;
  p.shared = h.row_step() == 1 && !p.zero_rows ? Shared::kSource : Shared::kFactor;
  p.prefetch = detail::is_large<T>(g, p.order) && h.stride <= h.source;
  p.parts = cut_slices(std::min(slices, ceil_div(wanted, p.channels.blocks())), g.batch, g.out);
  return p;
}

// Grad bias: sums of grad_output.
struct GradBiasPlan {
  Order order;
  Channels channels;
  int64_t batch;
  int64_t lanes;
  Triple<int64_t> size;
  Parts parts;

  int64_t items() const { return parts.count() * channels.blocks(); }
  int64_t scratch_size() const { return kMaxColumns * lanes; }
  int64_t slice_size() const { return channels.all_vectors() * channels.lanes; }
  int64_t partial_sums_size() const { return parts.count() * slice_size(); }
  Box slice_box(int64_t slice) const { return box(parts, batch, size[0], size[1], size[2], slice); }
};

template <class T>
GradBiasPlan plan_grad_bias(const ConvGeometry<int64_t>& g, Layout grad_output) {
  const int64_t lanes = kLanes<Acc<T>>;
  const Order order = grad_output.column == 1 && g.out[2] >= lanes ? Order::kPackedColumns : Order::kPackedChannels;
  GradBiasPlan p{order, {}, g.batch, lanes, g.out, {}};
  p.channels = cut_channels(g.out_channels, order == Order::kPackedColumns ? 1 : lanes, false, 2, 2, kParts);
  p.parts = cut_slices(ceil_div(kParts, p.channels.blocks()), g.batch, g.out);
  return p;
}

}  // namespace torch_ext::cpu
