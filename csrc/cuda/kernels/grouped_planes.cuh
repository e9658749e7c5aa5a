#pragma once

#include "tile.h"

// Grouped convolution of few channels and its gradient of the input, where columns lie side by side in memory:
//
//   target[n, c, i] = bias[c] + sum over sources s of c's group, taps k of weight[c, s, k] * source[n, s, source_of(i,
//   k)]
//
// One correlation for both passes (axis.h), in 1 to 3 dimensions. A block makes a tile of up to kGroupTargets channels
// of a group, or all of several images where these are small. It goes over the group's sources, copies the window of
// one and its weights to shared memory, as Acc<T>, and each thread adds to a run of kRun targets in every channel,
// whose sums stay in registers, as Acc<T>.
namespace torch_ext::cuda {

// Of a thread, for its registers.
template <class T>
inline constexpr int kGroupTargets = sizeof(Acc<T>) == 8 ? 2 : 8;

template <class T>
struct GroupedPlanesParams {
  View<const T> source, weight;
  const T* bias;  // or null
  View<T> target;
  Triple<Axis> axes;
  Pairs pairs;
  int groups, target_blocks, batch;  // blocks of targets for each group
  Tile tile;                         // its planes are images
  Box source_box, target_box;
  Triple<int> tiles;
  int64_t blocks;
};

template <class T>
size_t grouped_planes_bytes(const GroupedPlanesParams<T>& p, const Tile& tile) {
  return (int64_t{kGroupTargets<T>} * weight_size<Acc<T>>(p.axes) + simt::ceil_div(tile.source_size(), 4) * 4) *
             sizeof(Acc<T>) +
         tile.target_size() * sizeof(T);
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_grouped_planes(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                         const View<const T>& weight, const T* bias, const View<T>& target,
                         GroupedPlanesParams<T>* params) {
  GroupedPlanesParams<T>& p = *params;
  p = {source, weight, bias, target, {}, Pairs(g, transposed), 0, 0, 0, {}, {}, {}, {}, 0};
  if (!make_axes(g, transposed, &p.axes)) return false;
  const int64_t weights = g.kernel[0] * g.kernel[1] * (g.kernel[2] + 8 * int64_t{p.axes[2].filled});
  if (simt::max(g.in_channels, g.out_channels) > 1 << 28 || g.batch > 1 << 28 || weights > kMostTileBytes) return false;
  p.groups = static_cast<int>(g.groups);
  p.batch = static_cast<int>(g.batch);
  p.target_blocks = static_cast<int>(simt::ceil_div(p.pairs.per_source(), kGroupTargets<T>));
  p.tile = make_tile<T>(p.axes, row_vector(source, p.axes[2].source), row_vector(target, p.axes[2].target), p.batch,
                        [&](const Tile& tile) { return grouped_planes_bytes(p, tile); });
  if (!p.tile.may_fit() || grouped_planes_bytes(p, p.tile) > kMostTileBytes || p.tile.threads() > kTileThreads)
    return false;
  p.source_box = Box(p.tile.sources, p.tile.source_vector);
  p.target_box = Box(p.tile.targets, p.tile.target_vector);
  int64_t blocks = int64_t{p.groups} * p.target_blocks;
  for (int axis = 0; axis < 3; ++axis) {
    p.tiles[axis] = static_cast<int>(simt::ceil_div(p.axes[axis].target, p.tile.targets[axis]));
    blocks *= p.tiles[axis];
    if (blocks >= int64_t{1} << 31) return false;
  }
  p.blocks = blocks * simt::ceil_div(p.batch, p.tile.planes);
  return true;
}

template <class T>
simt::LaunchSize grouped_planes_size(const GroupedPlanesParams<T>& p) {
  return {grid_of(p.blocks), {static_cast<unsigned>(round_up(p.tile.threads(), 32))}, grouped_planes_bytes(p, p.tile)};
}

// sums[t][r] += sum over taps of weight[t][tap] * source[r + tap], for t below `targets`
template <int kTaps, int kMost, class A>
SIMT_DEVICE void add_taps_of_targets(A (&sums)[kMost][kRun], int targets, const A* source, const A* weight,
                                     int weight_size) {
  A x[kRun + kTaps - 1];
  SIMT_UNROLL
  for (int j = 0; j < kRun + kTaps - 1; ++j) x[j] = source[j];
  SIMT_UNROLL
  for (int t = 0; t < kMost; ++t) {
    if (t >= targets) break;  // the same in all threads
    SIMT_UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      const A w = weight[t * weight_size + tap];
      SIMT_UNROLL
      for (int r = 0; r < kRun; ++r) sums[t][r] = simt::fma(w, x[r + tap], sums[t][r]);
    }
  }
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kTileThreads, 2) grouped_planes_kernel(GroupedPlanesParams<T> p) {
  using A = Acc<T>;
  constexpr int kMostTaps = 7, kLoads = 2;  // few, since the sums take the registers
  const Tile& tile = p.tile;
  const Axis& columns = p.axes[2];
  const int64_t block = block_index();
  if (block >= p.blocks) return;
  const int per_image = p.groups * p.target_blocks * p.tiles[0] * p.tiles[1] * p.tiles[2];
  const int64_t image = block / per_image * tile.planes;
  int index = static_cast<int>(block % per_image);
  Triple<int> first, origin;
  for (int axis = 2; axis >= 0; --axis) {
    const int of_tile = index % p.tiles[axis];
    index /= p.tiles[axis];
    first[axis] = of_tile * tile.targets[axis];
    origin[axis] = first_source(p.axes[axis], first[axis]);
  }
  origin[2] &= -tile.source_vector;  // rounded down
  const int in_group = index % p.target_blocks * kGroupTargets<T>, group = index / p.target_blocks;
  const int channel = group * p.pairs.per_source() + in_group;
  const int channels = simt::min(kGroupTargets<T>, p.pairs.per_source() - in_group);
  const int planes = simt::min(tile.planes, p.batch - static_cast<int>(image));

  // This thread's run of targets. Those that run over the edges are computed, and not stored.
  int column = threadIdx.x % tile.row_threads(), row = threadIdx.x / tile.row_threads();
  const int of_class = column / tile.runs;
  column = of_class + (column - of_class * tile.runs) * kRun * columns.step;
  const int h = row % tile.targets[1], d = row / tile.targets[1] % tile.targets[0];
  const int plane = row / (tile.targets[1] * tile.targets[0]);
  const bool active = plane < planes && first[0] + d < p.axes[0].target && first[1] + h < p.axes[1].target;

  A* weights = simt::shared<A>();
  A* sources = weights + kGroupTargets<T> * weight_size<Acc<T>>(p.axes);
  T* targets = reinterpret_cast<T*>(sources + (tile.source_size() + 3) / 4 * 4);
  A sums[kGroupTargets<T>][kRun];
  SIMT_UNROLL
  for (int t = 0; t < kGroupTargets<T>; ++t) {
    const A bias = p.bias ? simt::widen(simt::ld(p.bias + channel + t, t < channels)) : A(0);
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) sums[t][r] = bias;
  }
  for (int term = 0; term < p.pairs.terms(); ++term) {
    if (term > 0) __syncthreads();
    load_weights(p.weight, p.axes, p.pairs, channel, channels, channels, term, weights);
    const Triple<int> sizes{{p.axes[0].source, p.axes[1].source, p.axes[2].source}};
    load_dealt<kLoads>(p.source_box, tile, columns.parts,
                       Region<const T>{p.source.at(image, group * p.pairs.terms() + term),
                                       p.source.n,
                                       p.source.spatial,
                                       origin,
                                       sizes,
                                       planes,
                                       {0, 1, 1}},
                       sources);
    __syncthreads();
    if (!active) continue;
    const Taps depth = taps_of(p.axes[0], first[0] + d), rows = taps_of(p.axes[1], first[1] + h);
    const ListRange lists = lists_of(columns, first[2] + column);
    for (int list = lists.begin; list < lists.end; ++list) {
      const int source = source_of(columns, first[2] + column, list) - origin[2], along = source / columns.parts;
      const A* run = sources + (source - along * columns.parts) * tile.part_pitch + along;
      const int count = taps_in_list(columns, list);
      for (int tap = 0; tap < count; tap += kMostTaps)
        with_constant<kMostTaps>(simt::min(count - tap, kMostTaps), [&](auto taps) {
          for (int kd = 0; kd < depth.count; ++kd)
            for (int kh = 0; kh < rows.count; ++kh) {
              const int source_row =
                  (plane * tile.sources[0] + depth.source + kd * depth.source_step - origin[0]) * tile.sources[1] +
                  rows.source + kh * rows.source_step - origin[1];
              const int kernel_row =
                  (depth.tap + kd * depth.tap_step) * p.axes[1].kernel + rows.tap + kh * rows.tap_step;
              add_taps_of_targets<decltype(taps)::kValue>(
                  sums, channels, run + source_row * tile.row_pitch + tap,
                  weights + (kernel_row * columns.filled + list) * list_pitch<Acc<T>>(columns) + tap,
                  weight_size<Acc<T>>(p.axes));
            }
        });
    }
  }

  // Out through shared memory, one channel after the other.
  const Triple<int> sizes{{p.axes[0].target, p.axes[1].target, p.axes[2].target}};
  SIMT_UNROLL
  for (int t = 0; t < kGroupTargets<T>; ++t) {
    if (t < channels) {  // the same in all threads
      if (active) {
        SIMT_UNROLL
        for (int r = 0; r < kRun; ++r) {
          const int i = column + r * columns.step;
          if (i < tile.targets[2]) targets[row * tile.target_pitch + i] = simt::narrow<T>(sums[t][r]);
        }
      }
      __syncthreads();
      const Region<T> region{
          p.target.at(image, channel + t), p.target.n, p.target.spatial, first, sizes, planes, {0, 1, 1}};
      store_box(p.target_box, tile.planes, region, [&](const InBox& at, auto vector) {
        return *reinterpret_cast<const simt::Vector<T, decltype(vector)::kValue>*>(
            targets + at.row * tile.target_pitch + at.column);
      });
      __syncthreads();
    }
  }
}

}  // namespace torch_ext::cuda
