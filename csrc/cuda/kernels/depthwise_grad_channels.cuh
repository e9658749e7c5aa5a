#pragma once

#include "partial_sums.cuh"
#include "vectors.h"

// Gradient of the weight of a depthwise convolution, where channels lie side by side in memory (channels_last):
//
//   partial[split, q, k] = sum over n, i of the split's rows of grad_output[n, i, output(q)] * input[n, source_of(i,
//   k), input(q)]
//
// in 1 to 3 dimensions; partial_sums.cuh adds the splits. A block has some channels and some rows of grad_output, of
// all images' rows in turn. A thread has a vector of its channels and one of the input's (vectors.h), and a group of
// taps of a row of the kernel; it takes runs of grad_output, and slides its taps over their inputs. Its sums stay in
// registers, in Acc<T>, to the end; then threads with the same channels and taps add theirs one after the other.
namespace torch_ext::cuda {

inline constexpr int kGradChannelThreads = 256;

template <class T>
struct GradChannelsParams {
  View<const T> grad_output, input;
  Acc<T>* partial;
  Triple<Axis> axes;
  Pairs pairs;
  int channels;  // of grad_output
  VectorSize vector;
  int lanes, channel_blocks;
  int classes, runs;  // of a row of grad_output, as forward
  TapGroups taps;
  int groups, group_blocks, slices;  // of a vector of inputs and taps in a block, and threads for each
  int64_t rows, splits;
};

// Taps of a thread, of which each has sums of all pairs of its vectors.
template <class T>
TORCH_EXT_HOST_DEVICE constexpr int most_grad_taps(const VectorSize& v) {
  const size_t bytes = v.channels * v.terms * sizeof(Acc<T>);
  return bytes > 32 ? 3 : bytes > 16 ? 4 : 7;
}

template <class T>
TORCH_EXT_HOST_DEVICE int grad_channel_groups(const GradChannelsParams<T>& p) {
  return p.pairs.terms() / p.vector.terms * p.taps.count();
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_grad_channels(const ConvGeometry<int64_t>& g, const View<const T>& grad_output, const View<const T>& input,
                        int multiprocessors, GradChannelsParams<T>* params) {
  GradChannelsParams<T>& p = *params;
  p = {grad_output, input, nullptr, {}, Pairs(g, false), 0, {}, 0, 0, 0, 0, {}, 0, 0, 0, 0, 0};
  if (grad_output.c != 1 || input.c != 1 || !make_axes(g, false, &p.axes)) return false;
  if (pair_count(g) * g.kernel[0] * g.kernel[1] * g.kernel[2] > 1 << 28) return false;
  p.channels = static_cast<int>(g.out_channels);
  p.vector = choose_vector(g, grad_output, input);
  const int vector = p.vector.channels, run = channel_run<T>(vector);
  p.taps = TapGroups(p.axes, most_grad_taps<T>(p.vector));
  // As few channels as let a block have all groups, and so read its numbers only once.
  const int groups = grad_channel_groups(p);
  p.lanes = choose_lanes<T>(p.channels, p.pairs.per_source(), vector);
  while (p.lanes * groups > kGradChannelThreads && p.lanes * vector * sizeof(T) > 32) p.lanes /= 2;
  p.channel_blocks = static_cast<int>(simt::ceil_div(p.channels, p.lanes * vector));
  p.classes = simt::min(p.axes[2].step, p.axes[2].target);
  p.runs = static_cast<int>(simt::ceil_div(simt::ceil_div(p.axes[2].target, p.axes[2].step), run));
  p.groups = equal_pieces(groups, kGradChannelThreads / p.lanes);
  p.group_blocks = static_cast<int>(simt::ceil_div(groups, p.groups));
  p.slices = kGradChannelThreads / (p.lanes * p.groups);
  p.rows = g.batch * p.axes[0].target * p.axes[1].target;
  const int64_t blocks = int64_t{p.channel_blocks} * p.group_blocks;
  p.splits = choose_splits(multiprocessors, blocks, p.rows);
  return int64_t{p.classes} * p.runs * (p.rows / p.splits + 1) < 1 << 30;
}

template <class T>
simt::LaunchSize grad_channels_size(const GradChannelsParams<T>& p) {
  const int threads = p.lanes * p.groups * p.slices;
  const size_t bytes = int64_t{p.groups} * p.taps.size * p.vector.terms * p.lanes * p.vector.channels * sizeof(Acc<T>);
  return {grid_of(int64_t{p.channel_blocks} * p.group_blocks * p.splits),
          {static_cast<unsigned>(round_up(threads, 32))},
          bytes};
}

// sums[tap] += sum over r below `runs` of grad_output[r] * input[r + tap], for numbers that are a pitch apart. Those of
// the input outside of 0 to `count` - 1 are zero; `position` is the first one's.
template <int kTaps, int kRun, int V, int kMost, int kTerms, class T>
SIMT_DEVICE void add_products(simt::Vector<Acc<T>, V> (&sums)[kMost][kTerms], const T* grad_output, int64_t grad_pitch,
                              int runs, const T* input, int64_t pitch, int position, int step, int count) {
  constexpr int kWidth = simt::min<int>(V, 16 / sizeof(Acc<T>)), kWindow = kRun + kTaps - 1;
  simt::Vector<T, V> factor[kRun], window[kWindow];
  SIMT_UNROLL
  for (int r = 0; r < kRun; ++r) factor[r] = simt::ld<simt::Vector<T, V>>(grad_output + r * grad_pitch, r < runs);
  SIMT_UNROLL
  for (int j = 0; j < kWindow; ++j) {
    const bool inside =
        j < runs + kTaps - 1 && static_cast<unsigned>(position + j * step) < static_cast<unsigned>(count);
    window[j] = simt::ld<simt::Vector<T, V>>(input + j * pitch, inside);
  }
  SIMT_UNROLL
  for (int first = 0; first < V; first += kWidth) {
    simt::Vector<Acc<T>, kWidth> x[kWindow];
    SIMT_UNROLL
    for (int j = 0; j < kWindow; ++j) x[j] = simt::widen(part<kWidth>(window[j], first));
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) {
      if (r >= runs) break;  // a product of zero and infinity is no zero
      const auto y = simt::widen(part<kWidth>(factor[r], first));
      SIMT_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) {
        SIMT_UNROLL
        for (int term = 0; term < kTerms; ++term) {
          SIMT_UNROLL
          for (int v = 0; v < kWidth; ++v) {
            Acc<T>& sum = sums[tap][term][first + v];
            sum = simt::fma(y[v], x[r + tap][kTerms == 1 ? v : term], sum);
          }
        }
      }
    }
  }
}

