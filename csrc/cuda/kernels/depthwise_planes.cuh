#pragma once

#include "tile.h"

// Depthwise convolution and its gradient of the input, where columns lie side by side in memory (for any strides it is
// right, for others it is slow):
//
//   target[n, c, i] = bias[c] + sum over pairs q of c, taps k of weight[q, k] * source[n, source(q), source_of(i, k)]
//
// One correlation for both passes (axis.h), in 1 to 3 dimensions. A block makes a tile of one plane of targets, or all
// of several planes where they are small. It copies the window of sources and the weights to shared memory, as Acc<T>;
// each thread sums kRun targets of a row in registers, in Acc<T>; targets go out through shared memory, so that loads
// and stores are of whole rows whatever stride, dilation and padding are.
namespace torch_ext::cuda {

template <class T>
struct PlanesParams {
  View<const T> source, weight;
  const T* bias;  // or null
  View<T> target;
  Triple<Axis> axes;
  Pairs pairs;
  int channels;  // of the target
  Tile tile;
  Box source_box, target_box;
  int channel_blocks;
  Triple<int> tiles;
  int64_t blocks;
};

template <class T>
size_t planes_bytes(const PlanesParams<T>& p, const Tile& tile) {
  return (int64_t{tile.planes} * weight_size<Acc<T>>(p.axes) + simt::ceil_div(tile.source_size(), 4) * 4) *
             sizeof(Acc<T>) +
         tile.target_size() * sizeof(T);
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_planes(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                 const View<const T>& weight, const T* bias, const View<T>& target, PlanesParams<T>* params) {
  PlanesParams<T>& p = *params;
  p = {source, weight, bias, target, {}, Pairs(g, transposed), 0, {}, {}, {}, 0, {}, 0};
  if (!make_axes(g, transposed, &p.axes)) return false;
  const int64_t channels = transposed ? g.in_channels : g.out_channels;
  const int64_t weights = g.kernel[0] * g.kernel[1] * (g.kernel[2] + 8 * int64_t{p.axes[2].filled});
  if (channels > 1 << 28 || weights > kMostTileBytes) return false;
  p.channels = static_cast<int>(channels);
  p.tile = make_tile<T>(p.axes, row_vector(source, p.axes[2].source), row_vector(target, p.axes[2].target), p.channels,
                        [&](const Tile& tile) { return planes_bytes(p, tile); });
  if (!p.tile.may_fit() || planes_bytes(p, p.tile) > kMostTileBytes || p.tile.threads() > kTileThreads) return false;
  p.source_box = Box(p.tile.sources, p.tile.source_vector);
  p.target_box = Box(p.tile.targets, p.tile.target_vector);
  p.channel_blocks = static_cast<int>(simt::ceil_div(p.channels, p.tile.planes));
  int64_t blocks = p.channel_blocks;
  for (int axis = 0; axis < 3; ++axis) {
    p.tiles[axis] = static_cast<int>(simt::ceil_div(p.axes[axis].target, p.tile.targets[axis]));
    blocks *= p.tiles[axis];
    if (blocks >= int64_t{1} << 31) return false;
  }
  p.blocks = blocks * g.batch;
  return true;
}

template <class T>
simt::LaunchSize planes_size(const PlanesParams<T>& p) {
  return {grid_of(p.blocks), {static_cast<unsigned>(round_up(p.tile.threads(), 32))}, planes_bytes(p, p.tile)};
}

// sums[r] += sum over taps of weight[tap] * source[r + tap]
template <int kTaps, class A>
SIMT_DEVICE void add_taps(A (&sums)[kRun], const A* source, const A* weight) {
  constexpr int kVector = 16 / sizeof(A);
  using Weights = simt::Vector<A, kVector>;
  Weights w[(kTaps + kVector - 1) / kVector];
  SIMT_UNROLL
  for (int i = 0; i * kVector < kTaps; ++i) w[i] = reinterpret_cast<const Weights*>(weight)[i];
  SIMT_UNROLL
  for (int j = 0; j < kRun + kTaps - 1; ++j) {
    const A x = source[j];
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r)
      if (r <= j && j - r < kTaps) sums[r] = simt::fma(w[(j - r) / kVector][(j - r) % kVector], x, sums[r]);
  }
}

// Adds to a run of targets, which begins at `target`, what one source plane gives. `origin` is the window's first
// source.
template <class T>
SIMT_DEVICE void add_plane(const PlanesParams<T>& p, const Triple<int>& target, const Triple<int>& origin,
                           const Acc<T>* sources, const Acc<T>* weights, Acc<T> (&sums)[kRun]) {
  constexpr int kMostTaps = 8;
  const Axis& columns = p.axes[2];
  const Taps depth = taps_of(p.axes[0], target[0]), rows = taps_of(p.axes[1], target[1]);
  const int depth_pitch = p.tile.sources[1] * p.tile.row_pitch, list_pitch = cuda::list_pitch<Acc<T>>(columns);
  const int weight_pitch = columns.filled * list_pitch;
  const Acc<T>* first =
      sources + (depth.source - origin[0]) * depth_pitch + (rows.source - origin[1]) * p.tile.row_pitch;
  const ListRange lists = lists_of(columns, target[2]);
  for (int list = lists.begin; list < lists.end; ++list) {
    const int column = source_of(columns, target[2], list) - origin[2], along = column / columns.parts;
    const Acc<T>* run = first + (column - along * columns.parts) * p.tile.part_pitch + along;
    const int count = taps_in_list(columns, list);
    for (int tap = 0; tap < count; tap += kMostTaps)
      with_constant<kMostTaps>(simt::min(count - tap, kMostTaps), [&](auto taps) {
        for (int d = 0; d < depth.count; ++d) {
          const Acc<T>* source = run + tap + d * depth.source_step * depth_pitch;
          const Acc<T>* weight = weights + list * list_pitch + tap +
                                 ((depth.tap + d * depth.tap_step) * p.axes[1].kernel + rows.tap) * weight_pitch;
          for (int h = 0; h < rows.count; ++h) {
            add_taps<decltype(taps)::kValue>(sums, source, weight);
            source += rows.source_step * p.tile.row_pitch;
            weight += rows.tap_step * weight_pitch;
          }
        }
      });
  }
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kTileThreads, kTileBlocks<T>) depthwise_planes_kernel(PlanesParams<T> p) {
  using A = Acc<T>;
  const Tile& tile = p.tile;
  const int64_t block = block_index();
  if (block >= p.blocks) return;
  const int per_image = p.channel_blocks * p.tiles[0] * p.tiles[1] * p.tiles[2];
  const int64_t n = block / per_image;
  int index = static_cast<int>(block - n * per_image);
  Triple<int> first, origin;
  for (int axis = 2; axis >= 0; --axis) {
    const int of_tile = index % p.tiles[axis];
    index /= p.tiles[axis];
    first[axis] = of_tile * tile.targets[axis];
    origin[axis] = first_source(p.axes[axis], first[axis]);
  }
  origin[2] &= -tile.source_vector;  // rounded down
  const int channel = index * tile.planes, planes = simt::min(tile.planes, p.channels - channel);

  // This thread's run of targets. Those that run over the edges are computed, and not stored.
  int column = threadIdx.x % tile.row_threads(), row = threadIdx.x / tile.row_threads();
  const bool active = row < tile.target_rows();
  const int of_class = column / tile.runs, run = column - of_class * tile.runs;
  column = of_class + run * kRun * p.axes[2].step;
  const int h = row % tile.targets[1], d = row / tile.targets[1] % tile.targets[0];
  const int plane = row / (tile.targets[1] * tile.targets[0]);
  const Triple<int> target{{first[0] + d, first[1] + h, first[2] + column}};
  const bool in_plane = active && plane < planes && target[0] < p.axes[0].target && target[1] < p.axes[1].target;

  A* weights = simt::shared<A>();
  A* sources = weights + tile.planes * weight_size<Acc<T>>(p.axes);
  A sums[kRun];
  const A bias = p.bias ? simt::widen(simt::ld(p.bias + channel + plane, in_plane)) : A(0);
  SIMT_UNROLL
  for (int r = 0; r < kRun; ++r) sums[r] = bias;
  for (int term = 0; term < p.pairs.terms(); ++term) {
    if (term > 0) __syncthreads();
    load_weights(p.weight, p.axes, p.pairs, channel, planes, planes, term, weights);
    const Triple<int> sizes{{p.axes[0].source, p.axes[1].source, p.axes[2].source}};
    load_dealt(p.source_box, tile, p.axes[2].parts,
               Region<const T>{p.source.at(n, 0),
                               p.source.c,
                               p.source.spatial,
                               origin,
                               sizes,
                               planes,
                               {channel * p.pairs.terms() + term, p.pairs.terms(), p.pairs.per_source()}},
               sources);
    __syncthreads();
    if (in_plane)
      add_plane(p, target, origin, sources + plane * tile.sources[0] * tile.sources[1] * tile.row_pitch,
                weights + plane * weight_size<Acc<T>>(p.axes), sums);
  }

  T* targets = reinterpret_cast<T*>(sources + (tile.source_size() + 3) / 4 * 4);
  if (in_plane) {
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) {
      const int i = column + r * p.axes[2].step;
      if (i < tile.targets[2]) targets[row * tile.target_pitch + i] = simt::narrow<T>(sums[r]);
    }
  }
  __syncthreads();
  const Triple<int> sizes{{p.axes[0].target, p.axes[1].target, p.axes[2].target}};
  const Region<T> region{p.target.at(n, 0), p.target.c, p.target.spatial, first, sizes, planes, {channel, 1, 1}};
  store_box(p.target_box, tile.planes, region, [&](const InBox& at, auto vector) {
    return *reinterpret_cast<const simt::Vector<T, decltype(vector)::kValue>*>(targets + at.row * tile.target_pitch +
                                                                               at.column);
  });
}

}  // namespace torch_ext::cuda
