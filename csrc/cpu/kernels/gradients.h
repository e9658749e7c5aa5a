#pragma once

// Gradients of a depthwise convolution that are sums over all positions:
//
//   grad_weight[c, t] = sum over n, o of grad_output[n, output(c), o] * input[n, input(c), o * stride + t * dilation -
//   pad] grad_bias[c]      = sum over n, o of grad_output[n, c, o]
//
// Lanes are the weight's channels. An item is one block of channels and one slice of the positions; blocks alone feed
// the threads when channels are many. For each row of grad_output, taps stay in registers while the row streams past
// the packed input rows; a row's sum starts from zero, a few rows' sums are added, and those
// are added with compensation: the rounding error does not grow with the number of rows. Slices are
// added in order, so that the result is the same for every number of threads. Sums are in Acc<T>, rounded once.
//
// Taps in registers along a row are oneDNN's idea for kernels of up to 3 columns; here they come in chunks of up to 8.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
class GradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  GradWeight(const GradWeightPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums, A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        ring_(plan.axes, plan.tiling, scratch),
        row_(scratch + plan.ring_size()),
        sums_(row_ + plan.row_size()),
        totals_(sums_ + plan.sums_size() / 3) {}

  void item(int64_t index) {
    const int64_t block = index % plan_.channels.blocks(), slice = index / plan_.channels.blocks();
    const Tiling& tiling = plan_.tiling;
    const Triple<Axis>& axes = plan_.axes;
    box_ = plan_.slice_box(slice);
    vectors_ = plan_.channels.vectors(block);
    first_vector_ = block * plan_.channels.block_vectors();
    for (int64_t v = 0; v < vectors_; ++v)
      lanes_[v] = Lanes<A>((first_vector_ + v) * L, plan_.channels.channels, plan_.output_map, grad_output_.c);
    for (int64_t d = 0; d < axes[0].kernel; d += tiling.taps[0])
      for (int64_t h = 0; h < axes[1].kernel; h += tiling.taps[1])
        for (int64_t w = 0; w < axes[2].kernel; w += tiling.taps[2]) {
          taps_ = {{{d, std::min(d + tiling.taps[0], axes[0].kernel)},
                    {h, std::min(h + tiling.taps[1], axes[1].kernel)},
                    {w, std::min(w + tiling.taps[2], axes[2].kernel)}}};
          tap_block(block);
          store_sums(partial_sums_ + slice * plan_.slice_size());
        }
  }

 private:
  // Position of a tap of the block in sums_[vector][tap][lane] and totals_[vector][tap][total, error][lane].
  int64_t block_tap(int64_t v, int64_t d, int64_t h, int64_t w) const {
    return ((v * plan_.tiling.taps[0] + d) * plan_.tiling.taps[1] + h) * plan_.tiling.taps[2] + w;
  }

  void add_to_totals() {
    for (int64_t i = 0; i < vectors_ * plan_.block_taps(); ++i) add_short_sum(sums_ + i * L, totals_ + 2 * i * L);
    summed_rows_ = 0;
  }

  void tap_block(int64_t block) {
    for (int64_t i = 0; i < plan_.sums_size(); i += L) Vec<A>::zero().store(sums_ + i);
    summed_rows_ = 0;
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    for (int64_t n = box_.n.begin; n < box_.n.end; ++n) {
      ring_.set_channels(input_, n, plan_.channels, block, plan_.input_map);
      for (int64_t j = box_.w.begin; j < box_.w.end; j += plan_.tiling.columns) {
        if (!set_columns({j, std::min(j + plan_.tiling.columns, box_.w.end)})) continue;
        for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d.classes; ++fd)
          for (int64_t id = fd; id < box_.d.end; id += d.classes) {
            const TapWalk depths(d, id, taps_[0], plan_.tiling.slots[0]);
            for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
              for (int64_t ih = fh; ih < box_.h.end; ih += h.classes) row(n, id, ih, depths);
          }
      }
    }
    add_to_totals();
  }

  // Returns whether any tap of the block meets the image.
  bool set_columns(Range columns) {
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    const int64_t first = p.source(columns.begin, 0), last = p.source(columns.end - 1, 0);
    columns_ = columns;
    column_taps_ = p.clip(first, last, w.source, taps_[2]);
    if (size(column_taps_) == 0) return false;
    ring_.set_columns({first + column_taps_.begin * p.step, last + (column_taps_.end - 1) * p.step + 1});
    return true;
  }

  void row(int64_t n, int64_t d, int64_t h, const TapWalk& depths) {
    int64_t rows = 0;
    for (TapWalk td = depths; td.count > 0; td.next())
      for (TapWalk th(plan_.axes[1], h, taps_[1], plan_.tiling.slots[1]); th.count > 0; th.next())
        rows_[rows++] = {ring_.row(0, 0, td, th), sums_ + block_tap(0, td.tap - taps_[0].begin, th.tap - taps_[1].begin,
                                                                    column_taps_.begin - taps_[2].begin) *
                                                              L};
    if (rows == 0) return;
    if (++summed_rows_ == kShortSum) add_to_totals();

    const int64_t columns = size(columns_), taps = size(column_taps_);
    const T* from = grad_output_.data + n * grad_output_.n + d * grad_output_.spatial[0] + h * grad_output_.spatial[1] +
                    columns_.begin * grad_output_.spatial[2];
    const int64_t chunks = ceil_div(taps, 8);
    for (int64_t v = 0; v < vectors_; ++v) {
      pack_columns(from, grad_output_.spatial[2], lanes_[v], columns, row_);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Range t = part(taps, chunks, chunk);
        const int64_t step = taps > 1 ? plan_.axes[2].dilation * L : 0;
        const TapSum<A> sum{.rows = rows_,
                            .source_offset = v * ring_.vector_stride() + t.begin * step,
                            .source_stride = columns > 1 ? plan_.axes[2].stride * L : 0,
                            .step = step,
                            .factor = row_,
                            .columns = columns,
                            .sums_offset = (v * plan_.block_taps() + t.begin) * L};
        sum_chunk(sum, rows, size(t));
      }
    }
  }

  // partial[vector][tap][lane]
  void store_sums(A* partial) {
    for (int64_t v = 0; v < vectors_; ++v)
      for (int64_t d = taps_[0].begin; d < taps_[0].end; ++d)
        for (int64_t h = taps_[1].begin; h < taps_[1].end; ++h)
          for (int64_t w = taps_[2].begin; w < taps_[2].end; ++w) {
            const int64_t tap = (d * plan_.axes[1].kernel + h) * plan_.axes[2].kernel + w;
            const int64_t i = block_tap(v, d - taps_[0].begin, h - taps_[1].begin, w - taps_[2].begin);
            Vec<A>::load(totals_ + 2 * i * L).store(partial + ((first_vector_ + v) * plan_.taps() + tap) * L);
          }
  }

  const GradWeightPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
  PackedRing<T> ring_;
  A* const row_;
  A* const sums_;    // of up to kShortSum rows
  A* const totals_;  // of sums, with the rounding error so far

  Box box_;
  int64_t vectors_, first_vector_;
  Lanes<A> lanes_[kMaxVectors];
  Triple<Range> taps_;
  Range columns_, column_taps_;
  int64_t summed_rows_;
  TapRow<A> rows_[kMaxRows];
};

