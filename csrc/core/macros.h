#pragma once

// Functions that nvcc must compile for both sides are marked so; elsewhere the marks vanish.
#if defined(__CUDACC__)
#define TORCH_EXT_HOST_DEVICE __host__ __device__
#else
#define TORCH_EXT_HOST_DEVICE
#endif
