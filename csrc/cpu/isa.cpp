#include "isa.h"

#include <c10/util/Exception.h>
#include <torch/library.h>
#include <torch/version.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "ops/cuda.h"

namespace torch_ext::cpu {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

std::vector<Isa> supported() {
  std::vector<Isa> result{Isa::kScalar};
  if (has_avx2()) result.push_back(Isa::kAvx2);
  if (has_avx512()) result.push_back(Isa::kAvx512);
  return result;
}

Isa parse(std::string_view text) {
  std::string names;
  for (const Isa isa : supported()) {
    if (name(isa) == text) return isa;
    names += (names.empty() ? "" : ", ") + std::string(name(isa));
  }
  TORCH_CHECK(false, "torch_ext: expected an instruction set that this CPU has (", names, "), but got '", text, "'");
}

Isa default_isa() {
  if (const char* chosen = std::getenv("TORCH_EXT_ISA"); chosen && *chosen) return parse(chosen);
  if (const char* aten = std::getenv("ATEN_CPU_CAPABILITY"); aten && std::string_view(aten) == "default")
    return Isa::kScalar;
  return supported().back();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{default_isa()};
  return value;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

void set_isa(std::string_view text) { current() = text.empty() ? default_isa() : parse(text); }

std::string_view name(Isa isa) {
  static constexpr std::string_view names[] = {"scalar", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

namespace {

std::string build_info() {
  const std::string cuda = ops::cuda_version();
  std::string isas;
  for (const Isa isa : supported()) isas += (isas.empty() ? "\"" : ", \"") + std::string(name(isa)) + "\"";
  return "{\"version\": \"" TORCH_EXT_VERSION "\", \"torch\": \"" TORCH_VERSION "\", \"cuda\": " +
         (cuda.empty() ? "null" : "\"" + cuda + "\"") + ", \"compiler\": \"" __VERSION__ "\", \"openmp\": " +
#ifdef _OPENMP
         std::to_string(_OPENMP) +
#else
         "null" +
#endif
         ", \"isa_supported\": [" + isas + "]}";
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) {
  m.impl("_isa", [] { return std::string(name(isa())); });
  m.impl("_set_isa", [](std::string_view text) { set_isa(text); });
  m.impl("_build_info", build_info);
}

}  // namespace
}  // namespace torch_ext::cpu
