#include "launch.cuh"

#include "kernels.h"
#include "ops/cuda.h"

namespace torch_ext::ops {

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace torch_ext::ops

namespace torch_ext::cuda {

Queue queue_on(cudaStream_t stream) {
  int device = 0;
  Queue queue{stream, 0};
  check(cudaGetDevice(&device), "no device");
  check(cudaDeviceGetAttribute(&queue.multiprocessors, cudaDevAttrMultiProcessorCount, device), "no device");
  return queue;
}

}  // namespace torch_ext::cuda
