#pragma once

// Functions that nvcc must compile for both sides are marked so; elsewhere the marks vanish.
#if defined(__CUDACC__)
#define TORCH_EXT_HOST_DEVICE __host__ __device__
#else
#define TORCH_EXT_HOST_DEVICE
#endif

// Symbols of the public C++ header. Everything else in the library is hidden.
#define TORCH_EXT_API __attribute__((visibility("default")))
