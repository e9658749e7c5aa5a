#pragma once

#include "passes.h"

// The plans of convolutions with several channels in a group: as in passes.h, made from geometry and layout alone.
namespace torch_ext::cpu {

inline constexpr int64_t kBlockChannels = 16;  // of a block, in source and target, if groups are small
inline constexpr int64_t kMaxTargets = 64;     // of a group, in a block
inline constexpr int64_t kMaxBlockTargets = 256;
inline constexpr int64_t kMaxOutputs = 8;       // channels that share what is loaded of the source
inline constexpr int64_t kMaxSums = 12;         // vectors of a register tile;
inline constexpr int64_t kMaxRowSums = 14;      // of one that is a vector wide, which needs fewer registers beside
inline constexpr int64_t kMaxLines = 8;         // of a channel's row
inline constexpr int64_t kMaxBlockSums = 6144;  // of a block's weight gradient
inline constexpr int64_t kSumVectors = 32;      // of grad_output, whose products are summed in registers
inline constexpr int64_t kShortestPart = 4;     // rows of an item
inline constexpr int64_t kDirectRingBytes = 96 << 10;

// The view with the distance from tap to tap as its last stride, if the taps of the weight are evenly spaced in memory.
template <class T>
std::optional<View<T>> with_even_taps(const ConvGeometry<int64_t>& g, View<T> weight) {
  const Triple<int64_t>& kernel = g.kernel;
  const int64_t step = weight.spatial[kernel[2] > 1 ? 2 : kernel[1] > 1 ? 1 : 0];
  if (kernel[1] > 1 && weight.spatial[1] != kernel[2] * step) return {};
  if (kernel[0] > 1 && weight.spatial[0] != kernel[1] * kernel[2] * step) return {};
  weight.spatial[2] = step;
  return weight;
}

// For kernels of one tap that read every position: makes one axis of the three, if they are one in memory.
template <class T, class U>
void merge_axes(ConvGeometry<int64_t>* g, View<T>* input, View<U>* output) {
  const auto& in = g->in;
  for (int i = 0; i < 3; ++i)
    if (g->kernel[i] != 1 || g->stride[i] != 1 || g->pad_before[i] != 0 || g->pad_after[i] != 0) return;
  const auto step = [&](const Triple<int64_t>& s) { return s[in[2] > 1 ? 2 : in[1] > 1 ? 1 : 0]; };
  const auto is_one = [&](const Triple<int64_t>& s) {
    return (in[1] == 1 || s[1] == in[2] * step(s)) && (in[0] == 1 || s[0] == in[1] * in[2] * step(s));
  };
  if (!is_one(input->spatial) || !is_one(output->spatial)) return;
  input->spatial = {{0, 0, step(input->spatial)}};
  output->spatial = {{0, 0, step(output->spatial)}};
  g->in = g->out = {{1, 1, in[0] * in[1] * in[2]}};
}

// Rows of the source, packed: for each channel some lines of columns that are `stride` apart in the image. Where
// columns are lanes, targets that are neighbours read neighbours in a line: in a pass that reads every second column,
// taps that are a multiple of 2 apart are in the same line. Where channels are lanes, one line has all columns,
// or all that a single tap meets.
struct PackedRows {
  int64_t groups, terms;  // in all, and source channels in a group
  int64_t width;          // groups in a block
  int64_t lines;          // of a channel
  int64_t stride;
  int64_t period;       // taps from one to the next of the same line,
  int64_t step;         // and their distance there;
  int64_t target_step;  // that of neighbouring targets
  int64_t pitch;        // from line to line
  Tiling tiling;

