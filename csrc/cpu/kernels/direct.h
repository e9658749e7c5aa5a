#pragma once

// Forward and grad input of a convolution with several channels in a group, as one correlation:
//
//   target[n, c, i] = bias[c] + sum over terms r, taps t of weight[c, r, t] * source[n, first(c) + r, position(i, t)]
//
// where first(c) is the first source channel of c's group and positions are as plan.h describes them.
//
// An item is one block of groups (or of the targets of one) of one image, and part of its rows. Columns are lanes.
// Source rows of all channels of the block are packed as lines into a ring of rows, with zeros outside the image, and
// a register tile of some target channels by some vectors of columns goes over all terms and taps. Rows outside the
// image are left out. Where not all taps fit in the ring, blocks of them sweep over a tile of sums. Sums are in Acc<T>
// in a fixed order, and are rounded once.
//
// That each source vector meets the weights of several outputs is what matrix products do (Goto and van de Geijn), here
// without the copy of all taps (im2col).
#include "lines.h"
#include "products.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
class Direct {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  // The taps of the weight are evenly spaced in memory.
  Direct(const DirectPlan& plan, View<const T> source, View<const A> weight, const T* bias, View<T> target, A* scratch)
      : plan_(plan),
        weight_(weight),
        weight_target_(plan.transposed ? weight.c : weight.n),
        weight_term_(plan.transposed ? weight.n : weight.c),
        weight_group_(weight.n * (plan.transposed ? plan.rows.terms : plan.targets)),
        bias_(bias),
        target_(target),
        tile_(scratch),
        ring_(plan.axes, plan.rows, source, scratch + plan.tile_size()) {}

