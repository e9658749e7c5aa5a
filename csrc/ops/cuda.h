#pragma once

#include <string>

namespace torch_ext::ops {

// The CUDA release that the library was built with; empty in a build for the CPU alone.
std::string cuda_version();

}  // namespace torch_ext::ops
