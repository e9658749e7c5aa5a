#pragma once

#include <string_view>

#include "core/select.h"

// The instruction set in use. By default the best one the CPU has; TORCH_EXT_ISA=scalar|avx2|avx512 or PyTorch's
// ATEN_CPU_CAPABILITY=default, read once, or set_isa choose another.
namespace torch_ext::cpu {

Isa isa();
void set_isa(std::string_view name);  // "" goes back to the default; throws on what the CPU lacks
std::string_view name(Isa isa);

}  // namespace torch_ext::cpu
