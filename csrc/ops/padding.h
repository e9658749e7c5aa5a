#pragma once

#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include <string_view>
#include <variant>

// Argument lists as users write them, made into what core ops take.
namespace torch_ext::ops {

using SymInts = c10::SmallVector<c10::SymInt, 6>;

// Padding as numbers (1, n or 2n) or as a word.
using Padding = std::variant<c10::SymIntArrayRef, std::string_view>;

// n numbers from 1 or n.
SymInts per_axis(const char* op, const char* name, c10::SymIntArrayRef list, int dims);

// 2n numbers, axis by axis (before, after). size, kernel, stride and dilation have n numbers.
SymInts resolve_padding(const char* op, const Padding& padding, c10::SymIntArrayRef size, c10::SymIntArrayRef kernel,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef dilation);

}  // namespace torch_ext::ops
