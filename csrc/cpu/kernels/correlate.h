#pragma once

// Forward and grad input of a depthwise convolution are one correlation:
//
//   target[n, c, i] = bias[c] + sum over terms r and taps t of weight[c, r, t] * source[n, channel(c, r), position(i,
//   t)]
//
// with channel and position as plan.h describes them: forward reads the input with the stride, grad input reads
// grad_output phase by phase of the position modulo the stride. The weight is packed as [vector][term][tap][lane].
//
// An item is one block of channels of one image, and part of its rows. Source rows are packed into a ring, channels as
// lanes, zeros outside the image; rows and taps outside of it are left out. If all taps' rows fit in the ring, a target
// row is summed in registers and stored once; else blocks of taps sweep over a tile of sums, so that the ring stays in
// the cache for kernels of any size. Sums are in Acc<T> in a fixed order, and are rounded once.
//
// The ring of rows is known from image-processing compilers (line buffers, as in Halide), the register tile of columns
// with channels as lanes from MobileNet's kernels; the dense phases of a strided gradient are polyphase filters.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

inline constexpr int64_t kTapsPerSum = 128;  // a sum starts from zero again after these, to stay exact

template <class T>
class Correlate {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  Correlate(const CorrelatePlan& plan, View<const T> source, const A* weight, const T* bias, View<T> target, A* scratch)
      : plan_(plan),
        source_(source),
        weight_(weight),
        bias_(bias),
        target_(target),
        ring_(plan.axes, plan.tiling, scratch),
        tile_(scratch + plan.ring_size()),
        initial_(tile_ + plan.tile_size()) {}

  void item(int64_t index) {
    box_ = plan_.item_box(index);
    start_block(index % plan_.channels.blocks(), box_.n.begin);
    const Axis& w = plan_.axes[2];
    for (int64_t phase = 0; phase < w.phases && phase < w.target; phase += plan_.group)
      for (int64_t j = box_.w.begin; j < box_.w.end; j += plan_.tiling.columns)
        tile(phase, {j, std::min(j + plan_.tiling.columns, box_.w.end)});
  }

 private:
  // A column phase in the current tile and block of taps.
  struct Columns {
    int64_t count;           // of target columns
    int64_t source, weight;  // where the first tap of the first column lies in packed rows, in elements
    int64_t taps, rows_per_sum, stride, step, tap_step;
  };

