#pragma once

#include "axis.h"
#include "vectors.h"

// Depthwise convolution and its gradient of the input, where channels lie side by side in memory (channels_last):
//
//   target[n, i, c] = bias[c] + sum over pairs q of c, taps k of weight[q, k] * source[n, source_of(i, k), source(q)]
//
// One correlation for both passes (axis.h), in 1 to 3 dimensions. A block has some channels and some rows of targets of
// an image. A thread has a vector of channels (vectors.h), and a run of targets in a row, over whose sources it slides:
// it loads each source once for all taps of a kernel's row, straight from global memory, where full sectors are read,
// and rows again from the cache. Weights are in shared memory, sums in registers, both as Acc<T>.
namespace torch_ext::cuda {

inline constexpr int kChannelThreads = 256;
inline constexpr int kMostChannelBytes = 64 << 10;

template <class T>
struct ChannelsParams {
  View<const T> source, weight;
  const T* bias;  // or null
  View<T> target;
  Triple<Axis> axes;
  Pairs pairs;
  int channels;  // of the target
  VectorSize vector;
  int lanes, groups, channel_blocks;  // a block has so many vectors of channels, of so many runs at a time
  int pitch;                          // of sources that follow each other for a run of targets
  int runs, row_items;                // of targets modulo step, and of a row
  int rows, row_blocks;               // a block has so many rows, of all of an image's
  int64_t blocks;

