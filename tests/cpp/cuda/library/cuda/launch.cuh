#pragma once

#include "emulator.h"

struct CUstream_st;

// In place of csrc/cuda/launch.cuh.
namespace torch_ext::cuda {

struct Launch {
  CUstream_st* stream;

  template <class Params>
  void operator()(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params) const {
    if (size.grid.x == 0 || size.grid.y == 0 || size.grid.z == 0) return;
    simt::launch(size, kernel, params);
  }
};

}  // namespace torch_ext::cuda
