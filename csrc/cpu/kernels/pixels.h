#pragma once

// Forward and grad input of a convolution with several channels in a group where the targets of a group fill vectors,
// and plan_pixels says that it pays: the correlation of direct.h, whose lanes are targets.
//
// An item is one block of groups of one image, and part of its rows. The weight is packed in panels of a few vectors of
// targets; for each source pixel and term, one number is read for all lanes. Where every tap meets the image, the
// pixels of a single group are read where they lie, else from a ring of packed rows that has zeros around it; 16-bit
// pixels are widened there.
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
      const T* const from = weight.data + group * (p.transposed ? terms : p.targets) * weight.n +
                            tap_offset(weight, kernel, p.transposed ? p.taps() - 1 - tap : tap);
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
    const int64_t column = plan_.in_place ? source_.spatial[2] : rows.terms;
    // Taps whose pixels and packed weights are neighbours are one.
    const bool adjacent = !plan_.in_place && std::abs(rows.step) == 1 && runs_.tap_step == 1;
    lines_ = sums_ = taps_ = 0;
    for (int64_t f = 0; f < plan_.phases; ++f) {
      first_sum_[f] = sums_;
      for (int64_t i = 0; i < met_count; ++i)
        for (const Run& run : runs_.of_phase(f)) {
          const A* source = met[i].source + (plan_.in_place ? runs_.lines[0].first + run.offset : run.offset) * column;
          int64_t tap = met[i].tap + run.tap;
          if (plan_.transposed) {  // from the leftmost pixel on, which meets the last tap
            source += (run.taps - 1) * rows.step * column;
            tap = plan_.taps() - 1 - (tap + (run.taps - 1) * runs_.tap_step);
          }
          const int64_t taps = adjacent ? run.taps : 1;
          for (int64_t t = 0; t < run.taps; t += taps)
            add_taps(tap + t * runs_.tap_step, taps, source + t * std::abs(rows.step) * column);
        }
      end_sum();
    }
    first_sum_[plan_.phases] = sums_;
    // From target to target of a phase; as large as it likes if there is only one.
    const int64_t step = rows.target_step * (plan_.in_place ? rows.stride : 1);
    multiply(runs_.count[0] > 1 ? step * column : 0, to);
  }

  // From it the source's columns are counted: those of the image, or of the ring.
  const A* source_row(const TapWalk& d, const TapWalk& h) {
    if constexpr (std::is_same_v<T, A>)
      if (plan_.in_place)
        return source_.at(box_.n.begin, 0) + d.source * source_.spatial[0] + h.source * source_.spatial[1];
    return ring_.row(d, h);
  }

  // The products of some taps, in parts few enough for a sum to stay exact.
  void add_taps(int64_t tap, int64_t taps, const A* source) {
    const int64_t pitch = plan_.panel * L, terms = taps * plan_.rows.terms;
    const A* const weight = weight_ + tap * plan_.rows.terms * pitch;
    for (int64_t r = 0, count; r < terms; r += count) {
      if (taps_ == kTapsPerSum) end_sum();
      count = std::min(kTapsPerSum - taps_, terms - r);
      list_[lines_++] = {weight + r * pitch, source + r, count};
      taps_ += count;
    }
  }

  void end_sum() {
    sum_ends_[sums_++] = lines_;
    taps_ = 0;
  }

  // All targets of the row's pixels; the next of a phase meets numbers that are `pixel` further.
  void multiply(int64_t pixel, T* to) {
    Products<A> p{};
    p.step = plan_.panel * L;
    p.weight_step = 1;
    p.weight_output = pixel;
    for (int64_t g = 0; g < groups_; ++g) {
      p.weight_offset = g * plan_.rows.group_size();
      for (int64_t i = 0; i < plan_.panels(); ++i) {
        const int64_t first = i * p.step, targets = std::min(p.step, plan_.targets - first);
        const int64_t panel = (first_group_ + g) * plan_.panels() + i;
        p.source_offset = panel * plan_.panel_size();
        T* const panel_to = to + (g * plan_.targets + first) * target_.c;
        for (int64_t f = 0; f < plan_.phases; ++f) {
          p.out = packed_target_ + f * plan_.phase_size();
          p.out_pitch = p.step;
          if constexpr (std::is_same_v<T, A>)
            if (!plan_.packs_target) {
              p.out = panel_to + f * target_.spatial[2];
              p.out_pitch = target_stride();
            }
          for (int64_t s = first_sum_[f]; s < first_sum_[f + 1]; ++s) {
            p.lines = list_ + (s > 0 ? sum_ends_[s - 1] : 0);
            p.line_count = list_ + sum_ends_[s] - p.lines;
            p.start_columns = s == first_sum_[f] ? bias_ + panel * p.step : nullptr;
            if (runs_.count[f] > 0) add_product_rows(p, runs_.count[f], ceil_div(targets, L));
          }
        }
        if (plan_.packs_target) unpack(targets, panel_to);
      }
    }
  }

  // From target to target of a phase.
  int64_t target_stride() const { return std::min(plan_.axes[2].phases, plan_.axes[2].target) * target_.spatial[2]; }

  // The targets of a panel, rounded, to where they belong.
  void unpack(int64_t targets, T* to) const {
    const int64_t step = plan_.panel * L, pitch = plan_.line_pitch(), column = target_.spatial[2];
    if (target_.c == 1) {
      for (int64_t f = 0; f < plan_.phases; ++f)
        for (int64_t j = 0; j < runs_.count[f]; ++j)
          unpack_line(packed_target_ + f * plan_.phase_size() + j * step, targets, 1,
                      to + f * column + j * target_stride());
      return;
    }
    A* const lines = packed_target_ + plan_.phases * plan_.phase_size();
    for (int64_t v = 0; v < targets; v += L) {
      for (int64_t f = 0; f < plan_.phases; ++f)
        pixels_to_lines(packed_target_ + f * plan_.phase_size() + v, step, L, runs_.count[f], lines + f * L * pitch,
                        pitch);
      for (int64_t c = 0; c < L; ++c) {
        const A* const line = lines + c * pitch;
        T* const row = to + (v + c) * target_.c;
        if (plan_.phases == 2 && column == 1) {
          zip_lines(line, line + L * pitch, runs_.count[0] + runs_.count[1], row);
          continue;
        }
        for (int64_t f = 0; f < plan_.phases; ++f)
          unpack_line(line + f * L * pitch, runs_.count[f], target_stride(), row + f * column);
      }
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
  // Of the current row: the products of the sums of each phase
  TapLine<A> list_[2 * kMaxPixelSums];  // a tap is cut where a sum is full
  int64_t sum_ends_[kMaxPixelSums + kMaxGroup];
  int64_t first_sum_[kMaxGroup + 1];
  int64_t lines_, sums_, taps_;
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