  void item(int64_t index) {
    box_ = plan_.item_box(index);
    const int64_t block = index % plan_.blocks(), width = plan_.rows.width;
    first_group_ = block / plan_.chunks * width;
    groups_ = std::min(width, plan_.rows.groups - first_group_);
    targets_ = part(plan_.targets, plan_.chunks, block % plan_.chunks);
    ring_.set_groups(box_.n.begin, first_group_, groups_);
    const Axis& w = plan_.axes[2];
    const int64_t vectors = ceil_div(size(box_.w), L), tiles = ceil_div(size(box_.w), plan_.rows.tiling.columns);
    for (int64_t phase = 0; phase < w.phases && phase < w.target; phase += plan_.phases)
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(vectors, tiles, i);
        tile(phase, {box_.w.begin + columns.begin * L, std::min(box_.w.begin + columns.end * L, box_.w.end)});
      }
  }

 private:
  void tile(int64_t phase, Range positions) {
    const Tiling& tiling = plan_.rows.tiling;
    const Triple<Axis>& axes = plan_.axes;
    for (int64_t r = 0; r < plan_.rows.terms; r += tiling.terms)
      for (int64_t d = 0; d < axes[0].max_taps; d += tiling.taps[0])
        for (int64_t h = 0; h < axes[1].max_taps; h += tiling.taps[1])
          for (int64_t t = 0; t < axes[2].max_taps; t += tiling.taps[2]) {
            terms_ = {r, std::min(r + tiling.terms, plan_.rows.terms)};
            depth_taps_ = {d, d + tiling.taps[0]};
            row_taps_ = {h, h + tiling.taps[1]};
            first_block_ = r + d + h + t == 0;
            last_block_ = terms_.end == plan_.rows.terms && depth_taps_.end >= axes[0].max_taps &&
                          row_taps_.end >= axes[1].max_taps && t + tiling.taps[2] >= axes[2].max_taps;
            set_columns(phase, positions, {t, t + tiling.taps[2]});
            rows();
          }
  }

  void set_columns(int64_t phase, Range positions, Range taps) {
    runs_.set(plan_.axes[2], plan_.rows, plan_.phases, phase, positions, taps);
    // Where no line has two taps, the terms take their place.
    terms_at_once_ = runs_.max_taps > 1 ? 1 : kTapsPerSum;
    ring_.set_lines(terms_, runs_.lines, runs_.line_count);
  }

  void rows() {
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d.classes; ++fd)
      for (int64_t id = fd; id < box_.d.end; id += d.classes)
        for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
          for (int64_t ih = fh; ih < box_.h.end; ih += h.classes) row(id, ih);
  }

  void row(int64_t d, int64_t h) {
    const Triple<Axis>& axes = plan_.axes;
    const Triple<int64_t>& slots = plan_.rows.tiling.slots;
    const int64_t tap = weight_.spatial[2];
    TapLine<A> rows[kMaxRows];
    int64_t row_count = 0;
    for (TapWalk td(axes[0], d, depth_taps_, slots[0]); td.count > 0; td.next())
      for (TapWalk th(axes[1], h, row_taps_, slots[1]); th.count > 0; th.next())
        rows[row_count++] = {ring_.row(td, th),
                             weight_.data + (td.tap * axes[1].kernel + th.tap) * axes[2].kernel * tap, 0};

    const bool single = plan_.rows.tiling.single;
    T* const to = target_.at(box_.n.begin, first_group_ * plan_.targets + targets_.begin) + d * target_.spatial[0] +
                  h * target_.spatial[1] + runs_.first_column * target_.spatial[2];
    sums_ = tile_ + (single ? 0 : ((d - box_.d.begin) * size(box_.h) + h - box_.h.begin) * plan_.tile_row_size());
    sums_pitch_ = plan_.phases * plan_.phase_size();
    in_place_ = false;
    if constexpr (std::is_same_v<T, A>)  // whole vectors of adjacent columns: the target itself takes the sums
      if (single && plan_.axes[2].phases == 1 && target_.spatial[2] == 1 && runs_.count[0] % L == 0) {
        in_place_ = true;
        sums_ = to;
        sums_pitch_ = target_.c;
      }
    for (int64_t f = 0; f < plan_.phases; ++f) {
      if (runs_.count[f] == 0) continue;
      has_sums_ = !first_block_;
      lines_ = taps_ = 0;
      for (int64_t r = terms_.begin; r < terms_.end; r += terms_at_once_)
        for (int64_t i = 0; i < row_count; ++i)
          for (const Run& run : runs_.of_phase(f)) {
            const A* const source =
                rows[i].source + (r - terms_.begin) * plan_.rows.term_size() + run.line * plan_.rows.pitch + run.offset;
            const A* const weight = rows[i].weight + r * weight_term_ + run.tap * tap;
            const int64_t all = terms_at_once_ > 1 ? std::min(terms_at_once_, terms_.end - r) : run.taps;
            for (int64_t t = 0; t < all; t += kTapsPerSum) {
              const int64_t taps = std::min(kTapsPerSum, all - t);
              if (lines_ > 0 && taps_ + taps > kTapsPerSum) multiply(f);
              list_[lines_++] = {source + t * plan_.rows.step, weight + t * runs_.tap_step * tap, taps};
              taps_ += taps;
            }
          }
      if (lines_ > 0 || !has_sums_) multiply(f);
    }
    if (last_block_ && !in_place_) unpack(to);
  }

  // Adds the listed products to the sums of all targets: few enough for a sum to stay exact.
  void multiply(int64_t f) {
    Products<A> p{};
    p.lines = list_;
    p.line_count = lines_;
    p.step = terms_at_once_ > 1 ? plan_.rows.term_size() : plan_.rows.step;
    p.weight_step = terms_at_once_ > 1 ? weight_term_ : runs_.tap_step * weight_.spatial[2];
    p.weight_output = weight_target_;
    p.out_pitch = sums_pitch_;
    const int64_t targets = size(targets_), tiles = ceil_div(targets, plan_.outputs);
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t i = 0; i < tiles; ++i) {
        const Range outputs = part(targets, tiles, i);
        const int64_t in_group = targets_.begin + outputs.begin;
        A start[kMaxOutputs];
        for (int64_t m = 0; m < size(outputs); ++m)
          start[m] = bias_ ? widen(bias_[(first_group_ + g) * plan_.targets + in_group + m]) : 0;
        p.start_outputs = has_sums_ ? nullptr : start;
        p.source_offset = g * plan_.rows.group_size();
        p.weight_offset = (first_group_ + g) * weight_group_ + in_group * weight_target_;
        p.out = sums_ + f * plan_.phase_size() + (g * targets + outputs.begin) * p.out_pitch;
        if (in_place_)  // the next register tile's
          prefetch_row<true>(target_, p.out + size(outputs) * p.out_pitch,
                             std::min(size(outputs), targets - outputs.end), runs_.count[0]);
        add_products(p, size(outputs), ceil_div(runs_.count[f], L));
      }
    has_sums_ = true;
    lines_ = taps_ = 0;
  }

  // The sums of a target row, rounded, to where they belong.
  void unpack(T* to) const {
    const int64_t targets = groups_ * size(targets_), column = target_.spatial[2];
    const Axis& w = plan_.axes[2];
    const int64_t stride = std::min(w.phases, w.target) * column, size_of = plan_.phases * plan_.phase_size();
    prefetch_row<true>(target_, to + targets * target_.c, targets, plan_.phases * runs_.count[0]);
    if (plan_.phases == 2 && column == 1) {
      for (int64_t c = 0; c < targets; ++c) {
        const A* const from = sums_ + c * size_of;
        zip_lines(from, from + plan_.phase_size(), runs_.count[0] + runs_.count[1], to + c * target_.c);
      }
      return;
    }
    for (int64_t f = 0; f < plan_.phases; ++f, to += column) {
      const A* const from = sums_ + f * plan_.phase_size();
      if (target_.c == 1 && targets > 1)
        for (int64_t c = 0; c < targets; c += L)
          lines_to_pixels(from + c * size_of, size_of, std::min(L, targets - c), runs_.count[f], to + c, stride);
      else
        for (int64_t c = 0; c < targets; ++c)
          unpack_line(from + c * size_of, runs_.count[f], stride, to + c * target_.c);
    }
  }

  const DirectPlan& plan_;
  const View<const A> weight_;
  const int64_t weight_target_, weight_term_, weight_group_;
  const T* const bias_;
  const View<T> target_;
  A* const tile_;
  LineRing<T> ring_;

  // Of the current item
  Box box_;
  int64_t first_group_, groups_;
  Range targets_;  // of each group
  // Of the current columns and block of taps
  Range terms_, depth_taps_, row_taps_;
  bool first_block_, last_block_;
  ColumnRuns runs_;
  int64_t terms_at_once_;
  // Of the current row
  A* sums_;
  int64_t sums_pitch_;
  bool in_place_;  // the target takes the sums
  bool has_sums_;
  TapLine<A> list_[kTapsPerSum + 1];
  int64_t lines_, taps_;
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
