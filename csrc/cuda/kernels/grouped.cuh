#pragma once

#include "depthwise.cuh"
#include "grouped_planes.cuh"

// Grouped convolution of few channels, of fewer than 16 in and out for speed, of any number to be right: which kernel
// serves a call, as depthwise.cuh says. The gradient of the weight is DepthwiseGradWeight, which takes groups, too.
//
//   channels side by side in both tensors      depthwise_channels
//   columns side by side, or any other strides grouped_planes
//   positions over 2^28, enormous kernels      direct
namespace torch_ext::cuda {

template <class T, class Launch>
void grouped_correlate(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                       const View<const T>& weight, const T* bias, const View<T>& target, int multiprocessors,
                       const Launch& launch) {
  const DirectParams<T> direct = make_direct(g, transposed, source, weight, bias, target);
  if (direct_targets(direct) == 0) return;
  Axis columns;
  ChannelsParams<T> channels;
  if (make_axis(g, 2, transposed, &columns) &&
      goes_by_channels(source, target, columns, simt::max(g.in_channels, g.out_channels)) &&
      make_channels(g, transposed, source, weight, bias, target, multiprocessors, &channels))
    return launch_channels(channels, launch);
  GroupedPlanesParams<T> planes;
  if (make_grouped_planes(g, transposed, source, weight, bias, target, &planes))
    return launch(grouped_planes_size(planes), grouped_planes_kernel<T>, planes);
  launch(direct_size(direct), direct_kernel<T>, direct);
}

template <class T, class Launch>
void grouped_forward(const ConvGeometry<int64_t>& g, const View<const T>& input,
                     const View<const T>& weight,  // [O, C / groups, kd, kh, kw]
                     const T* bias,                // [O] or null
                     const View<T>& output, int multiprocessors, const Launch& launch) {
  grouped_correlate(g, false, input, weight, bias, output, multiprocessors, launch);
}

template <class T, class Launch>
void grouped_grad_input(const ConvGeometry<int64_t>& g, const View<const T>& grad_output, const View<const T>& weight,
                        const View<T>& grad_input, int multiprocessors, const Launch& launch) {
  const T* no_bias = nullptr;
  grouped_correlate(g, true, grad_output, weight, no_bias, grad_input, multiprocessors, launch);
}

}  // namespace torch_ext::cuda
