#pragma once

#include "depthwise_channels.cuh"
#include "depthwise_grad_channels.cuh"
#include "depthwise_grad_planes.cuh"
#include "depthwise_planes.cuh"
#include "direct.cuh"

// Depthwise convolution: which kernel serves a call. `launch(size, kernel, params)` runs a kernel, on a stream or in a
// test. Where the batch is empty, or the image, nothing is launched.
//
//   columns side by side, or any other strides    planes
//   channels side by side in both tensors         channels, a vector or one at a time
//   positions over 2^28, enormous kernels         direct
namespace torch_ext::cuda {

// Columns are the better choice where both lie side by side.
template <class T, class U>
bool goes_by_channels(const View<T>& source, const View<U>& target, const Axis& columns, int64_t channels) {
  const auto adjacent = [](const auto& view, int size) { return view.spatial[2] == 1 && size > 1; };
  return source.c == 1 && target.c == 1 && channels > 1 && !adjacent(source, columns.source) &&
         !adjacent(target, columns.target);
}

template <class T, class Launch>
void launch_channels(const ChannelsParams<T>& p, const Launch& launch) {
  with_vector_size<T>(p.vector, [&](auto channels, auto terms) {
    launch(channels_size(p), depthwise_channels_kernel<T, decltype(channels)::kValue, decltype(terms)::kValue>, p);
  });
}

template <class T, class Launch>
void depthwise_correlate(const ConvGeometry<int64_t>& g, bool transposed, const View<const T>& source,
                         const View<const T>& weight, const T* bias, const View<T>& target, int multiprocessors,
                         const Launch& launch) {
  const DirectParams<T> direct = make_direct(g, transposed, source, weight, bias, target);
  if (direct_targets(direct) == 0) return;
  Axis columns;
  ChannelsParams<T> channels;
  if (make_axis(g, 2, transposed, &columns) && goes_by_channels(source, target, columns, g.groups) &&
      make_channels(g, transposed, source, weight, bias, target, multiprocessors, &channels))
    return launch_channels(channels, launch);
  PlanesParams<T> planes;
  if (make_planes(g, transposed, source, weight, bias, target, &planes))
    return launch(planes_size(planes), depthwise_planes_kernel<T>, planes);
  launch(direct_size(direct), direct_kernel<T>, direct);
}

template <class T, class Launch>
void depthwise_forward(const ConvGeometry<int64_t>& g, const View<const T>& input,
                       const View<const T>& weight,  // [C*M, 1, kd, kh, kw]
                       const T* bias,                // [C*M] or null
                       const View<T>& output, int multiprocessors, const Launch& launch) {
  depthwise_correlate(g, false, input, weight, bias, output, multiprocessors, launch);
}

template <class T, class Launch>
void depthwise_grad_input(const ConvGeometry<int64_t>& g, const View<const T>& grad_output, const View<const T>& weight,
                          const View<T>& grad_input, int multiprocessors, const Launch& launch) {
  const T* no_bias = nullptr;
  depthwise_correlate(g, true, grad_output, weight, no_bias, grad_input, multiprocessors, launch);
}

// The plan of a weight gradient, and the memory that it needs besides its tensors.
template <class T>
struct DepthwiseGradWeight {
  ConvGeometry<int64_t> geometry;
  View<const T> grad_output, input;
  GradChannelsParams<T> channels;
  GradPlanesParams<T> planes;
  enum { kDirect, kChannels, kPlanes } kernel = kDirect;

  DepthwiseGradWeight(const ConvGeometry<int64_t>& g, const View<const T>& grad_output_, const View<const T>& input_,
                      int multiprocessors)
      : geometry(g), grad_output(grad_output_), input(input_) {
    Axis columns;
    if (g.batch == 0) return;  // the direct kernel writes zeros
    if (make_axis(g, 2, false, &columns) && goes_by_channels(input, grad_output, columns, g.groups) &&
        make_grad_channels(g, grad_output, input, multiprocessors, &channels))
      kernel = kChannels;
    else if (make_grad_planes(g, grad_output, input, multiprocessors, &planes)) kernel = kPlanes;
  }

  size_t workspace_bytes() const {
    if (kernel == kDirect) return 0;
    return static_cast<size_t>(splits() * weights()) * sizeof(Acc<T>);
  }

  // `workspace` is of workspace_bytes(), aligned for Acc<T>.
  template <class Launch>
  void run(void* workspace, const View<T>& grad_weight, const Launch& launch) const {
    if (kernel == kDirect) {
      const DirectGradWeightParams<T> p{grad_output, input, grad_weight, geometry};
      return launch(direct_grad_weight_size(p), direct_grad_weight_kernel<T>, p);
    }
    auto* partial = static_cast<Acc<T>*>(workspace);
    if (kernel == kChannels) {
      GradChannelsParams<T> p = channels;
      p.partial = partial;
      with_vector_size<T>(p.vector, [&](auto size, auto terms) {
        launch(grad_channels_size(p),
               depthwise_grad_channels_kernel<T, decltype(size)::kValue, decltype(terms)::kValue>, p);
      });
    } else {
      GradPlanesParams<T> p = planes;
      p.partial = partial;
      if (p.grouped) launch(grad_planes_size(p), depthwise_grad_planes_kernel<T, true>, p);
      else launch(grad_planes_size(p), depthwise_grad_planes_kernel<T, false>, p);
    }
    const auto& k = geometry.kernel;
    const SumParams<T> p{partial,
                         grad_weight,
                         Pairs(geometry, false),
                         splits(),
                         static_cast<int>(weights()),
                         static_cast<int>(k[0] * k[1] * k[2]),
                         static_cast<int>(k[1]),
                         static_cast<int>(k[2])};
    launch(sum_size(p), sum_kernel<T>, p);
  }

 private:
  int64_t splits() const { return kernel == kChannels ? channels.splits : planes.splits; }
  int64_t weights() const {
    const auto& k = geometry.kernel;
    return geometry.out_channels * geometry.in_per_group() * k[0] * k[1] * k[2];
  }
};

}  // namespace torch_ext::cuda
