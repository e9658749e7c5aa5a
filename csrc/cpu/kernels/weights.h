#pragma once

// The weight, to and from the order the kernels compute in: packed[vector][term][tap][lane], and [channel][term][tap]
// where columns are lanes.
#include "pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// Where the weights of the target channels first, first + 1, ... lie: those of their term r. A group has `targets` of
// them and `terms` terms; these are its outputs if transposed, else its inputs.
template <class T, class A = Acc<std::remove_const_t<T>>>
Lanes<A> weight_lanes(const View<T>& weight, const Channels& channels, int64_t first, int64_t targets, int64_t terms,
                      int64_t r, bool transposed) {
  Lanes<A> lanes;
  lanes.count = std::min(channels.lanes, channels.channels - first);
  for (int64_t i = 0; i < lanes.count; ++i) {
    const int64_t c = first + i;
    lanes.offset[i] =
        transposed ? (c / targets * terms + r) * weight.n + c % targets * weight.c : c * weight.n + r * weight.c;
  }
  lanes.finish();
  return lanes;
}

// Calls body(offset, taps, first tap) for the runs of taps that are `weight.spatial[2]` apart in memory.
template <class T, class Body>
void for_each_run(const Triple<int64_t>& kernel, const View<T>& weight, const Body& body) {
  const Triple<int64_t>& stride = weight.spatial;
  const bool rows = kernel[1] == 1 || stride[1] == kernel[2] * stride[2];
  if (rows && (kernel[0] == 1 || stride[0] == kernel[1] * kernel[2] * stride[2])) {
    body(0, kernel[0] * kernel[1] * kernel[2], 0);
    return;
  }
  for (int64_t d = 0; d < kernel[0]; ++d)
    for (int64_t h = 0; h < kernel[1]; ++h)
      body(d * stride[0] + h * stride[1], kernel[2], (d * kernel[1] + h) * kernel[2]);
}

template <class T>
void pack_weight(const CorrelatePlan& p, View<const T> weight, Acc<T>* packed) {
  for (int64_t vector = 0; vector < p.channels.all_vectors(); ++vector)
    for (int64_t r = 0; r < p.terms; ++r, packed += p.taps() * p.channels.lanes) {
      const auto lanes =
          weight_lanes(weight, p.channels, p.channels.first(vector), p.targets, p.terms, r, p.transposed);
      for_each_run(p.kernel(), weight, [&](int64_t offset, int64_t taps, int64_t first) {
        const T* from = weight.data + offset;
        if (lanes_are_columns(p.order)) pack_line(from + lanes.offset[0], weight.spatial[2], taps, packed + first);
        else pack_columns(from, weight.spatial[2], lanes, taps, packed + first * p.channels.lanes);
      });
    }
}

// Adds the slices in order, into the first of them.
template <class A>
void add_slices(int64_t slices, int64_t slice_size, A* partial_sums) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t slice = 1; slice < slices; ++slice) {
    const A* from = partial_sums + slice * slice_size;
    int64_t i = 0;
    for (; i + L <= slice_size; i += L)
      (Vec<A>::load(partial_sums + i) + Vec<A>::load(from + i)).store(partial_sums + i);
    for (; i < slice_size; ++i) partial_sums[i] += from[i];
  }
}

template <class T>
void add_grad_weight(const GradWeightPlan& p, Acc<T>* partial_sums, View<T> grad_weight) {
  add_slices(p.parts.count(), p.slice_size(), partial_sums);
  const Acc<T>* packed = partial_sums;
  const bool by_input = !p.wide_output && p.terms == 1;  // a lane is an input, not an output
  for (int64_t i = 0; i < p.channels.all_vectors() * p.terms; ++i, packed += p.taps() * p.channels.lanes) {
    const auto lanes = weight_lanes(grad_weight, p.channels, p.channels.first(i / p.terms), p.multiplier, p.terms,
                                    i % p.terms, by_input);
    for_each_run(p.kernel(), grad_weight, [&](int64_t offset, int64_t taps, int64_t first) {
      T* to = grad_weight.data + offset;
      if (lanes_are_columns(p.order)) unpack_line(packed + first, taps, grad_weight.spatial[2], to + lanes.offset[0]);
      else unpack_columns(packed + first * p.channels.lanes, taps, lanes, grad_weight.spatial[2], to);
    });
  }
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
