#pragma once

// The correlation of correlate.h where columns are lanes and lie side by side in memory: they are read in place
// (kColumnsInPlace), or 16-bit types from a copy that is widened, without zeros around (kStagedColumns). Strips
// of 4 or 5 target rows by two vectors of columns, or 7 by one, stay in registers. For each column of the kernel, the
// weights of its rows do so too, and each source vector is loaded once for all target rows that need it: the loads are
// far fewer than the multiply-adds. At the edges of the image loads are masked and rows are left out; where rows or
// columns do not divide, the last strip overlaps the one before.
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Neighbouring vectors of columns that are computed together, `count` times one behind the other.
template <class A>
struct StripColumns {
  int64_t columns;  // vectors at a time, 1 or 2
  int64_t count;
  int64_t at[2];                   // first target column of each vector
  int64_t stored;                  // columns of the last vector that the target has
  uint8_t masked[kMaxColumnTaps];  // for each column of the kernel: bit c is set if source vector c needs its mask
  const Mask<A>* masks[2];         // for each column of the kernel
  bool edge;                       // whether any is needed
};

// A source image and the weights of one term and depth of the kernel.
template <class A>
struct StripPlane {
  const A *source, *weight;
  bool prefetch;  // its next block; other depths of the kernel do so for the same planes
};

// out[v][i][j] = start[v] + sum over planes, rows u and columns t of the kernel
//                weight[v][u][t] * source[v][i + u][j + t * step], source rows outside [first_row, last_row) being zero
template <class T>
struct StripSum {
  using A = Acc<T>;
  const StripPlane<A>* planes;
  int64_t plane_count;
  int64_t source_row, first_row, last_row;
  int64_t weight_row, weight_step;
  int64_t taps, step;
  const A* start;
  T* out;
  int64_t out_row;
  int64_t vectors;
  const int64_t *source_vectors, *out_vectors;
  int64_t weight_vector;
  int64_t source_ahead, out_ahead;  // where the next block of channels lies, if it is to be prefetched, else 0
};

// Adds rows [kFirst, kFirst + kKernelRows) of the kernel, of one of its columns. kMasked: as StripColumns::masked.
template <class T, int kRows, int kFirst, int kKernelRows, int kColumns, int kMasked, bool kEdge, class A = Acc<T>>
inline __attribute__((always_inline)) void add_kernel_rows(const StripSum<T>& s, const A* const (&source)[kColumns],
                                                           const Mask<A>* const (&mask)[kColumns], const A* weight,
                                                           Vec<A> (&sum)[kRows][kColumns]) {
  Vec<A> w[kKernelRows];
  TORCH_EXT_UNROLL
  for (int u = 0; u < kKernelRows; ++u) w[u] = Vec<A>::broadcast(weight[(kFirst + u) * s.weight_row]);
  const A* from[kColumns];
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) from[c] = source[c] + kFirst * s.source_row;
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows + kKernelRows - 1; ++i) {
    TORCH_EXT_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      if (i > 0) from[c] += s.source_row;
      keep_apart(from[c]);
    }
    if (kEdge && (kFirst + i < s.first_row || kFirst + i >= s.last_row)) continue;
    TORCH_EXT_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const Vec<A> x = kMasked >> c & 1 ? load_masked(from[c], mask[c]) : opaque(Vec<A>::load(from[c]));
      TORCH_EXT_UNROLL
      for (int r = 0; r < kRows; ++r)
        if (i >= r && i - r < kKernelRows) sum[r][c] = fma(w[i - r], x, sum[r][c]);
    }
  }
}

// One column of the kernel, as many of its rows at a time as have their weights in registers.
template <class T, int kRows, int kKernelRows, int kColumns, int kMasked, bool kEdge, int kFirst = 0, class A = Acc<T>>
inline __attribute__((always_inline)) void add_kernel_column(const StripSum<T>& s, const A* const (&source)[kColumns],
                                                             const Mask<A>* const (&mask)[kColumns], const A* weight,
                                                             Vec<A> (&sum)[kRows][kColumns]) {
  constexpr int kAtOnce = 5, kLeft = kKernelRows - kFirst, kParts = (kLeft + kAtOnce - 1) / kAtOnce;
  constexpr int kNow = (kLeft + kParts - 1) / kParts;
  add_kernel_rows<T, kRows, kFirst, kNow, kColumns, kMasked, kEdge>(s, source, mask, weight, sum);
  if constexpr (kNow < kLeft) {
    asm volatile("" ::: "memory");  // nothing of the next rows is loaded before
    add_kernel_column<T, kRows, kKernelRows, kColumns, kMasked, kEdge, kFirst + kNow>(s, source, mask, weight, sum);
  }
}

