#pragma once

#include "deform_samples.cuh"

// Columns of deformable convolution, and what their gradient is spread to, where columns of the image are adjacent, or
// nothing is: the same as in deform_channels.cuh.
//
// Layout: input contiguous, or any; columns as in deform_plan.h. Lanes are positions, whose samples are near each other
// and stay in registers while a thread goes over the channels of an offset group at a tap. A tile of 32 positions by 32
// channels in the warp's own part of shared memory turns rows into lanes for what is loaded from or stored to columns.
// Where channels are many, but positions few, up to 4 warps share them, and their dots are added in the warps' order.
namespace torch_ext::cuda {

template <class T>
struct PositionColumnsParams {
  DeformInputs<T> in;
  DeformSizes sizes;
  RunTile tile;
  Columns<T> columns;
};

template <class T, class S>
struct PositionSpreadParams {
  DeformInputs<T> in;
  DeformSizes sizes;
  RunTile tile;
  Columns<const Acc<T>> columns;  // their gradient
  DeformGradients<T, S> gradients;
};

// What a warp does.
struct WarpRuns {
  int64_t image, position;  // of the lane
  int64_t row;              // of the warp's first position
  int rows;                 // that there are
  int outer, run, end;      // of the run numbers
  int part;
  int channel, channel_end;  // of each run
  bool has_position;
};

template <class T>
SIMT_DEVICE WarpRuns runs_of_warp(const DeformInputs<T>& in, const DeformSizes& sizes, const RunTile& tile) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WarpRuns w;
  const int64_t item = int64_t{blockIdx.x} * (kPositionWarps / tile.parts) + warp / tile.parts;
  int64_t index = simt::min(item, tile.items - 1);
  w.run = static_cast<int>(index % tile.run_tiles) * tile.runs;
  w.end = simt::min(w.run + tile.runs, sizes.taps * tile.inner);
  index /= tile.run_tiles;
  w.outer = static_cast<int>(index % tile.outer);
  index /= tile.outer;
  const int64_t positions = in.positions.end - in.positions.begin, first = index % tile.position_tiles * 32;
  const int64_t image = index / tile.position_tiles;
  w.image = in.images.begin + image;
  w.position = in.positions.begin + first + lane;
  w.row = image * positions + first;
  w.rows = item < tile.items ? static_cast<int>(simt::min<int64_t>(32, positions - first)) : 0;
  w.has_position = lane < w.rows;
  w.part = warp % tile.parts;
  const int share = (sizes.per_offset + tile.parts - 1) / tile.parts;
  const int whole = (share + kTileColumns - 1) / kTileColumns * kTileColumns;  // tiles
  w.channel = simt::min(w.part * whole, sizes.per_offset);
  w.channel_end = simt::min((w.part + 1) * whole, sizes.per_offset);
  return w;
}

SIMT_DEVICE SampleIndex sample_index(const RunTile& tile, const WarpRuns& w, int run) {
  const int tap = run / tile.inner;
  return {w.image, w.position, tap, w.outer * tile.inner + run - tap * tile.inner};
}

// How many channels from this one are adjacent in columns, of at most a tile.
SIMT_DEVICE int adjacent_channels(const DeformSizes& sizes, int channel, int left) {
  if (sizes.groups > 1) left = simt::min(left, sizes.per_group - channel % sizes.per_group);
  return simt::min(left, kTileColumns);
}

// Calls body(row, column) for a warp's rows and some columns, of which lanes have adjacent ones.
template <class Body>
SIMT_DEVICE void for_tile(int columns, const Body& body) {
  int bits = 0;
  while (1 << bits < columns) ++bits;
  const int lane = threadIdx.x % 32, column = lane & ((1 << bits) - 1);
  for (int row = lane >> bits; row < 32; row += 32 >> bits) body(row, column);
}

