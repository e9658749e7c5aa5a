#pragma once

#include "partial_sums.cuh"
#include "tile.h"

// Gradient of the weight of a depthwise or grouped convolution, where columns lie side by side in memory (for any
// strides it is right, for others it is slow):
//
//   partial[split, q, k] = sum over n, i of the split's tiles of grad_output[n, output(q), i] * input[n, input(q),
//   source_of(i, k)]
//
// in 1 to 3 dimensions; partial_sums.cuh adds the splits. A block has all pairs of some outputs and some inputs of a
// group, and goes over tiles of grad_output, or over several images at a time where they are small; it copies them and
// the inputs that they meet to shared memory, as Acc<T>. A warp has the outputs, up to kInputs of the inputs, and a
// group of taps of a row of the kernel; each of its threads takes runs of grad_output, and slides the taps over their
// inputs. Sums stay in registers, in Acc<T>, to the end; then the warp's lanes add theirs by shuffles, and warps in
// turn.
namespace torch_ext::cuda {

// Inputs, outputs and taps of a thread, by its registers.
template <class T, bool kGrouped>
struct GradTile {
  static constexpr int kInputs = kGrouped ? 8 / sizeof(Acc<T>) : 1;
  static constexpr int kOutputs = kGrouped ? 16 / sizeof(Acc<T>) : 1;
  static constexpr int kTaps = kGrouped ? 7 : 8;
  static constexpr int kLoads = kGrouped ? 2 : 4;
  static constexpr int kBlocks = kGrouped ? 2 : kTileBlocks<T>;
};

template <class T>
struct GradPlanesParams {
  View<const T> grad_output, input;
  Acc<T>* partial;
  Triple<Axis> axes;
  Pairs pairs;
  bool grouped;
  int batch;
  int inputs, outputs;              // of a block, at most
  int input_blocks, output_blocks;  // of a group
  Tile tile;                        // of grad_output; its planes are images
  Box input_box, grad_box;
  Triple<int> tiles;
  TapGroups taps;
  int groups, group_blocks, slices;  // of taps in a block, and threads for each and kInputs
  int64_t steps, splits;             // tiles of a pair
  int64_t blocks, pair_count;        // of a split
};

template <class T>
size_t grad_planes_bytes(const GradPlanesParams<T>& p, const Tile& tile) {
  const int sums = p.inputs * p.outputs * p.groups * (p.slices / 32) * p.taps.size;
  return (sums + p.inputs * simt::ceil_div(tile.source_size(), 4) * 4 +
          p.outputs * simt::ceil_div(tile.target_size(), 4) * 4) *
         sizeof(Acc<T>);
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_grad_planes(const ConvGeometry<int64_t>& g, const View<const T>& grad_output, const View<const T>& input,
                      int multiprocessors, GradPlanesParams<T>* params) {
  GradPlanesParams<T>& p = *params;
  p = {grad_output, input, nullptr, {}, Pairs(g, false), g.in_per_group() > 1, 0, 0, 0, 0, 0, {}, {}, {}, {}, {}, 0, 0,
       0,           0,     0,       0,  pair_count(g)};
  if (!make_axes(g, false, &p.axes) || p.pair_count * g.kernel[0] * g.kernel[1] * g.kernel[2] > 1 << 28) return false;
  if (g.batch > 1 << 28) return false;
  p.batch = static_cast<int>(g.batch);
  using One = GradTile<T, false>;
  using Some = GradTile<T, true>;
  constexpr int kWarps = kTileThreads / 32;
  p.taps = TapGroups(p.axes, p.grouped ? Some::kTaps : One::kTaps);
  p.groups = equal_pieces(p.taps.count(), kWarps);
  p.group_blocks = static_cast<int>(simt::ceil_div(p.taps.count(), p.groups));
  // Warps that taps leave over are for more inputs.
  const int of_thread = p.grouped ? Some::kInputs : One::kInputs;
  const int parts = equal_pieces(static_cast<int>(simt::ceil_div(p.pairs.inputs, of_thread)), kWarps / p.groups);
  p.slices = kWarps / (p.groups * parts) * 32;
  p.inputs = parts * of_thread;
  p.outputs = p.grouped ? Some::kOutputs : One::kOutputs;
  p.input_blocks = static_cast<int>(simt::ceil_div(p.pairs.inputs, p.inputs));
  p.output_blocks = static_cast<int>(simt::ceil_div(p.pairs.outputs, p.outputs));
  p.blocks = g.groups * p.output_blocks * p.input_blocks * p.group_blocks;
  p.tile = make_tile<T>(p.axes, row_vector(input, p.axes[2].source), row_vector(grad_output, p.axes[2].target), p.batch,
                        [&](const Tile& tile) { return grad_planes_bytes(p, tile); });
  if (!p.tile.may_fit() || grad_planes_bytes(p, p.tile) > kMostTileBytes) return false;
  p.input_box = Box(p.tile.sources, p.tile.source_vector);
  p.grad_box = Box(p.tile.targets, p.tile.target_vector);
  p.steps = simt::ceil_div(p.batch, p.tile.planes);
  for (int axis = 0; axis < 3; ++axis) {
    p.tiles[axis] = static_cast<int>(simt::ceil_div(p.axes[axis].target, p.tile.targets[axis]));
    p.steps *= p.tiles[axis];
  }
  p.splits = choose_splits(multiprocessors, p.blocks, p.steps);
  return true;
}

template <class T>
simt::LaunchSize grad_planes_size(const GradPlanesParams<T>& p) {
  const int parts = p.inputs / (p.grouped ? GradTile<T, true>::kInputs : 1);
  return {
      grid_of(p.blocks * p.splits), {static_cast<unsigned>(parts * p.groups * p.slices)}, grad_planes_bytes(p, p.tile)};
}

// sums[o][i][tap] += sum over r below `runs` of grad_output[o][r * step] * input[i][r + tap], for o below `outputs`
template <int kTaps, int kOutputs, int kInputs, int kMost, class A>
SIMT_DEVICE void add_products(A (&sums)[kOutputs][kInputs][kMost], const A* grad_output, int grad_size, int outputs,
                              int step, int runs, const A* input, int input_size) {
  A x[kInputs][kRun + kTaps - 1];
  SIMT_UNROLL
  for (int i = 0; i < kInputs; ++i) {
    SIMT_UNROLL
    for (int j = 0; j < kRun + kTaps - 1; ++j) x[i][j] = input[i * input_size + j];
  }
  SIMT_UNROLL
  for (int o = 0; o < kOutputs; ++o) {
    if (o >= outputs) break;  // the same in all threads
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) {
      if (r >= runs) break;  // a product of zero and infinity is no zero
      const A y = grad_output[o * grad_size + r * step];
      SIMT_UNROLL
      for (int i = 0; i < kInputs; ++i) {
        SIMT_UNROLL
        for (int tap = 0; tap < kTaps; ++tap) sums[o][i][tap] = simt::fma(y, x[i][r + tap], sums[o][i][tap]);
      }
    }
  }
}

template <class T, bool kGrouped>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kTileThreads, GradTile<T, kGrouped>::kBlocks)
    depthwise_grad_planes_kernel(GradPlanesParams<T> p) {
  using A = Acc<T>;
  using Of = GradTile<T, kGrouped>;
  const Tile& tile = p.tile;
  const Axis& columns = p.axes[2];
  const int64_t block = block_index(), split = block / p.blocks;
  if (split >= p.splits) return;
  int of_split = static_cast<int>(block - split * p.blocks);
  const int first_group = of_split % p.group_blocks * p.groups;
  of_split /= p.group_blocks;
  const int first_input = of_split % p.input_blocks * p.inputs;
  of_split /= p.input_blocks;
  const int first_output = of_split % p.output_blocks * p.outputs, channels = of_split / p.output_blocks;
  const int in_count = kGrouped ? simt::min(p.inputs, p.pairs.inputs - first_input) : 1;
  const int out_count = kGrouped ? simt::min(p.outputs, p.pairs.outputs - first_output) : 1;
  const int of_block = threadIdx.x / p.slices, slice = threadIdx.x % p.slices;
  const int part = kGrouped ? of_block / p.groups : 0, group = first_group + of_block - part * p.groups;
  const int list = group / p.taps.per_list % p.taps.lists, first_tap = group % p.taps.per_list * p.taps.size;
  const int kernel_row = group / (p.taps.per_list * p.taps.lists);
  const int kd = kernel_row / p.axes[1].kernel, kh = kernel_row - kd * p.axes[1].kernel;

  A* inputs = simt::shared<A>();
  const int input_size = static_cast<int>((tile.source_size() + 3) / 4 * 4);
  const int grad_size = static_cast<int>((tile.target_size() + 3) / 4 * 4);
  A* grads = inputs + p.inputs * input_size;
  A* all = grads + p.outputs * grad_size;
  A sums[Of::kOutputs][Of::kInputs][Of::kTaps] = {};
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
    for (int i = 0; i < in_count; ++i)
      load_dealt<Of::kLoads>(p.input_box, tile, columns.parts,
                             Region<const T>{p.input.at(image, channels * p.pairs.inputs + first_input + i),
                                             p.input.n,
                                             p.input.spatial,
                                             origin,
                                             in,
                                             planes,
                                             {0, 1, 1}},
                             inputs + i * input_size);
    for (int o = 0; o < out_count; ++o)
      load_box<Of::kLoads>(p.grad_box, tile.planes,
                           Region<const T>{p.grad_output.at(image, channels * p.pairs.outputs + first_output + o),
                                           p.grad_output.n,
                                           p.grad_output.spatial,
                                           first,
                                           out,
                                           planes,
                                           {0, 1, 1}},
                           [&]<int V>(const InBox& at, const simt::Vector<A, V>& values) {
                             write_vector(grads + o * grad_size + at.row * tile.target_pitch + at.column, values);
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
      const A* input = inputs + part * Of::kInputs * input_size + input_row * tile.row_pitch +
                       (source - along * columns.parts) * tile.part_pitch + along;
      with_constant<Of::kTaps>(p.taps.size, [&](auto taps) {
        add_products<decltype(taps)::kValue>(sums, grads + row * tile.target_pitch + column, grad_size, out_count,
                                             columns.step, runs, input, input_size);
      });
    }
  }

  // [group, output, input, tap, warp]
  const int warps = p.slices / 32, warp = slice / 32, taps = p.taps.size;
  SIMT_UNROLL
  for (int o = 0; o < Of::kOutputs; ++o) {
    SIMT_UNROLL
    for (int i = 0; i < Of::kInputs; ++i) {
      SIMT_UNROLL
      for (int tap = 0; tap < Of::kTaps; ++tap) {
        A sum = sums[o][i][tap];
        for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(simt::kFullMask, sum, bits);
        const int input = part * Of::kInputs + i;
        if (slice % 32 == 0 && tap < taps)
          all[(((group - first_group) * Of::kOutputs + o) * p.inputs + input) * taps * warps + tap * warps + warp] =
              sum;
      }
    }
  }
  __syncthreads();
  const int group_sums = Of::kOutputs * p.inputs * taps;
  for (int i = threadIdx.x; i < p.groups * group_sums; i += blockDim.x) {
    const int of_group = i / group_sums, tap = i % taps, input = i / taps % p.inputs;
    const int output = i / (taps * p.inputs) % Of::kOutputs;
    if (first_group + of_group >= p.taps.count() || output >= out_count || input >= in_count) continue;
    const int of_kernel = p.taps.tap(first_group + of_group, tap);
    if (of_kernel < 0) continue;
    A sum = 0;
    for (int w = 0; w < warps; ++w) sum += all[i * warps + w];
    const int64_t pair =
        int64_t{channels * p.pairs.outputs + first_output + output} * p.pairs.inputs + first_input + input;
    simt::st(p.partial + (split * p.pair_count + pair) * p.taps.taps() + of_kernel, sum);
  }
}

}  // namespace torch_ext::cuda