template <class T, int kRows, int kKernelRows, int kColumns, bool kEdge>
__attribute__((noinline)) void strip(const StripSum<T>& strip_sum, const StripColumns<Acc<T>>& columns) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const StripSum<T> s = strip_sum;  // as in tiles()
  const int64_t count = columns.count;
  // Whether a whole vector may be stored in a row of less: what it spoils is the next row's, which comes later.
  const bool run = s.out_row == columns.stored && 2 * columns.stored >= L;
  for (int64_t v = 0; v < s.vectors; ++v) {
    int64_t at[kColumns];
    TORCH_EXT_UNROLL
    for (int c = 0; c < kColumns; ++c) at[c] = columns.at[c];
    for (int64_t k = 0; k < count; ++k) {
      Vec<A> sum[kRows][kColumns];
      const Vec<A> first = Vec<A>::load(s.start + v * L);
      TORCH_EXT_UNROLL
      for (int i = 0; i < kRows * kColumns; ++i) sum[i / kColumns][i % kColumns] = first;
      for (int64_t p = 0; p < s.plane_count; ++p) {
        const A *source[kColumns], *weight = s.planes[p].weight + v * s.weight_vector;
        const Mask<A>* mask[kColumns];
        TORCH_EXT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          source[c] = s.planes[p].source + s.source_vectors[v] + at[c];
          mask[c] = columns.masks[c];
        }
        if (s.planes[p].prefetch)
          for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(source[0] + r * s.source_row + s.source_ahead);
        for (int64_t t = 0; t < s.taps; ++t) {
          const int masked = kEdge ? columns.masked[t] : 0;
          if (masked == 0) add_kernel_column<T, kRows, kKernelRows, kColumns, 0, kEdge>(s, source, mask, weight, sum);
          else if (masked == 1)
            add_kernel_column<T, kRows, kKernelRows, kColumns, 1, kEdge>(s, source, mask, weight, sum);
          else if constexpr (kColumns == 2) {
            if (masked == 2) add_kernel_column<T, kRows, kKernelRows, kColumns, 2, kEdge>(s, source, mask, weight, sum);
            else add_kernel_column<T, kRows, kKernelRows, kColumns, 3, kEdge>(s, source, mask, weight, sum);
          }
          TORCH_EXT_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            source[c] += s.step;
            if (kEdge) mask[c] += L;
          }
          weight += s.weight_step;
        }
      }
      if (s.out_ahead != 0)
        for (int64_t r = 0; r < kRows; ++r)
          __builtin_prefetch(s.out + s.out_vectors[v] + at[0] + r * s.out_row + s.out_ahead, 1);
      asm volatile("" ::: "memory");  // nothing that rounding needs takes a register before
      TORCH_EXT_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        T* out = s.out + s.out_vectors[v] + at[c];
        TORCH_EXT_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (kEdge && kColumns == 1 && columns.stored < L && !(run && r + 1 < kRows))
            store_partial(out + r * s.out_row, sum[r][c], columns.stored);
          else store_rounded(out + r * s.out_row, sum[r][c]);
        }
        at[c] += kColumns * L;
      }
    }
  }
}

template <class T, int kRows, int kKernelRows>
void strip(const StripSum<T>& s, const StripColumns<Acc<T>>& columns, bool edge) {
  if (columns.columns == 2)
    edge ? strip<T, kRows, kKernelRows, 2, true>(s, columns) : strip<T, kRows, kKernelRows, 2, false>(s, columns);
  else edge ? strip<T, kRows, kKernelRows, 1, true>(s, columns) : strip<T, kRows, kKernelRows, 1, false>(s, columns);
}

template <class T, int kKernelRows>
void strip(const StripSum<T>& s, const StripColumns<Acc<T>>& columns, int64_t rows, bool edge) {
  if (rows == 4) strip<T, 4, kKernelRows>(s, columns, edge);
  else if (rows == 5) strip<T, 5, kKernelRows>(s, columns, edge);
  else strip<T, 7, kKernelRows, 1, true>(s, columns);
}

template <class T>
class Strips {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  static constexpr Order kOrder = std::same_as<T, A> ? Order::kColumnsInPlace : Order::kStagedColumns;

