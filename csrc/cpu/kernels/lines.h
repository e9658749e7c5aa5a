#pragma once

// Lines: the columns of one channel side by side, in Acc<T>, from rows of a tensor and back. Where channels are
// adjacent in memory, squares of them are transposed; or lines are of pixels, the channels of a group side by side.
#include "pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// lines[c][j] = pixels[j * stride + c] for c < channels <= kLanes. Up to a vector beyond the last column is written.
template <class T>
void pixels_to_lines(const T* pixels, int64_t stride, int64_t channels, int64_t columns, Acc<T>* lines, int64_t pitch) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  V square[L];
  for (int64_t j = 0; j < columns; j += L, pixels += L * stride, lines += L) {
    if (channels == L && columns - j >= L) {
      TORCH_EXT_UNROLL
      for (int64_t i = 0; i < L; ++i) square[i] = load_wide(pixels + i * stride);
      transpose(square);
      TORCH_EXT_UNROLL
      for (int64_t i = 0; i < L; ++i) square[i].store(lines + i * pitch);
      continue;
    }
    for (int64_t i = 0; i < L; ++i)
      square[i] = j + i < columns ? load_partial(pixels + i * stride, channels) : V::zero();
    transpose(square);
    for (int64_t i = 0; i < channels; ++i) opaque(square[i]).store(lines + i * pitch);
  }
}

// The way back: rounds and stores.
template <class T>
void lines_to_pixels(const Acc<T>* lines, int64_t pitch, int64_t channels, int64_t columns, T* pixels, int64_t stride) {
  using V = Vec<Acc<T>>;
  constexpr int64_t L = kLanes<Acc<T>>;
  V square[L];
  for (int64_t j = 0; j < columns; j += L, pixels += L * stride, lines += L) {
    if (channels == L && columns - j >= L) {
      TORCH_EXT_UNROLL
      for (int64_t i = 0; i < L; ++i) square[i] = V::load(lines + i * pitch);
      transpose(square);
      TORCH_EXT_UNROLL
      for (int64_t i = 0; i < L; ++i) store_rounded(pixels + i * stride, square[i]);
      continue;
    }
    for (int64_t i = 0; i < L; ++i) square[i] = i < channels ? opaque(V::load(lines + i * pitch)) : V::zero();
    transpose(square);
    for (int64_t i = 0; i < std::min(L, columns - j); ++i) store_partial(pixels + i * stride, square[i], channels);
  }
}

// line[j] = row[j * stride]. Up to a vector beyond the last column is written.
template <class T>
void row_to_line(const T* row, int64_t stride, int64_t columns, Acc<T>* line) {
  if (stride != 2) return pack_line(row, stride, columns, line);
  constexpr int64_t L = kLanes<Acc<T>>;
  int64_t j = 0;
  for (; j + L < columns; j += L)  // reads one number beyond those it needs
    even_lanes(load_wide(row + 2 * j), load_wide(row + 2 * j + L)).store(line + j);
  for (; j < columns; ++j) line[j] = widen(row[2 * j]);
}

// row[2 * j] = even[j] and row[2 * j + 1] = odd[j], `columns` in all.
template <class T>
void zip_lines(const Acc<T>* even, const Acc<T>* odd, int64_t columns, T* row) {
  constexpr int64_t L = kLanes<Acc<T>>;
  int64_t j = 0;
  for (; j + 2 * L <= columns; j += 2 * L, even += L, odd += L) {
    Vec<Acc<T>> pair[2];
    zip(Vec<Acc<T>>::load(even), Vec<Acc<T>>::load(odd), pair);
    store_rounded(row + j, pair[0]);
    store_rounded(row + j + L, pair[1]);
  }
  for (; j < columns; j += 2, ++even, ++odd) {
    narrow(*even, row + j);
    if (j + 1 < columns) narrow(*odd, row + j + 1);
  }
}

// Columns first, first + PackedRows::stride, ... of the image.
struct Line {
  int64_t first, count;
};

// The columns of a line that are inside an image of `width` columns, counted from its first.
inline Range existing_columns(Line line, int64_t stride, int64_t width) {
  const Range inside = positions_inside(line.first, stride, width);
  const int64_t begin = std::min(inside.begin, line.count);
  return {begin, std::clamp(inside.end, begin, line.count)};
}

// Lines of neighbouring channels, with zeros outside the image of `width` columns.
template <class T>
void pack_lines(const T* row, const View<const T>& view, int64_t channels, int64_t width, Line line, int64_t stride,
                Acc<T>* lines, int64_t pitch) {
  const Range existing = existing_columns(line, stride, width);
  const int64_t column = view.spatial[2], count = size(existing), step = count > 1 ? stride * column : 0;
  for (int64_t c = 0; c < channels; ++c) fill_zero(lines + c * pitch, existing.begin);
  if (count > 0) {
    row += (line.first + existing.begin * stride) * column;
    Acc<T>* const to = lines + existing.begin;
    if (view.c == 1 && channels > 1) {
      for (int64_t c = 0; c < channels; c += kLanes<Acc<T>>)
        pixels_to_lines(row + c, step, std::min(kLanes<Acc<T>>, channels - c), count, to + c * pitch, pitch);
    } else {
      for (int64_t c = 0; c < channels; ++c) row_to_line(row + c * view.c, step, count, to + c * pitch);
    }
  }
  for (int64_t c = 0; c < channels; ++c) fill_zero(lines + c * pitch + existing.end, line.count - existing.end);
}

