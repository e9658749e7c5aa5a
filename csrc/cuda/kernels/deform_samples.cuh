#pragma once

#include <cmath>
#include <limits>

#include "../../core/sampling.h"
#include "deform_plan.h"

// A sample of a deformable convolution: where it is, which numbers of offset and mask it reads, and their gradients.
//
//   grad_offset[n, t, axis, i] = mask * sum over corners k of slope(k, axis) * dots[k]
//   grad_mask[n, t, i]         = sum over corners k of weight[k] * dots[k]
//   dots[k]                    = sum over channels c of the offset group of grad_column[n, i, t, c] * input[n, c, k]
//
// What is computed is that of core/sampling.h, in Acc<T>.
namespace torch_ext::cuda {

template <class A>
inline constexpr A kNone = std::numeric_limits<A>::quiet_NaN();

// Row by row.
SIMT_DEVICE Triple<int64_t> unflatten(int64_t index, const Triple<int64_t>& sizes) {
  const int64_t rows = index / sizes[2], planes = rows / sizes[1];
  return {{planes, rows - planes * sizes[1], index - rows * sizes[2]}};
}

template <class T>
SIMT_DEVICE int64_t place_of(const View<T>& v, const Triple<int64_t>& at) {
  return at[0] * v.spatial[0] + at[1] * v.spatial[1] + at[2] * v.spatial[2];
}

template <class T>
SIMT_DEVICE int64_t place_of_pixel(const DeformInputs<T>& in, const DeformSizes& sizes, int64_t pixel) {
  if (sizes.pixel >= 0) return pixel * sizes.pixel;
  return place_of(in.input, unflatten(pixel, in.geometry.conv.in));
}

// Of a channel within a row of the columns at some tap.
SIMT_DEVICE int64_t place_in_row(const DeformSizes& sizes, int64_t group_stride, int tap, int channel) {
  if (sizes.groups == 1) return int64_t{tap} * sizes.per_group + channel;
  const int group = channel / sizes.per_group;
  return group * group_stride + int64_t{tap} * sizes.per_group + (channel - group * sizes.per_group);
}

// What is multiplied into the columns.
template <class T>
SIMT_DEVICE Acc<T> scale_of(const Columns<T>& columns) {
  return columns.scale == nullptr ? Acc<T>(1) : simt::ld(columns.scale);
}

// From one number of a split to the next.
SIMT_DEVICE int64_t split_stride(const DeformSizes& sizes) { return int64_t{sizes.taps} * sizes.per_group; }

// The next number of a split, and what it leaves: nothing, if it is infinite or none.
template <class T, class A>
SIMT_DEVICE T take_split(A* rest) {
  const T number = simt::narrow<T>(*rest);
  const A left = *rest - simt::widen(number);
  *rest = left - left == 0 ? left : A(0);
  return number;
}

// Adjacent numbers as one, if `as_one`: of those with a stride, half of each sector would be for another request.
template <int N, class T>
SIMT_DEVICE void load_numbers(const T* p, int64_t stride, bool as_one, Acc<T>* to) {
  if (N == 2 && as_one) {
    const auto pair = simt::ld<simt::Vector<T, 2>>(p);
    to[0] = simt::widen(pair[0]);
    to[N - 1] = simt::widen(pair[1]);
    return;
  }
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) to[i] = simt::widen(simt::ld(p + i * stride));
}

template <int N, class T>
SIMT_DEVICE void store_numbers(T* p, int64_t stride, bool as_one, const Acc<T>* from) {
  if (N == 2 && as_one) {
    simt::st(p, simt::Vector<T, 2>{{simt::narrow<T>(from[0]), simt::narrow<T>(from[N - 1])}});
    return;
  }
  SIMT_UNROLL
  for (int i = 0; i < N; ++i) simt::st(p + i * stride, simt::narrow<T>(from[i]));
}

// Calls body(p), with a pointer to the first of some channels, in the type that the numbers have.
template <class T, class Body>
SIMT_DEVICE void at_channel(const EitherView<T>& t, int64_t image, int64_t channel, const Triple<int64_t>& at,
                            const Body& body) {
  using Wide = std::conditional_t<std::is_const_v<T>, const Acc<std::remove_const_t<T>>, Acc<T>>;
  const int64_t place = image * t.view.n + channel * t.view.c + place_of(t.view, at);
  if constexpr (!std::is_same_v<T, Wide>)
    if (!t.is_wide) return body(t.view.data + place);
  body(reinterpret_cast<Wide*>(t.view.data) + place);
}

// Which sample.
struct SampleIndex {
  int64_t image, position;
  int tap, offset_group;
};

