#pragma once

// Forward and grad input of a depthwise convolution, or of one whose groups share vectors, are one correlation:
//
//   target[n, c, i] = bias[c] + sum over terms r, taps t of weight[c, r, t] * source[n, channel(c, r), position(i, t)]
//
// with channel and position as plan.h describes them: forward reads the input with the stride, grad input reads
// grad_output phase by phase of the position modulo the stride.
//
// An item is one block of channels of one image, and part of its rows. It goes row by row in one of three orders
// (strips of columns are in strips.h):
//   kChannelsInPlace  channels are lanes and lie side by side in memory. Source rows are read where they are and every
//                     column of all channels of the block is finished before the next. Columns that share their taps
//                     are a segment: those at the edges leave out what would lie outside the image.
//   kPackedChannels   channels are lanes. Source rows are packed into a ring, with zeros outside the image.
//   kPackedColumns    columns are lanes: the same ring, one channel a row, and a weight is one number for all lanes.
// Rows outside the image are left out. If all taps' rows fit in the ring, a target row is summed in registers and
// stored once; else blocks of taps sweep over a tile of sums, so that the ring stays in the cache for kernels of any
// size. Where groups share vectors, terms are permutations of a source vector's lanes, and a packed row serves them
// all. Sums are in Acc<T> in a fixed order, and are rounded once. The weight is packed as [vector][term][tap][lane],
// and as [channel][term][tap] where columns are lanes.
//
// The ring of rows is known from image-processing compilers (line buffers, as in Halide), the register tile of columns
// with channels as lanes from MobileNet's kernels; the dense phases of a strided gradient are polyphase filters.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T, Order kOrder>
class Correlate {
  using A = Acc<T>;
  using Stored = SourceRows<T, kOrder>::Stored;
  static constexpr int64_t L = kLanes<A>;

 public:
  Correlate(const CorrelatePlan& plan, View<const T> source, const A* weight, const T* bias, View<T> target, A* scratch)
      : plan_(plan),
        source_(source),
        weight_(weight),
        bias_(bias),
        target_(target),
        start_(scratch),
        tile_(start_ + plan.bias_size()),
        rows_(plan.axes, plan.tiling, tile_ + plan.tile_size()),
        prefetch_(is_packed(kOrder) ? what_to_prefetch(plan, source, target) : Prefetch::kNothing),
        permutations_(plan.shares_vectors ? plan.terms : 0) {}

  void item(int64_t index) {
    box_ = plan_.item_box(index);
    start_block(index % plan_.channels.blocks(), box_.n.begin);
    const Axis& w = plan_.axes[2];
    // Tiles of nearly the same size; where columns are lanes, of whole vectors.
    const int64_t unit = kOrder == Order::kPackedColumns ? L : 1;
    const int64_t count = ceil_div(size(box_.w), unit), tiles = ceil_div(size(box_.w), plan_.tiling.columns);
    for (int64_t phase = 0; phase < w.phases && phase < w.target; phase += plan_.group)
      for (int64_t i = 0; i < tiles; ++i) {
        const Range columns = part(count, tiles, i);
        tile(phase, {box_.w.begin + columns.begin * unit, std::min(box_.w.begin + columns.end * unit, box_.w.end)});
      }
  }

 private:
  // Columns of one phase, in the current tile and block of taps, that share their taps.
  struct Segment {
    int64_t first, count;  // target columns, counted from the tile's first
    int64_t spread;        // columns of the phase from one of these to the next
    int64_t taps;
    int64_t stride;                                    // all in elements: from column to column,
    int64_t source = 0, weight = 0;                    // where the first tap of the first column lies in a source row,
    int64_t step = 0, tap_step = 0, rows_per_sum = 1;  // and from tap to tap
  };
  static constexpr int64_t kMaxSegments = kMaxGroup * (kOrder == Order::kChannelsInPlace ? 2 * kMaxColumnTaps + 4 : 4);

  int64_t pixel_size() const { return kOrder == Order::kPackedColumns ? 1 : L; }

