#pragma once

#include "axis.h"
#include "box.h"
#include "vectors.h"

// A tile of a correlation whose columns lie side by side in memory: targets of some planes, and the window of sources
// that they meet, which the block copies to shared memory.
//
// A thread has kRun targets of a row, `step` apart, and slides over their sources. kRun is odd, so that threads side by
// side, whose sources begin kRun numbers apart in shared memory, meet different banks. Sources that one run meets lie
// side by side there: a row is dealt out into parts, as axis.h says.
namespace torch_ext::cuda {

inline constexpr int kRun = 7;
inline constexpr int kTileThreads = 256;
template <class T>
inline constexpr int kTileBlocks = sizeof(Acc<T>) == 8 ? 2 : 3;  // on a multiprocessor, by their registers
inline constexpr int kTileBytes = 56 << 10;                      // so that four blocks share a multiprocessor
inline constexpr int kMostTileBytes = 96 << 10;                  // what every GPU has, of compute capability 8.0 on

struct Tile {
  int planes;  // channels or images side by side
  Triple<int> targets, sources;
  int classes, runs;                        // of a row: targets modulo step, and the runs of each
  int part_pitch, row_pitch, target_pitch;  // in numbers
  int source_vector, target_vector;         // how many numbers are moved at a time

  TORCH_EXT_HOST_DEVICE int row_threads() const { return classes * runs; }
  TORCH_EXT_HOST_DEVICE int target_rows() const { return planes * targets[0] * targets[1]; }
  TORCH_EXT_HOST_DEVICE int64_t source_rows() const { return int64_t{planes} * sources[0] * sources[1]; }
  TORCH_EXT_HOST_DEVICE int64_t source_size() const { return source_rows() * row_pitch; }
  TORCH_EXT_HOST_DEVICE int64_t target_size() const { return int64_t{target_rows()} * target_pitch; }
  int threads() const { return row_threads() * target_rows(); }
  // Whether source_size() fits in 64 bits, to begin with.
  bool may_fit() const { return int64_t{sources[0]} * sources[1] <= kMostTileBytes; }
};

// The most numbers, up to 16 bytes, of which rows of this length and all strides are multiples. Rows then begin and end
// with whole vectors.
template <class T>
int row_vector(const View<T>& view, int64_t columns) {
  int vector = 16 / sizeof(T);
  const auto fits = [&](int64_t n) { return n % vector == 0; };
  while (vector > 1 &&
         !(view.spatial[2] == 1 && fits(columns) && fits(view.n) && fits(view.c) && fits(view.spatial[0]) &&
           fits(view.spatial[1]) && reinterpret_cast<uintptr_t>(view.data) % (vector * sizeof(T)) == 0))
    vector /= 2;
  return vector;
}

// The pitch, of a few, for which the fewest lanes of a warp meet in a bank, where rows of targets take `rows` rows of
// sources each.
inline int choose_pitch(int pitch, int multiple, int row_threads, int rows, int banks) {
  int best = pitch, fewest = banks + 1;
  for (int candidate = pitch; candidate < pitch + 8 * multiple && fewest > 1; candidate += multiple) {
    int met[32] = {}, most = 0;
    for (int lane = 0; lane < banks; ++lane) {
      const int bank = (lane % row_threads * kRun + lane / row_threads * rows * candidate) % banks;
      most = simt::max(most, ++met[bank]);
    }
    if (most < fewest) fewest = most, best = candidate;
  }
  return best;
}

template <class T>
void set_pitches(const Triple<Axis>& axes, Tile* tile) {
  using A = Acc<T>;
  const Axis& columns = axes[2];
  constexpr int kVector = 16 / sizeof(A);
  tile->classes = simt::min(columns.step, tile->targets[2]);
  tile->runs = static_cast<int>(simt::ceil_div(simt::ceil_div(tile->targets[2], columns.step), kRun));
  // The last run of a row reads on to its end, which may be beyond the tile.
  const int64_t last = int64_t{columns.step} * (kRun * tile->runs - 1) + tile->classes;
  const int64_t reach = simt::min<int64_t>(source_count(columns, last) + tile->source_vector - 1, 1 << 24);
  for (int axis = 0; axis < 3; ++axis) tile->sources[axis] = source_count(axes[axis], tile->targets[axis]);
  tile->sources[2] = round_up(tile->sources[2] + tile->source_vector - 1, tile->source_vector);
  const int64_t widest = simt::max<int64_t>(reach, tile->sources[2]);
  tile->part_pitch = static_cast<int>(simt::ceil_div(widest, columns.parts));
  const int multiple = columns.parts == 1 ? kVector : 1;
  tile->row_pitch = round_up(tile->part_pitch * columns.parts, multiple);
  const int rows = axes[1].transposed ? 1 : axes[1].stride;
  if (tile->row_pitch < 1 << 14)
    tile->row_pitch = choose_pitch(tile->row_pitch, multiple, tile->row_threads(), rows, 128 / sizeof(A));
  tile->target_pitch = round_up(tile->targets[2], 16 / sizeof(T));
}

// A tile of up to `most_planes` planes, which takes bytes(tile) of shared memory. It may be too large.
template <class T, class Bytes>
Tile make_tile(const Triple<Axis>& axes, int source_vector, int target_vector, int most_planes, const Bytes& bytes) {
  Tile tile{};
  tile.planes = 1;
  tile.source_vector = source_vector;
  tile.target_vector = target_vector;
  const Axis &depth = axes[0], &rows = axes[1], &columns = axes[2];
  tile.targets = {{1, 1, columns.target}};
  constexpr int kWidest = 64 * kRun;  // a multiple of 32, as those of whole vectors must be
  if (columns.target > kWidest) tile.targets[2] = round_up(equal_pieces(columns.target, kWidest), 32);
  set_pitches<T>(axes, &tile);
  while ((tile.row_threads() > kTileThreads || bytes(tile) > kTileBytes) && tile.targets[2] > 32) {
    tile.targets[2] = round_up(tile.targets[2] / 2, 32);
    set_pitches<T>(axes, &tile);
  }

  // As many rows as there are threads for; with taps along the depth, too, as deep as high.
  const auto grow = [&](int axis, int most) {
    for (most = simt::min(axes[axis].target, most); most > 1; most = (most + 1) / 2) {
      Tile larger = tile;
      larger.targets[axis] = equal_pieces(axes[axis].target, most);
      set_pitches<T>(axes, &larger);
      if (bytes(larger) <= kTileBytes) {
        tile = larger;
        return;
      }
    }
  };
  int deep = 1;
  while (depth.kernel > 1 && deep * deep * 2 * tile.row_threads() <= kTileThreads) deep *= 2;
  if (deep > 1) grow(0, simt::min(deep, depth.target));
  grow(1, kTileThreads / (tile.row_threads() * tile.targets[0]));
  if (tile.targets[1] == rows.target && tile.targets[0] == 1) grow(0, kTileThreads / tile.threads());

  if (tile.targets[0] == depth.target && tile.targets[1] == rows.target && tile.targets[2] == columns.target) {
    int planes = simt::min(most_planes, kTileThreads / tile.threads());
    for (; planes > 1; --planes) {
      tile.planes = planes;
      if (bytes(tile) <= kTileBytes) break;
    }
    if (planes > 1) tile.planes = equal_pieces(most_planes, planes);
    else tile.planes = 1;
  }
  return tile;
}

// Weights of a channel in shared memory: [kd, kh, list, tap of the list], lists padded to whole vectors.
template <class A>
TORCH_EXT_HOST_DEVICE int list_pitch(const Axis& columns) {
  constexpr int kVector = 16 / sizeof(A);
  return static_cast<int>(simt::ceil_div(taps_in_list(columns, 0), kVector)) * kVector;
}
template <class A>
TORCH_EXT_HOST_DEVICE int weight_size(const Triple<Axis>& axes) {
  return axes[0].kernel * axes[1].kernel * axes[2].filled * list_pitch<A>(axes[2]);
}

// Copies the weights of some channels of the target and one of their sources; those from `channels` on are zero.
template <class T>
SIMT_DEVICE void load_weights(const View<const T>& weight, const Triple<Axis>& axes, const Pairs& pairs, int channel,
                              int channels, int count, int term, Acc<T>* to) {
  const Axis& columns = axes[2];
  const int height = axes[1].kernel, taps = axes[0].kernel * height * columns.kernel;
  for (int i = threadIdx.x; i < count * taps; i += blockDim.x) {
    const int of_channel = i / taps, tap = i - of_channel * taps, row = tap / columns.kernel;
    const int k = tap - row * columns.kernel, along = k / columns.lists, list = k - along * columns.lists;
    const int in_list = columns.transposed ? taps_in_list(columns, list) - 1 - along : along;
    const T* from = weight.data + pairs.weight(weight, channel + of_channel, term) + row / height * weight.spatial[0] +
                    row % height * weight.spatial[1] + k * weight.spatial[2];
    to[of_channel * weight_size<Acc<T>>(axes) + (row * columns.filled + list) * list_pitch<Acc<T>>(columns) + in_list] =
        simt::widen(simt::ld(from, of_channel < channels));
  }
}

// Numbers side by side to shared memory, up to 16 bytes at a time.
template <class A, int V>
SIMT_DEVICE void write_vector(A* to, const simt::Vector<A, V>& values) {
  constexpr int kWidth = simt::min<int>(V, 16 / sizeof(A));
  SIMT_UNROLL
  for (int i = 0; i < V; i += kWidth) *reinterpret_cast<simt::Vector<A, kWidth>*>(to + i) = part<kWidth>(values, i);
}

// Copies a window of sources to shared memory, and deals out each row into parts.
template <int kBatch = 4, class T>
SIMT_DEVICE void load_dealt(const Box& box, const Tile& tile, int parts, const Region<const T>& region, Acc<T>* to) {
  const int row_pitch = tile.row_pitch, part_pitch = tile.part_pitch;
  load_box<kBatch>(box, tile.planes, region, [&]<int V>(const InBox& at, const simt::Vector<Acc<T>, V>& values) {
    Acc<T>* row = to + at.row * row_pitch;
    if (parts == 1) return write_vector(row + at.column, values);
    SIMT_UNROLL
    for (int i = 0; i < V; ++i) {
      const int column = at.column + i, along = column / parts;
      row[(column - along * parts) * part_pitch + along] = values[i];
    }
  });
}

}  // namespace torch_ext::cuda