template <class T>
void add_grad_weight(const ConvGeometry<int64_t>& g, const Acc<T>* partial_sums, View<T> grad_weight) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const GradWeightPlan p = plan_grad_weight<Acc<T>>(g);
  const int64_t m = multiplier(g), slices = p.parts.count();
  for (int64_t c = 0; c < p.channels.channels; ++c) {
    T* to = output_is_wide(g) ? grad_weight.at(c, 0) : grad_weight.at(c / m, c % m);
    const Acc<T>* from = partial_sums + c / L * p.taps() * L + c % L;
    for (int64_t d = 0; d < g.kernel[0]; ++d)
      for (int64_t h = 0; h < g.kernel[1]; ++h)
        for (int64_t w = 0; w < g.kernel[2]; ++w, from += L) {
          Acc<T> sum = 0;
          for (int64_t slice = 0; slice < slices; ++slice) sum += from[slice * p.slice_size()];
          narrow(sum, to + d * grad_weight.spatial[0] + h * grad_weight.spatial[1] + w * grad_weight.spatial[2]);
        }
  }
}

template <class T>
void grad_bias(const GradBiasPlan& p, View<const T> grad_output, Acc<T>* partial_sums, int64_t item, Acc<T>* row) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const int64_t block = item % p.channels.blocks(), slice = item / p.channels.blocks();
  const Box box = p.slice_box(slice);
  A ones[L];
  Vec<A>::broadcast(1).store(ones);
  for (int64_t v = 0; v < p.channels.vectors(block); ++v) {
    const int64_t vector = block * p.channels.block_vectors() + v;
    const Lanes<A> lanes(vector * L, p.channels.channels, {1, 1}, grad_output.c);
    A sum[L] = {}, total[2 * L] = {};
    const TapRow<A> ones_row{ones, sum};
    int64_t rows = 0;
    for (int64_t n = box.n.begin; n < box.n.end; ++n)
      for (int64_t d = box.d.begin; d < box.d.end; ++d)
        for (int64_t h = box.h.begin; h < box.h.end; ++h)
          for (int64_t w = box.w.begin; w < box.w.end; w += kMaxColumns) {
            const int64_t columns = std::min(kMaxColumns, box.w.end - w);
            pack_columns(grad_output.data + n * grad_output.n + d * grad_output.spatial[0] +
                             h * grad_output.spatial[1] + w * grad_output.spatial[2],
                         grad_output.spatial[2], lanes, columns, row);
            const TapSum<A> taps{.rows = &ones_row,
                                 .source_offset = 0,
                                 .source_stride = 0,
                                 .step = 0,
                                 .factor = row,
                                 .columns = columns,
                                 .sums_offset = 0};
            sum_taps<A, 1, 1, 8>(taps, 0);
            if (++rows % kShortSum == 0) add_short_sum(sum, total);
          }
    add_short_sum(sum, total);
    Vec<A>::load(total).store(partial_sums + slice * p.slice_size() + vector * L);
  }
}

template <class T>
void add_grad_bias(const ConvGeometry<int64_t>& g, const Acc<T>* partial_sums, T* grad_bias) {
  const GradBiasPlan p = plan_grad_bias<Acc<T>>(g);
  for (int64_t c = 0; c < p.channels.channels; ++c) {
    double sum = 0;  // slices of opposite signs may cancel
    for (int64_t slice = 0; slice < p.parts.count(); ++slice) sum += partial_sums[slice * p.slice_size() + c];
    narrow(static_cast<Acc<T>>(sum), grad_bias + c);
  }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