  Strips(const CorrelatePlan& plan, View<const T> source, const A* weight, const T* bias, View<T> target, A* scratch)
      : plan_(plan),
        source_(source),
        weight_(weight),
        bias_(bias),
        target_(target),
        start_(scratch),
        stage_(scratch + plan.bias_size()),
        prefetch_(what_to_prefetch(plan, source, target) == Prefetch::kBlock) {}

  void item(int64_t index) {
    const Axis &d = plan_.axes[0], &h = plan_.axes[1];
    const Box box = plan_.item_box(index);
    start_block(index % plan_.channels.blocks(), box);
    set_columns(box.w);
    for (int64_t id = box.d.begin; id < box.d.end; ++id) {
      const TapWalk depths(d, id, {0, d.max_taps}, 1);
      for (int64_t first = box.h.begin; first < box.h.begin + h.classes && first < box.h.end; ++first) {
        const int64_t rows = (box.h.end - 1 - first) / h.classes + 1;
        // Strips of 5 and 4 rows; where these do not divide, of 4, and the last one overlaps the one before.
        const int64_t of_four = 4 * ((5 - rows % 5) % 5) <= rows ? (5 - rows % 5) % 5 : ceil_div(rows, 4);
        for (int64_t row = 0, strip = 0, n; row < rows; row += n, ++strip) {
          n = rows == 7 && size(box.w) <= L ? 7 : strip < of_four ? 4 : 5;
          target_rows(id, first + std::min(row, rows - n) * h.classes, n, depths);
        }
      }
    }
  }

