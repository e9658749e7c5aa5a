#pragma once

// Deformable convolution.
//
//   output[n, o, i] = bias[o] + sum over c, t of weight[o, c, t] * column[n, i, t, c]
//   column[n, i, t, c] = mask[n, t, i] * value of input[n, c] at i * stride + t * dilation - pad + offset[n, t, i]
//
// A matrix product of the weight with columns, whose values are those of core/sampling.h; the kernels here make the
// columns, and spread their gradient to those of input, offset and mask. Lanes are channels, which lie side by side: a
// sample, computed once, serves all channels of its offset group. Samples of a block lie as [position][tap].
#include "deform_plan.h"
#include "pack.h"
#include "tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Calls body.template operator()<dims>().
template <class Body>
void with_dims(int dims, const Body& body) {
  if (dims == 1) body.template operator()<1>();
  else if (dims == 2) body.template operator()<2>();
  else body.template operator()<3>();
}

// Calls body(d, h, columns, i) for the parts of rows that make up the positions; the i-th position is the first.
template <class Body>
void for_each_row(const Triple<int64_t>& sizes, Range positions, const Body& body) {
  for (int64_t at = positions.begin; at < positions.end;) {
    const int64_t row = at / sizes[2], first = at % sizes[2];
    const int64_t count = std::min(sizes[2] - first, positions.end - at);
    body(row / sizes[1], row % sizes[1], Range{first, first + count}, at - positions.begin);
    at += count;
  }
}

template <class T>
T* at_row(const View<T>& tensor, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
  return tensor.at(n, c) + d * tensor.spatial[0] + h * tensor.spatial[1] + w * tensor.spatial[2];
}

// packed[position][channel] in Acc<T>, `pitch` numbers from one position to the next.
template <class T>
void pack_positions(View<const T> tensor, const Triple<int64_t>& sizes, int64_t n, int64_t channels, Range positions,
                    Acc<T>* packed, int64_t pitch) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>, kColumns = 8 * L;
  for (int64_t c = 0; c < channels; c += L) {
    const Lanes<A> lanes(c, channels, ChannelMap{1, 1}, tensor.c);
    for_each_row(sizes, positions, [&](int64_t d, int64_t h, Range w, int64_t i) {
      const T* const row = at_row(tensor, n, 0, d, h, w.begin);
      A* const to = packed + i * pitch + c;
      const int64_t step = tensor.spatial[2];
      if (lanes.count == L) return pack_columns(row, step, lanes, size(w), to, pitch);
      // Whole vectors would reach into the next position.
      alignas(64) A columns[kColumns * L];
      for (int64_t j = 0; j < size(w); j += kColumns) {
        const int64_t count = std::min(kColumns, size(w) - j);
        pack_columns(row + j * step, step, lanes, count, columns);
        for (int64_t k = 0; k < count; ++k)
          store_partial(to + (j + k) * pitch, Vec<A>::load(columns + k * L), lanes.count);
      }
    });
  }
}

// The way back: rounds and stores. Whole vectors are read: beyond the last position, too.
template <class T>
void unpack_positions(const Acc<T>* packed, int64_t pitch, const Triple<int64_t>& sizes, int64_t n, int64_t channels,
                      Range positions, View<T> tensor) {
  constexpr int64_t L = kLanes<Acc<T>>;
  for (int64_t c = 0; c < channels; c += L) {
    const Lanes<Acc<T>> lanes(c, channels, ChannelMap{1, 1}, tensor.c);
    for_each_row(sizes, positions, [&](int64_t d, int64_t h, Range w, int64_t i) {
      unpack_columns(packed + i * pitch + c, size(w), lanes, tensor.spatial[2], at_row(tensor, n, 0, d, h, w.begin), 0,
                     pitch);
    });
  }
}

template <class T, int kDims>
using SampleOf = Sample<Acc<T>, kDims>;

// Calls body(tap, its place in the kernel, d, h, columns, index) for the parts of rows of some of a block's positions;
// the index is that of the first sample, and the others follow a position's samples apart.
template <class Body>
void for_each_sample(const DeformGeometry<int64_t>& g, const SampledPart& part, Range positions, const Body& body) {
  const int64_t taps = size(part.taps), skipped = positions.begin - part.positions.begin;
  const Triple<int64_t>& kernel = g.conv.kernel;
  for (int64_t tap = part.taps.begin; tap < part.taps.end; ++tap) {
    const Triple<int64_t> at{{tap / kernel[2] / kernel[1], tap / kernel[2] % kernel[1], tap % kernel[2]}};
    for_each_row(g.conv.out, positions, [&](int64_t d, int64_t h, Range w, int64_t i) {
      body(tap, at, d, h, w, (skipped + i) * taps + tap - part.taps.begin);
    });
  }
}

