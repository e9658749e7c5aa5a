#pragma once

// Gradients of a depthwise convolution that are sums over all positions:
//
//   grad_weight[c, t] = sum over n, o of grad_output[n, output(c), o] * input[n, input(c), position(o, t)]
//   grad_bias[c] = sum over n, o of grad_output[n, c, o]
//
// with position(o, t) = o * stride + t * dilation - pad.
//
// An item is one block of the weight's channels and one slice of the positions; blocks alone feed the threads when
// channels are many. Lanes are channels or columns, in packed rows as in correlate.h; what is read in place is in
// grad_strips.h. Taps stay in registers while one or a few rows of grad_output stream past the input rows; those sums
// start from zero, some of them are added, and these are added with compensation: the rounding error does not grow with
// the number of rows. Slices are added in order, so that the result is the same for every number of threads. Sums are
// in Acc<T>, rounded once.
//
// Taps in registers along a row are oneDNN's idea for kernels of up to 3 columns; here they come in chunks of up to 8.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T, Order kOrder>
class GradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kPixel = lanes_are_columns(kOrder) ? 1 : L;

 public:
  GradWeight(const GradWeightPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums, A* scratch)
      : plan_(plan),
        grad_output_(grad_output),
        input_(input),
        partial_sums_(partial_sums),
        sums_(scratch),
        totals_(sums_ + plan.sums_size() / 3),
        packed_(sums_ + plan.sums_size()),
        zero_row_(plan.zero_rows ? packed_ + plan.rows_size() : nullptr),
        rows_(plan.axes, plan.tiling, packed_ + plan.rows_size() + plan.zero_row_size()),
        prefetch_(what_to_prefetch(plan, input, grad_output)) {
    if (zero_row_) fill_zero(zero_row_, plan.zero_row_size());
  }

  void item(int64_t index) {
    const int64_t block = index % plan_.channels.blocks(), slice = index / plan_.channels.blocks();
    const Tiling& tiling = plan_.tiling;
    const Triple<Axis>& axes = plan_.axes;
    box_ = plan_.slice_box(slice);
    vectors_ = plan_.channels.vectors(block);
    first_vector_ = block * plan_.channels.width;
    // Rows of grad_output are read where they lie if vectors are whole there, and not too often: distant columns get
    // into each other's way in the cache.
    factor_in_place_ = std::is_same_v<T, A>;
    if constexpr (kPixel == 1) factor_in_place_ &= grad_output_.spatial[2] == 1;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = plan_.output_map(plan_.channels.first(first_vector_ + v));
      line_[v] = first * grad_output_.c;
      if constexpr (kOrder == Order::kPackedChannels) {
        lanes_[v] = Lanes<A>((first_vector_ + v) * L, plan_.channels.channels, plan_.output_map, grad_output_.c);
        factor_in_place_ &= lanes_[v].adjacent && lanes_[v].count == L && plan_.tiling.taps[1] < 9;
      }
    }
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
  // Rows of the kernel whose sums are taken at once, and their runs.
  struct Rows {
    int64_t kernel_row, count, first_run, run_count;
  };
  static constexpr int64_t kMaxRuns = kMaxRows * (kMaxTileRows + kRowsAtOnce);

  // Position of a tap of the block in sums_[vector][tap][lane] and totals_[vector][tap][total, error][lane].
  int64_t block_tap(int64_t v, int64_t kernel_row, int64_t w) const {
    return (v * plan_.tiling.taps[0] * plan_.tiling.taps[1] + kernel_row) * plan_.tiling.taps[2] + w;
  }
  int64_t kernel_row(int64_t d, int64_t h) const {
    return (d - taps_[0].begin) * plan_.tiling.taps[1] + h - taps_[1].begin;
  }

  void add_to_totals() {
    for (int64_t i = 0; i < vectors_ * plan_.block_taps(); ++i) add_short_sum(sums_ + i * L, totals_ + 2 * i * L);
    summed_ = 0;
  }

  void tap_block(int64_t block) {
    fill_zero(sums_, 3 * plan_.block_taps() * plan_.channels.max_vectors() * L);
    summed_ = 0;
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const int64_t count = size(box_.w), tiles = ceil_div(count, plan_.tiling.columns);
    for (int64_t n = box_.n.begin; n < box_.n.end; ++n) {
      if (prefetch_ == Prefetch::kRow) {
        source_ahead_ = plan_.axes[1].stride * input_.spatial[1];
        factor_ahead_ = grad_output_.spatial[1];
      } else if (prefetch_ == Prefetch::kBlock) {  // the same channels of the next image, or the next item's
        const bool last = n + 1 == box_.n.end;
        const int64_t begin = first_vector_ * plan_.channels.lanes, end = begin + vectors_ * plan_.channels.lanes;
        const auto ahead = [&](ChannelMap map, int64_t channel, int64_t image) {
          return last ? (map(end) - map(begin)) * channel - (size(box_.n) - 1) * image : image;
        };
        factor_ahead_ = ahead(plan_.output_map, grad_output_.c, grad_output_.n);
        source_ahead_ = ahead(plan_.input_map, input_.c, input_.n);
      }
      rows_.set_channels(input_, n, plan_.channels, block, plan_.input_map, source_ahead_);
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(count, tiles, i);
        if (!set_columns({box_.w.begin + columns.begin, box_.w.begin + columns.end})) continue;
        for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d.classes; ++fd)
          for (int64_t id = fd; id < box_.d.end; id += d.classes) {
            const TapWalk depths(d, id, taps_[0], plan_.tiling.slots[0]);
            for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h.classes; ++fh)
              for (int64_t ih = fh; ih < box_.h.end; ih += h.classes * plan_.tile_rows) rows(n, id, ih, depths);
          }
      }
    }
    add_to_totals();
  }

  bool set_columns(Range columns) {
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    columns_ = columns;
    const int64_t first = p.source(columns.begin, 0), last = p.source(columns.end - 1, 0);
    column_taps_ = p.clip(first, last, w.source, taps_[2]);
    if (size(column_taps_) == 0) return false;
    rows_.set_columns({first + column_taps_.begin * p.step, last + (column_taps_.end - 1) * p.step + 1});
    return true;
  }

  // Lists the runs of the rows of grad_output h, h + classes, ...: first which source row each kernel row meets.
  void list_runs(int64_t n, int64_t d, int64_t h, const TapWalk& depths) {
    const Axis& axis = plan_.axes[1];
    const int64_t kernel_rows = plan_.tiling.taps[0] * plan_.tiling.taps[1];
    for (rows_count_ = 0; rows_count_ < plan_.tile_rows && h < box_.h.end; ++rows_count_, h += axis.classes) {
      const A** met = met_[rows_count_];
      std::fill_n(met, kernel_rows, zero_row_);
      for (TapWalk td = depths; td.count > 0; td.next())
        for (TapWalk th(axis, h, taps_[1], plan_.tiling.slots[1]); th.count > 0; th.next())
          met[kernel_row(td.tap, th.tap)] = rows_.row(0, 0, td, th);
      factor_[rows_count_] = factor_row(n, d, h, rows_count_);
    }
    runs_count_ = kernel_rows_count_ = 0;
    const int64_t groups = ceil_div(plan_.tiling.taps[1], kRowsAtOnce);
    for (int64_t td = 0; td < plan_.tiling.taps[0]; ++td)
      for (int64_t group = 0; group < groups; ++group) {
        const Range rows = part(plan_.tiling.taps[1], groups, group);
        list_group(td * plan_.tiling.taps[1] + rows.begin, size(rows));
      }
  }

  // The runs of `count` neighbouring rows of the kernel: those that all of them have are taken at once.
  void list_group(int64_t first, int64_t count) {
    // Neighbouring rows of the kernel meet one source row at neighbouring rows of grad_output.
    const bool diagonal = plan_.shared == Shared::kSource;
    const auto meets = [&](int64_t i, int64_t r) {
      const int64_t row = diagonal ? i - r : i;
      return row >= 0 && row < rows_count_ && met_[row][first + r];
    };
    const auto list = [&](int64_t begin, int64_t n, const auto& wanted) {
      const int64_t first_run = runs_count_;
      for (int64_t i = 0; i < rows_count_ + (diagonal ? count - 1 : 0); ++i) {
        if (!wanted(i)) continue;
        TapRun<A>& run = runs_[runs_count_++];
        for (int64_t r = 0; r < n; ++r) {
          const int64_t row = diagonal ? i - begin - r : i;
          run.factor[r] = factor_[row];
          run.source[r] = met_[row][first + begin + r];
        }
      }
      if (runs_count_ > first_run)
        kernel_rows_[kernel_rows_count_++] = {first + begin, n, first_run, runs_count_ - first_run};
    };
    const auto all = [&](int64_t i) {
      bool meet = true;
      for (int64_t r = 0; r < count; ++r) meet &= meets(i, r);
      return meet;
    };
    list(0, count, all);
    if (zero_row_ || count == 1) return;
    for (int64_t r = 0; r < count; ++r) list(r, 1, [&](int64_t i) { return meets(i, r) && !all(i); });
  }

  // Where a vector of channels lies in a row of grad_output as the kernels read it.
  int64_t factor_vector(int64_t v) const { return factor_in_place_ ? line_[v] : v * plan_.row_columns() * kPixel; }

  // A row of grad_output as the kernels read it.
  const A* factor_row(int64_t n, int64_t d, int64_t h, int64_t slot) {
    const T* from = grad_output_.data + n * grad_output_.n + d * grad_output_.spatial[0] + h * grad_output_.spatial[1] +
                    columns_.begin * grad_output_.spatial[2];
    if constexpr (std::is_same_v<T, A>)
      if (factor_in_place_) {
        if (factor_ahead_ != 0)
          for (int64_t v = 0; v < vectors_; ++v) prefetch_line<false>(from + line_[v] + factor_ahead_, size(columns_));
        return from;
      }
    const int64_t stride = grad_output_.spatial[2];
    A* const row = packed_ + slot * vectors_ * plan_.row_columns() * kPixel;
    for (int64_t v = 0; v < vectors_; ++v) {
      A* to = row + factor_vector(v);
      if constexpr (kPixel == 1) pack_line(from + line_[v], stride, size(columns_), to, factor_ahead_);
      else pack_columns(from, stride, lanes_[v], size(columns_), to, L, factor_ahead_);
    }
    return row;
  }

  void rows(int64_t n, int64_t d, int64_t h, const TapWalk& depths) {
    list_runs(n, d, h, depths);
    if (kernel_rows_count_ == 0) return;
    summed_ += rows_count_ * size(columns_);
    if (summed_ > kShortSum) add_to_totals();
    const Axis& w = plan_.axes[2];
    TapSum<A> sum{};
    sum.factor_stride = factor_in_place_ && kPixel != 1 ? grad_output_.spatial[2] : L;
    sum.row_sums = plan_.tiling.taps[2] * L;
    const int64_t columns = size(columns_), taps = size(column_taps_);
    sum.source_stride = kPixel == 1 ? L : columns > 1 ? w.stride * kPixel : 0;
    sum.step = taps > 1 ? w.dilation * kPixel : 0;
    sum.columns = kPixel == 1 ? columns / L : columns;
    sum.rest = kPixel == 1 ? columns % L : 0;
    for (int64_t v = 0; v < vectors_; ++v) {
      sum.factor_offset = factor_vector(v);
      for (int64_t k = 0; k < kernel_rows_count_; ++k) {
        const Rows& rows = kernel_rows_[k];
        sum.runs = runs_ + rows.first_run;
        sum.run_count = rows.run_count;
        const int64_t chunks = ceil_div(taps, kMaxTaps[rows.count]);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const Range t = part(taps, chunks, chunk);
          sum.source_offset = rows_.vectors()[v] + t.begin * sum.step;
          sum.sums = sums_ + block_tap(v, rows.kernel_row, column_taps_.begin - taps_[2].begin + t.begin) * L;
          sum_taps(sum, rows.count, plan_.shared, size(t));
        }
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
            const A* total = totals_ + 2 * block_tap(v, kernel_row(d, h), w - taps_[2].begin) * L;
            A* to = partial + ((first_vector_ + v) * plan_.taps() + tap) * kPixel;
            if constexpr (kPixel == 1) *to = sum_lanes(total);
            else Vec<A>::load(total).store(to);
          }
  }

  const GradWeightPlan& plan_;
  const View<const T> grad_output_, input_;
  A* const partial_sums_;
  A* const sums_;      // of about kShortSum positions
  A* const totals_;    // of sums, with the rounding error so far
  A* const packed_;    // rows of grad_output
  A* const zero_row_;  // or null
  SourceRows<T, kOrder> rows_;

  const Prefetch prefetch_;
  int64_t factor_ahead_ = 0, source_ahead_ = 0;  // how far ahead that is, or 0

  Box box_;
  int64_t vectors_, first_vector_;
  int64_t line_[kMaxVectors];  // where each vector lies in grad_output
  Lanes<A> lanes_[kMaxVectors];
  bool factor_in_place_;
  Triple<Range> taps_;
  Range columns_, column_taps_;  // of the current tile, and the taps that meet the image there
  int64_t summed_;               // positions since the sums were last added to the totals
  // Of the current rows of grad_output
  int64_t rows_count_;
  const A* met_[kMaxTileRows][kMaxRows];  // by row of the kernel; null, or zeros, if that meets no row of the image
  const A* factor_[kMaxTileRows];
  TapRun<A> runs_[kMaxRuns];
  int64_t runs_count_;
  Rows kernel_rows_[2 * kMaxRows];
  int64_t kernel_rows_count_;
};