// As below, where kRest = terms % kLanes.
template <int kRest, class T>
void copy_pixels(const T* pixels, int64_t stride, int64_t count, int64_t groups, int64_t terms, Acc<T>* lines,
                 int64_t pitch) {
  constexpr int64_t L = kLanes<Acc<T>>, kAtOnce = 8;  // pixels whose cache lines stay until all groups are copied
  for (int64_t first = 0; first < count; first += kAtOnce)
    for (int64_t g = 0; g < groups; ++g) {
      const T* from = pixels + first * stride + g * terms;
      Acc<T>* to = lines + g * pitch + first * terms;
      const int64_t at_once = std::min(kAtOnce, count - first);
      for (int64_t r = kRest; r < terms; r += L, from += L, to += L)
        for (int64_t j = 0; j < at_once; ++j) opaque(load_wide(from + j * stride)).store(to + j * terms);
      for (int64_t j = 0; kRest > 0 && j < at_once; ++j) {
        Acc<T> rest[kRest + 1];
        for (int r = 0; r < kRest; ++r) rest[r] = widen(from[j * stride + r]);
        for (int r = 0; r < kRest; ++r) to[j * terms + r] = rest[r];
      }
    }
}

// lines[g * pitch + j * terms + r] = pixels[j * stride + g * terms + r] for `count` pixels. Numbers beyond whole
// vectors are moved one by one, which compilers make pairs and fours: vectors that overlap, or need a mask, are slow to
// store.
template <class T>
void copy_pixels(const T* pixels, int64_t stride, int64_t count, int64_t groups, int64_t terms, Acc<T>* lines,
                 int64_t pitch) {
  with_count<static_cast<int>(kLanes<Acc<T>>)>(terms % kLanes<Acc<T>> + 1, [&]<int kNext>() {
    copy_pixels<kNext - 1>(pixels, stride, count, groups, terms, lines, pitch);
  });
}

// Lines of pixels, one for each group: lines[group][column][channel of the group]. Channels that are not adjacent are
// whole vectors of a group.
template <class T>
void pack_pixels(const T* row, const View<const T>& view, int64_t groups, int64_t terms, int64_t width, Line line,
                 int64_t stride, Acc<T>* lines, int64_t pitch) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const Range existing = existing_columns(line, stride, width);
  for (int64_t g = 0; g < groups; ++g) fill_zero(lines + g * pitch, existing.begin * terms);
  if (size(existing) > 0) {
    const T* const first = row + (line.first + existing.begin * stride) * view.spatial[2];
    const int64_t pixel = size(existing) > 1 ? stride * view.spatial[2] : 0;  // as large as it likes if never taken
    Acc<T>* const to = lines + existing.begin * terms;
    if (view.c == 1) copy_pixels(first, pixel, size(existing), groups, terms, to, pitch);
    else
      for (int64_t c = 0; c < groups * terms; c += L)
        pack_columns(first + c * view.c, pixel, Lanes<Acc<T>>(0, L, {1, 1}, view.c), size(existing),
                     to + c / terms * pitch + c % terms, terms);
  }
  const int64_t beyond = (line.count - existing.end) * terms;
  for (int64_t g = 0; g < groups; ++g) fill_zero(lines + g * pitch + existing.end * terms, beyond);
}

// Taps that are neighbours in a line.
struct Run {
  int64_t line, offset;  // where the first of them meets the first column
  int64_t tap, taps;     // of the kernel's row
};

// Which lines the taps of a tile of columns need, and how they meet them, for each phase of target columns.
struct ColumnRuns {
  Line lines[kMaxLines];
  int64_t line_count;
  Run runs[std::max(kMaxLines, kMaxGroup)];
  int64_t first_run[kMaxGroup + 1], count[kMaxGroup];  // of each phase: its first run, its columns
  int64_t first_column;
  int64_t tap_step;  // from tap to tap of a run, in the kernel
  int64_t max_taps;  // of a run

  std::span<const Run> of_phase(int64_t f) const { return {runs + first_run[f], runs + first_run[f + 1]}; }

