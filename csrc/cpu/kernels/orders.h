#pragma once

#include "plan.h"

// Which order a pass may take: where rows can be read in place, and what lanes suit them. Made from axes and layout.
namespace torch_ext::cpu::detail {

inline bool channels_are_adjacent(Layout a, Layout b) { return a.channel == 1 && b.channel == 1; }

inline bool few_channels(int64_t channels, int64_t lanes) { return 2 * channels <= lanes; }

// Columns as lanes suit rows that are long and adjacent in memory, and tensors with too few channels for a vector.
inline bool columns_are_lanes(const Axis& w, int64_t channels, int64_t lanes, Layout source, Layout target) {
  if (w.phases != 1 || w.source_stride() != 1 || w.target < 2 * lanes) return false;
  if (few_channels(channels, lanes)) return true;
  return w.target >= 3 * lanes && source.column == 1 && target.column == 1;
}

// Whether columns can be lanes where they lie: all vectors but a few at the edges have all taps.
inline bool columns_lie_side_by_side(const Axis& w, int64_t lanes, Layout source, Layout target) {
  if (source.column != 1 || target.column != 1 || 2 * w.target <= lanes) return false;
  if (w.phases != 1 || w.source_stride() != 1 || w.kernel > kMaxColumnTaps) return false;
  const int64_t reach = (w.kernel - 1) * w.unit;
  // From the first column's first tap to the image, and from there to the last column's last one.
  const int64_t before = w.transposed ? reach - w.pad : w.pad, after = w.target - 1 + reach - before - (w.source - 1);
  return before <= kMaxReach && after <= kMaxReach;
}

// Strips of rows, for kernels of 3, 5 or 7 of them. They overlap, so sums are taken in one go (see kTapsPerSum).
inline bool has_strips_of_columns(const Triple<Axis>& axes, int64_t terms, int64_t lanes, Layout source,
                                  Layout target) {
  const Axis& h = axes[1];
  if (h.kernel != 3 && h.kernel != 5 && h.kernel != 7) return false;
  if (h.phases != 1 || h.source_stride() != 1 || h.target < kStripRows * h.classes) return false;
  return terms * axes[0].kernel * h.kernel * axes[2].kernel <= kTapsPerSum &&
         columns_lie_side_by_side(axes[2], lanes, source, target);
}

// Columns of the kernel whose sums, of all its rows, stay in the registers in a strip of the weight gradient.
constexpr int64_t grad_taps_at_once(int64_t kernel_rows) {
  return kernel_rows == 1 ? 8 : kernel_rows == 3 ? 3 : kernel_rows == 5 ? 2 : 1;
}

// Strips of the weight gradient, for kernels of 1, 3, 5 or 7 rows.
inline bool has_grad_strips(const Triple<Axis>& axes) {
  const Axis &h = axes[1], &w = axes[2];
  if (h.dilation > h.source || w.dilation > w.source || w.stride > w.source) return false;
  if (axes[0].kernel * h.kernel * w.kernel > kMaxBlockTaps) return false;
  if (h.kernel != 1 && h.kernel != 3 && h.kernel != 5 && h.kernel != 7) return false;
  return w.kernel <= kMaxColumnTaps;
}

// Channels as lanes in a copy of rows, of all between the taps. Where channels are adjacent already it would win
// nothing.
inline bool sums_staged_channels(const Triple<Axis>& axes, int64_t channels, int64_t lanes, bool adjacent) {
  const Axis &h = axes[1], &w = axes[2];
  if (adjacent || few_channels(channels, lanes) || !has_grad_strips(axes)) return false;
  const bool dense_rows = h.stride <= 2 && h.classes == 1 && (h.kernel == 1 || h.stride % h.dilation == 0);
  return dense_rows && w.dilation <= kMaxReach && w.stride <= kMaxReach;
}

// Columns as lanes: a channel costs much beside its sums, a masked vector as much as a whole one. More than 9 products
// of a number pay for the copy that makes channels lanes, if that is possible.
inline bool sums_columns_in_place(const Triple<Axis>& axes, int64_t lanes, int64_t positions, Layout source,
                                  Layout target, bool or_staged_channels) {
  const Axis &h = axes[1], &w = axes[2];
  if (!has_grad_strips(axes) || h.stride != 1 || (h.kernel == 7 && w.target < 2 * lanes)) return false;
  if (or_staged_channels && (h.kernel > 3 || w.target <= 4 * lanes)) return false;
  return columns_lie_side_by_side(w, lanes, source, target) && positions >= 80 * h.kernel &&
         8 * w.target >= 6 * lanes * ceil_div(w.target, lanes);
}

// Cache lines that stay in L1 together, one of each pixel. Pixels that are a large power of two apart share few sets.
inline int64_t lines_in_cache(int64_t pixel_bytes) {
  constexpr int64_t kSets = 64, kWays = 8, kLineBytes = 64;
  return kSets / std::gcd(kSets, std::max<int64_t>(1, pixel_bytes / kLineBytes)) * kWays;
}

// Columns whose source and target rows stay in the L1 cache together, in a strip of channels.
inline int64_t columns_in_cache(const Axis& h, int64_t pixel_bytes) {
  return lines_in_cache(pixel_bytes) / (kStripRows + (kStripRows - 1) * h.row_step() + h.kernel);
}

// Channels as lanes: neighbouring target rows meet source rows that are one or two steps of the kernel's rows apart.
inline bool sums_channels_in_place(const Triple<Axis>& axes, int64_t channels, int64_t lanes, Layout source,
                                   Layout target, int64_t pixel_bytes) {
  if (!channels_are_adjacent(source, target) || channels < lanes) return false;
  const Axis &h = axes[1], &w = axes[2];
  // For many taps a copy pays sooner, unless rows are short.
  const int64_t fewest = h.kernel >= 5 && w.target > lanes ? 6 : std::min(w.kernel, grad_taps_at_once(h.kernel));
  return has_grad_strips(axes) && h.row_step() <= 2 && columns_in_cache(h, pixel_bytes) >= fewest;
}

// Whether a copy of the source, whose pixels lie side by side, pays for itself: if each of its numbers is used often,
// or less often, but the pixels that 8 columns meet crowd each other out of the L1 cache.
inline bool pays_to_pack(const Triple<Axis>& axes, int64_t terms, int64_t pixel_bytes) {
  const Axis &d = axes[0], &h = axes[1], &w = axes[2];
  const double rows = static_cast<double>(d.max_taps) * h.max_taps;
  const double strides = static_cast<double>(d.source_stride()) * h.source_stride() * w.source_stride();
  const double uses = rows * w.max_taps * terms / strides;
  const double crowd = rows * (7. * w.source_stride() + w.max_taps) / lines_in_cache(pixel_bytes);
  return uses >= 49 || (crowd > 0.9 && crowd * uses > 15);
}

// Reading in place does not pay where columns differ in their taps, nor where the weights do not fit in the cache.
inline bool reads_channels_in_place(const Triple<Axis>& axes, int64_t channels, int64_t terms, int64_t lanes,
                                    Layout source, Layout target, int64_t element_bytes, bool convert) {
  if (!channels_are_adjacent(source, target) || channels < lanes) return false;
  if (pays_to_pack(axes, terms, channels * element_bytes)) return false;
  const int64_t rows = terms * axes[0].kernel * axes[1].kernel;
  const Axis& w = axes[2];
  // A sum that is taken in several goes is added to what is in the target: it would be rounded each time, and the
  // channels that the last vector shares with the one before would be added twice.
  if ((convert || channels % lanes != 0) && rows * w.kernel > kTapsPerSum) return false;
  // Columns that share their taps are summed together; few do where the kernel is nearly as wide as the image.
  const int64_t edges = w.max_taps - 1;
  const bool wide = 3 * edges <= w.source / w.unit || 5 * (2 * edges + 1) <= w.target / std::min(w.phases, w.target);
  return wide && rows * w.kernel * 32 <= kWeightBytes && rows <= kMaxRows && w.max_taps <= kMaxColumnTaps;
}

}  // namespace torch_ext::cpu::detail
