#pragma once

// Grad weight of a convolution with kernels of one tap:
//
//   grad_weight[c, r] = sum over n, o of grad_output[n, c, o] * input[n, first(c) + r, o * stride - pad]
//
// with first as in direct.h: for each group a matrix product over positions.
//
// An item is one block of the outputs and inputs of a group and one slice of the positions. Lanes are inputs, which are
// copied so that those of a position lie side by side; of grad_output one number is read for all lanes, where it lies
// or from such a copy. Sums are added as in direct_gradients.h.
#include "pack.h"
#include "products.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
class PointwiseGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  PointwiseGradWeight(const PointwiseGradPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                      A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        sums_(scratch),
        totals_(sums_ + plan.sums()),
        packed_inputs_(totals_ + 2 * plan.sums()),
        packed_outputs_(packed_inputs_ + plan.inputs_size()) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.blocks(), slice = index / plan_.blocks();
    const Box box = plan_.slice_box(slice);
    group_ = block / plan_.input_chunks / plan_.output_chunks;
    outputs_ = part(plan_.outputs, plan_.output_chunks, block / plan_.input_chunks % plan_.output_chunks);
    inputs_ = part(plan_.inputs, plan_.input_chunks, block % plan_.input_chunks);
    pitch_ = ceil_div(size(inputs_), L) * L;
    fill_zero(sums_, size(outputs_) * pitch_);
    summed_ = 0;
    has_totals_ = false;
    // Positions that meet the padding have no part in it.
    const auto inside = [&](int axis, Range range) {
      const Axis& a = plan_.axes[axis];
      const Range all = positions_inside(-a.pad, a.stride, a.source);
      return Range{std::max(range.begin, all.begin), std::min(range.end, all.end)};
    };
    const Range depths = inside(0, box.d), rows = inside(1, box.h), columns = inside(2, box.w);
    const int64_t tiles = size(columns) > 0 ? ceil_div(size(columns), plan_.columns) : 0;
    for (int64_t n = box.n.begin; n < box.n.end; ++n)
      for (int64_t d = depths.begin; d < depths.end; ++d)
        for (int64_t h = rows.begin; h < rows.end; ++h)
          for (int64_t i = 0; i < tiles; ++i) {
            const Range tile = part(size(columns), tiles, i);
            sum(n, d, h, {columns.begin + tile.begin, columns.begin + tile.end});
          }
    if (has_totals_) add_to_totals();
    store_sums(partial_sums_ + slice * plan_.slice_size());
  }

 private:
  void add_to_totals() {
    add_short_sums(sums_, size(outputs_) * pitch_ / L, totals_, &has_totals_);
    summed_ = 0;
  }

  void sum(int64_t n, int64_t d, int64_t h, Range columns) {
    const int64_t count = size(columns);
    summed_ += count;
    if (summed_ > kShortSum) add_to_totals();
    const Triple<Axis>& axes = plan_.axes;
    const auto source = [&](int axis, int64_t position) { return axes[axis].phase(0).source(position, 0); };
    const T* const input = input_.at(n, group_ * plan_.inputs + inputs_.begin) + source(0, d) * input_.spatial[0] +
                           source(1, h) * input_.spatial[1] + source(2, columns.begin) * input_.spatial[2];
    pack(input, input_.c, axes[2].stride * input_.spatial[2], size(inputs_), count, packed_inputs_);

    const T* const outputs = grad_output_.at(n, group_ * plan_.outputs + outputs_.begin) + d * grad_output_.spatial[0] +
                             h * grad_output_.spatial[1] + columns.begin * grad_output_.spatial[2];
    Products<A> p{};
    TapLine<A> line{packed_inputs_, packed_outputs_, count};
    p.weight_output = 1;
    p.weight_step = ceil_div(size(outputs_), L) * L;
    if (plan_.packs_outputs) {
      pack(outputs, grad_output_.c, grad_output_.spatial[2], size(outputs_), count, packed_outputs_);
    } else if constexpr (std::is_same_v<T, A>) {
      line.weight = outputs;
      p.weight_output = grad_output_.c;
      p.weight_step = grad_output_.spatial[2];
    }
    p.lines = &line;
    p.line_count = 1;
    p.step = p.out_pitch = pitch_;
    const int64_t tiles = ceil_div(size(outputs_), kMaxSums / 3);
    for (int64_t i = 0; i < tiles; ++i) {
      const Range tile = part(size(outputs_), tiles, i);
      p.weight_offset = tile.begin * p.weight_output;
      p.out = sums_ + tile.begin * pitch_;
      add_products(p, size(tile), pitch_ / L);
    }
  }

  // The channels of each column side by side, zeros up to a whole vector.
  static void pack(const T* from, int64_t channel, int64_t column, int64_t channels, int64_t count, A* packed) {
    for (int64_t v = 0; v < channels; v += L)
      pack_columns(from + v * channel, count > 1 ? column : 0, Lanes<A>(0, channels - v, {1, 1}, channel), count,
                   packed + v, ceil_div(channels, L) * L);
  }

  // partial[output][input]
  void store_sums(A* partial) const {
    const A* const sums = has_totals_ ? totals_ : sums_;
    const int64_t step = has_totals_ ? 2 : 1;
    for (int64_t c = 0; c < size(outputs_); ++c)
      for (int64_t r = 0; r < size(inputs_); r += L) {
        const int64_t output = group_ * plan_.outputs + outputs_.begin + c;
        store_partial(partial + output * plan_.inputs + inputs_.begin + r, Vec<A>::load(sums + step * (c * pitch_ + r)),
                      std::min(L, size(inputs_) - r));
      }
  }

  const PointwiseGradPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
  A* const sums_;            // [output][input], of about kShortSum positions
  A* const totals_;          // of sums, with the rounding error so far
  A* const packed_inputs_;   // [column][input]
  A* const packed_outputs_;  // [column][output]

  int64_t group_;
  Range outputs_, inputs_;
  int64_t pitch_;   // of a row of sums, of a pixel
  int64_t summed_;  // positions since the sums were last added to the totals
  bool has_totals_;
};

template <class T>
void add_pointwise_grad_weight(const PointwiseGradPlan& p, Acc<T>* partial_sums, View<T> grad_weight) {
  add_slices(p.parts.count(), p.slice_size(), partial_sums);
  const Acc<T>* from = partial_sums;
  for (int64_t c = 0; c < p.groups * p.outputs; ++c, from += p.inputs)
    unpack_line(from, p.inputs, grad_weight.c, grad_weight.at(c, 0));
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