  void set(const Axis& w, const PackedRows& rows, int64_t phases, int64_t phase, Range positions, Range taps) {
    first_column = phase + positions.begin * w.phases;
    tap_step = rows.period;
    line_count = max_taps = 0;
    int64_t n = 0;
    const auto add = [&](const Run& run) {
      runs[n++] = run;
      max_taps = std::max(max_taps, run.taps);
    };
    for (int64_t f = 0; f < phases; ++f) {
      const Phase p = w.phase(phase + f);
      first_run[f] = n;
      count[f] = std::max<int64_t>(0, std::min(positions.end, w.count(phase + f)) - positions.begin);
      if (count[f] == 0) continue;
      const int64_t first = p.source(positions.begin, 0), last = p.source(positions.begin + count[f] - 1, 0);
      const Range met = p.clip(first, last, w.source, taps);
      if (size(met) == 0) continue;
      if (w.transposed) {  // all phases share one line; runs say for now where in the image they start
        const int64_t lowest = first + (met.end - 1) * p.step, highest = last + met.begin * p.step;
        const int64_t begin = n == 0 ? lowest : std::min(lines[0].first, lowest);
        const int64_t end = n == 0 ? highest + 1 : std::max(lines[0].first + lines[0].count, highest + 1);
        lines[0] = {begin, end - begin};
        line_count = 1;
        add({0, first + met.begin * p.step, p.tap_first + met.begin * p.tap_step, size(met)});
        tap_step = p.tap_step;
        continue;
      }
      for (int64_t i = 0; i < std::min(rows.period, size(met)); ++i) {
        const int64_t in_line = ceil_div(size(met) - i, rows.period);
        lines[line_count] = {first + (met.begin + i) * p.step,
                             (count[f] - 1) * rows.target_step + 1 + (in_line - 1) * rows.step};
        add({line_count++, 0, met.begin + i, in_line});
      }
    }
    first_run[phases] = n;
    if (w.transposed)
      for (int64_t i = 0; i < n; ++i) runs[i].offset -= lines[0].first;
  }
};

// Brings a row of neighbouring channels to the L2 cache.
template <bool kWrite, class T, class Row>
void prefetch_row(const View<T>& view, const Row* row, int64_t channels, int64_t columns) {
  const auto prefetch = [](const Row* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLine<Row>) __builtin_prefetch(from + i, kWrite, 2);
  };
  if (view.spatial[2] == 1)
    for (int64_t c = 0; c < channels; ++c) prefetch(row + c * view.c, columns);
  else if (view.c == 1)
    for (int64_t j = 0; j < columns; ++j) prefetch(row + j * view.spatial[2], channels);
}

// A ring of packed source rows, [depth slot][row slot][group][term][line][column], or of pixels, [depth slot][row slot]
// [group][column][term]: a direct-mapped cache. Rows that the taps of one target row need have different slots,
// and rows are visited in an order in which each is packed once per tile and block of taps.
template <class T, bool kPixels = false>
class LineRing {
  using A = Acc<T>;

 public:
  LineRing(const Triple<Axis>& axes, const PackedRows& rows, View<const T> source, A* scratch)
      : axes_(axes), rows_(rows), source_(source), ring_(scratch) {}

  // Whose rows they are: those of some groups of an image.
  void set_groups(int64_t n, int64_t first, int64_t count) {
    image_ = source_.at(n, first * rows_.terms);
    groups_ = count;
  }

  // Forgets all rows; those packed from now on hold these terms and lines.
  void set_lines(Range terms, const Line* lines, int64_t count) {
    terms_ = terms;
    line_count_ = count;
    std::copy_n(lines, count, lines_);
    std::fill_n(tags_, rows_.tiling.slots[0] * rows_.tiling.slots[1], -1);
  }

  const A* row(const TapWalk& d, const TapWalk& h) {
    const int64_t slot = d.slot * rows_.tiling.slots[1] + h.slot, tag = d.source * axes_[1].source + h.source;
    A* const packed = ring_ + slot * rows_.slot_size();
    if (tags_[slot] == tag) return packed;
    tags_[slot] = tag;
    const T* row = image_ + d.source * source_.spatial[0] + h.source * source_.spatial[1] + terms_.begin * source_.c;
    if constexpr (kPixels) {
      if (axes_[1].unit < axes_[1].source - h.source)
        prefetch_row<false>(source_, row + axes_[1].unit * source_.spatial[1], groups_ * rows_.terms, axes_[2].source);
      if (line_count_ > 0)
        pack_pixels(row, source_, groups_, rows_.terms, axes_[2].source, lines_[0], rows_.stride, packed,
                    rows_.group_size());
      return packed;
    }
    prefetch_row<false>(source_, row + groups_ * rows_.terms * source_.c, groups_ * rows_.terms, axes_[2].source);
    // If a block has all terms, its channels are neighbours throughout.
    const bool all = size(terms_) == rows_.terms;
    const int64_t runs = all ? 1 : groups_, channels = all ? groups_ * rows_.terms : size(terms_);
    for (int64_t g = 0; g < runs; ++g, row += rows_.terms * source_.c)
      for (int64_t i = 0; i < line_count_; ++i)
        pack_lines(row, source_, channels, axes_[2].source, lines_[i], rows_.stride,
                   packed + g * rows_.group_size() + i * rows_.pitch, rows_.term_size());
    return packed;
  }

 private:
  const Triple<Axis>& axes_;
  const PackedRows& rows_;
  const View<const T> source_;
  A* const ring_;
  const T* image_ = nullptr;
  int64_t groups_ = 0, line_count_ = 0;
  Range terms_{};
  Line lines_[kMaxLines];
  int64_t tags_[kMaxRows];
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