  void set_steps(const Axis& w, bool columns_are_lanes) {
    if (columns_are_lanes) {
      const int64_t common = std::gcd(w.stride, w.dilation);
      stride = w.source_stride();
      period = w.transposed ? 1 : w.stride / common;
      step = w.transposed ? -w.unit : w.dilation / common;
      target_step = 1;
    } else {
      const int64_t between = w.target > 1 ? w.source_stride() : 1;  // of sources of neighbouring targets
      stride = w.kernel == 1 ? between : 1;
      period = 1;
      step = w.transposed ? -w.unit : w.dilation;
      target_step = between / stride;
    }
    if (w.kernel == 1) step = 1;  // a single tap has no next
  }
  // A line also holds what the last vector reads, and what packing writes, beyond the columns.
  void set_lines(int64_t lanes) {
    lines = std::min(period, tiling.taps[2]);
    pitch = (ceil_div(ceil_div(tiling.slots[2], stride) + 1, lanes) + 2) * lanes;
  }
  int64_t term_size() const { return lines * pitch; }
  int64_t group_size() const { return tiling.terms * term_size(); }
  int64_t slot_size() const { return width * group_size(); }
  int64_t ring_size() const { return tiling.slots[0] * tiling.slots[1] * slot_size(); }
};

// phases: of target columns that are computed together; max_block: taps of all terms and groups of a block.
template <class A>
PackedRows plan_packed_rows(const Triple<Axis>& axes, int64_t groups, int64_t terms, int64_t targets, bool adjacent,
                            int64_t phases, int64_t max_block) {
  const Axis& w = axes[2];
  PackedRows p;
  p.groups = groups;
  p.terms = terms;
  p.set_steps(w, true);
  // Where channels are adjacent, a block has whole cache lines of them; a group that is cut is a block by itself.
  const int64_t wanted = ceil_div(adjacent ? 2 * kBlockChannels : kBlockChannels, std::min(terms, targets));
  const int64_t most = targets > kMaxTargets ? 1 : std::min(kMaxBlockTargets / targets, wanted);
  p.width = ceil_div(groups, ceil_div(groups, most));
  // Of a single tap, more columns: shorter stretches of many channels are slow to read and write.
  const bool single_tap = axes[0].kernel * axes[1].kernel * w.kernel == 1;
  const bool few_sums = p.width * std::min(targets, kMaxTargets) <= kMaxTargets;
  const int64_t block = ceil_div(terms, ceil_div(terms, kMaxRows));  // of nearly equal ones, if all are too many
  const int64_t most_columns = single_tap && few_sums ? 4 * kMaxColumns : kMaxColumns;
  for (;; p.width = ceil_div(p.width, 2)) {
    p.tiling = make_tiling(axes, block, phases, p.width * static_cast<int64_t>(sizeof(A)), most_columns,
                           std::max<int64_t>(1, max_block / p.width));
    if (p.period > 1) p.tiling.taps[2] = std::min(p.tiling.taps[2], kMaxLines);
    p.tiling.single &= p.tiling.taps[2] == w.max_taps && p.tiling.terms == terms;
    p.set_lines(kLanes<A>);
    if (p.width == 1 || p.ring_size() * static_cast<int64_t>(sizeof(A)) <= kDirectRingBytes) return p;
  }
}

// Forward and grad input.
struct DirectPlan {
  Triple<Axis> axes;
  bool transposed;
  int64_t batch, lanes;
  int64_t targets;  // in a group
  int64_t chunks;   // a block has all of them, or one of so many parts
  int64_t outputs;  // of them, in a register tile
  int64_t phases;   // of columns, that are computed together
  PackedRows rows;
  int64_t tile_rows;  // target rows whose sums are kept: all of an item if its taps come in blocks
  Parts parts;

