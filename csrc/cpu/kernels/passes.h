#pragma once

#include "plan.h"

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
  Triple<Axis> axes;
  Channels channels;  // of the target
  ChannelMap map;     // from target to source
  int64_t terms;      // source channels per target channel
  int64_t group;      // column phases that are computed together
  int64_t batch;
  Tiling tiling;
  Parts parts;
  int64_t tile_rows;  // target rows whose sums are kept: all of an item if its taps come in blocks

  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t tile_columns() const { return tiling.columns * group; }
  int64_t items() const { return parts.count() * channels.blocks(); }
  // Elements, given L lanes. In scratch lie the ring, the tile and the bias.
  int64_t ring_size() const { return tiling.ring() * channels.block_vectors() * channels.lanes; }
  int64_t tile_size() const { return tile_rows * tile_columns() * channels.block_vectors() * channels.lanes; }
  int64_t bias_size() const { return channels.block_vectors() * channels.lanes; }
  int64_t weight_size() const { return channels.all_vectors() * channels.lanes * terms * taps(); }
  Box item_box(int64_t item) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].count(0), item / channels.blocks());
  }
};

template <class A>
CorrelatePlan plan_correlate(const ConvGeometry<int64_t>& g, bool transposed) {
  CorrelatePlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = transposed ? grad_input_axis(g, i) : forward_axis(g, i);
  const int64_t m = multiplier(g);
  const bool wide_target = output_is_wide(g) != transposed;
  p.channels = {transposed ? g.in_channels : g.out_channels, kLanes<A>};
  p.map = wide_target ? ChannelMap{1, m} : ChannelMap{m, 1};
  p.terms = wide_target ? 1 : m;
  p.batch = g.batch;

  const Axis& w = p.axes[2];
  const int64_t phases = std::min(w.phases, w.target);
  p.group = w.unit == 1 && phases <= kMaxGroup ? phases : 1;
  const int64_t pixel_bytes = p.channels.block_vectors() * 32;
  p.tiling = make_tiling(p.axes, p.terms, p.group, pixel_bytes);

  int64_t needed = ceil_div(kParts, g.batch);
  needed = ceil_div(needed, p.channels.blocks());
  p.parts.n = g.batch;
  p.parts.d = cut(&needed, p.axes[0].target, 1);
  p.parts.h = cut(&needed, p.axes[1].target, 4);
  p.parts.w = cut(&needed, w.count(0), 64);
  p.tile_rows = 1;
  if (!p.tiling.single) {
    const int64_t rows = std::max<int64_t>(1, kTileBytes / (p.tile_columns() * pixel_bytes));
    p.parts.d = p.axes[0].target;
    p.parts.h = std::max(p.parts.h, ceil_div(p.axes[1].target, rows));
    p.tile_rows = ceil_div(p.axes[1].target, p.parts.h);
  }
  return p;
}

// Grad weight: lanes are the wide side's channels, which are also the weight's.
struct GradWeightPlan {
  Triple<Axis> axes;  // target: grad_output, source: input
  Channels channels;
  ChannelMap output_map, input_map;
  int64_t batch;
  Tiling tiling;
  Parts parts;

  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t block_taps() const { return tiling.taps[0] * tiling.taps[1] * tiling.taps[2]; }
  int64_t items() const { return parts.count() * channels.blocks(); }
  // In scratch lie the ring, a packed row of grad_output, and for each tap of a block a short sum, a total and its
  // error.
  int64_t ring_size() const { return tiling.ring() * channels.block_vectors() * channels.lanes; }
  int64_t row_size() const { return tiling.columns * channels.block_vectors() * channels.lanes; }
  int64_t sums_size() const { return 3 * block_taps() * channels.block_vectors() * channels.lanes; }
  int64_t slice_size() const { return channels.all_vectors() * channels.lanes * taps(); }
  Box slice_box(int64_t slice) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].target, slice);
  }
};

inline constexpr int64_t kMaxBlockTaps = 1024;

// Slices are for the threads when there are few blocks of channels.
inline Parts cut_slices(int64_t blocks, int64_t n, const Triple<int64_t>& size) {
  int64_t needed = ceil_div(kParts, blocks);
  Parts parts;
  parts.n = cut(&needed, n, 1);
  parts.d = cut(&needed, size[0], 1);
  parts.h = cut(&needed, size[1], 4);
  parts.w = cut(&needed, size[2], 64);
  return parts;
}

template <class A>
GradWeightPlan plan_grad_weight(const ConvGeometry<int64_t>& g) {
  GradWeightPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = forward_axis(g, i);
  const int64_t m = multiplier(g);
  p.channels = {wide_channels(g), kLanes<A>};
  p.output_map = output_is_wide(g) ? ChannelMap{1, 1} : ChannelMap{1, m};
  p.input_map = output_is_wide(g) ? ChannelMap{1, m} : ChannelMap{1, 1};
  p.batch = g.batch;
  p.tiling = make_tiling(p.axes, 1, 1, p.channels.block_vectors() * 32, kMaxBlockTaps);
  p.parts = cut_slices(p.channels.blocks(), g.batch, g.out);
  return p;
}

// Grad bias: sums of grad_output.
struct GradBiasPlan {
  Channels channels;
  int64_t batch;
  Triple<int64_t> size;
  Parts parts;

  int64_t items() const { return parts.count() * channels.blocks(); }
  int64_t slice_size() const { return channels.all_vectors() * channels.lanes; }
  Box slice_box(int64_t slice) const { return box(parts, batch, size[0], size[1], size[2], slice); }
};

template <class A>
GradBiasPlan plan_grad_bias(const ConvGeometry<int64_t>& g) {
  GradBiasPlan p{{g.out_channels, kLanes<A>}, g.batch, g.out, {}};
  p.parts = cut_slices(p.channels.blocks(), g.batch, g.out);
  return p;
}

}  // namespace torch_ext::cpu
