#pragma once

#include "direct_plan.h"

// The plans of convolutions whose lanes are the channels of a group: as in direct_plan.h.
namespace torch_ext::cpu {

// Where a tap lies from the first, counted row by row.
template <class T>
int64_t tap_offset(const View<T>& weight, const Triple<int64_t>& kernel, int64_t tap) {
  return tap / kernel[2] / kernel[1] * weight.spatial[0] + tap / kernel[2] % kernel[1] * weight.spatial[1] +
         tap % kernel[2] * weight.spatial[2];
}

// Whether vectors of so many channels are empty for a quarter and more.
template <class A>
bool wastes_lanes(int64_t channels) {
  return 4 * channels < 3 * ceil_div(channels, kLanes<A>) * kLanes<A>;
}

// Forward and grad input where the targets of a group fill vectors: they are the lanes.
struct PixelPlan {
  Triple<Axis> axes;
  bool transposed;
  int64_t batch, lanes;
  int64_t targets;  // in a group
  int64_t panel;    // vectors of targets at a time
  int64_t phases;   // of columns, that are computed together
  bool in_place;    // the source is read where it lies, not from a ring of packed rows
  bool packs_target;
  PackedRows rows;
  Parts parts;

  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t vectors() const { return ceil_div(targets, lanes); }
  int64_t panels() const { return ceil_div(vectors(), panel); }
  int64_t blocks() const { return ceil_div(rows.groups, rows.width); }
  int64_t items() const { return parts.count() * blocks(); }
  // In elements. The weight is packed as [group][panel][tap][term][target in the panel], grad input's with its taps
  // from the last to the first; the bias lies behind it, as [group][panel][target in the panel]. In scratch lie the
  // sums of some pixels, and the ring.
  int64_t bias_size() const { return rows.groups * panels() * panel * lanes; }
  int64_t panel_size() const { return taps() * rows.terms * panel * lanes; }
  int64_t weight_size() const { return rows.groups * panels() * panel_size() + bias_size(); }
  int64_t phase_size() const { return rows.tiling.columns * panel * lanes; }
  int64_t line_pitch() const { return ceil_div(rows.tiling.columns, lanes) * lanes; }
  // Also the lines of a vector of targets, where they are not adjacent.
  int64_t target_size() const { return packs_target ? phases * (phase_size() + lanes * line_pitch()) : 0; }
  int64_t scratch_size() const { return target_size() + (in_place ? 0 : rows.ring_size()); }
  Box item_box(int64_t item) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].count(0), item / blocks());
  }
};

inline constexpr int64_t kPanel = 4;  // vectors: two cache lines of float
inline constexpr int64_t kPixelBlock = 192;
inline constexpr int64_t kPixelNumbers = 1 << 13;  // of a block of them, in place
inline constexpr int64_t kShortestBlock = 24;      // pixels of an item, in place
inline constexpr int64_t kShortRow = 28;
inline constexpr int64_t kMaxPixelSums = 256;  // parts of at most kTapsPerSum products that a sum has

