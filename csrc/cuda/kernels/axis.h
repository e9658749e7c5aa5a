#pragma once

#include <cstdint>
#include <numeric>

#include "../../core/geometry.h"
#include "indexing.h"

// One axis of a correlation, which is forward or the gradient of the input:
//
//   forward     target[i] = sum over k of weight[k] * source[i * stride + k * dilation - pad]
//   transposed  target[i] = sum over k of weight[k] * source[(i + pad - k * dilation) / stride], where that is whole
//
// Both come to a correlation without stride and dilation. Taps are dealt out into `lists`, by k modulo lists = stride /
// g, with g = gcd(stride, dilation). Then, for a list and its a-th tap,
//
//   sources that follow each other in a list lie `parts` apart, and targets with the same sources, one further, `step`:
//
//   source_of(i + step, list) + parts * a = source_of(i, list) + parts * (a + 1)
//
// so that a thread with targets i, i + step, ... slides over its sources. Forward, each target meets all lists;
// transposed, only the one of whole quotients, or none, and the taps of a list are taken from the last to the first.
namespace torch_ext::cuda {

struct Axis {
  int source, target, kernel;
  int stride, dilation, pad;
  bool transposed;
  int lists, parts, step;
  int filled;           // lists that have taps
  int common, inverse;  // g, and the inverse of dilation / g modulo lists
};

// Taps of a target: from the first, so many, so far apart, and the sources that they meet.
struct Taps {
  int count, tap, tap_step, source, source_step;
};

// Sizes that fit kernels with 32-bit positions; strides that no second position and dilations that no second tap uses
// are 1.
inline bool make_axis(const ConvGeometry<int64_t>& g, int axis, bool transposed, Axis* result) {
  const int64_t limit = 1 << 28;
  const int64_t stride = g.out[axis] > 1 ? g.stride[axis] : 1, dilation = g.kernel[axis] > 1 ? g.dilation[axis] : 1;
  const int64_t extent = g.in[axis] + g.pad_before[axis] + g.pad_after[axis];
  if (extent > limit || g.out[axis] > limit || stride > 1 << 15 || dilation > limit) return false;
  const int64_t common = std::gcd(stride, dilation), lists = stride / common;
  if (lists * dilation > limit) return false;
  Axis& a = *result;
  a.source = static_cast<int>(transposed ? g.out[axis] : g.in[axis]);
  a.target = static_cast<int>(transposed ? g.in[axis] : g.out[axis]);
  a.kernel = static_cast<int>(g.kernel[axis]);
  a.stride = static_cast<int>(stride);
  a.dilation = static_cast<int>(dilation);
  a.pad = static_cast<int>(g.pad_before[axis]);
  a.transposed = transposed;
  a.common = static_cast<int>(common);
  a.lists = static_cast<int>(lists);
  a.parts = static_cast<int>(transposed ? dilation / common : dilation * lists);
  a.step = static_cast<int>(transposed ? dilation * lists : dilation / common);
  a.filled = simt::min(a.lists, a.kernel);
  a.inverse = 0;
  while (a.lists > 1 && (dilation / common * a.inverse) % lists != 1) ++a.inverse;
  return true;
}

inline bool make_axes(const ConvGeometry<int64_t>& g, bool transposed, Triple<Axis>* axes) {
  for (int axis = 0; axis < 3; ++axis)
    if (!make_axis(g, axis, transposed, &(*axes)[axis])) return false;
  return true;
}

TORCH_EXT_HOST_DEVICE inline int taps_in_list(const Axis& a, int list) {
  return (a.kernel - list + a.lists - 1) / a.lists;
}

// The one list that a target meets in a transposed axis, or -1.
TORCH_EXT_HOST_DEVICE inline int list_of(const Axis& a, int target) {
  if (a.stride == 1) return 0;
  const int i = target + a.pad, whole = i / a.common;
  return whole * a.common == i ? whole % a.lists * a.inverse % a.lists : -1;
}

// The lists that a target meets.
struct ListRange {
  int begin, end;
};
TORCH_EXT_HOST_DEVICE inline ListRange lists_of(const Axis& a, int target) {
  if (!a.transposed) return {0, a.filled};
  const int list = list_of(a, target);
  return {list, list < 0 ? list : list + 1};
}

// The source of a list's first tap, in the order in which sources ascend.
TORCH_EXT_HOST_DEVICE inline int source_of(const Axis& a, int target, int list) {
  if (!a.transposed) return target * a.stride + list * a.dilation - a.pad;
  const int last = target + a.pad - list * a.dilation;
  return (a.stride == 1 ? last : last / a.stride) - a.parts * (taps_in_list(a, list) - 1);
}

// The kernel's tap that is a list's a-th in that order is first_tap + a * tap_step.
TORCH_EXT_HOST_DEVICE inline int tap_step(const Axis& a) { return a.transposed ? -a.lists : a.lists; }
TORCH_EXT_HOST_DEVICE inline int first_tap(const Axis& a, int list) {
  return a.transposed ? list + a.lists * (taps_in_list(a, list) - 1) : list;
}

// All taps of a target at once, where nothing slides.
TORCH_EXT_HOST_DEVICE inline Taps taps_of(const Axis& a, int target) {
  if (!a.transposed) return {a.kernel, 0, 1, target * a.stride - a.pad, a.dilation};
  const int list = list_of(a, target);
  if (list < 0) return {0, 0, 0, 0, 0};
  return {taps_in_list(a, list), first_tap(a, list), tap_step(a), source_of(a, target, list), a.parts};
}

// The first source that any of the targets from `target` on meets, and how many follow each other for so many targets.
TORCH_EXT_HOST_DEVICE inline int first_source(const Axis& a, int target) {
  if (!a.transposed) return target * a.stride - a.pad;
  const int reach = target + a.pad - (a.kernel - 1) * a.dilation;  // of which whole quotients count, rounded up
  return reach >= 0 ? (reach + a.stride - 1) / a.stride : -(-reach / a.stride);
}
inline int64_t source_count(const Axis& a, int64_t targets) {
  const int64_t reach = static_cast<int64_t>(a.kernel - 1) * a.dilation;
  return a.transposed ? (targets - 1 + reach) / a.stride + 1 : (targets - 1) * a.stride + reach + 1;
}

// Which channels meet in groups of `inputs` and `outputs` channels. A target channel sums over `terms` sources. A pair
// is an output channel and one of its inputs, and has weights of its own; pairs are numbered as the weight is, output
// by output.
struct Pairs {
  int inputs, outputs;
  bool transposed;