template <int kDims, class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kPositionThreads, 4) position_columns_kernel(PositionColumnsParams<T> p) {
  using A = Acc<T>;
  constexpr int kCorners = 1 << kDims, kAhead = 16 / kCorners;
  A* const tile = simt::shared<A>() + threadIdx.x / 32 * (32 * kTilePitch);
  A* const own = tile + threadIdx.x % 32 * kTilePitch;
  const WarpRuns w = runs_of_warp(p.in, p.sizes, p.tile);
  const A scale = scale_of(p.columns);
  int filled = 0;
  for (int run = w.run; run < w.end; ++run) {
    const SampleIndex index = sample_index(p.tile, w, run);
    Sample<A, kDims> s{};
    if (w.has_position) s = sample_of<kDims>(p.in, p.sizes, index);
    const bool meets = w.has_position && meets_image(s);
    const A factor = factor_of(s) * scale;
    int64_t place[kCorners];
    bool exists[kCorners];
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      exists[k] = meets && s.pixel[k] >= 0;
      place[k] = exists[k] ? place_of_pixel(p.in, p.sizes, s.pixel[k]) : 0;
    }
    const int first = index.offset_group * p.sizes.per_offset, end = first + w.channel_end;
    for (int c = first + w.channel; c < end;) {
      const int count = adjacent_channels(p.sizes, c, end - c);
      for (int j = 0; j < count; j += kAhead) {
        T value[kAhead][kCorners];
        SIMT_UNROLL
        for (int u = 0; u < kAhead; ++u) {
          const bool inside = j + u < count;
          const T* const plane = p.in.input.at(w.image, c + (inside ? j + u : 0));
          SIMT_UNROLL
          for (int k = 0; k < kCorners; ++k) value[u][k] = simt::ld(plane + place[k], inside && exists[k]);
        }
        SIMT_UNROLL
        for (int u = 0; u < kAhead; ++u) {
          A sum = 0;
          SIMT_UNROLL
          for (int k = 0; k < kCorners; ++k) sum = simt::fma(s.weight[k], simt::widen(value[u][k]), sum);
          if (j + u < count) own[filled + j + u] = sum * factor;
        }
      }
      filled += count;
      c += count;
      if (p.tile.is_one_tile() && run + 1 < w.end) continue;
      __syncwarp();
      T* const to = p.columns.data + w.row * p.columns.row + place_in_row(p.sizes, p.columns.group, index.tap, c - 1) -
                    (filled - 1);
      for_tile(filled, [&](int row, int column) {
        const bool inside = row < w.rows && column < filled;
        A rest = tile[row * kTilePitch + (inside ? column : 0)];
        SIMT_UNROLL
        for (int split = 0; split < kSplits<T>; ++split)
          simt::st(to + (inside ? row * p.columns.row + split * split_stride(p.sizes) + column : 0),
                   take_split<T>(&rest), inside);
      });
      __syncwarp();
      filled = 0;
    }
  }
}

// The sum of what the warps that share a run have, in the first of them.
template <int kDims, class A>
SIMT_DEVICE void add_parts(const RunTile& tile, int part, A* shared, A* dots) {
  constexpr int kCorners = 1 << kDims;
  SIMT_UNROLL
  for (int k = 0; k < kCorners; ++k) shared[k * kPositionThreads + threadIdx.x] = dots[k];
  __syncthreads();
  if (part != 0) return;
  for (int i = 1; i < tile.parts; ++i) {
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) dots[k] += shared[k * kPositionThreads + i * 32 + threadIdx.x];
  }
}