// None where other plans are better.
template <class T>
std::optional<PixelPlan> plan_pixels(const ConvGeometry<int64_t>& g, bool transposed, Layout source, Layout target) {
  using A = Acc<T>;
  PixelPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = transposed ? grad_input_axis(g, i) : forward_axis(g, i);
  const Axis& w = p.axes[2];
  p.transposed = transposed;
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  p.targets = transposed ? g.in_per_group() : g.out_per_group();
  p.panel = ceil_div(p.vectors(), ceil_div(p.vectors(), kPanel));
  PackedRows& rows = p.rows;
  rows.groups = rows.width = g.groups;
  rows.terms = transposed ? g.out_per_group() : g.in_per_group();
  if (p.targets < p.lanes || p.taps() * ceil_div(rows.terms, kTapsPerSum) > kMaxPixelSums) return {};
  const bool adjacent = source.channel == 1 && target.channel == 1;
  if (p.taps() > 1 && wastes_lanes<A>(p.targets)) return {};
  // A line has all columns: too many of them would be met by no tap.
  if (w.kernel > 1 && w.source_stride() > 2 * w.kernel) return {};
  // Columns fill vectors badly in short rows, and cost twice where a row is read in two lines. In groups of more than a
  // vector of channels, every number is used often enough to pay for its place among them. Channels are copied in whole
  // vectors.
  const bool used_often = std::same_as<A, float> && rows.terms + p.targets > 2 * p.lanes;
  const bool prefers_pixels = p.taps() > 1 && (w.count(0) <= kShortRow || w.source_stride() > 1 || used_often);
  if (!adjacent && !(prefers_pixels && rows.terms % p.lanes == 0 && p.targets % p.lanes == 0)) return {};
  p.packs_target = !std::same_as<T, A> || p.targets % p.lanes != 0 || target.channel != 1;
  const int64_t phases = std::min(w.phases, w.target);
  p.phases = phases <= kMaxGroup && w.unit == 1 ? phases : 1;
  // No tap is outside the image.
  const bool inside = transposed ? w.kernel == 1 && w.stride == 1 && w.pad == 0
                                 : w.pad == 0 && (w.target - 1) * w.stride + (w.kernel - 1) * w.dilation < w.source;
  // Several groups are read one after the other: from packed rows, so that memory is read in its order.
  p.in_place = std::same_as<T, A> && inside && source.channel == 1 && g.groups == 1;

  // A block has all groups, if they need not be more items and their rows fit in the ring.
  int64_t needed = ceil_div(wanted_parts(g, kPartWork), g.batch);
  const int64_t rows_cut = p.axes[0].target * std::max<int64_t>(1, p.axes[1].target / kShortestPart) *
                           (w.kernel == 1 ? std::max<int64_t>(1, w.target / kMaxColumns) : 1);
  rows.set_steps(w, false);
  rows.width = ceil_div(g.groups, std::min(g.groups, ceil_div(needed, rows_cut)));
  for (;; rows.width = ceil_div(rows.width, 2)) {
    const int64_t channels = rows.width * rows.terms;
    if (p.in_place) {
      const int64_t pixels = std::clamp<int64_t>(kPixelNumbers / rows.terms, 12, kPixelBlock) / 12 * 12;
      const Triple<int64_t> taps{{p.axes[0].max_taps, p.axes[1].max_taps, w.max_taps}};
      rows.tiling = {std::min(pixels, w.count(0)), rows.terms, taps, {{1, 1, 1}}, true};
      rows.set_lines(p.lanes);
      break;
    }
    rows.tiling = make_tiling(p.axes, 1, p.phases, channels * static_cast<int64_t>(sizeof(A)), kMaxColumns);
    rows.tiling.terms = rows.terms;
    rows.set_lines(p.lanes);
    const bool whole = rows.tiling.columns == std::min(w.count(0), kMaxColumns / p.phases);
    const bool fits = rows.tiling.single && rows.ring_size() * static_cast<int64_t>(sizeof(A)) <= kDirectRingBytes;
    if (fits && (whole || channels <= 4 * kBlockChannels || rows.width == 1)) break;
    if (rows.width == 1) return {};
  }

  needed = ceil_div(needed, p.blocks());
  p.parts.n = g.batch;
  p.parts.d = cut(&needed, p.axes[0].target, 1);
  p.parts.h = cut(&needed, p.axes[1].target, kShortestPart);
  p.parts.w =
      cut(&needed, w.count(0), p.in_place ? std::min(rows.tiling.columns, kShortestBlock) : rows.tiling.columns);
  return p;
}

// Grad weight where the inputs of a group fill vectors, or its outputs: these are lanes.
struct PixelGradPlan {
  Triple<Axis> axes;  // target: grad_output, source: input
  int64_t batch, lanes;
  int64_t groups, outputs, inputs;      // in all, and channels of a group
  int64_t width;                        // groups in a block
  int64_t output_chunks, input_chunks;  // of a group's; a block has one of each
  int64_t columns, tile_rows;           // of grad_output, whose products are summed in registers
  Triple<int64_t> slots;                // ring of the input's rows: depths, rows; and columns in a row
  bool lanes_are_outputs;
  bool packs_inputs, packs_outputs;  // copied, or read where they lie
  Parts parts;

  // Where no column has two taps, only columns that are met are packed.
  int64_t column_stride() const { return axes[2].kernel == 1 ? axes[2].stride : 1; }
  // What `count` columns of grad_output meet; it fits if the input and its padding do.
  int64_t packed_columns(int64_t count) const {
    const Axis& w = axes[2];
    return (count - 1) * (w.stride / column_stride()) + (w.kernel - 1) * w.dilation + 1;
  }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t blocks() const { return ceil_div(groups, width) * output_chunks * input_chunks; }
  int64_t items() const { return parts.count() * blocks(); }
  int64_t padded(int64_t channels) const { return ceil_div(channels, lanes) * lanes; }
  int64_t block_outputs() const { return ceil_div(outputs, output_chunks); }
  int64_t block_inputs() const { return ceil_div(inputs, input_chunks); }
  // In elements. In scratch lie a short sum for each weight of a block, a total and its error; the ring, and rows of
  // grad_output.
  int64_t sums() const {
    return width * taps() *
           (lanes_are_outputs ? padded(block_outputs()) * block_inputs() : block_outputs() * padded(block_inputs()));
  }
  // Of a position. Without padding, the inputs of taps side by side are numbers side by side.
  int64_t input_pixel(int64_t channels) const { return lanes_are_outputs ? channels : padded(channels); }
  int64_t group_row_size() const {
    return slots[2] * input_pixel(block_inputs()) + lanes;
  }  // see PixelGradWeight::pack
  int64_t row_size() const { return width * group_row_size(); }
  int64_t ring_size() const { return packs_inputs ? slots[0] * slots[1] * row_size() : 0; }
  int64_t output_row_size() const { return width * columns * padded(block_outputs()); }
  int64_t outputs_size() const { return packs_outputs ? tile_rows * output_row_size() : 0; }
  int64_t scratch_size() const { return 3 * sums() + ring_size() + outputs_size(); }
  int64_t slice_size() const { return groups * outputs * taps() * inputs; }
  int64_t partial_sums_size() const { return parts.count() * slice_size(); }
  Box slice_box(int64_t slice) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].target, slice);
  }
};