  void start_block(int64_t block, int64_t n) {
    const Channels& channels = plan_.channels;
    vectors_ = channels.vectors(block);
    first_vector_ = block * channels.width;
    target_image_ = target_.data + n * target_.n;
    source_ahead_ = target_ahead_ = 0;
    if (prefetch_ == Prefetch::kRow) {
      source_ahead_ = plan_.axes[1].source_stride() * source_.spatial[1];
      target_ahead_ = plan_.target_rows * target_.spatial[1];
    } else if (prefetch_ == Prefetch::kBlock) {
      const int64_t begin = first_vector_ * channels.lanes, end = begin + vectors_ * channels.lanes;
      source_ahead_ = (plan_.map(end) - plan_.map(begin)) * source_.c;
      target_ahead_ = (end - begin) * target_.c;
    }
    rows_.set_channels(source_, n, channels, block, plan_.map, source_ahead_);
    sum_into_target_ = true;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = channels.first(first_vector_ + v);
      target_vectors_[v] = first * target_.c;
      tile_vectors_[v] = v * plan_.tile_columns() * pixel_size();
      for (int64_t i = 0; i < L; ++i) {
        const int64_t c = kOrder == Order::kPackedColumns ? first : first + i;
        start_[v * L + i] = bias_ && c < channels.channels ? widen(bias_[c]) : 0;
      }
      if constexpr (kOrder == Order::kPackedChannels) {
        lanes_[v] = Lanes<A>(first, channels.channels, {1, 1}, target_.c);
        sum_into_target_ &= lanes_[v].adjacent && lanes_[v].count == L;
      }
    }
    // No rounding, no transposing, one block of taps: the target itself takes the sums.
    sum_into_target_ &= plan_.tiling.single && std::is_same_v<T, Stored>;
    can_sum_into_target_ = sum_into_target_;
  }

  void tile(int64_t phase, Range positions) {
    const Axis& w = plan_.axes[2];
    first_column_ = phase + positions.begin * w.phases;
    column_step_ = plan_.group == 1 ? w.phases : 1;
    if constexpr (kOrder == Order::kPackedColumns)  // whole vectors of adjacent columns
      sum_into_target_ = can_sum_into_target_ && target_.spatial[2] == 1 && size(positions) % L == 0;
    const Tiling& tiling = plan_.tiling;
    for (int64_t r = 0; r < plan_.ring_terms(); r += tiling.terms)
      for (int64_t d = 0; d < plan_.axes[0].max_taps; d += tiling.taps[0])
        for (int64_t h = 0; h < plan_.axes[1].max_taps; h += tiling.taps[1])
          for (int64_t t = 0; t < w.max_taps; t += tiling.taps[2]) {
            terms_ = {r, plan_.shares_vectors ? plan_.terms : std::min(r + tiling.terms, plan_.terms)};
            depth_taps_ = {d, d + tiling.taps[0]};
            row_taps_ = {h, h + tiling.taps[1]};
            first_block_ = r + d + h + t == 0;
            last_block_ = terms_.end == plan_.terms && d + tiling.taps[0] >= plan_.axes[0].max_taps &&
                          h + tiling.taps[1] >= plan_.axes[1].max_taps && t + tiling.taps[2] >= w.max_taps;
            set_columns(phase, positions, {t, t + tiling.taps[2]});
            rows();
          }
  }

  // `count` positions of phase p from `begin` on, every spread-th, whose taps are `taps`, in the order of their
  // sources.
  void add_segment(const Phase& p, int64_t first, int64_t begin, int64_t count, Range taps, int64_t spread = 1) {
    Segment& s = segments_[segment_count_++];
    s = {.first = first, .count = count, .spread = spread, .taps = size(taps), .stride = rows_.pixel()};
    if (s.taps == 0) return;
    const int64_t forward = p.step > 0 ? 1 : -1, tap = p.step > 0 ? taps.begin : taps.end - 1;
    s.source = (p.source(begin, tap) - rows_.first_column()) * rows_.pixel();
    s.weight = (p.tap_first + tap * p.tap_step) * pixel_size();
    s.rows_per_sum = std::max<int64_t>(1, kTapsPerSum / s.taps);
    // A stride or step that is never taken may be as large as it likes.
    if (count > 1) s.stride = spread * p.stride * rows_.pixel();
    if (s.taps == 1) return;
    s.step = forward * p.step * rows_.pixel();
    s.tap_step = forward * p.tap_step * pixel_size();
  }

  // As many segments as taps are columns apart: within each of them, columns and taps are the same distance apart, so
  // that a source vector serves several taps.
  void add_spread(const Phase& p, int64_t first, int64_t begin, int64_t count, Range taps) {
    const int64_t distance = std::abs(p.step);
    const int64_t spread = p.stride == 1 && distance <= 4 && count >= 4 * distance ? distance : 1;
    for (int64_t i = 0; i < spread; ++i)
      add_segment(p, first + i * plan_.group, begin + i, ceil_div(count - i, spread), taps, spread);
  }

  void set_columns(int64_t phase, Range positions, Range taps) {
    const Axis& w = plan_.axes[2];
    const int64_t group = std::min(plan_.group, w.target - phase);
    segment_count_ = columns_ = 0;
    Range packed{0, 0}, clipped[kMaxGroup];
    for (int64_t f = 0; f < group; ++f) {
      const Phase p = w.phase(phase + f);
      const int64_t end = std::min(positions.end, w.count(phase + f));
      columns_ += std::max<int64_t>(0, end - positions.begin);
      if constexpr (kOrder == Order::kChannelsInPlace) {
        for (int64_t j = positions.begin, next; j < end; j = next) {
          const int64_t source = p.source(j, 0);
          const Range t = p.clip(source, source, w.source, taps);
          next = std::min(end, j + p.same_taps(source, w.source, taps, t));
          add_spread(p, f + (j - positions.begin) * group, j, next - j, t);
        }
      } else {
        clipped[f] = {0, 0};
        if (end <= positions.begin) continue;
        const int64_t first = p.source(positions.begin, 0), last = p.source(end - 1, 0);
        const Range t = clipped[f] = p.clip(first, last, w.source, taps);
        if (size(t) == 0) continue;
        const int64_t a = t.begin * p.step, b = (t.end - 1) * p.step;
        const Range touched{first + std::min(a, b), last + std::max(a, b) + 1};
        packed = size(packed) == 0 ? touched
                                   : Range{std::min(packed.begin, touched.begin), std::max(packed.end, touched.end)};
      }
    }
    any_taps_ = kOrder == Order::kChannelsInPlace || size(packed) > 0;
    rows_.set_columns(packed);
    if constexpr (kOrder != Order::kChannelsInPlace)
      for (int64_t f = 0; f < group; ++f) {
        const int64_t count = std::min(positions.end, w.count(phase + f)) - positions.begin;
        if (count <= 0) continue;
        if (kOrder == Order::kPackedChannels) add_spread(w.phase(phase + f), f, positions.begin, count, clipped[f]);
        else add_segment(w.phase(phase + f), f, positions.begin, count, clipped[f]);
      }
  }

  void rows() {
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const int64_t d_step = kOrder == Order::kChannelsInPlace ? 1 : d.classes,
                  h_step = kOrder == Order::kChannelsInPlace ? 1 : h.classes;
    for (int64_t fd = box_.d.begin; fd < box_.d.end && fd < box_.d.begin + d_step; ++fd)
      for (int64_t id = fd; id < box_.d.end; id += d_step) {
        const TapWalk depths(d, id, depth_taps_, plan_.tiling.slots[0]);
        for (int64_t fh = box_.h.begin; fh < box_.h.end && fh < box_.h.begin + h_step; ++fh)
          for (int64_t ih = fh; ih < box_.h.end; ih += plan_.target_rows * h_step)
            target_rows(id, ih, h_step, plan_.target_rows == 2 && ih + h_step < box_.h.end ? 2 : 1, depths);
      }
  }

  // Lists the source rows of one or two target rows with their weights; packs them if need be.
  int64_t list_source_rows(int64_t h, int64_t h_step, int64_t count, const TapWalk& depths) {
    const Axis &axis_d = plan_.axes[0], &axis_h = plan_.axes[1];
    if (!any_taps_) return 0;
    const TapWalk first(axis_h, h, row_taps_, plan_.tiling.slots[1]);
    const TapWalk second = count == 2 ? TapWalk(axis_h, h + h_step, row_taps_, plan_.tiling.slots[1]) : TapWalk();
    SourceRow<Stored>* to = source_rows_;
    for (int64_t r = terms_.begin; r < terms_.end; ++r)
      for (TapWalk td = depths; td.count > 0; td.next()) {
        const int64_t taps = (r * axis_d.kernel + td.tap) * axis_h.kernel, kernel = plan_.axes[2].kernel * pixel_size();
        for (TapWalk th[2] = {first, second}; th[0].count > 0 || th[1].count > 0; ++to) {
          const bool use1 = th[1].count > 0 && (th[0].count == 0 || th[1].source <= th[0].source);
          const bool use0 = th[0].count > 0 && (th[1].count == 0 || th[0].source <= th[1].source);
          const int64_t row = plan_.shares_vectors ? 0 : r;
          to->source = rows_.row(row - terms_.begin, row, td, th[use0 ? 0 : 1]);
          to->permutation = plan_.shares_vectors ? permutations_.of_term[r] : nullptr;
          to->weight[0] = use0 ? weight_ + (taps + th[0].tap) * kernel : nullptr;
          to->weight[1] = use1 ? weight_ + (taps + th[1].tap) * kernel : nullptr;
          if (use0) th[0].next();
          if (use1) th[1].next();
        }
      }
    return to - source_rows_;
  }

  // The tile's columns of target rows h and, if count is 2, h + h_step.
  void target_rows(int64_t d, int64_t h, int64_t h_step, int64_t count, const TapWalk& depths) {
    const int64_t source_rows = list_source_rows(h, h_step, count, depths);
    const int64_t tile_row_size = plan_.channels.max_vectors() * plan_.tile_columns() * pixel_size();
    const int64_t tile_row = plan_.tiling.single ? 0 : (d - box_.d.begin) * size(box_.h) + h - box_.h.begin;
    T* const to = target_image_ + d * target_.spatial[0] + h * target_.spatial[1] + first_column_ * target_.spatial[2];
    const int64_t to_stride = columns_ > 1 ? target_.spatial[2] * column_step_ : 0;
    Stored* sums = nullptr;
    if constexpr (is_packed(kOrder)) sums = tile_ + tile_row * tile_row_size;
    RowSum<Stored> sum;
    sum.vectors = vectors_;
    sum.source_vectors = rows_.vectors();
    sum.weight_vector = plan_.terms * plan_.taps() * pixel_size();
    sum.out_vectors = tile_vectors_;
    sum.out_row = (plan_.tiling.single ? 1 : h_step) * tile_row_size;
    set_prefetch(source_rows, &sum);
    int64_t column_stride = pixel_size();
    if constexpr (std::is_same_v<T, Stored>) {
      if (sum_into_target_) {
        sums = to;
        column_stride = to_stride;
        sum.out_vectors = target_vectors_;
        sum.out_row = h_step * target_.spatial[1];
      }
    }
    for (int64_t i = 0; i < segment_count_; ++i) {
      const Segment& s = segments_[i];
      sum.source_offset = s.source;
      sum.source_stride = s.stride;
      sum.step = s.step;
      sum.weight_offset = s.weight + first_vector_ * sum.weight_vector;
      sum.weight_step = s.tap_step;
      sum.taps = s.taps;
      sum.out = sums + s.first * column_stride;
      sum.out_stride = kOrder == Order::kPackedColumns ? L : s.spread * plan_.group * column_stride;
      const int64_t rows = s.taps > 0 ? source_rows : 0,
                    columns = kOrder == Order::kPackedColumns ? ceil_div(s.count, L) : s.count;
      sum.start = first_block_ ? start_ : nullptr;
      if constexpr (kOrder == Order::kPackedColumns)
        if (count == 1 && s.step == 1 && s.taps >= 3 * L && 0 < rows && rows * 4 * L <= kTapsPerSum) {
          sum_spread(sum, s.taps, rows, columns);
          continue;
        }
      sum.rows = source_rows_;
      do {  // a sum starts from zero again after some taps: shorter sums are more exact
        sum.row_count = std::min(source_rows_ + rows - sum.rows, s.rows_per_sum);
        sum_row<kOrder>(sum, count, columns);
        sum.start = nullptr;
        sum.rows += sum.row_count;
      } while (sum.rows < source_rows_ + rows);
    }
    if (!last_block_ || sum_into_target_) return;
    if constexpr (is_packed(kOrder))
      for (int64_t i = 0; i < count; ++i)
        for (int64_t v = 0; v < vectors_; ++v) {
          T* const row = to + i * h_step * target_.spatial[1];
          const A* from = sums + i * sum.out_row + tile_vectors_[v];
          if constexpr (kOrder == Order::kPackedColumns)
            unpack_line(from, columns_, to_stride, row + target_vectors_[v], target_ahead_);
          else unpack_columns(from, columns_, lanes_[v], to_stride, row, target_ahead_);
        }
  }

  // Columns as lanes: taps a vector apart meet the same source vectors, and each is loaded once for four of them. Taps
  // that are not are listed as if they were of other rows.
  void sum_spread(RowSum<A>& sum, int64_t taps, int64_t rows, int64_t columns) {
    const int64_t tap_step = sum.weight_step;
    sum.step = L;
    sum.weight_step = L * tap_step;
    sum.rows = spread_rows_;
    for (int64_t first = 0, end; first < taps; first = end) {
      end = std::min(first + 4 * L, taps);
      const int64_t few = (end - first) / L, with_more = (end - first) % L;
      for (const Range begin : {Range{0, with_more}, Range{with_more, few > 0 ? L : 0}}) {
        sum.taps = begin.begin == 0 && with_more > 0 ? few + 1 : few;
        SourceRow<A>* to = spread_rows_;
        for (const SourceRow<A>* row = source_rows_; row < source_rows_ + rows; ++row)
          for (int64_t tap = first + begin.begin; tap < first + begin.end; ++tap)
            *to++ = {row->source + tap, {row->weight[0] + tap * tap_step, nullptr}, nullptr};
        sum.row_count = to - spread_rows_;
        if (sum.row_count == 0) continue;
        sum_row<kOrder>(sum, 1, columns);
        sum.start = nullptr;
      }
    }
  }

  void set_prefetch(int64_t source_rows, RowSum<Stored>* sum) const {
    sum->out_ahead = sum_into_target_ ? target_ahead_ : 0;
    const Axis &h = plan_.axes[1], &w = plan_.axes[2];
    sum->prefetch = kOrder == Order::kChannelsInPlace && plan_.prefetch && source_rows > 0 &&
                    h.source_stride() <= h.source && w.source_stride() <= w.source;  // else no address is ahead
    if (!sum->prefetch) return;
    sum->ahead_pixels = std::min<int64_t>(w.source_stride(), 2);
    sum->pixel_stride = rows_.pixel();
    if (h.target == 1) {  // columns of the same row
      sum->ahead_rows = 1;
      sum->ahead_row_stride = 0;
      sum->ahead = source_rows_[source_rows - 1].source + kColumnsAhead * w.source_stride() * rows_.pixel();
      sum->out_ahead = kColumnsAhead * target_.spatial[2];
      return;
    }
    const int64_t rows = h.source_stride();  // that the next target row adds
    sum->ahead_rows = std::min<int64_t>(rows, 2);
    sum->ahead_row_stride = source_.spatial[1];
    sum->ahead = source_rows_[source_rows - 1].source + (rows - sum->ahead_rows + 1) * sum->ahead_row_stride;
    sum->out_ahead = target_.spatial[1];
  }

  const CorrelatePlan& plan_;
  const View<const T> source_;
  const A* const weight_;
  const T* const bias_;
  const View<T> target_;
  A* const start_;  // the bias
  A* const tile_;
  SourceRows<T, kOrder> rows_;
  const Prefetch prefetch_;
  const Permutations<A> permutations_;

  // Of the current item
  Box box_;
  int64_t vectors_, first_vector_;
  int64_t source_ahead_, target_ahead_;                              // how far ahead that is, or 0
  int64_t target_vectors_[kMaxVectors], tile_vectors_[kMaxVectors];  // where each vector lies in the target, in a tile
  Lanes<A> lanes_[kMaxVectors];
  T* target_image_;
  bool can_sum_into_target_, sum_into_target_;
  // Of the current tile and block of taps
  Segment segments_[kMaxSegments];
  int64_t segment_count_;
  int64_t first_column_, column_step_, columns_;
  Range terms_, depth_taps_, row_taps_;
  bool first_block_, last_block_, any_taps_;
  SourceRow<Stored> source_rows_[2 * kMaxRows];
  SourceRow<Stored> spread_rows_[kOrder == Order::kPackedColumns ? kTapsPerSum / 4 : 1];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
