#pragma once

// Comes before the first line of csrc/cuda/*.cpp: what these register for CUDA is registered for the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#define CUDA CPU