 private:
  void start_block(int64_t block, const Box& box) {
    vectors_ = plan_.channels.vectors(block);
    first_vector_ = block * plan_.channels.width;
    const int64_t first = plan_.map(first_vector_), ahead = plan_.map(first_vector_ + vectors_) - first;
    source_ahead_ = prefetch_ ? ahead * source_.c : 0;
    const T* const image = source_.data + box.n.begin * source_.n + first * source_.c;
    if constexpr (kOrder == Order::kColumnsInPlace) image_ = {image, 0, source_.c, source_.spatial};
    else stage(image, plan_.map(first_vector_ + vectors_ - 1) + plan_.terms - first, box);
    target_image_ = target_.data + box.n.begin * target_.n;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t channel = first_vector_ + v;
      source_vectors_[v] = (plan_.map(channel) - first) * image_.c;
      target_vectors_[v] = channel * target_.c;
      Vec<A>::broadcast(bias_ ? widen(bias_[channel]) : 0).store(start_ + v * L);
    }
  }

  // Widens the rows of some channels that a box of the target reads.
  void stage(const T* image, int64_t channels, const Box& box) {
    const Range depths = plan_.axes[0].met(box.d), rows = plan_.axes[1].met(box.h);
    const int64_t width = plan_.axes[2].source, plane = size(rows) * width, depth_count = size(depths);
    const auto& [depth_stride, row_stride, column_stride] = source_.spatial.value;
    image_ = {stage_ - depths.begin * plane - rows.begin * width, 0, depth_count * plane, {{plane, width, 1}}};
    A* to = stage_;
    for (int64_t i = 0; i < channels * depth_count; ++i) {
      const T* from = image + i / depth_count * source_.c + (depths.begin + i % depth_count) * depth_stride +
                      rows.begin * row_stride;
      int64_t count = size(rows), columns = width;
      if (row_stride == columns * column_stride) columns *= count, count = std::min<int64_t>(1, count);  // one run
      for (; count > 0; --count, from += row_stride, to += columns)
        pack_line(from, column_stride, columns, to, source_ahead_);
    }
  }

  // Pairs of vectors of columns; those that lie inside the image, in one run.
  void set_columns(Range positions) {
    if (positions.begin == positions_.begin && positions.end == positions_.end) return;
    positions_ = positions;
    const Axis& w = plan_.axes[2];
    const Phase p = w.phase(0);
    step_ = p.taps > 1 ? std::abs(p.step) : 0;
    origin_ = std::min(p.origin, p.origin + (p.taps - 1) * p.step);  // source of the first tap of column 0
    first_tap_ = p.step > 0 ? 0 : p.taps - 1;
    column_count_ = 0;
    int64_t edges = 0;
    bool inside_before = false;
    for (int64_t j = positions.begin; j < positions.end; j += 2 * L) {
      StripColumns<A>& columns = columns_[column_count_];
      columns.columns = j + L < positions.end ? 2 : 1;
      columns.count = 1;
      columns.stored = std::min(L, size(positions));
      columns.edge = false;
      std::fill_n(columns.masked, kMaxColumnTaps, 0);
      bool inside = true;
      for (int64_t c = 0; c < columns.columns; ++c) {
        const int64_t at = std::max(std::min(j + c * L, positions.end - L), positions.begin), source = at + origin_;
        columns.at[c] = at;
        columns.masks[c] = masks_[0];
        if (source >= 0 && source + (p.taps - 1) * step_ + L <= w.source && size(positions) >= L) {
          inside &= at == j + c * L;
          continue;
        }
        inside = false;
        columns.edge = true;
        Mask<A>* mask = masks_[edges++];
        columns.masks[c] = mask;
        for (int64_t t = 0; t < p.taps; ++t)
          for (int64_t i = 0; i < L; ++i) {
            const int64_t at = source + t * step_ + i;
            *mask++ = 0 <= at && at < w.source ? -1 : 0;
            if (at < 0 || at >= w.source) columns.masked[t] |= 1 << c;
          }
      }
      if (inside && inside_before && columns.columns == 2) ++columns_[column_count_ - 1].count;
      else ++column_count_;
      inside_before = inside;
    }
  }

  // `rows` rows from row h on, `classes` apart.
  void target_rows(int64_t d, int64_t h, int64_t rows, const TapWalk& depths) {
    const Axis& axis = plan_.axes[1];
    const Phase p = axis.phase(0);
    const int64_t row = p.source(h, p.step > 0 ? 0 : p.taps - 1), unit = axis.unit;  // the first source row
    StripSum<T> s;
    s.source_row = unit * image_.spatial[1];
    const Range inside = positions_inside(row, unit, axis.source);
    s.first_row = inside.begin;
    s.last_row = inside.end;
    const int64_t kw = plan_.axes[2].kernel, first_tap = p.step > 0 ? 0 : p.taps - 1;
    s.weight_row = p.step > 0 ? kw : -kw;
    s.weight_step = first_tap_ == 0 ? 1 : -1;
    s.taps = kw;
    s.step = step_;
    s.start = start_;
    s.out = target_image_ + d * target_.spatial[0] + h * target_.spatial[1];
    s.out_row = axis.classes * target_.spatial[1];
    s.vectors = vectors_;
    s.source_vectors = source_vectors_;
    s.out_vectors = target_vectors_;
    s.weight_vector = plan_.terms * plan_.taps();
    s.source_ahead = source_ahead_;
    s.out_ahead = prefetch_ ? vectors_ * target_.c : 0;
    s.planes = planes_;
    s.plane_count = 0;
    for (int64_t r = 0; r < plan_.terms; ++r)
      for (TapWalk td = depths; td.count > 0; td.next())
        planes_[s.plane_count++] = {
            image_.data + r * image_.c + td.source * image_.spatial[0] + row * image_.spatial[1] + origin_,
            weight_ + first_vector_ * s.weight_vector +
                ((r * plan_.axes[0].kernel + td.tap) * axis.kernel + first_tap) * kw + first_tap_,
            kOrder == Order::kColumnsInPlace && prefetch_ && td.count == depths.count};
    const bool all_rows = s.first_row == 0 && s.last_row >= rows + axis.kernel - 1;
    for (int64_t i = 0; i < column_count_; ++i) {
      const bool edge = !all_rows || columns_[i].edge;  // always, for 7 rows
      if (axis.kernel == 3) strip<T, 3>(s, columns_[i], rows, edge);
      else if (axis.kernel == 5) strip<T, 5>(s, columns_[i], rows, edge);
      else strip<T, 7>(s, columns_[i], rows, edge);
    }
  }

  const CorrelatePlan& plan_;
  const View<const T> source_;
  const A* const weight_;
  const T* const bias_;
  const View<T> target_;
  A* const start_;  // the bias, a vector for each channel
  A* const stage_;

  const bool prefetch_;
  int64_t vectors_, first_vector_;
  int64_t source_vectors_[kMaxVectors], target_vectors_[kMaxVectors];
  int64_t source_ahead_;  // from a block's planes to the next one's, or 0
  View<const A> image_;   // the block's channels, or a copy of them
  T* target_image_;
  int64_t origin_, step_, first_tap_;
  Range positions_{};
  StripColumns<A> columns_[kMaxEdges<A> + 3];
  int64_t column_count_;
  Mask<A> masks_[kMaxEdges<A>][kMaxColumnTaps * L];
  StripPlane<A> planes_[kMaxRows];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