template <class T>
void grad_bias(const GradBiasPlan& p, View<const T> grad_output, Acc<T>* partial_sums, int64_t item, Acc<T>* row) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const bool lines = p.order == Order::kPackedColumns;
  const int64_t block = item % p.channels.blocks(), slice = item / p.channels.blocks();
  const Box box = p.slice_box(slice);
  for (int64_t v = 0; v < p.channels.vectors(block); ++v) {
    const int64_t vector = block * p.channels.width + v;
    const Lanes<A> lanes(lines ? 0 : vector * L, lines ? 1 : p.channels.channels, {1, 1}, grad_output.c);
    A sum[L] = {}, total[2 * L] = {};
    int64_t added = 0;
    for (int64_t n = box.n.begin; n < box.n.end; ++n)
      for (int64_t d = box.d.begin; d < box.d.end; ++d)
        for (int64_t h = box.h.begin; h < box.h.end; ++h)
          for (int64_t w = box.w.begin; w < box.w.end; w += kMaxColumns) {
            const int64_t columns = std::min(kMaxColumns, box.w.end - w);
            const T* from = grad_output.data + n * grad_output.n + d * grad_output.spatial[0] +
                            h * grad_output.spatial[1] + w * grad_output.spatial[2];
            int64_t vectors = columns;
            if (lines) {
              vectors = ceil_div(columns, L);
              fill_zero(row + columns, vectors * L - columns);
              pack_line(from + vector * grad_output.c, grad_output.spatial[2], columns, row);
            } else {
              pack_columns(from, grad_output.spatial[2], lanes, columns, row);
            }
            add_vectors(row, vectors, sum);
            if ((added += vectors) > kShortSum / 8) {
              add_short_sum(sum, total);
              added = 0;
            }
          }
    add_short_sum(sum, total);
    A* const to = partial_sums + slice * p.slice_size() + vector * p.channels.lanes;
    if (lines) *to = sum_lanes(total);
    else Vec<A>::load(total).store(to);
  }
}

template <class T>
void add_grad_bias(const GradBiasPlan& p, const Acc<T>* partial_sums, T* grad_bias) {
  for (int64_t c = 0; c < p.channels.channels; ++c) {
    double sum = 0;  // slices of opposite signs may cancel
    for (int64_t slice = 0; slice < p.parts.count(); ++slice) sum += partial_sums[slice * p.slice_size() + c];
    narrow(static_cast<Acc<T>>(sum), grad_bias + c);
  }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