template <int kDims, class T>
SIMT_DEVICE Sample<Acc<T>, kDims> sample_of(const DeformInputs<T>& in, const DeformSizes& sizes, const SampleIndex& i) {
  using A = Acc<T>;
  const ConvGeometry<int64_t>& g = in.geometry.conv;
  const Triple<int64_t> out = unflatten(i.position, g.out), kernel = unflatten(i.tap, g.kernel);
  const int64_t channel = int64_t{i.offset_group} * sizes.taps + i.tap;
  A offset[kDims], mask = 1;
  at_channel(in.offset, i.image, channel * kDims, out,
             [&](const auto* p) { load_numbers<kDims>(p, in.offset.view.c, sizes.offset_pairs, offset); });
  if (in.mask.exists())
    at_channel(in.mask, i.image, channel, out, [&](const auto* p) { load_numbers<1>(p, 0, false, &mask); });
  constexpr int kFirst = 3 - kDims;
  int64_t whole[kDims], size[kDims];
  SIMT_UNROLL
  for (int a = 0; a < kDims; ++a) {
    const int axis = kFirst + a;
    whole[a] = out[axis] * g.stride[axis] + kernel[axis] * g.dilation[axis] - g.pad_before[axis];
    size[a] = g.in[axis];
  }
  return sample_at<A, kDims>(whole, offset, size, mask);
}

// A sample that is no number gives none, whatever it is multiplied with.
template <class A, int kDims>
SIMT_DEVICE A factor_of(const Sample<A, kDims>& s) {
  return s.kind == SampleKind::kNan ? kNone<A> : s.mask;
}

// One at -1 has pixels, for its slopes, but reads none and adds to none.
template <class A, int kDims>
SIMT_DEVICE bool meets_image(const Sample<A, kDims>& s) {
  return s.kind == SampleKind::kWhole || s.kind == SampleKind::kPart;
}

template <int kDims, class T, class S>
SIMT_DEVICE void store_gradients(const DeformInputs<T>& in, const DeformSizes& sizes, const SampleIndex& i,
                                 const DeformGradients<T, S>& to, const Sample<Acc<T>, kDims>& s, const Acc<T>* dots) {
  using A = Acc<T>;
  constexpr int kCorners = 1 << kDims;
  const bool is_nan = s.kind == SampleKind::kNan;
  const Triple<int64_t> out = unflatten(i.position, in.geometry.conv.out);
  const int64_t channel = int64_t{i.offset_group} * sizes.taps + i.tap;
  if (to.offset.exists()) {
    A gradient[kDims];
    SIMT_UNROLL
    for (int a = 0; a < kDims; ++a) {
      A sum = 0;
      SIMT_UNROLL
      for (int k = 0; k < kCorners; ++k) sum = simt::fma(slope(s, k, a), dots[k], sum);
      gradient[a] = (is_nan ? kNone<A> : sum) * s.mask;
    }
    at_channel(to.offset, i.image, channel * kDims, out,
               [&](auto* p) { store_numbers<kDims>(p, to.offset.view.c, sizes.grad_pairs, gradient); });
  }
  if (to.mask.exists()) {
    A sum = 0;
    SIMT_UNROLL
    for (int k = 0; k < kCorners; ++k) sum = simt::fma(s.weight[k], dots[k], sum);
    const A gradient = is_nan ? kNone<A> : s.kind == SampleKind::kOutside ? A(0) : sum;
    at_channel(to.mask, i.image, channel, out, [&](auto* p) { store_numbers<1>(p, 0, false, &gradient); });
  }
}

SIMT_DEVICE long long nearest(float x) { return ::llrintf(x); }
SIMT_DEVICE long long nearest(double x) { return ::llrint(x); }

// What fixed-point numbers are multiples of.
template <class T, class S>
SIMT_DEVICE Acc<T> scale_of(const InputSums<T, S>& sums) {
  if constexpr (std::is_same_v<S, Acc<T>>) return 1;
  else return simt::ld(sums.scale, sums.data != nullptr);
}

template <class S, class A>
SIMT_DEVICE void add(S* to, A value, A scale) {
  if constexpr (std::is_same_v<S, A>) {
    atomicAdd(to, value);
  } else {
    const A scaled = value * scale;
    const long long units = nearest(scaled);
    atomicAdd(&to->units, static_cast<unsigned long long>(units));
    const long long parts = nearest((scaled - static_cast<A>(units)) * S::kParts);
    if (parts != 0) atomicAdd(&to->parts, static_cast<unsigned long long>(parts));
  }
}

template <class A>
SIMT_DEVICE A value_of(const FixedPoint& sum, A scale) {
  const A parts = static_cast<A>(static_cast<long long>(sum.parts)) / FixedPoint::kParts;
  return (static_cast<A>(static_cast<long long>(sum.units)) + parts) / scale;
}

}  // namespace torch_ext::cuda
