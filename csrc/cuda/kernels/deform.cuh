#pragma once

#include "deform_channels.cuh"
#include "deform_positions.cuh"
#include "deform_round.cuh"

// Deformable convolution for launch code: each function chooses a kernel, and calls launch(size, kernel, parameters).
//
//   output[n, o, i] = bias[o] + sum over c, t of weight[o, c, t] * column[n, i, t, c]
//
// The sum is a matrix product, which is not made here: of columns [row][split * tap * channel] of a group and its
// weight.
namespace torch_ext::cuda {

// Calls body.template operator()<dims>().
template <class Body>
void with_dims(int dims, const Body& body) {
  if (dims == 1) body.template operator()<1>();
  else if (dims == 2) body.template operator()<2>();
  else body.template operator()<3>();
}

// Of few channels, lanes would be idle, and sectors used in part.
template <class T>
bool lanes_are_channels(const DeformInputs<T>& in, const DeformSizes& sizes) {
  constexpr int kSectorBytes = 32;
  return in.input.c == 1 && sizes.per_offset * static_cast<int>(sizeof(T)) >= kSectorBytes;
}

template <class T>
bool has_columns(const DeformInputs<T>& in) {
  const auto is_empty = [](Range r) { return r.begin >= r.end; };
  return !is_empty(in.images) && !is_empty(in.positions) && in.geometry.conv.in_channels > 0;
}

// 16 bytes of channels begin at a multiple of as many everywhere.
template <class T>
bool has_vectors(const DeformInputs<T>& in, const DeformSizes& sizes, const Columns<T>& columns) {
  constexpr int64_t kVector = 16 / sizeof(T);
  const View<T> rows{columns.data, columns.group, 1, {{columns.row, 0, 0}}};
  return sizes.per_offset % kVector == 0 && sizes.per_group % kVector == 0 &&
         is_aligned(in.input, kVector, sizeof(T)) && is_aligned(rows, kVector, sizeof(T));
}

template <class T, class Launch>
void make_columns(const DeformInputs<T>& in, const Columns<T>& columns, const Launch& launch) {
  if (!has_columns(in)) return;
  const DeformSizes sizes = sizes_of(in);
  with_dims(in.geometry.conv.dims, [&]<int kDims>() {
    if (!lanes_are_channels(in, sizes)) {
      const RunTile tile = run_tile(in, sizes);
      const PositionColumnsParams<T> p{in, sizes, tile, columns};
      launch(run_tile_size<Acc<T>>(tile, 0), position_columns_kernel<kDims, T>, p);
      return;
    }
    const auto by_channels = [&]<int kVector>() {
      const SampleTile tile = sample_tile(in, sizes, kVector, kPlacedBytes<T, kDims>);
      const ChannelColumnsParams<T> p{in, sizes, tile, columns};
      launch(sample_tile_size(in, tile, kPlacedBytes<T, kDims>), channel_columns_kernel<kDims, kVector, T>, p);
    };
    if (has_vectors(in, sizes, columns)) by_channels.template operator()<16 / sizeof(T)>();
    else by_channels.template operator()<1>();
  });
}

// From the gradient of the columns. Sums are added to what is there.
template <class T, class S, class Launch>
void spread_columns(const DeformInputs<T>& in, const Columns<const Acc<T>>& columns,
                    const DeformGradients<T, S>& gradients, const Launch& launch) {
  if (!has_columns(in) || (gradients.sums.data == nullptr && !gradients.has_sampling())) return;
  const DeformSizes sizes = sizes_of(in, gradients.offset);
  with_dims(in.geometry.conv.dims, [&]<int kDims>() {
    constexpr size_t kDotsBytes = sizeof(Acc<T>) << kDims;
    if (lanes_are_channels(in, sizes)) {
      constexpr int64_t kBytes = kPlacedBytes<T, kDims> + kDotsBytes;
      const SampleTile tile = sample_tile(in, sizes, 1, kBytes);
      const ChannelSpreadParams<T, S> p{in, sizes, tile, columns, gradients};
      launch(sample_tile_size(in, tile, kBytes), channel_spread_kernel<kDims, S, T>, p);
    } else {
      const RunTile tile = run_tile(in, sizes);
      const PositionSpreadParams<T, S> p{in, sizes, tile, columns, gradients};
      launch(run_tile_size<Acc<T>>(tile, kDotsBytes), position_spread_kernel<kDims, S, T>, p);
    }
  });
}

// The gradient of the input of some images, from the sums.
template <class T, class S, class Launch>
void round_sums(const ConvGeometry<int64_t>& geometry, Range images, const InputSums<T, S>& sums,
                const View<T>& grad_input, const Launch& launch) {
  const RoundParams<T, S> p = round_params(geometry, images, sums, grad_input);
  if (p.count > 0) launch(round_size(p), round_kernel<S, T>, p);
}

}  // namespace torch_ext::cuda
