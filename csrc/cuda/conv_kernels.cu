#include "cuda/launch.cuh"
#include "kernels.h"
#include "kernels/depthwise.cuh"
#include "kernels/grouped.cuh"

namespace torch_ext::cuda {

template <class T>
void ConvKernels<T>::forward(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& input,
                             const View<const T>& weight, const T* bias, const View<T>& output) {
  if (g.in_channels == g.groups)
    depthwise_forward(g, input, weight, bias, output, queue.multiprocessors, Launch{queue.stream});
  else grouped_forward(g, input, weight, bias, output, queue.multiprocessors, Launch{queue.stream});
}

template <class T>
void ConvKernels<T>::grad_input(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& grad_output,
                                const View<const T>& weight, const View<T>& grad_input) {
  if (g.in_channels == g.groups)
    depthwise_grad_input(g, grad_output, weight, grad_input, queue.multiprocessors, Launch{queue.stream});
  else grouped_grad_input(g, grad_output, weight, grad_input, queue.multiprocessors, Launch{queue.stream});
}

template <class T>
size_t ConvKernels<T>::workspace_bytes(const Queue& queue, const ConvGeometry<int64_t>& g,
                                       const View<const T>& grad_output, const View<const T>& input) {
  return DepthwiseGradWeight<T>(g, grad_output, input, queue.multiprocessors).workspace_bytes();
}

template <class T>
void ConvKernels<T>::grad_weight(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& grad_output,
                                 const View<const T>& input, void* workspace, const View<T>& grad_weight) {
  const DepthwiseGradWeight<T> plan(g, grad_output, input, queue.multiprocessors);
  plan.run(workspace, grad_weight, Launch{queue.stream});
}

template struct ConvKernels<float>;
template struct ConvKernels<double>;
template struct ConvKernels<BFloat16>;
template struct ConvKernels<Half>;

}  // namespace torch_ext::cuda
