#pragma once

// Grad weight of a convolution with several channels in a group:
//
//   grad_weight[c, r, t] = sum over n, o of grad_output[n, c, o] * input[n, first(c) + r, position(o, t)]
//
// with first and position as in direct.h.
//
// An item is one block of groups (or of the outputs of one) and one slice of the positions. Columns are lanes: some
// rows of grad_output and the input rows they meet are packed as lines, and a register tile of some outputs by some
// taps, or by some inputs, is summed along them. Sums start from zero, some of them are added, and these are added with
// compensation; slices are added in order, so that the result is the same for every number of threads.
#include "lines.h"
#include "products.h"
#include "tiles.h"
#include "weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
class DirectGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  DirectGradWeight(const DirectGradPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                   A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        partial_sums_(partial_sums),
        sums_(scratch),
        totals_(sums_ + plan.sums() * L),
        factor_(totals_ + 2 * plan.sums() * L),
        ring_(plan.axes, plan.rows, input, factor_ + plan.tile_rows * plan.factor_row_size()) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.blocks(), slice = index / plan_.blocks(), width = plan_.rows.width;
    box_ = plan_.slice_box(slice);
    first_group_ = block / plan_.chunks * width;
    groups_ = std::min(width, plan_.rows.groups - first_group_);
    outputs_ = part(plan_.outputs, plan_.chunks, block % plan_.chunks);
    const Tiling& tiling = plan_.rows.tiling;
    const Triple<Axis>& axes = plan_.axes;
    for (int64_t r = 0; r < plan_.rows.terms; r += tiling.terms)
      for (int64_t d = 0; d < axes[0].kernel; d += tiling.taps[0])
        for (int64_t h = 0; h < axes[1].kernel; h += tiling.taps[1])
          for (int64_t w = 0; w < axes[2].kernel; w += tiling.taps[2]) {
            terms_ = {r, std::min(r + tiling.terms, plan_.rows.terms)};
            taps_ = {{{d, std::min(d + tiling.taps[0], axes[0].kernel)},
                      {h, std::min(h + tiling.taps[1], axes[1].kernel)},
                      {w, std::min(w + tiling.taps[2], axes[2].kernel)}}};
            tap_block();
            store_sums(partial_sums_ + slice * plan_.slice_size());
          }
  }

 private:
  // Taps that are neighbours in a line.
  struct Run {
    int64_t tap, taps;  // the first of the kernel's row
  };

  int64_t sum_count() const { return groups_ * size(outputs_) * size(terms_) * block_taps(); }
  int64_t block_taps() const { return size(taps_[0]) * size(taps_[1]) * size(taps_[2]); }

  void add_to_totals() {
    add_short_sums(sums_, sum_count(), totals_, &has_totals_);
    summed_ = 0;
  }

  void tap_block() {
    fill_zero(sums_, sum_count() * L);
    summed_ = 0;
    has_totals_ = false;
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const int64_t count = size(box_.w), tiles = ceil_div(count, plan_.rows.tiling.columns);
    for (int64_t n = box_.n.begin; n < box_.n.end; ++n) {
      ring_.set_groups(n, first_group_, groups_);
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(count, tiles, i);
        if (!set_columns({box_.w.begin + columns.begin, box_.w.begin + columns.end})) continue;
        for (int64_t id = box_.d.begin; id < box_.d.end; ++id)  // rows of one class are neighbours in the ring
          for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
            for (int64_t ih = fh; ih < box_.h.end; ih += h.classes * plan_.tile_rows)
              rows(n, id, ih, TapWalk(d, id, taps_[0], plan_.rows.tiling.slots[0]));
      }
    }
    if (has_totals_) add_to_totals();
  }

  // Which lines the taps of the columns need. False if none meets the image.
  bool set_columns(Range columns) {
    const Axis& w = plan_.axes[2];
    const PackedRows& rows = plan_.rows;
    const Phase p = w.phase(0);
    columns_ = columns;
    const int64_t first = p.source(columns.begin, 0), last = p.source(columns.end - 1, 0);
    const Range met = p.clip(first, last, w.source, taps_[2]);
    Line lines[kMaxLines] = {};
    for (run_count_ = 0; run_count_ < std::min(rows.period, size(met)); ++run_count_) {
      const int64_t tap = met.begin + run_count_, taps = ceil_div(met.end - tap, rows.period);
      runs_[run_count_] = {tap, taps};
      lines[run_count_] = {first + tap * p.step, size(columns) + (taps - 1) * rows.step};
    }
    ring_.set_lines(terms_, lines, run_count_);
    return run_count_ > 0;
  }

  // Rows h, h + classes, ... of grad_output, and those of the input that they meet.
  void rows(int64_t n, int64_t d, int64_t h, const TapWalk& depths) {
    if (depths.count == 0) return;
    const Axis& axis = plan_.axes[1];
    int64_t count = 0;
    for (; count < plan_.tile_rows && h + count * axis.classes < box_.h.end; ++count)
      pack_factor(n, d, h + count * axis.classes, count);
    summed_ += count * size(columns_);
    if (summed_ > kShortSum) add_to_totals();
    // For each row of the kernel, the rows that it brings together.
    const int64_t kernel_rows = size(taps_[0]) * size(taps_[1]);
    std::fill_n(meetings_, kernel_rows, 0);
    for (int64_t i = 0; i < count; ++i)
      for (TapWalk td = depths; td.count > 0; td.next())
        for (TapWalk th(axis, h + i * axis.classes, taps_[1], plan_.rows.tiling.slots[1]); th.count > 0; th.next()) {
          const int64_t row = (td.tap - taps_[0].begin) * size(taps_[1]) + th.tap - taps_[1].begin;
          met_[row][meetings_[row]++] = {factor_ + i * plan_.factor_row_size(), ring_.row(td, th)};
        }
    for (int64_t row = 0; row < kernel_rows; ++row)
      if (meetings_[row] > 0) sum(row);
  }

  // A row of grad_output, of all outputs of the block.
  void pack_factor(int64_t n, int64_t d, int64_t h, int64_t slot) {
    const int64_t pitch = plan_.factor_pitch(), outputs = size(outputs_);
    const T* row = grad_output_.at(n, first_group_ * plan_.outputs + outputs_.begin) + d * grad_output_.spatial[0] +
                   h * grad_output_.spatial[1];
    pack_lines(row, grad_output_, groups_ * outputs, plan_.axes[2].target, {columns_.begin, size(columns_)}, 1,
               factor_ + slot * plan_.factor_row_size(), pitch);
  }

  // Adds the products of the rows that a row of the kernel brings together.
  void sum(int64_t kernel_row) {
    const PackedRows& rows = plan_.rows;
    const int64_t outputs = size(outputs_), terms = size(terms_), taps = block_taps();
    DotProducts<A> dot;
    dot.rows = met_[kernel_row];
    dot.row_count = meetings_[kernel_row];
    dot.vectors = size(columns_) / L;
    dot.rest = size(columns_) % L;
    dot.factor_pitch = plan_.factor_pitch();
    dot.factor_sums = terms * taps * L;
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t k = 0; k < run_count_; ++k) {
        const Run& run = runs_[k];
        // The other side of the register tile: taps of a line, or terms where it has only one.
        const bool of_terms = run.taps == 1;
        const int64_t sources = of_terms ? terms : run.taps, lines = of_terms ? 1 : terms;
        dot.source_step = of_terms ? rows.term_size() : rows.step;
        dot.source_sums = (of_terms ? taps : rows.period) * L;
        for (int64_t r = 0; r < lines; ++r) {
          const int64_t source = g * rows.group_size() + r * rows.term_size() + k * rows.pitch;
          const int64_t sum = (g * outputs * terms + r) * taps + kernel_row * size(taps_[2]) + run.tap - taps_[2].begin;
          add_dot_products(dot, g * outputs * dot.factor_pitch, source, sums_ + sum * L, outputs, sources);
        }
      }
  }

  // partial[output][term][tap]: the numbers of a block are one run in it, or one for each output, or for each row of
  // the kernel.
  void store_sums(A* partial) const {
    const Triple<Axis>& axes = plan_.axes;
    const int64_t taps = block_taps(), of_output = size(terms_) * taps, all = plan_.taps();
    const int64_t count = taps < all ? size(taps_[2]) : size(terms_) < plan_.rows.terms ? of_output : sum_count();
    const int64_t step = has_totals_ ? 2 * L : L;
    const A* const sums = has_totals_ ? totals_ : sums_;
    for (int64_t i = 0; i < sum_count(); i += count) {
      const int64_t o = i / of_output, r = i / taps % size(terms_), row = i % taps / size(taps_[2]);
      const int64_t output = (first_group_ + o / size(outputs_)) * plan_.outputs + outputs_.begin + o % size(outputs_);
      const int64_t d = taps_[0].begin + row / size(taps_[1]), h = taps_[1].begin + row % size(taps_[1]);
      const int64_t first = (d * axes[1].kernel + h) * axes[2].kernel + taps_[2].begin;
      sum_lanes(sums + i * step, step, count, partial + (output * plan_.rows.terms + terms_.begin + r) * all + first);
    }
  }

  const DirectGradPlan& plan_;
  const View<const T> grad_output_;
  A* const partial_sums_;
  A* const sums_;    // of about kShortSum positions
  A* const totals_;  // of sums, with the rounding error so far
  A* const factor_;  // packed rows of grad_output
  LineRing<T> ring_;

  Box box_;
  int64_t first_group_, groups_;
  Range outputs_;  // of each group
  Range terms_;
  Triple<Range> taps_;
  Range columns_;
  Run runs_[kMaxLines];
  int64_t run_count_;
  int64_t summed_;  // positions since the sums were last added to the totals
  bool has_totals_;
  MetRows<A> met_[kMaxRows][kMaxTileRows];  // by row of the kernel
  int64_t meetings_[kMaxRows];
};

// Adds the slices in order, into the first of them, and stores them as the weight lies.
template <class T>
void add_direct_grad_weight(const DirectGradPlan& p, Acc<T>* partial_sums, View<T> grad_weight) {
  add_slices(p.parts.count(), p.slice_size(), partial_sums);
  const Acc<T>* from = partial_sums;
  for (int64_t c = 0; c < p.rows.groups * p.outputs; ++c)
    for (int64_t r = 0; r < p.rows.terms; ++r, from += p.taps())
      for_each_run({{p.axes[0].kernel, p.axes[1].kernel, p.axes[2].kernel}}, grad_weight,
                   [&](int64_t offset, int64_t taps, int64_t first) {
                     unpack_line(from + first, taps, grad_weight.spatial[2], grad_weight.at(c, r) + offset);
                   });
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