  Pairs() = default;
  Pairs(const ConvGeometry<int64_t>& g, bool t)
      : inputs(static_cast<int>(g.in_per_group())), outputs(static_cast<int>(g.out_per_group())), transposed(t) {}

  TORCH_EXT_HOST_DEVICE int terms() const { return transposed ? outputs : inputs; }
  TORCH_EXT_HOST_DEVICE int per_source() const { return transposed ? inputs : outputs; }  // targets of a group

  SIMT_DEVICE int source(int target, int term) const { return target / per_source() * terms() + term; }
  // The i-th term of a target in the order in which vectors of `size` channels meet theirs. It does not begin with the
  // same one in all of a group, so that lanes side by side read the whole group at a time, which fills sectors.
  SIMT_DEVICE int term(int target, int size, int i) const {
    return (target % per_source() / size * size + i) % terms();
  }
  template <class T>
  SIMT_DEVICE int64_t weight(const View<T>& w, int target, int term) const {
    if (!transposed) return target * w.n + term * w.c;
    return source(target, term) * w.n + target % inputs * w.c;
  }

  SIMT_DEVICE int output_of(int pair) const { return pair / inputs; }
  SIMT_DEVICE int input_of(int pair) const { return pair / inputs / outputs * inputs + pair % inputs; }
  template <class T>
  SIMT_DEVICE int64_t weight_of(const View<T>& w, int pair) const {
    return pair / inputs * w.n + pair % inputs * w.c;
  }
};

inline int64_t pair_count(const ConvGeometry<int64_t>& g) { return g.out_channels * g.in_per_group(); }

}  // namespace torch_ext::cuda