  TORCH_EXT_HOST_DEVICE int taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
};

template <class T>
size_t channels_bytes(const ChannelsParams<T>& p) {
  return int64_t{p.lanes} * p.vector.channels * (p.taps() * p.pairs.terms() + 1) * sizeof(Acc<T>);
}

// False if the convolution is not one for this kernel.
template <class T>
bool make_channels(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                   const View<const T>& weight, const T* bias, const View<T>& target, int multiprocessors,
                   ChannelsParams<T>* params) {
  ChannelsParams<T>& p = *params;
  p = {source, weight, bias, target, {}, Pairs(g, transposed), 0, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  if (source.c != 1 || target.c != 1 || !make_axes(g, transposed, &p.axes)) return false;
  const int64_t channels = transposed ? g.in_channels : g.out_channels;
  if (channels > 1 << 28 || g.kernel[0] * g.kernel[1] * g.kernel[2] * p.pairs.terms() > kMostChannelBytes) return false;
  // 32-bit steps from source to source, which save registers.
  const int64_t pitch = p.axes[2].parts * source.spatial[2];
  if (simt::max(pitch, p.axes[1].parts * source.spatial[1]) > 1 << 27) return false;
  p.pitch = static_cast<int>(pitch);
  p.channels = static_cast<int>(channels);
  p.vector = choose_vector(g, source, target);
  const int vector = p.vector.channels, run = channel_run<T>(vector);
  p.lanes = choose_lanes<T>(p.channels, p.pairs.per_source(), vector);
  while (channels_bytes(p) > kMostChannelBytes && p.lanes * vector * sizeof(T) > 32) p.lanes /= 2;
  if (channels_bytes(p) > kMostChannelBytes) return false;
  p.groups = kChannelThreads / p.lanes;
  p.channel_blocks = static_cast<int>(simt::ceil_div(channels, p.lanes * vector));
  p.runs = static_cast<int>(simt::ceil_div(simt::ceil_div(p.axes[2].target, p.axes[2].step), run));
  p.row_items = simt::min(p.axes[2].step, p.axes[2].target) * p.runs;

  // As many rows for a block as leave four blocks for each multiprocessor, so that rows at the edges, which two blocks
  // read, are few; but enough to keep all threads busy.
  const int64_t rows = int64_t{p.axes[0].target} * p.axes[1].target, images = g.batch * p.channel_blocks;
  if (rows > 1 << 28) return false;
  const int64_t cuts = simt::ceil_div(int64_t{4} * multiprocessors, simt::max<int64_t>(images, 1));
  const int64_t least = simt::ceil_div(p.groups, p.row_items);
  p.rows = equal_pieces(static_cast<int>(rows), static_cast<int>(simt::max(least, simt::ceil_div(rows, cuts))));
  p.row_blocks = static_cast<int>(simt::ceil_div(rows, p.rows));
  p.blocks = images * p.row_blocks;
  return int64_t{p.row_blocks} * p.channel_blocks < int64_t{1} << 31;
}

template <class T>
simt::LaunchSize channels_size(const ChannelsParams<T>& p) {
  return {grid_of(p.blocks), {static_cast<unsigned>(round_up(p.groups * p.lanes, 32))}, channels_bytes(p)};
}

// sums[r] += sum over taps of weight[tap] * source[r + tap], for sources and weights that are a pitch apart. Those
// outside of 0 to `count` - 1 are zero; `position` is the first one's.
template <int kTaps, int kTerms, int V, int kRun, class T>
SIMT_DEVICE void add_taps(simt::Vector<Acc<T>, V> (&sums)[kRun], const T* source, int pitch, int position, int step,
                          int count, const Acc<T>* weight, int weight_pitch, int term_pitch, int lanes) {
  constexpr int kWidth = simt::min<int>(V, 16 / sizeof(Acc<T>)), kWindow = kRun + kTaps - 1;
  simt::Vector<T, V> window[kWindow];
  SIMT_UNROLL
  for (int j = 0; j < kWindow; ++j) {
    const bool inside = static_cast<unsigned>(position + j * step) < static_cast<unsigned>(count);
    window[j] = simt::ld<simt::Vector<T, V>>(source + j * pitch, inside);
  }
  // Some of the channels after the others, and terms, since not all of their weights fit in registers.
  static_assert(kTerms == 1 || kWidth == V);
  SIMT_UNROLL
  for (int part_or_term = 0; part_or_term < V / kWidth * kTerms; ++part_or_term) {
    const int first = kTerms == 1 ? part_or_term * kWidth : 0;
    const Acc<T>* weights = weight + (kTerms == 1 ? first * lanes : part_or_term * term_pitch);
    simt::Vector<Acc<T>, kWidth> w[kTaps];
    SIMT_UNROLL
    for (int tap = 0; tap < kTaps; ++tap)
      w[tap] = *reinterpret_cast<const simt::Vector<Acc<T>, kWidth>*>(weights + tap * weight_pitch);
    SIMT_UNROLL
    for (int j = 0; j < kWindow; ++j) {
      const auto x = simt::widen(part<kWidth>(window[j], first));
      SIMT_UNROLL
      for (int r = 0; r < kRun; ++r)
        if (r <= j && j - r < kTaps) {
          SIMT_UNROLL
          for (int v = 0; v < kWidth; ++v)
            sums[r][first + v] = simt::fma(w[j - r][v], x[kTerms == 1 ? v : part_or_term], sums[r][first + v]);
        }
    }
  }
}

// Adds to a run of targets what a vector of sources gives. `source` is its first number in the plane.
template <int kTerms, int V, int kRun, class T>
SIMT_DEVICE void add_channels(const ChannelsParams<T>& p, const Triple<int>& target, const T* source,
                              const Acc<T>* weights, simt::Vector<Acc<T>, V> (&sums)[kRun]) {
  constexpr int kMostTaps = V == 8 ? 4 : 7;
  const Axis& columns = p.axes[2];
  const Taps depth = taps_of(p.axes[0], target[0]), rows = taps_of(p.axes[1], target[1]);
  const int width = p.lanes * V;
  const ListRange lists = lists_of(columns, target[2]);
  for (int list = lists.begin; list < lists.end; ++list) {
    const int count = taps_in_list(columns, list), first = source_of(columns, target[2], list);
    for (int tap = 0; tap < count; tap += kMostTaps) {
      const int position = first + tap * columns.parts;
      with_constant<kMostTaps>(simt::min(count - tap, kMostTaps), [&](auto taps) {
        for (int d = 0; d < depth.count; ++d) {
          const int sd = depth.source + d * depth.source_step;
          const bool in_depth = static_cast<unsigned>(sd) < static_cast<unsigned>(p.axes[0].source);
          const int first_row = (depth.tap + d * depth.tap_step) * p.axes[1].kernel + rows.tap;
          const Acc<T>* weight =
              weights + (first_row * columns.kernel + first_tap(columns, list) + tap * tap_step(columns)) * width;
          const T* row =
              source + sd * p.source.spatial[0] + rows.source * p.source.spatial[1] + position * p.source.spatial[2];
          for (int sh = rows.source, end_row = sh + rows.count * rows.source_step; sh != end_row;) {
            const bool inside = in_depth && static_cast<unsigned>(sh) < static_cast<unsigned>(p.axes[1].source);
            add_taps<decltype(taps)::kValue, kTerms>(sums, row, p.pitch, position, columns.parts,
                                                     inside ? columns.source : 0, weight, tap_step(columns) * width,
                                                     p.taps() * width, p.lanes);
            sh += rows.source_step;
            row += rows.source_step * static_cast<int>(p.source.spatial[1]);
            weight += rows.tap_step * columns.kernel * width;
          }
        }
      });
    }
  }
}

// Bias and weights of the block's channels to shared memory: [channel] and [term, tap, channel], a channel's terms in
// the order in which it meets them.
template <int kTerms, int V, class T>
SIMT_DEVICE void load_channel_weights(const ChannelsParams<T>& p, int channel, Acc<T>* bias, Acc<T>* weights) {
  const int taps = p.taps(), width = p.lanes * V, kw = p.axes[2].kernel, kh = p.axes[1].kernel;
  const int channels = simt::min(width, p.channels - channel);
  for (int i = threadIdx.x; i < channels; i += blockDim.x)
    bias[channel_slot<V, Acc<T>>(i, p.lanes)] = p.bias ? simt::widen(simt::ld(p.bias + channel + i)) : Acc<T>(0);
  for (int i = threadIdx.x; i < channels * p.pairs.terms() * taps; i += blockDim.x) {
    const int pair = i / taps, tap = i - pair * taps, row = tap / kw;
    const int of_block = pair / p.pairs.terms(), turn = pair - of_block * p.pairs.terms();
    const int term = p.pairs.term(channel + of_block, kTerms, turn);
    const int64_t offset = p.pairs.weight(p.weight, channel + of_block, term) + row / kh * p.weight.spatial[0] +
                           row % kh * p.weight.spatial[1] + (tap - row * kw) * p.weight.spatial[2];
    weights[(turn * taps + tap) * width + channel_slot<V, Acc<T>>(of_block, p.lanes)] =
        simt::widen(simt::ld(p.weight.data + offset));
  }
}

template <class T, int V, int kTerms>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kChannelThreads, 2) depthwise_channels_kernel(ChannelsParams<T> p) {
  constexpr int kRun = channel_run<T>(V);
  using A = Acc<T>;
  const int64_t block = block_index();
  if (block >= p.blocks) return;
  const int per_image = p.channel_blocks * p.row_blocks;
  const int64_t n = block / per_image;
  const int in_image = static_cast<int>(block - n * per_image);
  const int channel_block = in_image % p.channel_blocks, first_row = in_image / p.channel_blocks * p.rows;
  const int lane = threadIdx.x % p.lanes, group = threadIdx.x / p.lanes;
  const int channel = (channel_block * p.lanes + lane) * V, height = p.axes[1].target;
  const bool active = group < p.groups && channel < p.channels;
  A* bias = simt::shared<A>();
  A* weights = bias + p.lanes * V;
  load_channel_weights<kTerms, V>(p, channel_block * p.lanes * V, bias, weights);
  __syncthreads();

  const int items = active ? simt::min(p.rows, p.axes[0].target * height - first_row) * p.row_items : 0;
  for (int item = group; item < items; item += p.groups) {
    const int row = item / p.row_items, of_row = item - row * p.row_items;
    const int of_class = of_row / p.runs, run = of_row - of_class * p.runs;
    const int d = (first_row + row) / height, h = first_row + row - d * height;
    const Triple<int> target{{d, h, of_class + run * kRun * p.axes[2].step}};
    simt::Vector<A, V> sums[kRun];
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) sums[r] = read_channels<V>(bias + channel_slot<V, A>(lane * V, p.lanes), p.lanes);
    for (int turn = 0; turn < p.pairs.terms(); turn += kTerms)
      add_channels<kTerms>(
          p, target,
          p.source.at(n, 0) + (V > kTerms ? channel : p.pairs.source(channel, p.pairs.term(channel, kTerms, turn))),
          weights + turn * p.taps() * p.lanes * V + channel_slot<V, A>(lane * V, p.lanes), sums);
    T* row_of_targets = p.target.at(n, channel) + d * p.target.spatial[0] + h * p.target.spatial[1];
    SIMT_UNROLL
    for (int r = 0; r < kRun; ++r) {
      const int i = target[2] + r * p.axes[2].step;
      simt::st(row_of_targets + i * p.target.spatial[2], simt::narrow<T>(sums[r]), i < p.axes[2].target);
    }
  }
}

}  // namespace torch_ext::cuda
