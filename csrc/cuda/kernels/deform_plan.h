#pragma once

#include "deform_arguments.h"
#include "simt.h"

// How the kernels of deformable convolution are cut: integers, on the host.
namespace torch_ext::cuda {

// What kernels use of the sizes and strides.
struct DeformSizes {
  int taps, groups, per_group, per_offset;  // channels of a group, and of an offset group
  int64_t pixel;                            // from one pixel to the next, or -1 if they are not evenly spaced
  bool offset_pairs, grad_pairs;            // the two numbers of an offset are loaded as one, or stored
};

template <class T>
int64_t even_pixel_stride(const View<T>& v, const Triple<int64_t>& sizes) {
  int64_t stride = -1, pixels = 1;
  for (int axis = 2; axis >= 0; --axis) {
    if (sizes[axis] == 1) continue;
    if (stride < 0) stride = v.spatial[axis];
    if (v.spatial[axis] != stride * pixels) return -1;
    pixels *= sizes[axis];
  }
  return simt::max<int64_t>(stride, 0);
}

// Whether all rows of channels of a tensor begin at a multiple of `count` numbers, and the channels are adjacent.
template <class T>
bool is_aligned(const View<T>& v, int64_t count, int64_t bytes) {
  bool aligned = v.c == 1 && reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(count * bytes) == 0;
  const int64_t strides[] = {v.n, v.spatial[0], v.spatial[1], v.spatial[2]};
  for (const int64_t stride : strides) aligned &= stride % count == 0;
  return aligned;
}

template <class T>
bool has_pairs(const EitherView<T>& t, int dims) {
  return dims == 2 && t.exists() && is_aligned(t.view, 2, t.is_wide ? sizeof(Acc<T>) : sizeof(T));
}

template <class T>
DeformSizes sizes_of(const DeformInputs<T>& in, const EitherView<T>& grad_offset = {}) {
  const ConvGeometry<int64_t>& g = in.geometry.conv;
  DeformSizes s;
  s.taps = static_cast<int>(in.geometry.taps());
  s.groups = static_cast<int>(g.groups);
  s.per_group = static_cast<int>(g.in_per_group());
  s.per_offset = static_cast<int>(g.in_channels / in.geometry.offset_groups);
  s.pixel = even_pixel_stride(in.input, g.in);
  s.offset_pairs = has_pairs(in.offset, g.dims);
  s.grad_pairs = has_pairs(grad_offset, g.dims);
  return s;
}

inline int power_of_two_from(int64_t count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

inline int even_part(int64_t count, int64_t most) {
  return static_cast<int>(simt::ceil_div(count, simt::ceil_div(count, most)));
}

// ---- lanes are channels: a block has the samples of some positions, taps and offset groups ----

inline constexpr int kSampleThreads = 256;

struct SampleTile {
  int positions, taps, offset_groups;
  int adjacent_groups;  // offset groups whose channels are of one group, and next to each other in columns
  int lanes;            // of a sample: a power of two
  bool channels_first;  // offsets are read channel by channel, not position by position
  int64_t position_tiles, tap_tiles, group_tiles;

  TORCH_EXT_HOST_DEVICE int samples() const { return positions * taps * offset_groups; }
};

// A sample's place in the columns is in chunks of its offset group's channels. Where these are few, a block has several
// offset groups, whose chunks lie side by side.
template <class T>
SampleTile sample_tile(const DeformInputs<T>& in, const DeformSizes& s, int vector, int64_t sample_bytes) {
  constexpr int64_t kSharedBytes = 32 << 10, kFewestBlocks = 256, kFewestSamples = 32, kChunkBytes = 128;
  constexpr int64_t kMostPositions = 32, kMostGroups = 16;
  const int64_t groups = in.geometry.offset_groups, positions = in.positions.end - in.positions.begin;
  const int64_t images = in.images.end - in.images.begin;
  SampleTile t;
  t.offset_groups = 1;
  for (int64_t n = simt::min(groups, kMostGroups); n > 1; --n)
    if (groups % n == 0 && (n - 1) * s.per_offset * static_cast<int64_t>(sizeof(T)) < kChunkBytes) {
      t.offset_groups = static_cast<int>(n);
      break;
    }
  t.adjacent_groups = 1;
  for (int n = t.offset_groups; n > 1; --n)
    if (t.offset_groups % n == 0 && s.per_group % (n * s.per_offset) == 0) {
      t.adjacent_groups = n;
      break;
    }
  t.lanes = simt::min(32, power_of_two_from(s.per_offset / vector));
  t.channels_first = in.offset.view.c == 1;

  const int64_t samples = images * positions * s.taps * groups;
  int64_t most = simt::min(simt::max(samples / kFewestBlocks, kFewestSamples), kSharedBytes / sample_bytes);
  most = simt::max<int64_t>(most / t.offset_groups, 1);
  const int64_t few = t.channels_first ? 1 : simt::min(positions, kMostPositions);  // whole sectors
  t.taps = even_part(s.taps, simt::min<int64_t>(simt::max<int64_t>(most / few, 1), s.taps));
  t.positions = static_cast<int>(simt::max<int64_t>(simt::min(most / t.taps, simt::min(positions, kMostPositions)), 1));
  t.position_tiles = simt::ceil_div(positions, t.positions);
  t.tap_tiles = simt::ceil_div(s.taps, t.taps);
  t.group_tiles = groups / t.offset_groups;
  return t;
}

template <class T>
simt::LaunchSize sample_tile_size(const DeformInputs<T>& in, const SampleTile& t, int64_t sample_bytes) {
  const int64_t blocks = (in.images.end - in.images.begin) * t.position_tiles * t.tap_tiles * t.group_tiles;
  return {{static_cast<unsigned>(blocks)}, {kSampleThreads}, static_cast<size_t>(t.samples() * sample_bytes)};
}

// ---- lanes are positions: a warp has runs of 32 positions; a run is the channels of an offset group at a tap ----

inline constexpr int kPositionWarps = 4, kPositionThreads = 32 * kPositionWarps;
inline constexpr int kTileColumns = 32, kTilePitch = kTileColumns + 1;  // in shared memory, without bank conflicts

// Runs are numbered [outer][tap][inner]. Where offset groups divide groups, an outer one is a group, and all its runs
// lie side by side in a row of the columns; else all is one, and a run may be in several groups.
struct RunTile {
  int outer, inner;
  int runs;                                  // of a warp: several, if together they have at most a tile's columns
  int parts;                                 // warps that share the channels of a run
  int64_t run_tiles, position_tiles, items;  // items: of `parts` warps

  TORCH_EXT_HOST_DEVICE bool is_one_tile() const { return runs > 1; }
};

template <class T>
RunTile run_tile(const DeformInputs<T>& in, const DeformSizes& s) {
  constexpr int64_t kFewestWarps = 4096;
  const bool divides = s.per_group % s.per_offset == 0;
  RunTile t;
  t.outer = divides ? s.groups : 1;
  t.inner = static_cast<int>(in.geometry.offset_groups) / t.outer;
  const int64_t runs = int64_t{s.taps} * t.inner;
  t.runs = divides ? static_cast<int>(simt::min<int64_t>(simt::max(kTileColumns / s.per_offset, 1), runs)) : 1;
  t.run_tiles = simt::ceil_div(runs, t.runs);
  t.position_tiles = simt::ceil_div(in.positions.end - in.positions.begin, 32);
  t.items = (in.images.end - in.images.begin) * t.position_tiles * t.outer * t.run_tiles;
  t.parts = 1;
  while (t.parts < kPositionWarps && s.per_offset > kTileColumns * t.parts && t.items * t.parts < kFewestWarps)
    t.parts *= 2;
  return t;
}

// `dots`: bytes of a thread, for what the parts of a run add up to.
template <class A>
simt::LaunchSize run_tile_size(const RunTile& t, size_t dots) {
  const size_t bytes = kPositionThreads * (kTilePitch * sizeof(A) + (t.parts > 1 ? dots : 0));
  return {{static_cast<unsigned>(simt::ceil_div(t.items * t.parts, kPositionWarps))}, {kPositionThreads}, bytes};
}

}  // namespace torch_ext::cuda