inline constexpr int64_t kPixelGradSumBytes = 128 << 10;

// None where other plans are better. For a geometry whose axes may be merged.
template <class T>
std::optional<PixelGradPlan> plan_pixel_grad_weight(const ConvGeometry<int64_t>& g, Layout grad_output, Layout input) {
  using A = Acc<T>;
  PixelGradPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = forward_axis(g, i);
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  p.groups = g.groups;
  p.outputs = g.out_per_group();
  p.inputs = g.in_per_group();
  constexpr int64_t most_sums = kPixelGradSumBytes / static_cast<int64_t>(sizeof(A));
  p.width = p.output_chunks = p.input_chunks = p.tile_rows = 1;
  // Taps side by side fill register tiles best if a vector of outputs is all there is.
  const bool taps_fill_tiles =
      p.outputs == p.lanes && p.inputs % p.lanes == 0 && p.axes[2].kernel > 1 && p.axes[2].dilation == 1;
  p.lanes_are_outputs = p.inputs < p.lanes || taps_fill_tiles;
  if ((p.lanes_are_outputs ? p.outputs : p.inputs) < p.lanes) return {};
  if (p.taps() == 1 && !p.lanes_are_outputs) {
    p.output_chunks = ceil_div(p.outputs, kMaxTargets);
    p.input_chunks = ceil_div(p.inputs, 2 * kMaxTargets);
  } else {
    if (wastes_lanes<A>(p.lanes_are_outputs ? p.outputs : p.inputs)) return {};
    int64_t* const chunks = p.lanes_are_outputs ? &p.input_chunks : &p.output_chunks;
    const int64_t factors = p.lanes_are_outputs ? p.inputs : p.outputs;
    *chunks = ceil_div(factors, std::clamp<int64_t>(most_sums / (p.sums() / factors), 1, factors));
    if (p.sums() > most_sums) return {};
  }
  const bool adjacent = input.channel == 1;
  if (adjacent) {
    const int64_t most = std::max<int64_t>(1, most_sums / p.sums());
    p.width = std::min({g.groups, ceil_div(2 * kBlockChannels, std::min(p.inputs, p.outputs)), most});
  }
  const Axis &h = p.axes[1], &w = p.axes[2];
  const bool inside = w.pad == 0 && (w.target - 1) * w.stride < w.source;
  const bool in_place = std::same_as<T, A> && p.taps() == 1 && inside && !p.lanes_are_outputs;
  p.packs_inputs = !in_place || !adjacent || p.inputs % (p.input_chunks * p.lanes) != 0;
  p.packs_outputs = !std::same_as<T, A> || p.lanes_are_outputs || (grad_output.channel == 1 && p.packs_inputs);
  // Pixels read in place share few sets of the L1 cache.
  const int64_t most_columns = p.packs_inputs ? kMaxColumns : kMaxColumns / 2;
  for (p.columns = std::min(w.target, most_columns);; p.columns = ceil_div(p.columns, 2)) {
    p.tile_rows = p.taps() == 1 ? 1 : std::min({kMaxColumns / p.columns, kMaxTileRows, ceil_div(h.target, h.classes)});
    for (; p.tile_rows > 0; --p.tile_rows) {
      Tiling t{p.columns, 1, {{p.axes[0].kernel, h.kernel, w.kernel}}, {}, true};
      detail::set_slots(p.axes, 1, &t);
      add_rows(&t, h, p.tile_rows);
      const __int128 row = p.packed_columns(p.columns);
      const __int128 ring = row * t.slots[0] * t.slots[1] * p.width * p.input_pixel(p.block_inputs());
      const __int128 factors = p.packs_outputs ? __int128(p.tile_rows) * p.output_row_size() : 0;
      const bool few_rows = __int128(p.axes[0].kernel) * h.kernel <= kMaxRows && t.slots[0] * t.slots[1] <= kMaxRows;
      if (few_rows && std::max(ring, factors) * static_cast<int64_t>(sizeof(A)) <= kDirectRingBytes) {
        p.slots = {{t.slots[0], t.slots[1], static_cast<int64_t>(row)}};
        p.parts = slices_for(g, p.blocks());
        return p;
      }
    }
    if (p.columns <= p.lanes && p.width > 1)
      p.width = ceil_div(p.width, 2), p.columns = 2 * std::min(w.target, most_columns);
    else if (p.columns <= p.lanes) return {};
  }
}

}  // namespace torch_ext::cpu
