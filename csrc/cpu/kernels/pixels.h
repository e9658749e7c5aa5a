#pragma once

// Forward and grad input of a convolution with several channels in a group where the targets of a group fill vectors,
// and the channels of a pixel lie side by side or rows are short: the correlation of direct.h, whose lanes are targets.
//
// An item is one block of groups of one image, and part of its rows. The weight is packed in panels of a few vectors of
// targets; for each source pixel and term, one number is read for all lanes. Where every tap meets the image, pixels
// are read where they lie, else from a ring of packed rows that has zeros around it; 16-bit pixels are widened there.
#include "lines.h"
#include "products.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Some of all groups' panels, of weight[group][panel][tap][term][target] and bias. Lanes beyond the last target hold
// what is never stored.
template <class T>
void pack_panels(const PixelPlan& p, View<const T> weight, const T* bias, Acc<T>* packed, Range panels) {
  using A = Acc<T>;
  const int64_t target_stride = p.transposed ? weight.c : weight.n, term_stride = p.transposed ? weight.n : weight.c;
  const int64_t pitch = p.panel * p.lanes, terms = p.rows.terms;
  const Triple<int64_t> kernel{{p.axes[0].kernel, p.axes[1].kernel, p.axes[2].kernel}};
  for (int64_t i = panels.begin; i < panels.end; ++i) {
    const int64_t group = i / p.panels(), first = i % p.panels() * pitch;
    A* to = packed + i * p.panel_size();
    for (int64_t tap = 0; tap < p.taps(); ++tap, to += terms * pitch) {
      const T* const from =
          weight.data + group * (p.transposed ? terms : p.targets) * weight.n + tap_offset(weight, kernel, tap);
      for (int64_t v = 0; v < pitch; v += p.lanes) {
        if (first + v < p.targets)
          pack_columns(from, term_stride, Lanes<A>(first + v, p.targets, {1, 1}, target_stride), terms, to + v, pitch);
        else
          for (int64_t r = 0; r < terms; ++r) fill_zero(to + r * pitch + v, p.lanes);
      }
    }
    A* const to_bias = packed + p.weight_size() - p.bias_size() + i * pitch;
    for (int64_t m = 0; m < pitch; ++m)
      to_bias[m] = bias && first + m < p.targets ? widen(bias[group * p.targets + first + m]) : 0;
  }
}

template <class T>
class Pixels {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  Pixels(const PixelPlan& plan, View<const T> source, const A* weight, View<T> target, A* scratch)
      : plan_(plan),
        source_(source),
        weight_(weight),
        bias_(weight + plan.weight_size() - plan.bias_size()),
        target_(target),
        packed_target_(scratch),
        ring_(plan.axes, plan.rows, source, scratch + plan.target_size()) {}

