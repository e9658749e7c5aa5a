#pragma once

#include "../../core/geometry.h"
#include "indexing.h"

// Grouped convolution, its gradient of the input and of the weight, for what no other kernel takes: positions over
// 2^28, kernels that fit in no shared memory, dilations that spread a window too wide. With groups of one input and
// output they are depthwise.
//
//   target[n, c, i] = bias[c] + sum over channels s of the group, taps k of weight[...] * source[n, s, source of (i,
//   k)] grad_weight[o, j, k] = sum over n, i of grad_output[n, o, i] * input[n, group * inputs + j, i * stride + k *
//   dilation - pad]
//
// A thread has one target, or a block one weight, whose threads' sums are added by halves; all indices have 64 bits.
// Sums are in Acc<T>.
namespace torch_ext::cuda {

inline constexpr int kDirectThreads = 256;

template <class T>
struct DirectParams {
  View<const T> source, weight;
  const T* bias;
  View<T> target;
  ConvGeometry<int64_t> geometry;
  bool transposed;
  bool channels_first;  // neighbouring threads have neighbouring channels, not columns
};

template <class T>
DirectParams<T> make_direct(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                            const View<const T>& weight, const T* bias, const View<T>& target) {
  return {source, weight, bias, target, g, transposed, target.c == 1 && target.spatial[2] != 1};
}

template <class T>
TORCH_EXT_HOST_DEVICE int64_t direct_targets(const DirectParams<T>& p) {
  const ConvGeometry<int64_t>& g = p.geometry;
  const Triple<int64_t>& size = p.transposed ? g.in : g.out;
  return g.batch * (p.transposed ? g.in_channels : g.out_channels) * size[0] * size[1] * size[2];
}

template <class T>
simt::LaunchSize direct_size(const DirectParams<T>& p) {
  return {grid_of(simt::ceil_div(direct_targets(p), kDirectThreads)), {kDirectThreads}};
}

// Takes the last of the indices that `rest` is made of.
SIMT_DEVICE int64_t take_index(int64_t* rest, int64_t size) {
  const int64_t quotient = *rest / size, index = *rest - quotient * size;
  *rest = quotient;
  return index;
}

// Where a tap's source is, or -1.
SIMT_DEVICE int64_t direct_source(const ConvGeometry<int64_t>& g, bool transposed, int axis, int64_t target,
                                  int64_t tap) {
  const int64_t reach = tap * g.dilation[axis] - g.pad_before[axis];
  if (!transposed) {
    const int64_t source = target * g.stride[axis] + reach;
    return source < g.in[axis] ? source : -1;
  }
  const int64_t multiple = target - reach;
  if (multiple < 0 || multiple % g.stride[axis] != 0) return -1;
  return multiple / g.stride[axis] < g.out[axis] ? multiple / g.stride[axis] : -1;
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kDirectThreads, 2) direct_kernel(DirectParams<T> p) {
  const ConvGeometry<int64_t>& g = p.geometry;
  int64_t rest = block_index() * kDirectThreads + threadIdx.x;
  if (rest >= direct_targets(p)) return;
  const Triple<int64_t>& size = p.transposed ? g.in : g.out;
  const int64_t channels = p.transposed ? g.in_channels : g.out_channels;
  Triple<int64_t> i;
  int64_t c = 0;
  if (p.channels_first) c = take_index(&rest, channels);
  for (int axis = 2; axis >= 0; --axis) i[axis] = take_index(&rest, size[axis]);
  if (!p.channels_first) c = take_index(&rest, channels);
  const int64_t inputs = g.in_per_group(), outputs = g.out_per_group();
  const int64_t terms = p.transposed ? outputs : inputs, group = c / (p.transposed ? inputs : outputs);
  const int64_t in_group = c % (p.transposed ? inputs : outputs);

  Acc<T> sum = p.bias ? simt::widen(simt::ld(p.bias + c)) : Acc<T>(0);
  for (int64_t term = 0; term < terms; ++term) {
    const T* plane = p.source.at(rest, group * terms + term);
    const int64_t output = p.transposed ? group * outputs + term : c, input = p.transposed ? in_group : term;
    const T* weights = p.weight.at(output, input);
    for (int64_t kd = 0; kd < g.kernel[0]; ++kd)
      for (int64_t kh = 0; kh < g.kernel[1]; ++kh) {
        const int64_t d = direct_source(g, p.transposed, 0, i[0], kd), h = direct_source(g, p.transposed, 1, i[1], kh);
        if (d < 0 || h < 0) continue;
        const T* row = plane + d * p.source.spatial[0] + h * p.source.spatial[1];
        const T* taps = weights + kd * p.weight.spatial[0] + kh * p.weight.spatial[1];
        for (int64_t kw = 0; kw < g.kernel[2]; ++kw) {
          const int64_t w = direct_source(g, p.transposed, 2, i[2], kw);
          const auto x = simt::ld(row + w * p.source.spatial[2], w >= 0);
          if (w >= 0) sum = simt::fma(simt::widen(simt::ld(taps + kw * p.weight.spatial[2])), simt::widen(x), sum);
        }
      }
  }
  T* target =
      p.target.at(rest, c) + i[0] * p.target.spatial[0] + i[1] * p.target.spatial[1] + i[2] * p.target.spatial[2];
  simt::st(target, simt::narrow<T>(sum));
}

template <class T>
struct DirectGradWeightParams {
  View<const T> grad_output, input;
  View<T> grad_weight;
  ConvGeometry<int64_t> geometry;
};

template <class T>
TORCH_EXT_HOST_DEVICE int64_t direct_weights(const DirectGradWeightParams<T>& p) {
  const ConvGeometry<int64_t>& g = p.geometry;
  return g.out_channels * g.in_per_group() * g.kernel[0] * g.kernel[1] * g.kernel[2];
}

template <class T>
simt::LaunchSize direct_grad_weight_size(const DirectGradWeightParams<T>& p) {
  return {grid_of(direct_weights(p)), {kDirectThreads}, kDirectThreads * sizeof(Acc<T>)};
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(kDirectThreads, 2) direct_grad_weight_kernel(DirectGradWeightParams<T> p) {
  const ConvGeometry<int64_t>& g = p.geometry;
  int64_t rest = block_index();
  if (rest >= direct_weights(p)) return;
  Triple<int64_t> k;
  for (int axis = 2; axis >= 0; --axis) k[axis] = take_index(&rest, g.kernel[axis]);
  const int64_t j = take_index(&rest, g.in_per_group()), o = rest;
  const int64_t c = o / g.out_per_group() * g.in_per_group() + j;

  Acc<T> sum = 0;
  const int64_t count = g.batch * g.out[0] * g.out[1] * g.out[2];
  for (int64_t index = threadIdx.x; index < count; index += kDirectThreads) {
    int64_t n = index;
    const int64_t ow = take_index(&n, g.out[2]), oh = take_index(&n, g.out[1]), od = take_index(&n, g.out[0]);
    const int64_t d = direct_source(g, false, 0, od, k[0]), h = direct_source(g, false, 1, oh, k[1]);
    const int64_t w = direct_source(g, false, 2, ow, k[2]);
    if (d < 0 || h < 0 || w < 0) continue;
    const auto x =
        simt::ld(p.input.at(n, c) + d * p.input.spatial[0] + h * p.input.spatial[1] + w * p.input.spatial[2]);
    const auto y = simt::ld(p.grad_output.at(n, o) + od * p.grad_output.spatial[0] + oh * p.grad_output.spatial[1] +
                            ow * p.grad_output.spatial[2]);
    sum = simt::fma(simt::widen(y), simt::widen(x), sum);
  }
  Acc<T>* sums = simt::shared<Acc<T>>();
  sums[threadIdx.x] = sum;
  for (int half = kDirectThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0)
    simt::st(p.grad_weight.at(o, j) + k[0] * p.grad_weight.spatial[0] + k[1] * p.grad_weight.spatial[1] +
                 k[2] * p.grad_weight.spatial[2],
             simt::narrow<T>(sums[0]));
}

}  // namespace torch_ext::cuda