// Samples of a block, from offset[n, (offset group, tap, axis), position], without a mask.
template <class O>
void sample(const DeformGeometry<int64_t>& g, View<const O> offset, const SampledPart& part, int64_t offset_group,
            Range positions, std::byte* samples) {
  using A = Acc<O>;
  with_dims(g.conv.dims, [&]<int kDims>() {
    auto* const block = reinterpret_cast<Sample<A, kDims>*>(samples);
    constexpr int kFirst = 3 - kDims;
    for_each_sample(g, part, positions,
                    [&](int64_t tap, const Triple<int64_t>& taps, int64_t d, int64_t h, Range w, int64_t index) {
                      const O* row[kDims];
                      for (int a = 0; a < kDims; ++a)
                        row[a] = at_row(offset, part.image, (offset_group * g.taps() + tap) * kDims + a, d, h, 0);
                      const int64_t position[3] = {d, h, 0};
                      int64_t first[kDims];
                      for (int a = 0; a < kDims; ++a) {
                        const int axis = kFirst + a;
                        first[a] = position[axis] * g.conv.stride[axis] - g.conv.pad_before[axis] +
                                   taps[axis] * g.conv.dilation[axis];
                      }
                      for (int64_t j = w.begin; j < w.end; ++j, index += size(part.taps)) {
                        int64_t whole[kDims];
                        A moved[kDims];
                        for (int a = 0; a < kDims; ++a) {
                          whole[a] = first[a] + (a == kDims - 1 ? j * g.conv.stride[2] : 0);
                          moved[a] = widen(row[a][j * offset.spatial[2]]);
                        }
                        block[index] = sample_at<A, kDims>(whole, moved, &g.conv.in.value[kFirst], 1);
                      }
                    });
  });
}

// Their mask, from mask[n, (offset group, tap), position].
template <class M>
void modulate(const DeformGeometry<int64_t>& g, View<const M> mask, const SampledPart& part, int64_t offset_group,
              Range positions, std::byte* samples) {
  with_dims(g.conv.dims, [&]<int kDims>() {
    auto* const block = reinterpret_cast<SampleOf<M, kDims>*>(samples);
    for_each_sample(g, part, positions,
                    [&](int64_t tap, const Triple<int64_t>&, int64_t d, int64_t h, Range w, int64_t index) {
                      const M* const row = at_row(mask, part.image, offset_group * g.taps() + tap, d, h, 0);
                      for (int64_t j = w.begin; j < w.end; ++j, index += size(part.taps))
                        block[index].mask = widen(row[j * mask.spatial[2]]);
                    });
  });
}

// Calls body(first, channels) for each vector of channels: the number is known to the compiler but for the last.
template <class A, class Body>
void for_each_vector(int64_t channels, const Body& body) {
  constexpr int64_t L = kLanes<A>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) body(c, std::integral_constant<int64_t, L>());
  if (c < channels) body(c, channels - c);
}

template <class T, class Count>
Vec<Acc<T>> load_channels(const T* from, Count count) {
  if constexpr (std::is_integral_v<Count>) return load_partial(from, count);
  else return load_wide(from);
}

template <class A, class Count>
void store_channels(A* to, Vec<A> x, Count count) {
  if constexpr (std::is_integral_v<Count>) store_partial(to, x, count);
  else x.store(to);
}

// columns[sample][channel] of a run of channels, `pitch` numbers from sample to sample.
template <class T>
void make_columns(int dims, const std::byte* samples, int64_t count, const T* image, int64_t pixel, int64_t channels,
                  Acc<T>* columns, int64_t pitch) {
  using A = Acc<T>;
  using V = Vec<A>;
  with_dims(dims, [&]<int kDims>() {
    constexpr int kCorners = 1 << kDims;
    const auto* s = reinterpret_cast<const SampleOf<T, kDims>*>(samples);
    for (const auto* const end = s + count; s < end; ++s, columns += pitch) {
      const V mask = V::broadcast(s->mask);
      if (s->kind == SampleKind::kWhole) {
        V weight[kCorners];
        const T* corner[kCorners];
        TORCH_EXT_UNROLL
        for (int k = 0; k < kCorners; ++k) {
          weight[k] = V::broadcast(s->weight[k]);
          corner[k] = image + s->pixel[k] * pixel;
        }
        for_each_vector<A>(channels, [&](int64_t c, auto n) {
          V sum = V::zero();
          TORCH_EXT_UNROLL
          for (int k = 0; k < kCorners; ++k) sum = fma(weight[k], load_channels(corner[k] + c, n), sum);
          store_channels(columns + c, fma(sum, mask, V::zero()), n);
        });
        continue;
      }
      const A none = s->kind == SampleKind::kNan ? std::numeric_limits<A>::quiet_NaN() : 0;
      for_each_vector<A>(channels, [&](int64_t c, auto n) {
        V sum = V::broadcast(none);
        if (s->kind == SampleKind::kPart)
          for (int k = 0; k < kCorners; ++k)
            if (s->pixel[k] >= 0)
              sum = fma(V::broadcast(s->weight[k]), load_channels(image + s->pixel[k] * pixel + c, n), sum);
        store_channels(columns + c, fma(sum, mask, V::zero()), n);
      });
    }
  });
}

