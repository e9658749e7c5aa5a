#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include "../../core/deform_geometry.h"
#include "../../core/sampling.h"
#include "plan.h"

// How deformable convolution is cut: integers only. The samples of an offset group's channels are the same, so that
// they are computed once, for some positions of an image and some taps at a time.
namespace torch_ext::cpu {

// What is sampled at a time. A block of samples is [position][tap] of one offset group.
struct SampledPart {
  int64_t image;
  Range positions, taps;

  int64_t samples() const { return size(positions) * size(taps); }
};

// Channels that share an offset group and a group.
struct ChannelRun {
  Range channels;
  int64_t offset_group, group;
};

inline std::vector<ChannelRun> channel_runs(const DeformGeometry<int64_t>& g, int64_t most) {
  const int64_t per_offset = g.conv.in_channels / g.offset_groups, per_group = g.conv.in_per_group();
  std::vector<ChannelRun> runs;
  for (int64_t first = 0; first < g.conv.in_channels;) {
    const int64_t offset_group = first / per_offset, group = first / per_group;
    const int64_t end = std::min({(offset_group + 1) * per_offset, (group + 1) * per_group, first + most});
    runs.push_back({{first, end}, offset_group, group});
    first = end;
  }
  return runs;
}

inline int64_t sample_bytes(int dims, int64_t element_bytes) {
  const int64_t corners = int64_t{1} << dims;
  return ceil_div(corners * (8 + element_bytes) + (dims + 1) * element_bytes + 4, 8) * 8;
}

// So many positions and taps at a time.
struct DeformTile {
  int64_t positions, taps;

  int64_t samples() const { return positions * taps; }
};

// Of at most `most` bytes, if those of a position and its first tap are no more. A matrix product packs the weight anew
// for each tile of positions, and goes over its result once for each of taps: so many positions rather than many taps.
// Tiles are a multiple of 8, where they are many, so that threads have as many each.
inline DeformTile deform_tile(const DeformGeometry<int64_t>& g, int64_t sample_bytes, int64_t position_bytes,
                              int64_t most) {
  constexpr int64_t kMostPositions = 512, kFewestPositions = 128, kLeastPositions = 16, kTiles = 8;
  const int64_t positions = g.positions();
  const int64_t limit = std::max<int64_t>(1, most / (sample_bytes + position_bytes));
  const int64_t fewest = std::clamp(positions * g.conv.batch / kTiles, kLeastPositions, kFewestPositions);
  const int64_t wanted = std::clamp(most / (g.taps() * sample_bytes + position_bytes), fewest, kMostPositions);
  int64_t tiles = ceil_div(positions, std::min(wanted, limit));
  if (2 * tiles > kTiles) tiles = std::min(positions, (2 * tiles + kTiles) / (2 * kTiles) * kTiles);
  if (ceil_div(positions, tiles) > limit) tiles = ceil_div(positions, limit);
  DeformTile tile{ceil_div(positions, tiles), 1};
  const int64_t left = most - tile.positions * position_bytes;
  tile.taps = std::clamp<int64_t>(left / (tile.positions * sample_bytes), 1, g.taps());
  tile.taps = ceil_div(g.taps(), ceil_div(g.taps(), tile.taps));
  return tile;
}

}  // namespace torch_ext::cpu
