#pragma once

#include "deform_samples.cuh"

// Columns of deformable convolution, and what their gradient is spread to, where channels are adjacent.
//
//   column[n, i, t, c] = mask[n, t, i] * sum over corners k of weight[k] * input[n, c, pixel[k]]
//   grad_input[n, c, pixel[k]] += weight[k] * mask[n, t, i] * grad_column[n, i, t, c]
//
// Layout: input channels_last, or any with channels side by side; columns as in deform_plan.h. A block first computes
// the samples of some positions, taps and offset groups, one by a thread, into shared memory; then lanes are channels,
// in vectors for columns. To spread them, lanes are single channels: atomic additions to neighbours are one request
// for as few sectors as there can be. A sample's dots (deform_samples.cuh) are summed by each lane over its channels,
// over the lanes by shuffles, and become gradients in a thread of the sample's own. All sums are in Acc<T>, and but for
// the atomic ones in an order that depends on nothing but sizes.
namespace torch_ext::cuda {

// In shared memory.
template <class A, int kDims>
struct alignas(16) PlacedSample : Sample<A, kDims> {
  int64_t row;       // where the columns' is
  int tap, channel;  // the offset group's first
};

template <class T, int kDims>
inline constexpr int64_t kPlacedBytes = sizeof(PlacedSample<Acc<T>, kDims>);

template <class T>
struct ChannelColumnsParams {
  DeformInputs<T> in;
  DeformSizes sizes;
  SampleTile tile;
  Columns<T> columns;
};

template <class T, class S>
struct ChannelSpreadParams {
  DeformInputs<T> in;
  DeformSizes sizes;
  SampleTile tile;
  Columns<const Acc<T>> columns;  // their gradient
  DeformGradients<T, S> gradients;
};

// The samples of a block.
struct SampleBlock {
  int64_t image, position;
  int tap, offset_group;  // the first ones
  int positions, taps, slots;
  TORCH_EXT_HOST_DEVICE int samples() const { return positions * slots; }
};

template <class T>
SIMT_DEVICE SampleBlock sample_block(const DeformInputs<T>& in, const DeformSizes& sizes, const SampleTile& tile) {
  SampleBlock b;
  int64_t index = blockIdx.x;
  b.tap = static_cast<int>(index % tile.tap_tiles) * tile.taps;
  index /= tile.tap_tiles;
  b.offset_group = static_cast<int>(index % tile.group_tiles) * tile.offset_groups;
  index /= tile.group_tiles;
  b.position = in.positions.begin + index % tile.position_tiles * tile.positions;
  b.image = in.images.begin + index / tile.position_tiles;
  b.positions = static_cast<int>(simt::min<int64_t>(tile.positions, in.positions.end - b.position));
  b.taps = simt::min(tile.taps, sizes.taps - b.tap);
  b.slots = b.taps * tile.offset_groups;
  return b;
}

// Calls body(sample, its number) for those of a thread, by which neighbours read offsets that lie side by side. They
// are numbered as columns lie: [position][offset group][tap][adjacent offset group].
template <class Body>
SIMT_DEVICE void for_own_samples(const SampleBlock& b, const SampleTile& tile, const Body& body) {
  const int count = b.samples();
  for (int i = threadIdx.x; i < count; i += kSampleThreads) {
    const int major = i / (tile.channels_first ? b.slots : b.positions);
    const int minor = i - major * (tile.channels_first ? b.slots : b.positions);
    const int position = tile.channels_first ? major : minor, slot = tile.channels_first ? minor : major;
    const int rest = slot / tile.adjacent_groups, group = rest / b.taps;
    const SampleIndex index{b.image, b.position + position, b.tap + rest - group * b.taps,
                            b.offset_group + group * tile.adjacent_groups + slot - rest * tile.adjacent_groups};
    body(index, position * b.slots + slot);
  }
}

template <int kDims, class T>
SIMT_DEVICE void place_samples(const DeformInputs<T>& in, const DeformSizes& sizes, const SampleTile& tile,
                               const SampleBlock& b, int64_t row_stride, PlacedSample<Acc<T>, kDims>* samples) {
  const int64_t first = (b.image - in.images.begin) * (in.positions.end - in.positions.begin) - in.positions.begin;
  for_own_samples(b, tile, [&](const SampleIndex& i, int number) {
    PlacedSample<Acc<T>, kDims>& s = samples[number];
    static_cast<Sample<Acc<T>, kDims>&>(s) = sample_of<kDims>(in, sizes, i);
    s.row = (first + i.position) * row_stride;
    s.tap = i.tap;
    s.channel = i.offset_group * sizes.per_offset;
  });
}

template <int kDims, int kVector, class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kSampleThreads, 2) channel_columns_kernel(ChannelColumnsParams<T> p) {
  using A = Acc<T>;
  using V = simt::Vector<T, kVector>;
  constexpr int kCorners = 1 << kDims;
  auto* const samples = simt::shared<PlacedSample<A, kDims>>();
  const SampleBlock b = sample_block(p.in, p.sizes, p.tile);
  place_samples<kDims>(p.in, p.sizes, p.tile, b, p.columns.row, samples);
  __syncthreads();

  const A scale = scale_of(p.columns);
  const T* const image = p.in.input.at(b.image, 0);
  const int lanes = p.tile.lanes, step = lanes * kVector, count = b.samples();
  const int first = threadIdx.x % lanes * kVector;
  for (int i = threadIdx.x / lanes; i < count; i += kSampleThreads / lanes) {
    const PlacedSample<A, kDims>& s = samples[i];
    const bool meets = meets_image(s);
    const A factor = factor_of(s) * scale;
    const T* corner[kCorners];
    A weight[kCorners];
    bool exists[kCorners];
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      weight[k] = s.weight[k];
      exists[k] = meets && s.pixel[k] >= 0;
      corner[k] = image + s.channel + (exists[k] ? place_of_pixel(p.in, p.sizes, s.pixel[k]) : 0);
    }
    T* const row = p.columns.data + s.row;
    for (int c0 = 0; c0 < p.sizes.per_offset; c0 += step) {
      const bool inside = c0 + first < p.sizes.per_offset;
      const int c = inside ? c0 + first : 0;
      V value[kCorners];
      SIMT_UNROLL
      for (int k = 0; k < kCorners; ++k) value[k] = simt::ld<V>(corner[k] + c, inside && exists[k]);
      simt::Vector<A, kVector> sum{};
      SIMT_UNROLL
      for (int k = 0; k < kCorners; ++k) {
        const auto wide = simt::widen(value[k]);
        SIMT_UNROLL
        for (int j = 0; j < kVector; ++j) sum[j] = simt::fma(weight[k], wide[j], sum[j]);
      }
      SIMT_UNROLL
      for (int j = 0; j < kVector; ++j) sum[j] *= factor;
      T* const to = row + place_in_row(p.sizes, p.columns.group, s.tap, s.channel + c);
      SIMT_UNROLL
      for (int split = 0; split < kSplits<T>; ++split) {
        V numbers;
        SIMT_UNROLL
        for (int j = 0; j < kVector; ++j) numbers[j] = take_split<T>(&sum[j]);
        simt::st(to + (inside ? split * split_stride(p.sizes) : 0), numbers, inside);
      }
    }
  }
}

