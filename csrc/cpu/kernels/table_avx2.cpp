// The kernels for AVX2, FMA and F16C. Only what stands between push and pop is compiled for them, so that no inline
// function shared with the rest of the program can end up with instructions that an older CPU lacks.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "pixel_plan.h"
#include "table.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define TORCH_EXT_ISA avx2
#include "table_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace torch_ext::cpu {

const KernelTable& avx2_table() {
  static constexpr KernelTable table = avx2::make_table();
  return table;
}

}  // namespace torch_ext::cpu
