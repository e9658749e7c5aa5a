// The portable kernels, for CPUs without AVX2.
#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "passes.h"
#include "table.h"

#define TORCH_EXT_ISA scalar
#include "table_impl.h"

namespace torch_ext::cpu {

const KernelTable& scalar_table() {
  static constexpr KernelTable table = scalar::make_table();
  return table;
}

}  // namespace torch_ext::cpu
