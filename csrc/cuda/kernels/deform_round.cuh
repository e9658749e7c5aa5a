#pragma once

#include "deform_samples.cuh"

// The gradient of the input from its sums, rounded once.
//
//   grad_input[n, c, i] = sums[n, c, pixel i], over the scale of fixed-point numbers
//
// Layout: any on either side; a thread has one number, in the order in which the results lie. Axes that lie on both
// sides as if they were one are one, so that there is nothing to divide where the layouts are the same.
namespace torch_ext::cuda {

template <class T, class S>
struct RoundParams {
  InputSums<T, S> sums;
  T* to;
  int64_t count;
  int axes;
  int64_t size[5], from_stride[5], to_stride[5];  // the last axis first
};

template <class T, class S>
RoundParams<T, S> round_params(const ConvGeometry<int64_t>& g, Range images, const InputSums<T, S>& sums,
                               const View<T>& to) {
  const int64_t row = sums.pixel * g.in[2], plane = row * g.in[1];
  const int64_t from[5] = {sums.image, sums.channel, plane, row, sums.pixel};
  const int64_t into[5] = {to.n, to.c, to.spatial[0], to.spatial[1], to.spatial[2]};
  const int64_t size[5] = {images.end - images.begin, g.in_channels, g.in[0], g.in[1], g.in[2]};
  RoundParams<T, S> p{sums, to.at(images.begin, 0), 1, 0, {1}, {0}, {0}};
  bool taken[5] = {};
  for (int i = 0; i < 5; ++i) {
    p.count *= size[i];
    taken[i] = size[i] == 1;
  }
  for (int left = 5; left > 0; --left) {
    int next = -1;
    for (int i = 4; i >= 0; --i)
      if (!taken[i] && (next < 0 || into[i] < into[next])) next = i;
    if (next < 0) break;
    taken[next] = true;
    const int last = p.axes - 1;
    if (last >= 0 && into[next] == p.to_stride[last] * p.size[last] &&
        from[next] == p.from_stride[last] * p.size[last]) {
      p.size[last] *= size[next];
      continue;
    }
    p.size[p.axes] = size[next];
    p.from_stride[p.axes] = from[next];
    p.to_stride[p.axes++] = into[next];
  }
  return p;
}

template <class T, class S>
simt::LaunchSize round_size(const RoundParams<T, S>& p) {
  constexpr int kThreads = 256;
  return {{static_cast<unsigned>(simt::ceil_div(p.count, kThreads))}, {kThreads}};
}

template <class S, class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(256) round_kernel(RoundParams<T, S> p) {
  int64_t rest = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, from = 0, to = 0;
  if (rest >= p.count) return;
  SIMT_UNROLL
  for (int axis = 0; axis < 5; ++axis) {
    if (axis >= p.axes) break;
    const int64_t outer = axis + 1 < p.axes ? rest / p.size[axis] : 0, i = rest - outer * p.size[axis];
    from += i * p.from_stride[axis];
    to += i * p.to_stride[axis];
    rest = outer;
  }
  const S* const sums = p.sums.data;
  const S sum = simt::ld(sums + from);
  if constexpr (std::is_same_v<S, Acc<T>>) simt::st(p.to + to, simt::narrow<T>(sum));
  else simt::st(p.to + to, simt::narrow<T>(value_of(sum, simt::ld(p.sums.scale))));
}

}  // namespace torch_ext::cuda
