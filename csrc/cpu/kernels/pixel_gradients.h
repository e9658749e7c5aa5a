#pragma once

// Grad weight of a convolution with several channels in a group, where its inputs fill vectors, or its outputs:
//
//   grad_weight[c, r, t] = sum over n, o of grad_output[n, c, o] * input[n, first(c) + r, position(o, t)]
//
// with first and position as in direct.h: for each group and tap a matrix product over positions.
//
// An item is one block of groups (or of the outputs and inputs of one) and one slice of the positions. Lanes are
// inputs, side by side for each position, and of grad_output one number is read for all of them; or the other way
// round. Rows are read where they lie or from copies. Sums are added as in direct_gradients.h.
#include "lines.h"
#include "products.h"
#include "tiles.h"
#include "weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
class PixelGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  PixelGradWeight(const PixelGradPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                  A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        sums_(scratch),
        totals_(sums_ + plan.sums()),
        ring_(totals_ + 2 * plan.sums()),
        packed_outputs_(ring_ + plan.ring_size()) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.blocks(), slice = index / plan_.blocks();
    box_ = plan_.slice_box(slice);
    first_group_ = block / plan_.input_chunks / plan_.output_chunks * plan_.width;
    groups_ = std::min(plan_.width, plan_.groups - first_group_);
    outputs_ = part(plan_.outputs, plan_.output_chunks, block / plan_.input_chunks % plan_.output_chunks);
    inputs_ = part(plan_.inputs, plan_.input_chunks, block % plan_.input_chunks);
    input_pixel_ = plan_.input_pixel(size(inputs_));
    output_pixel_ = plan_.padded(size(outputs_));
    pixel_ = plan_.lanes_are_outputs ? output_pixel_ : input_pixel_;
    factors_ = size(plan_.lanes_are_outputs ? inputs_ : outputs_);
    fill_zero(sums_, sum_count());
    summed_ = 0;
    has_totals_ = false;
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const int64_t tiles = ceil_div(size(box_.w), plan_.columns);
    for (int64_t n = box_.n.begin; n < box_.n.end; ++n)
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(size(box_.w), tiles, i);
        columns_ = {box_.w.begin + columns.begin, box_.w.begin + columns.end};
        std::fill_n(tags_, plan_.slots[0] * plan_.slots[1], -1);
        for (int64_t id = box_.d.begin; id < box_.d.end; ++id)  // rows of one class are neighbours in the ring
          for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
            for (int64_t ih = fh; ih < box_.h.end; ih += h.classes * plan_.tile_rows)
              rows(n, id, ih, TapWalk(d, id, {0, d.kernel}, plan_.slots[0]));
      }
    if (has_totals_) add_to_totals();
    store_sums(partial_sums_ + slice * plan_.slice_size());
  }

 private:
  int64_t sum_count() const { return groups_ * factors_ * plan_.taps() * pixel_; }

  void add_to_totals() {
    add_short_sums(sums_, sum_count() / L, totals_, &has_totals_);
    summed_ = 0;
  }

  // Rows h, h + classes, ... of grad_output, and those of the input that they meet.
  void rows(int64_t n, int64_t d, int64_t h, const TapWalk& depths) {
    const Axis& axis = plan_.axes[1];
    const int64_t count = std::min(plan_.tile_rows, ceil_div(box_.h.end - h, axis.classes));
    summed_ += count * size(columns_);
    if (summed_ > kShortSum) add_to_totals();
    // For each row of the kernel, the rows that it brings together.
    const int64_t kernel_rows = plan_.axes[0].kernel * axis.kernel;
    std::fill_n(meetings_, kernel_rows, 0);
    for (int64_t i = 0; i < count; ++i) {
      const A* outputs = nullptr;
      for (TapWalk td = depths; td.count > 0; td.next())
        for (TapWalk th(axis, h + i * axis.classes, {0, axis.kernel}, plan_.slots[1]); th.count > 0; th.next()) {
          if (!outputs) outputs = output_row(n, d, h + i * axis.classes, i);
          const int64_t row = td.tap * axis.kernel + th.tap;
          const A* const inputs = input_row(n, td, th);
          met_[row][meetings_[row]++] = plan_.lanes_are_outputs ? TapLine<A>{outputs, inputs, size(columns_)}
                                                                : TapLine<A>{inputs, outputs, size(columns_)};
        }
    }
    for (int64_t row = 0; row < kernel_rows; ++row)
      if (meetings_[row] > 0) sum(row);
  }

  // A row of the input from the first column that the first tap meets, where it lies or as [group][column][input].
  const A* input_row(int64_t n, const TapWalk& d, const TapWalk& h) {
    if constexpr (std::is_same_v<T, A>)
      if (!plan_.packs_inputs)
        return input_.at(n, first_group_ * plan_.inputs + inputs_.begin) + d.source * input_.spatial[0] +
               h.source * input_.spatial[1] + plan_.axes[2].phase(0).source(columns_.begin, 0) * input_.spatial[2];
    const int64_t slot = d.slot * plan_.slots[1] + h.slot, tag = d.source * plan_.axes[1].source + h.source;
    A* const packed = ring_ + slot * plan_.row_size();
    if (tags_[slot] == tag) return packed;
    tags_[slot] = tag;
    const Axis& w = plan_.axes[2];
    const int64_t stride = plan_.column_stride();
    const Line line{w.phase(0).source(columns_.begin, 0), plan_.packed_columns(size(columns_))};
    const Range existing = existing_columns(line, stride, w.source);
    const T* from = input_.at(n, first_group_ * plan_.inputs + inputs_.begin) + d.source * input_.spatial[0] +
                    h.source * input_.spatial[1];
    const int64_t column = size(existing) > 1 ? stride * input_.spatial[2] : 0;  // as large as it likes if never taken
    if (size(existing) > 0) from += (line.first + existing.begin * stride) * input_.spatial[2];
    for (int64_t g = 0; g < groups_; ++g, from += plan_.inputs * input_.c) {
      A* const to = packed + g * plan_.group_row_size();
      fill_zero(to, existing.begin * input_pixel_);
      pack(from, input_.c, column, size(inputs_), size(existing), to + existing.begin * input_pixel_, input_pixel_);
      fill_zero(to + existing.end * input_pixel_, (line.count - existing.end) * input_pixel_);
    }
    return packed;
  }

  // A row of grad_output, where it lies or as [group][column][output].
  const A* output_row(int64_t n, int64_t d, int64_t h, int64_t slot) {
    const T* from = grad_output_.at(n, first_group_ * plan_.outputs + outputs_.begin) + d * grad_output_.spatial[0] +
                    h * grad_output_.spatial[1] + columns_.begin * grad_output_.spatial[2];
    if constexpr (std::is_same_v<T, A>)
      if (!plan_.packs_outputs) return from;
    A* const packed = packed_outputs_ + slot * plan_.output_row_size();
    for (int64_t g = 0; g < groups_; ++g, from += plan_.outputs * grad_output_.c)
      pack(from, grad_output_.c, grad_output_.spatial[2], size(outputs_), size(columns_),
           packed + g * plan_.columns * output_pixel_, output_pixel_);
    return packed;
  }

  // The channels of each column side by side. Up to a vector beyond the last column is written.
  static void pack(const T* from, int64_t channel, int64_t column, int64_t channels, int64_t count, A* packed,
                   int64_t pitch) {
    if (channel == 1 && channels == pitch) return copy_pixels(from, column, count, 1, channels, packed, 0);
    if (channel == 1 && channels > L) {
      for (int64_t j = 0; j < count; ++j) pack_line(from + j * column, 1, channels, packed + j * pitch);
      return;
    }
    for (int64_t v = (channels - 1) / L * L; v >= 0; v -= L)  // a part of a vector is written whole: overwritten next
      pack_columns(from + v * channel, column, Lanes<A>(0, channels - v, {1, 1}, channel), count, packed + v, pitch);
  }

  // Adds the products of the rows that a row of the kernel brings together.
  void sum(int64_t kernel_row) {
    const Axis& w = plan_.axes[2];
    const bool swapped = plan_.lanes_are_outputs;
    const int64_t taps = plan_.taps();
    // From column to column, channel to channel and group to group.
    struct Steps {
      int64_t column, channel, group;
    };
    const int64_t stride = size(columns_) > 1 ? w.stride : 0;  // one that is never taken may be as large as it likes
    const Steps input = plan_.packs_inputs
                            ? Steps{stride / plan_.column_stride() * input_pixel_, 1, plan_.group_row_size()}
                            : Steps{stride * input_.spatial[2], 1, plan_.inputs};
    const Steps output = plan_.packs_outputs
                             ? Steps{output_pixel_, 1, plan_.columns * output_pixel_}
                             : Steps{grad_output_.spatial[2], grad_output_.c, plan_.outputs * grad_output_.c};
    const Steps &source = swapped ? output : input, &factor = swapped ? input : output;
    Products<A> p{};
    p.lines = met_[kernel_row];
    p.line_count = meetings_[kernel_row];
    p.step = source.column;
    p.weight_step = factor.column;
    p.weight_output = factor.channel;
    // Where taps are side by side, their inputs are like more inputs.
    const int64_t at_once = swapped && w.dilation == 1 ? w.kernel : 1, factors = at_once * factors_;
    const bool one_vector = pixel_ == L && factor.channel == 1;
    const int64_t most = one_vector ? kMaxSums : std::min(kMaxOutputs, kMaxSums / std::min(pixel_ / L, kPanel));
    const int64_t tiles = ceil_div(factors, most);
    p.out_pitch = swapped ? pixel_ : taps * pixel_;
    TapLine<A> inside[kMaxTileRows];
    for (int64_t t = 0; t < w.kernel; t += at_once) {
      if (w.kernel > 1 && at_once == 1) {  // without the columns whose input lies outside the image
        const Line sources{w.phase(0).source(columns_.begin, t), size(columns_)};
        const Range met = existing_columns(sources, w.stride, w.source);
        if (size(met) == 0) continue;
        p.lines = inside;
        for (int64_t i = 0; i < p.line_count; ++i) {
          const TapLine<A>& line = met_[kernel_row][i];
          inside[i] = {line.source + met.begin * p.step, line.weight + met.begin * p.weight_step, size(met)};
        }
      }
      for (int64_t g = 0; g < groups_; ++g)
        for (int64_t i = 0; i < tiles; ++i) {
          const Range tile = part(factors, tiles, i);
          const int64_t offset = t * w.dilation * input_pixel_, tap = kernel_row * w.kernel + t;
          p.source_offset = g * source.group + (swapped ? 0 : offset);
          p.weight_offset = g * factor.group + tile.begin * factor.channel + (swapped ? offset : 0);
          p.out = sums_ + g * factors_ * taps * pixel_ +
                  (swapped ? tap * factors_ + tile.begin : tile.begin * taps + tap) * pixel_;
          if (one_vector) add_product_rows(p, size(tile), 1);
          else add_products(p, size(tile), pixel_ / L);
        }
    }
  }

  // partial[output][tap][input], or [group][tap][input][output]
  void store_sums(A* partial) const {
    const A* sums = has_totals_ ? totals_ : sums_;
    const int64_t step = has_totals_ ? 2 : 1, taps = plan_.taps();
    const auto store = [&](int64_t row, int64_t lanes, Range in_lanes) {
      for (int64_t r = 0; r < size(in_lanes); r += L)
        store_partial(partial + row * lanes + in_lanes.begin + r, Vec<A>::load(sums + step * r),
                      std::min(L, size(in_lanes) - r));
      sums += step * pixel_;
    };
    for (int64_t g = first_group_; g < first_group_ + groups_; ++g)
      if (plan_.lanes_are_outputs)
        for (int64_t t = 0; t < taps; ++t)
          for (int64_t r = inputs_.begin; r < inputs_.end; ++r)
            store((g * taps + t) * plan_.inputs + r, plan_.outputs, outputs_);
      else
        for (int64_t c = outputs_.begin; c < outputs_.end; ++c)
          for (int64_t t = 0; t < taps; ++t) store((g * plan_.outputs + c) * taps + t, plan_.inputs, inputs_);
  }

  const PixelGradPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
  A* const sums_;            // [group][output][tap][input], or [tap][input][output], of about kShortSum positions
  A* const totals_;          // of sums, with the rounding error so far
  A* const ring_;            // packed rows of the input, a direct-mapped cache
  A* const packed_outputs_;  // rows of grad_output

  Box box_;
  int64_t first_group_, groups_;
  Range outputs_, inputs_;              // of each group
  int64_t input_pixel_, output_pixel_;  // packed channels of a position
  int64_t factors_, pixel_;             // channels that are not lanes; packed ones that are
  Range columns_;
  int64_t tags_[kMaxRows];
  TapLine<A> met_[kMaxRows][kMaxTileRows];  // by row of the kernel
  int64_t meetings_[kMaxRows];
  int64_t summed_;  // positions since the sums were last added to the totals
  bool has_totals_;
};

// Adds the slices in order, into the first of them, and stores them as the weight lies.
template <class T>
void add_pixel_grad_weight(const PixelGradPlan& p, Acc<T>* partial_sums, View<T> grad_weight) {
  add_slices(p.parts.count(), p.slice_size(), partial_sums);
  const Acc<T>* from = partial_sums;
  const Triple<int64_t> kernel{{p.axes[0].kernel, p.axes[1].kernel, p.axes[2].kernel}};
  const auto offset = [&](int64_t tap) { return tap_offset(grad_weight, kernel, tap); };
  if (!p.lanes_are_outputs) {
    for (int64_t c = 0; c < p.groups * p.outputs; ++c)
      for (int64_t t = 0; t < p.taps(); ++t, from += p.inputs)
        unpack_line(from, p.inputs, grad_weight.c, grad_weight.at(c, 0) + offset(t));
    return;
  }
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t t = 0; t < p.taps(); ++t)
      for (int64_t r = 0; r < p.inputs; ++r, from += p.outputs)
        unpack_line(from, p.outputs, grad_weight.n, grad_weight.at(g * p.outputs, r) + offset(t));
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
