#pragma once

#include "partial_sums.cuh"
#include "tile.h"

// Gradient of the weight of a depthwise convolution, where columns lie side by side in memory (for any strides it is
// right, for others it is slow):
//
//   partial[split, q, k] = sum over n, i of the split's tiles of grad_output[n, output(q), i] * input[n, input(q),
//   source_of(i, k)]
//
// in 1 to 3 dimensions; partial_sums.cuh adds the splits. A block has one pair of channels, and goes over tiles of
// grad_output, or over several images at a time where they are small; it copies them and the inputs that they meet to
// shared memory, as Acc<T>. A warp has a group of taps of a row of the kernel; each of its threads takes runs of
// grad_output, and slides the taps over their inputs. Sums stay in registers, in Acc<T>, to the end; then the warp's
// lanes add theirs by shuffles, and warps in turn.
namespace torch_ext::cuda {

inline constexpr int kMostPlaneTaps = 8;

template <class T>
struct GradPlanesParams {
  View<const T> grad_output, input;
  Acc<T>* partial;
  Triple<Axis> axes;
  Pairs pairs;
  int channels, batch;  // pairs, images
  Tile tile;            // of grad_output; its planes are images
  Box input_box, grad_box;
  Triple<int> tiles;
  TapGroups taps;
  int groups, group_blocks, slices;  // of taps in a block, and threads for each
  int64_t steps, splits;             // tiles of a pair
};

template <class T>
size_t grad_planes_bytes(const GradPlanesParams<T>& p, const Tile& tile) {
  return (p.groups * (p.slices / 32) * p.taps.size + simt::ceil_div(tile.source_size(), 4) * 4 + tile.target_size() +
          4) *
         sizeof(Acc<T>);
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_grad_planes(const ConvGeometry<int64_t>& g, const View<const T>& grad_output, const View<const T>& input,
                      int multiprocessors, GradPlanesParams<T>* params) {
  GradPlanesParams<T>& p = *params;
  p = {grad_output, input, nullptr, {}, Pairs(g, false), 0, 0, {}, {}, {}, {}, {}, 0, 0, 0, 0, 0};
  const int64_t pairs = pair_count(g);
  if (!make_axes(g, false, &p.axes) || pairs * g.kernel[0] * g.kernel[1] * g.kernel[2] > 1 << 28) return false;
  if (g.batch > 1 << 28) return false;
  p.channels = static_cast<int>(pairs);
  p.batch = static_cast<int>(g.batch);
  p.taps = TapGroups(p.axes, kMostPlaneTaps);
  p.groups = equal_pieces(p.taps.count(), kTileThreads / 32);
  p.group_blocks = static_cast<int>(simt::ceil_div(p.taps.count(), p.groups));
  p.slices = kTileThreads / 32 / p.groups * 32;
  p.tile = make_tile<T>(p.axes, row_vector(input, p.axes[2].source), row_vector(grad_output, p.axes[2].target), p.batch,
                        [&](const Tile& tile) { return grad_planes_bytes(p, tile); });
  if (grad_planes_bytes(p, p.tile) > kMostTileBytes) return false;
  p.input_box = Box(p.tile.sources, p.tile.source_vector);
  p.grad_box = Box(p.tile.targets, p.tile.target_vector);
  p.steps = simt::ceil_div(p.batch, p.tile.planes);
  for (int axis = 0; axis < 3; ++axis) {
    p.tiles[axis] = static_cast<int>(simt::ceil_div(p.axes[axis].target, p.tile.targets[axis]));
    p.steps *= p.tiles[axis];
  }
  p.splits = choose_splits(multiprocessors, int64_t{p.channels} * p.group_blocks, p.steps);
  return true;
}

template <class T>
simt::LaunchSize grad_planes_size(const GradPlanesParams<T>& p) {
  return {grid_of(int64_t{p.channels} * p.group_blocks * p.splits),
          {static_cast<unsigned>(p.groups * p.slices)},
          grad_planes_bytes(p, p.tile)};
}

// sums[tap] += sum over r below `runs` of grad_output[r * step] * input[r + tap]
template <int kTaps, class A>
SIMT_DEVICE void add_products(A (&sums)[kMostPlaneTaps], const A* grad_output, int step, int runs, const A* input) {
  A x[kRun + kTaps - 1];
  SIMT_UNROLL
  for (int j = 0; j < kRun + kTaps - 1; ++j) x[j] = input[j];
  SIMT_UNROLL
  for (int r = 0; r < kRun; ++r) {
    if (r >= runs) break;  // a product of zero and infinity is no zero
    const A y = grad_output[r * step];
    SIMT_UNROLL
    for (int tap = 0; tap < kTaps; ++tap) sums[tap] = simt::fma(y, x[r + tap], sums[tap]);
  }
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kTileThreads, kTileBlocks<T>) depthwise_grad_planes_kernel(GradPlanesParams<T> p) {
  using A = Acc<T>;
  const Tile& tile = p.tile;
  const Axis& columns = p.axes[2];
  const int64_t block = block_index(), blocks = int64_t{p.channels} * p.group_blocks, split = block / blocks;
  if (split >= p.splits) return;
  const int of_split = static_cast<int>(block - split * blocks);
  const int pair = of_split / p.group_blocks, first_group = of_split % p.group_blocks * p.groups;
  const int of_block = threadIdx.x / p.slices, slice = threadIdx.x % p.slices, group = first_group + of_block;
  const int list = group / p.taps.per_list % p.taps.lists, first_tap = group % p.taps.per_list * p.taps.size;
  const int kernel_row = group / (p.taps.per_list * p.taps.lists);
  const int kd = kernel_row / p.axes[1].kernel, kh = kernel_row - kd * p.axes[1].kernel;

  A* inputs = simt::shared<A>();
  A* grads = inputs + (tile.source_size() + 3) / 4 * 4;
  A* all = grads + (tile.target_size() + 3) / 4 * 4;
  A sums[kMostPlaneTaps] = {};
  const int64_t end = p.steps * (split + 1) / p.splits;
  for (int64_t step = p.steps * split / p.splits; step < end; ++step) {
    int64_t image = step;
    Triple<int> first, origin;
    for (int axis = 2; axis >= 0; --axis) {
      first[axis] = static_cast<int>(image % p.tiles[axis]) * tile.targets[axis];
      image /= p.tiles[axis];
      origin[axis] = first_source(p.axes[axis], first[axis]);
    }
    origin[2] &= -tile.source_vector;
    image *= tile.planes;
    const int planes = simt::min(tile.planes, p.batch - static_cast<int>(image));

    __syncthreads();
    const Triple<int> in{{p.axes[0].source, p.axes[1].source, p.axes[2].source}};
    const Triple<int> out{{p.axes[0].target, p.axes[1].target, p.axes[2].target}};
    load_dealt(
        p.input_box, tile, columns.parts,
        Region<const T>{
            p.input.at(image, p.pairs.input_of(pair)), p.input.n, p.input.spatial, origin, in, planes, {0, 1, 1}},
        inputs);
    load_box(p.grad_box, tile.planes,
             Region<const T>{p.grad_output.at(image, p.pairs.output_of(pair)),
                             p.grad_output.n,
                             p.grad_output.spatial,
                             first,
                             out,
                             planes,
                             {0, 1, 1}},
             [&]<int V>(const InBox& at, const simt::Vector<A, V>& values) {
               write_vector(grads + at.row * tile.target_pitch + at.column, values);
             });
    __syncthreads();

    const int row_items = tile.row_threads();
    for (int item = slice; item < tile.target_rows() * row_items; item += p.slices) {
      const int row = item / row_items, of_row = item - row * row_items;
      const int of_class = of_row / tile.runs;
      const int column = of_class + (of_row - of_class * tile.runs) * kRun * columns.step;
      const int h = row % tile.targets[1], rest = row / tile.targets[1];
      const int d = rest % tile.targets[0], plane = rest / tile.targets[0];
      const int width = simt::min(tile.targets[2], columns.target - first[2]);
      const int runs = (width - column + columns.step - 1) / columns.step;
      if (plane >= planes || first[0] + d >= out[0] || first[1] + h >= out[1] || group >= p.taps.count()) continue;
      const int source = source_of(columns, first[2] + column, list) - origin[2] + first_tap * columns.parts;
      const int along = source / columns.parts;
      const int input_row =
          (plane * tile.sources[0] + d * p.axes[0].stride + kd * p.axes[0].dilation) * tile.sources[1] +
          h * p.axes[1].stride + kh * p.axes[1].dilation;
      const A* input = inputs + input_row * tile.row_pitch + (source - along * columns.parts) * tile.part_pitch + along;
      with_constant<kMostPlaneTaps>(p.taps.size, [&](auto taps) {
        add_products<decltype(taps)::kValue>(sums, grads + row * tile.target_pitch + column, columns.step, runs, input);
      });
    }
  }

  const int warps = p.slices / 32, warp = slice / 32;
  SIMT_UNROLL
  for (int tap = 0; tap < kMostPlaneTaps; ++tap) {
    for (int bits = 16; bits > 0; bits /= 2) sums[tap] += __shfl_xor_sync(simt::kFullMask, sums[tap], bits);
    if (slice % 32 == 0 && tap < p.taps.size) all[(of_block * warps + warp) * p.taps.size + tap] = sums[tap];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.groups * p.taps.size; i += blockDim.x) {
    const int of_group = i / p.taps.size, tap = i - of_group * p.taps.size;
    A sum = 0;
    for (int w = 0; w < warps; ++w) sum += all[(of_group * warps + w) * p.taps.size + tap];
    const int of_kernel = first_group + of_group < p.taps.count() ? p.taps.tap(first_group + of_group, tap) : -1;
    if (of_kernel >= 0) simt::st(p.partial + (split * p.channels + pair) * p.taps.taps() + of_kernel, sum);
  }
}

}  // namespace torch_ext::cuda