  void start_block(int64_t block, int64_t n) {
    const Channels& channels = plan_.channels;
    vectors_ = channels.vectors(block);
    first_vector_ = block * channels.block_vectors();
    target_row_ = target_.data + n * target_.n;
    ring_.set_channels(source_, n, channels, block, plan_.map);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = (first_vector_ + v) * L;
      lanes_[v] = Lanes<A>(first, channels.channels, {1, 1}, target_.c);
      for (int64_t i = 0; i < L; ++i) initial_[v * L + i] = bias_ && i < lanes_[v].count ? widen(bias_[first + i]) : 0;
    }
  }

  void tile(int64_t phase, Range positions) {
    const Axis& w = plan_.axes[2];
    first_column_ = phase + positions.begin * w.phases;
    column_step_ = plan_.group == 1 ? w.phases : 1;
    buffer_columns_ = 0;
    for (int64_t f = 0; f < plan_.group && phase + f < w.target; ++f) {
      columns_[f].count = size({positions.begin, std::min(positions.end, w.count(phase + f))});
      buffer_columns_ += columns_[f].count;
    }
    const Tiling& tiling = plan_.tiling;
    for (int64_t r = 0; r < plan_.terms; r += tiling.terms)
      for (int64_t d = 0; d < plan_.axes[0].max_taps; d += tiling.taps[0])
        for (int64_t h = 0; h < plan_.axes[1].max_taps; h += tiling.taps[1])
          for (int64_t t = 0; t < w.max_taps; t += tiling.taps[2]) {
            terms_ = {r, std::min(r + tiling.terms, plan_.terms)};
            depth_taps_ = {d, d + tiling.taps[0]};
            row_taps_ = {h, h + tiling.taps[1]};
            first_block_ = r + d + h + t == 0;
            last_block_ = terms_.end == plan_.terms && d + tiling.taps[0] >= plan_.axes[0].max_taps &&
                          h + tiling.taps[1] >= plan_.axes[1].max_taps && t + tiling.taps[2] >= w.max_taps;
            set_columns(phase, positions.begin, {t, t + tiling.taps[2]});
            rows();
          }
  }

  void set_columns(int64_t phase, int64_t position, Range taps) {
    const Axis& w = plan_.axes[2];
    Range packed{0, 0}, clipped[kMaxGroup];
    Phase phases[kMaxGroup];
    const int64_t group = std::min(plan_.group, w.target - phase);
    for (int64_t f = 0; f < group; ++f) {
      const int64_t count = columns_[f].count;
      phases[f] = w.phase(phase + f);
      clipped[f] = {0, 0};
      if (count == 0) continue;
      const int64_t first = phases[f].source(position, 0), last = phases[f].source(position + count - 1, 0);
      clipped[f] = phases[f].clip(first, last, w.source, taps);
      if (size(clipped[f]) == 0) continue;
      const int64_t a = clipped[f].begin * phases[f].step, b = (clipped[f].end - 1) * phases[f].step;
      const Range touched{first + std::min(a, b), last + std::max(a, b) + 1};
      packed =
          size(packed) == 0 ? touched : Range{std::min(packed.begin, touched.begin), std::max(packed.end, touched.end)};
    }
    for (int64_t f = 0; f < group; ++f) {
      const Phase& p = phases[f];
      Columns& c = columns_[f];
      c.taps = size(clipped[f]);
      c.rows_per_sum = std::max<int64_t>(1, kTapsPerSum / std::max<int64_t>(1, c.taps));
      c.source = c.taps > 0 ? (p.source(position, clipped[f].begin) - packed.begin) * L : 0;
      c.weight = c.taps > 0 ? (p.tap_first + clipped[f].begin * p.tap_step) * L : 0;
      // A stride or step that is never taken may be as large as it likes.
      c.stride = c.taps > 0 && c.count > 1 ? p.stride * L : L;
      c.step = c.taps > 1 ? p.step * L : 0;
      c.tap_step = c.taps > 1 ? p.tap_step * L : 0;
    }
    any_column_taps_ = size(packed) > 0;
    ring_.set_columns(packed);
  }

  void rows() {
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d.classes; ++fd)
      for (int64_t id = fd; id < box_.d.end; id += d.classes) {
        const TapWalk depths(d, id, depth_taps_, plan_.tiling.slots[0]);
        for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
          for (int64_t ih = fh; ih < box_.h.end; ih += h.classes) row(id, ih, depths);
      }
  }

  // Packs the source rows of one target row and lists them with their weights.
  int64_t list_source_rows(int64_t h, const TapWalk& depths) {
    const Axis &axis_d = plan_.axes[0], &axis_h = plan_.axes[1];
    if (!any_column_taps_) return 0;
    const TapWalk rows(axis_h, h, row_taps_, plan_.tiling.slots[1]);
    int64_t count = 0;
    for (int64_t r = terms_.begin; r < terms_.end; ++r)
      for (TapWalk td = depths; td.count > 0; td.next())
        for (TapWalk th = rows; th.count > 0; th.next()) {
          const int64_t tap = ((r * axis_d.kernel + td.tap) * axis_h.kernel + th.tap) * plan_.axes[2].kernel;
          source_rows_[count++] = {ring_.row(r - terms_.begin, r, td, th), weight_ + tap * L};
        }
    return count;
  }

  void row(int64_t d, int64_t h, const TapWalk& depths) {
    const int64_t source_rows = list_source_rows(h, depths), width = plan_.tile_columns();
    const int64_t tile_row = plan_.tile_rows == 1 ? 0 : (d - box_.d.begin) * size(box_.h) + h - box_.h.begin;
    T* to = target_row_ + d * target_.spatial[0] + h * target_.spatial[1] + first_column_ * target_.spatial[2];
    const int64_t to_stride = buffer_columns_ > 1 ? target_.spatial[2] * column_step_ : 0;
    for (int64_t v = 0; v < vectors_; ++v) {
      A* sums = tile_ + (tile_row * plan_.channels.block_vectors() + v) * width * L;
      int64_t sums_stride = L;
      bool in_place = false;  // no rounding, no transposing: the target itself takes the sums
      if constexpr (std::is_same_v<T, A>) {
        in_place = plan_.tiling.single && lanes_[v].adjacent && lanes_[v].count == L;
        if (in_place) sums = to + lanes_[v].offset[0], sums_stride = to_stride;
      }
      for (int64_t f = 0; f < plan_.group && columns_[f].count > 0; ++f) {
        const Columns& c = columns_[f];
        A* out = sums + f * sums_stride;
        const int64_t out_stride = sums_stride * plan_.group;
        const RowSum<A> sum{.rows = source_rows_,
                            .row_count = c.taps > 0 ? source_rows : 0,
                            .rows_per_sum = c.rows_per_sum,
                            .source_offset = c.source + v * ring_.vector_stride(),
                            .source_stride = c.stride,
                            .step = c.step,
                            .weight_offset = c.weight + (first_vector_ + v) * plan_.terms * plan_.taps() * L,
                            .weight_step = c.tap_step,
                            .taps = c.taps,
                            .initial = first_block_ ? initial_ + v * L : out,
                            .initial_stride = first_block_ ? 0 : out_stride,
                            .out = out,
                            .out_stride = out_stride};
        sum_row(sum, c.count);
      }
      if (last_block_ && !in_place) unpack_columns(sums, buffer_columns_, lanes_[v], to_stride, to);
    }
  }

  const CorrelatePlan& plan_;
  const View<const T> source_;
  const A* const weight_;
  const T* const bias_;
  const View<T> target_;
  PackedRing<T> ring_;
  A* const tile_;
  A* const initial_;  // the bias

  // Of the current item
  Box box_;
  int64_t vectors_, first_vector_;
  Lanes<A> lanes_[kMaxVectors];
  T* target_row_;
  // Of the current tile and block of taps
  Columns columns_[kMaxGroup];
  int64_t first_column_, column_step_, buffer_columns_;
  Range terms_, depth_taps_, row_taps_;
  bool first_block_, last_block_, any_column_taps_;
  SourceRow<A> source_rows_[kMaxRows];
};

// packed[vector][term][tap][lane]
template <class T>
void pack_weight(const ConvGeometry<int64_t>& g, bool transposed, View<const T> weight, Acc<T>* packed) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const CorrelatePlan p = plan_correlate<Acc<T>>(g, transposed);
  const int64_t m = multiplier(g), taps = p.taps();
  for (int64_t lane = 0; lane < p.channels.all_vectors() * L; ++lane)
    for (int64_t r = 0; r < p.terms; ++r) {
      Acc<T>* to = packed + (lane / L * p.terms + r) * taps * L + lane % L;
      const int64_t wide = lane * p.terms + r;  // with one term, the target is the wide side
      const T* from = output_is_wide(g) ? weight.at(wide, 0) : weight.at(wide / m, wide % m);
      for (int64_t d = 0; d < g.kernel[0]; ++d)
        for (int64_t h = 0; h < g.kernel[1]; ++h)
          for (int64_t w = 0; w < g.kernel[2]; ++w, to += L)
            *to = lane < p.channels.channels
                      ? widen(from[d * weight.spatial[0] + h * weight.spatial[1] + w * weight.spatial[2]])
                      : 0;
    }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