// From the columns' gradient of a run of channels: what is added to the input's gradient, if that is not null; and
// dots[sample][corner] = sum over c of gradient[sample][c] * input[corner][c], if that is not null.
template <class T>
void spread_columns(int dims, const std::byte* samples, int64_t count, const T* image, int64_t pixel, int64_t channels,
                    const Acc<T>* gradient, int64_t pitch, Acc<T>* grad_image, int64_t grad_pixel, Acc<T>* dots) {
  using A = Acc<T>;
  using V = Vec<A>;
  with_dims(dims, [&]<int kDims>() {
    constexpr int kCorners = 1 << kDims;
    const auto* s = reinterpret_cast<const SampleOf<T, kDims>*>(samples);
    for (const auto* const end = s + count; s < end; ++s, gradient += pitch) {
      const V mask = V::broadcast(s->mask);
      // A sample outside adds nothing; it may have a slope. One that is no number has neither.
      const bool adds = grad_image && (s->kind == SampleKind::kWhole || s->kind == SampleKind::kPart);
      for (int k = 0; k < kCorners; ++k) {
        if (s->pixel[k] < 0 || s->kind == SampleKind::kNan) {
          if (dots) dots[k] = 0;
          continue;
        }
        const V weight = V::broadcast(s->weight[k]);
        if (dots) {
          const T* const from = image + s->pixel[k] * pixel;
          V sum = V::zero();
          for_each_vector<A>(channels, [&](int64_t c, auto n) {
            sum = fma(load_channels(gradient + c, n), load_channels(from + c, n), sum);
          });
          alignas(32) A lanes[kLanes<A>];
          sum.store(lanes);
          dots[k] = sum_lanes(lanes);
        }
        if (adds) {
          A* const to = grad_image + s->pixel[k] * grad_pixel;
          for_each_vector<A>(channels, [&](int64_t c, auto n) {
            const V term = fma(load_channels(gradient + c, n), mask, V::zero());
            store_channels(to + c, fma(weight, term, load_channels(to + c, n)), n);
          });
        }
      }
      if (dots) dots += kCorners;
    }
  });
}

// The gradient of a block's offsets, from dots over all of its channels.
template <class O>
void grad_offset(const DeformGeometry<int64_t>& g, const std::byte* samples, const Acc<O>* dots,
                 const SampledPart& part, int64_t offset_group, Range positions, View<O> gradient) {
  using A = Acc<O>;
  with_dims(g.conv.dims, [&]<int kDims>() {
    const auto* const block = reinterpret_cast<const Sample<A, kDims>*>(samples);
    for_each_sample(
        g, part, positions, [&](int64_t tap, const Triple<int64_t>&, int64_t d, int64_t h, Range w, int64_t index) {
          for (int64_t j = w.begin; j < w.end; ++j, index += size(part.taps)) {
            const auto& s = block[index];
            for (int a = 0; a < kDims; ++a) {
              A sum = 0;
              for (int k = 0; k < (1 << kDims); ++k) sum += slope(s, k, a) * dots[index * (1 << kDims) + k];
              if (s.kind == SampleKind::kNan) sum = std::numeric_limits<A>::quiet_NaN();
              narrow(sum * s.mask, at_row(gradient, part.image, (offset_group * g.taps() + tap) * kDims + a, d, h, j));
            }
          }
        });
  });
}

// The gradient of its mask.
template <class M>
void grad_mask(const DeformGeometry<int64_t>& g, const std::byte* samples, const Acc<M>* dots, const SampledPart& part,
               int64_t offset_group, Range positions, View<M> gradient) {
  using A = Acc<M>;
  with_dims(g.conv.dims, [&]<int kDims>() {
    const auto* const block = reinterpret_cast<const Sample<A, kDims>*>(samples);
    for_each_sample(g, part, positions,
                    [&](int64_t tap, const Triple<int64_t>&, int64_t d, int64_t h, Range w, int64_t index) {
                      for (int64_t j = w.begin; j < w.end; ++j, index += size(part.taps)) {
                        const auto& s = block[index];
                        A sum = 0;
                        if (s.kind != SampleKind::kOutside)
                          for (int k = 0; k < (1 << kDims); ++k) sum += s.weight[k] * dots[index * (1 << kDims) + k];
                        if (s.kind == SampleKind::kNan) sum = std::numeric_limits<A>::quiet_NaN();
                        narrow(sum, at_row(gradient, part.image, offset_group * g.taps() + tap, d, h, j));
                      }
                    });
  });
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