template <int kDims, class S, class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kPositionThreads, kDims == 3 && sizeof(Acc<T>) == 8 ? 3 : 4)
    position_spread_kernel(PositionSpreadParams<T, S> p) {
  using A = Acc<T>;
  constexpr int kCorners = 1 << kDims, kAhead = simt::max(8 / kCorners, 1);
  A* const part_dots = simt::shared<A>();
  A* const tiles = part_dots + (p.tile.parts > 1 ? kPositionThreads * kCorners : 0);
  A* const tile = tiles + threadIdx.x / 32 * (32 * kTilePitch);
  const A* const own = tile + threadIdx.x % 32 * kTilePitch;
  const WarpRuns w = runs_of_warp(p.in, p.sizes, p.tile);
  const bool has_dots = p.gradients.has_sampling();
  const InputSums<T, S>& sums = p.gradients.sums;
  const A scale = scale_of(sums);
  // Columns of the gradient to the tile, from a channel at a tap.
  const auto load = [&](int tap, int channel, int count) {
    __syncwarp();
    const A* const from = p.columns.data + w.row * p.columns.row + place_in_row(p.sizes, p.columns.group, tap, channel);
    for_tile(count, [&](int row, int column) {
      const bool inside = row < w.rows && column < count;
      const A value = simt::ld(from + (inside ? row * p.columns.row + column : 0), inside);
      if (column < count) tile[row * kTilePitch + column] = value;
    });
    __syncwarp();
  };
  if (p.tile.is_one_tile()) {
    const SampleIndex index = sample_index(p.tile, w, w.run);
    load(index.tap, index.offset_group * p.sizes.per_offset, (w.end - w.run) * p.sizes.per_offset);
  }
  for (int run = w.run; run < w.end; ++run) {
    const SampleIndex index = sample_index(p.tile, w, run);
    Sample<A, kDims> s{};
    if (w.has_position) s = sample_of<kDims>(p.in, p.sizes, index);
    const bool adds = w.has_position && sums.data != nullptr && meets_image(s);
    const auto exists = [&](int k) { return w.has_position && s.pixel[k] >= 0; };  // registers are few
    int64_t place[kCorners];
    A dots[kCorners];
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) {
      place[k] = exists(k) ? place_of_pixel(p.in, p.sizes, s.pixel[k]) : 0;
      dots[k] = 0;
    }
    const int first = index.offset_group * p.sizes.per_offset, end = first + w.channel_end;
    int in_tile = p.tile.is_one_tile() ? (run - w.run) * p.sizes.per_offset : 0;
    for (int c = first + w.channel; c < end;) {
      const int count = adjacent_channels(p.sizes, c, end - c);
      if (!p.tile.is_one_tile()) load(index.tap, c, count);
      for (int j = 0; j < count; j += kAhead) {
        A gradient[kAhead];
        SIMT_UNROLL
        for (int u = 0; u < kAhead; ++u) gradient[u] = j + u < count ? own[in_tile + j + u] : A(0);
        if (has_dots) {
          A value[kAhead][kCorners];
          SIMT_UNROLL
          for (int u = 0; u < kAhead; ++u) {
            const bool inside = j + u < count;
            const T* const plane = p.in.input.at(w.image, c + (inside ? j + u : 0));
            SIMT_UNROLL
            for (int k = 0; k < kCorners; ++k)
              value[u][k] = simt::widen(simt::ld(plane + place[k], inside && exists(k)));
          }
          SIMT_UNROLL
          for (int u = 0; u < kAhead; ++u) SIMT_UNROLL
          for (int k = 0; k < kCorners; ++k) dots[k] = simt::fma(exists(k) ? gradient[u] : A(0), value[u][k], dots[k]);
        }
        SIMT_UNROLL
        for (int u = 0; u < kAhead; ++u) {
          const int64_t plane = (w.image - p.in.images.begin) * sums.image + (c + j + u) * sums.channel;
          SIMT_UNROLL
          for (int k = 0; k < kCorners; ++k)
            if (adds && exists(k) && j + u < count)
              add(sums.data + plane + s.pixel[k] * sums.pixel, s.weight[k] * (gradient[u] * s.mask), scale);
        }
      }
      c += count;
    }
    if (!has_dots) continue;
    if (p.tile.parts > 1) add_parts<kDims>(p.tile, w.part, part_dots, dots);
    if (w.part == 0 && w.has_position) store_gradients<kDims>(p.in, p.sizes, index, p.gradients, s, dots);
  }
}

}  // namespace torch_ext::cuda