template <class T, int V, int kTerms>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kGradChannelThreads, 2) depthwise_grad_channels_kernel(GradChannelsParams<T> p) {
  constexpr int kRun = channel_run<T>(V), kMost = most_grad_taps<T>({V, kTerms});
  using A = Acc<T>;
  const Axis& columns = p.axes[2];
  const int64_t block = block_index(), blocks = int64_t{p.channel_blocks} * p.group_blocks, split = block / blocks;
  if (split >= p.splits) return;
  const int of_split = static_cast<int>(block - split * blocks);
  const int first_channel = of_split % p.channel_blocks * p.lanes * V,
            first_group = of_split / p.channel_blocks * p.groups;
  const int lane = threadIdx.x % p.lanes, of_block = threadIdx.x / p.lanes % p.groups;
  const int slice = threadIdx.x / (p.lanes * p.groups), group = first_group + of_block;
  const int channel = first_channel + lane * V, groups = grad_channel_groups(p);
  const bool active = slice < p.slices && channel < p.channels && group < groups;

  // The group's inputs, and its first tap.
  const int turns = p.pairs.terms() / kTerms, turn = group % turns, tap_group = group / turns;
  const int list = tap_group / p.taps.per_list % p.taps.lists, first_tap = tap_group % p.taps.per_list * p.taps.size;
  const int kernel_row = tap_group / (p.taps.per_list * p.taps.lists);
  const int kd = kernel_row / p.axes[1].kernel, kh = kernel_row - kd * p.axes[1].kernel;
  const int64_t row_begin = p.rows * split / p.splits;
  const int row_items = p.classes * p.runs, height = p.axes[1].target;
  const int items = static_cast<int>(p.rows * (split + 1) / p.splits - row_begin) * row_items;
  const T* grad_output = p.grad_output.data + channel;
  const T* input = p.input.data + p.pairs.source(channel, p.pairs.term(channel, kTerms, turn * kTerms));

  simt::Vector<A, V> sums[kMost][kTerms] = {};
  for (int item = slice; item < items; item += p.slices) {
    const int row = item / row_items, of_row = item - row * row_items;
    const int of_class = of_row / p.runs, ow = of_class + (of_row - of_class * p.runs) * kRun * columns.step;
    int64_t n = row_begin + row;
    const int oh = static_cast<int>(n % height), od = static_cast<int>(n / height % p.axes[0].target);
    n /= int64_t{height} * p.axes[0].target;
    const int d = od * p.axes[0].stride + kd * p.axes[0].dilation - p.axes[0].pad;
    const int h = oh * p.axes[1].stride + kh * p.axes[1].dilation - p.axes[1].pad;
    const bool inside = active && static_cast<unsigned>(d) < static_cast<unsigned>(p.axes[0].source) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(p.axes[1].source);
    const int position = source_of(columns, ow, list) + first_tap * columns.parts;
    const int left = (columns.target - ow + columns.step - 1) / columns.step;
    const T* go = grad_output + n * p.grad_output.n + od * p.grad_output.spatial[0] + oh * p.grad_output.spatial[1] +
                  ow * p.grad_output.spatial[2];
    const T* x =
        input + n * p.input.n + d * p.input.spatial[0] + h * p.input.spatial[1] + position * p.input.spatial[2];
    with_constant<kMost>(p.taps.size, [&](auto taps) {
      add_products<decltype(taps)::kValue, kRun>(sums, go, columns.step * p.grad_output.spatial[2], inside ? left : 0,
                                                 x, columns.parts * p.input.spatial[2], position, columns.parts,
                                                 inside ? columns.source : 0);
    });
  }

  A* all = simt::shared<A>();  // [group, tap, term, channel]
  const int width = p.lanes * V;
  for (int s = 0; s < p.slices; ++s) {
    if (s == slice) {
      SIMT_UNROLL
      for (int tap = 0; tap < kMost; ++tap)
        if (tap < p.taps.size) {
          SIMT_UNROLL
          for (int term = 0; term < kTerms; ++term) {
            A* row = all + ((of_block * p.taps.size + tap) * kTerms + term) * width + lane;
            SIMT_UNROLL
            for (int v = 0; v < V; ++v) row[v * p.lanes] = sums[tap][term][v] + (s > 0 ? row[v * p.lanes] : A(0));
          }
        }
    }
    __syncthreads();
  }
  const int group_sums = p.taps.size * kTerms;
  for (int i = threadIdx.x; i < width * p.groups * group_sums; i += blockDim.x) {
    const int of_channel = i / (p.groups * group_sums), sum = i - of_channel * p.groups * group_sums;
    const int g = first_group + sum / group_sums, term = sum % kTerms, c = first_channel + of_channel;
    if (c >= p.channels || g >= groups) continue;
    const int tap = p.taps.tap(g / turns, sum % group_sums / kTerms);
    if (tap < 0) continue;
    const int64_t pair = (split * p.channels + c) * p.pairs.inputs + p.pairs.term(c, kTerms, g % turns * kTerms + term);
    simt::st(p.partial + pair * p.taps.taps() + tap, all[sum * width + of_channel % V * p.lanes + of_channel / V]);
  }
}

}  // namespace torch_ext::cuda
