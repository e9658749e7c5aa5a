#include "kernels/deform.cuh"

#include "cuda/launch.cuh"
#include "kernels.h"

namespace torch_ext::cuda {

template <class T>
void DeformKernels<T>::make_columns(const Queue& queue, const DeformInputs<T>& inputs, const Columns<T>& columns) {
  cuda::make_columns(inputs, columns, Launch{queue.stream});
}

template <class T>
template <class S>
void DeformKernels<T>::spread_columns(const Queue& queue, const DeformInputs<T>& inputs,
                                      const Columns<const Acc<T>>& columns, const DeformGradients<T, S>& gradients) {
  cuda::spread_columns(inputs, columns, gradients, Launch{queue.stream});
}

template <class T>
template <class S>
void DeformKernels<T>::round_sums(const Queue& queue, const ConvGeometry<int64_t>& g, Range images,
                                  const InputSums<T, S>& sums, const View<T>& grad_input) {
  cuda::round_sums(g, images, sums, grad_input, Launch{queue.stream});
}

#define TORCH_EXT_INSTANTIATE_SUMS(T, S)                                                                             \
  template void DeformKernels<T>::spread_columns(const Queue&, const DeformInputs<T>&, const Columns<const Acc<T>>&, \
                                                 const DeformGradients<T, S>&);                                      \
  template void DeformKernels<T>::round_sums(const Queue&, const ConvGeometry<int64_t>&, Range,                      \
                                             const InputSums<T, S>&, const View<T>&)
#define TORCH_EXT_INSTANTIATE(T)         \
  template struct DeformKernels<T>;      \
  TORCH_EXT_INSTANTIATE_SUMS(T, Acc<T>); \
  TORCH_EXT_INSTANTIATE_SUMS(T, FixedPoint)

TORCH_EXT_INSTANTIATE(float);
TORCH_EXT_INSTANTIATE(double);
TORCH_EXT_INSTANTIATE(BFloat16);
TORCH_EXT_INSTANTIATE(Half);

}  // namespace torch_ext::cuda
