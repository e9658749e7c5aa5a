// The portable kernels, for CPUs without AVX2.
#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

// This is for CPUs without AVX2, and GCC's -O3 would cost minutes; a build with sanitizers keeps its own -O1.
#if !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#pragma GCC optimize("O2")
#endif

#include "pixel_plan.h"
#include "table.h"

#define TORCH_EXT_ISA scalar
#include "table_impl.h"

namespace torch_ext::cpu {

const KernelTable& scalar_table() {
  static constexpr KernelTable table = scalar::make_table();
  return table;
}

}  // namespace torch_ext::cpu