template <int kDims, class S, class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kSampleThreads, 2) channel_spread_kernel(ChannelSpreadParams<T, S> p) {
  using A = Acc<T>;
  constexpr int kCorners = 1 << kDims;
  auto* const samples = simt::shared<PlacedSample<A, kDims>>();
  A* const all_dots = reinterpret_cast<A*>(samples + p.tile.samples());
  const SampleBlock b = sample_block(p.in, p.sizes, p.tile);
  place_samples<kDims>(p.in, p.sizes, p.tile, b, p.columns.row, samples);
  __syncthreads();

  const bool has_dots = p.gradients.has_sampling();
  const InputSums<T, S>& sums = p.gradients.sums;
  const A scale = scale_of(sums);
  const int lanes = p.tile.lanes, lane = threadIdx.x % lanes, count = b.samples();
  // All lanes of a warp go on to its last sample, for the shuffles.
  for (int i0 = 0; i0 < count; i0 += kSampleThreads / lanes) {
    const int i = i0 + threadIdx.x / lanes;
    const PlacedSample<A, kDims>& s = samples[simt::min(i, count - 1)];
    const bool has_sample = i < count, adds = has_sample && sums.data != nullptr && meets_image(s);
    const T* corner[kCorners];
    A dots[kCorners];
    bool exists[kCorners];
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      exists[k] = s.pixel[k] >= 0;
      corner[k] = p.in.input.at(b.image, s.channel) + place_of_pixel(p.in, p.sizes, exists[k] ? s.pixel[k] : 0);
      dots[k] = 0;
    }
    const A mask = s.mask;
    const A* const row = p.columns.data + s.row;
    for (int c0 = 0; c0 < p.sizes.per_offset; c0 += lanes) {
      const bool inside = has_sample && c0 + lane < p.sizes.per_offset;
      const int c = inside ? c0 + lane : 0;
      const A gradient = simt::ld(row + place_in_row(p.sizes, p.columns.group, s.tap, s.channel + c), inside);
      if (has_dots) {
        A value[kCorners];
        SIMT_UNROLL
        for (int k = 0; k < kCorners; ++k) value[k] = simt::widen(simt::ld(corner[k] + c, inside && exists[k]));
        SIMT_UNROLL
        for (int k = 0; k < kCorners; ++k) dots[k] = simt::fma(exists[k] ? gradient : A(0), value[k], dots[k]);
      }
      const A term = gradient * mask;
      const int64_t target = (b.image - p.in.images.begin) * sums.image + (s.channel + c) * sums.channel;
      SIMT_UNROLL
      for (int k = 0; k < kCorners; ++k)
        if (adds && inside && exists[k]) add(sums.data + target + s.pixel[k] * sums.pixel, s.weight[k] * term, scale);
    }
    if (has_dots) {
      SIMT_UNROLL
      for (int k = 0; k < kCorners; ++k) {
        for (int bit = lanes / 2; bit > 0; bit /= 2) dots[k] += __shfl_xor_sync(simt::kFullMask, dots[k], bit);
        if (has_sample && lane == 0) all_dots[i * kCorners + k] = dots[k];
      }
    }
  }
  if (!has_dots) return;
  __syncthreads();
  for_own_samples(b, p.tile, [&](const SampleIndex& i, int number) {
    A dots[kCorners];
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) dots[k] = all_dots[number * kCorners + k];
    store_gradients<kDims>(p.in, p.sizes, i, p.gradients, samples[number], dots);
  });
}

}  // namespace torch_ext::cuda