  void item(int64_t index) {
    box_ = plan_.item_box(index);
    const int64_t width = plan_.rows.width;
    first_group_ = index % plan_.blocks() * width;
    groups_ = std::min(width, plan_.rows.groups - first_group_);
    ring_.set_groups(box_.n.begin, first_group_, groups_);
    const Axis &d = plan_.axes[0], &h = plan_.axes[1], &w = plan_.axes[2];
    const int64_t tiles = ceil_div(size(box_.w), plan_.rows.tiling.columns);
    for (int64_t phase = 0; phase < w.phases && phase < w.target; phase += plan_.phases)
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(size(box_.w), tiles, i);
        runs_.set(w, plan_.rows, plan_.phases, phase, {box_.w.begin + columns.begin, box_.w.begin + columns.end},
                  {0, w.max_taps});
        ring_.set_lines({0, plan_.rows.terms}, runs_.lines, runs_.line_count);
        for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d.classes; ++fd)
          for (int64_t id = fd; id < box_.d.end; id += d.classes)
            for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
              for (int64_t ih = fh; ih < box_.h.end; ih += h.classes) row(id, ih);
      }
  }

 private:
  void row(int64_t d, int64_t h) {
    const Triple<Axis>& axes = plan_.axes;
    const PackedRows& rows = plan_.rows;
    struct Met {
      const A* source;
      int64_t tap;
    } met[kMaxPixelSums];
    int64_t met_count = 0;
    for (TapWalk td(axes[0], d, {0, axes[0].max_taps}, rows.tiling.slots[0]); td.count > 0; td.next())
      for (TapWalk th(axes[1], h, {0, axes[1].max_taps}, rows.tiling.slots[1]); th.count > 0; th.next())
        met[met_count++] = {source_row(td, th), (td.tap * axes[1].kernel + th.tap) * axes[2].kernel};

    T* const to = target_.at(box_.n.begin, first_group_ * plan_.targets) + d * target_.spatial[0] +
                  h * target_.spatial[1] + runs_.first_column * target_.spatial[2];
    if (!plan_.in_place && h + axes[1].classes < box_.h.end)
      prefetch_row<true>(target_, to + axes[1].classes * target_.spatial[1], groups_ * plan_.targets,
                         plan_.phases * runs_.count[0]);
    // A stride beyond the image is never taken.
    const int64_t stride = std::min(rows.stride, axes[2].source);
    const int64_t pixel = plan_.in_place ? stride * source_.spatial[2] : rows.terms;
    for (int64_t f = 0; f < plan_.phases; ++f) {
      if (runs_.count[f] == 0) continue;
      lines_ = sums_ = taps_ = 0;
      for (int64_t i = 0; i < met_count; ++i)
        for (const Run& run : runs_.of_phase(f)) {
          const A* source =
              met[i].source +
              (plan_.in_place ? runs_.lines[run.line].first * source_.spatial[2] : run.line * rows.pitch * rows.terms) +
              run.offset * pixel;
          for (int64_t t = 0; t < run.taps; ++t, source += rows.step * pixel)
            add_tap(met[i].tap + run.tap + t * runs_.tap_step, source);
        }
      end_sum();
      multiply(f, pixel, to + f * target_.spatial[2]);
    }
  }

  // From it the source's columns are counted: those of the image, or of the ring.
  const A* source_row(const TapWalk& d, const TapWalk& h) {
    if constexpr (std::is_same_v<T, A>)
      if (plan_.in_place)
        return source_.at(box_.n.begin, first_group_ * plan_.rows.terms) + d.source * source_.spatial[0] +
               h.source * source_.spatial[1];
    return ring_.row(d, h);
  }

  // The products of a tap, in parts few enough for a sum to stay exact.
  void add_tap(int64_t tap, const A* source) {
    const int64_t pitch = plan_.panel * L, terms = plan_.rows.terms;
    const A* const weight = weight_ + tap * terms * pitch;
    for (int64_t r = 0; r < terms; r += kTapsPerSum) {
      const int64_t count = std::min(kTapsPerSum, terms - r);
      if (lines_ > 0 && taps_ + count > kTapsPerSum) end_sum();
      list_[lines_++] = {weight + r * pitch, source + r, count};
      taps_ += count;
    }
  }

  void end_sum() {
    sum_ends_[sums_++] = lines_;
    taps_ = 0;
  }

  // All targets of the pixels of a phase.
  void multiply(int64_t f, int64_t pixel, T* to) {
    const Axis& w = plan_.axes[2];
    const int64_t count = runs_.count[f], column = std::min(w.phases, w.target) * target_.spatial[2];
    Products<A> p{};
    p.step = plan_.panel * L;
    p.weight_step = 1;
    p.weight_output = pixel;
    for (int64_t g = 0; g < groups_; ++g) {
      p.weight_offset = g * (plan_.in_place ? plan_.rows.terms : plan_.rows.group_size());
      for (int64_t i = 0; i < plan_.panels(); ++i) {
        const int64_t first = i * p.step, targets = std::min(p.step, plan_.targets - first);
        const int64_t panel = (first_group_ + g) * plan_.panels() + i;
        p.source_offset = panel * plan_.panel_size();
        p.out = packed_target_;
        p.out_pitch = p.step;
        if constexpr (std::is_same_v<T, A>)
          if (!plan_.packs_target) {
            p.out = to + g * plan_.targets + first;
            p.out_pitch = column;
          }
        for (int64_t s = 0; s < sums_; ++s) {
          p.lines = list_ + (s > 0 ? sum_ends_[s - 1] : 0);
          p.line_count = list_ + sum_ends_[s] - p.lines;
          p.start_columns = s == 0 ? bias_ + panel * p.step : nullptr;
          add_product_rows(p, count, ceil_div(targets, L));
        }
        if (plan_.packs_target) unpack(targets, count, column, to + (g * plan_.targets + first) * target_.c);
      }
    }
  }

  // The targets of a panel, rounded, to where they belong.
  void unpack(int64_t targets, int64_t count, int64_t column, T* to) const {
    const int64_t step = plan_.panel * L;
    if (target_.c == 1) {
      for (int64_t j = 0; j < count; ++j) unpack_line(packed_target_ + j * step, targets, 1, to + j * column);
      return;
    }
    const int64_t pitch = plan_.line_pitch();
    A* const lines = packed_target_ + plan_.rows.tiling.columns * step;
    for (int64_t v = 0; v < targets; v += L) {
      pixels_to_lines(packed_target_ + v, step, L, count, lines, pitch);
      for (int64_t c = 0; c < L; ++c) unpack_line(lines + c * pitch, count, column, to + (v + c) * target_.c);
    }
  }

  const PixelPlan& plan_;
  const View<const T> source_;
  const A* const weight_;
  const A* const bias_;
  const View<T> target_;
  A* const packed_target_;
  LineRing<T, true> ring_;

  // Of the current item
  Box box_;
  int64_t first_group_, groups_;
  // Of the current columns
  ColumnRuns runs_;
  // Of the current row and phase: the products of its sums
  TapLine<A> list_[kMaxPixelSums + 1];
  int64_t sum_ends_[kMaxPixelSums + 1];
  int64_t lines_, sums_, taps_;
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