  int64_t blocks() const { return ceil_div(rows.groups, rows.width) * chunks; }
  int64_t items() const { return parts.count() * blocks(); }
  // In elements. In scratch lie the tile of sums, [row][target][phase][column], and the ring of packed rows.
  int64_t phase_size() const { return ceil_div(rows.tiling.columns, lanes) * lanes; }
  int64_t tile_row_size() const { return rows.width * ceil_div(targets, chunks) * phases * phase_size(); }
  int64_t tile_size() const { return tile_rows * tile_row_size(); }
  int64_t scratch_size() const { return tile_size() + rows.ring_size(); }
  // Its columns, of each phase, are whole vectors but for the last.
  Box item_box(int64_t item) const {
    const int64_t columns = axes[2].count(0);
    Box b = box(parts, batch, axes[0].target, axes[1].target, ceil_div(columns, lanes), item / blocks());
    b.w = {b.w.begin * lanes, std::min(b.w.end * lanes, columns)};
    return b;
  }
};

template <class T>
DirectPlan plan_direct(const ConvGeometry<int64_t>& g, bool transposed, Layout source, Layout target) {
  using A = Acc<T>;
  DirectPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = transposed ? grad_input_axis(g, i) : forward_axis(g, i);
  const Axis& w = p.axes[2];
  p.transposed = transposed;
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  p.targets = transposed ? g.in_per_group() : g.out_per_group();
  p.chunks = ceil_div(p.targets, kMaxTargets);
  const int64_t phases = std::min(w.phases, w.target);
  p.phases = phases <= kMaxGroup && w.unit == 1 ? phases : 1;
  p.rows =
      plan_packed_rows<A>(p.axes, g.groups, transposed ? g.out_per_group() : g.in_per_group(), p.targets,
                          source.channel == 1 || target.channel == 1, p.phases, std::numeric_limits<int64_t>::max());
  // Rows of few vectors leave registers for more channels.
  const int64_t vectors = ceil_div(p.rows.tiling.columns, p.lanes), in_chunk = ceil_div(p.targets, p.chunks);
  p.outputs = ceil_div(in_chunk, ceil_div(in_chunk, std::min(kMaxOutputs, kMaxSums / std::min<int64_t>(vectors, 3))));

  int64_t needed = ceil_div(ceil_div(wanted_parts(g, kPartWork), g.batch), p.blocks());
  p.parts.n = g.batch;
  p.parts.d = cut(&needed, p.axes[0].target, 1);
  p.parts.h = cut(&needed, p.axes[1].target, kShortestPart);
  p.parts.w = cut(&needed, ceil_div(w.count(0), p.lanes), kMaxColumns / p.lanes);
  p.tile_rows = 1;
  if (!p.rows.tiling.single) {
    const int64_t rows = std::max<int64_t>(1, kTileBytes / (p.tile_row_size() * static_cast<int64_t>(sizeof(A))));
    p.parts.d = p.axes[0].target;
    p.parts.h = std::max(p.parts.h, ceil_div(p.axes[1].target, rows));
    p.tile_rows = ceil_div(p.axes[1].target, p.parts.h);
  }
  return p;
}

// Slices of a weight gradient, as many as `blocks` blocks leave to be wanted.
inline Parts slices_for(const ConvGeometry<int64_t>& g, int64_t blocks) {
  const int64_t wanted = wanted_parts(g, kGradPartWork), positions = g.batch * g.out[0] * g.out[1] * g.out[2];
  const int64_t slices = std::clamp<int64_t>(positions / kSlicePositions, 1, wanted);
  return cut_slices(std::min(slices, ceil_div(wanted, blocks)), g.batch, g.out);
}

// Grad weight.
struct DirectGradPlan {
  Triple<Axis> axes;  // target: grad_output, source: input
  int64_t batch, lanes;
  int64_t outputs;  // in a group
  int64_t chunks;   // as in DirectPlan
  PackedRows rows;
  int64_t tile_rows;  // of grad_output, whose products are summed in registers
  Parts parts;

  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t blocks() const { return ceil_div(rows.groups, rows.width) * chunks; }
  int64_t items() const { return parts.count() * blocks(); }
  int64_t block_taps() const { return rows.tiling.taps[0] * rows.tiling.taps[1] * rows.tiling.taps[2]; }
  int64_t block_outputs() const { return rows.width * ceil_div(outputs, chunks); }
  // In elements. In scratch lie for each weight of a block a short sum, a total and its error; packed rows of
  // grad_output; and the ring.
  int64_t sums() const { return block_outputs() * rows.tiling.terms * block_taps(); }
  int64_t factor_pitch() const { return ceil_div(rows.tiling.columns, lanes) * lanes + lanes; }
  int64_t factor_row_size() const { return block_outputs() * factor_pitch(); }
  int64_t scratch_size() const { return 3 * sums() * lanes + tile_rows * factor_row_size() + rows.ring_size(); }
  int64_t slice_size() const { return rows.groups * outputs * rows.terms * taps(); }
  int64_t partial_sums_size() const { return parts.count() * slice_size(); }
  Box slice_box(int64_t slice) const {
    return box(parts, batch, axes[0].target, axes[1].target, axes[2].target, slice);
  }
};

template <class T>
DirectGradPlan plan_direct_grad_weight(const ConvGeometry<int64_t>& g, Layout grad_output, Layout input) {
  using A = Acc<T>;
  DirectGradPlan p;
  for (int i = 0; i < 3; ++i) p.axes[i] = forward_axis(g, i);
  const Axis& h = p.axes[1];
  p.batch = g.batch;
  p.lanes = kLanes<A>;
  p.outputs = g.out_per_group();
  p.chunks = ceil_div(p.outputs, kMaxTargets);
  p.rows =
      plan_packed_rows<A>(p.axes, g.groups, g.in_per_group(), p.outputs, grad_output.channel == 1 || input.channel == 1,
                          1, kMaxBlockSums / ceil_div(p.outputs, p.chunks));
  const int64_t vectors = ceil_div(p.rows.tiling.columns, p.lanes);
  p.tile_rows = std::clamp<int64_t>(kSumVectors / vectors, 1, std::min(kMaxTileRows, ceil_div(h.target, h.classes)));
  for (const Tiling one = p.rows.tiling;; --p.tile_rows) {
    p.rows.tiling = one;
    add_rows(&p.rows.tiling, h, p.tile_rows);
    const bool fits =
        p.rows.tiling.slots[0] * p.rows.tiling.slots[1] <= kMaxRows &&
        std::max(p.rows.ring_size(), p.tile_rows * p.factor_row_size()) * static_cast<int64_t>(sizeof(A)) <=
            kDirectRingBytes;
    if (p.tile_rows == 1 || fits) break;
  }
  p.parts = slices_for(g, p.blocks());
  return p;
}

}  // namespace torch_ext::cpu
