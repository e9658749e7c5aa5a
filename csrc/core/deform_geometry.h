#pragma once

#include <vector>

#include "geometry.h"

// The geometry of a deformable convolution: that of a convolution, and offset groups. Both kinds of groups follow from
// the sizes.
//
//   offset  [N, n * G * taps, *out]   in the order offset group, tap (row by row), axis (first to last)
//   mask    [N, G * taps, *out]
namespace torch_ext {

template <class Int>
struct DeformGeometry {
  ConvGeometry<Int> conv;
  Int offset_groups;

  Int taps() const { return conv.kernel[0] * conv.kernel[1] * conv.kernel[2]; }
  Int positions() const { return conv.out[0] * conv.out[1] * conv.out[2]; }
};

// Fills `geometry`; returns an error text, empty if all is right. The arguments' groups are not looked at.
template <class Int>
std::string make_deform_geometry(ConvArguments<Int> a, std::span<const Int> offset,
                                 std::optional<std::span<const Int>> mask, DeformGeometry<Int>* geometry) {
  using namespace detail;
  const auto error = [&](const auto&... parts) { return text(a.op, ": ", parts...); };
  a.groups = Int(1);
  const bool has_channels = a.input.size() >= 3 && a.weight.size() == a.input.size() && a.weight[1] > 0;
  const bool divides = !has_channels || a.input[1] % a.weight[1] == 0;
  if (has_channels && divides && a.input[1] > 0) a.groups = a.input[1] / a.weight[1];
  // What does not divide is said after all that comes before it.
  std::vector<Int> weight(a.weight.begin(), a.weight.end());
  if (!divides) weight[1] = a.input[1];
  const std::span<const Int> given = a.weight;
  a.weight = weight;
  const std::string wrong = make_geometry<Int>(a, &geometry->conv);
  if (!wrong.empty()) return wrong;
  if (!divides)
    return error("expected weight's second size to divide the input's channels, but got weight of size ", list(given),
                 " and input of size ", list(a.input));

  const ConvGeometry<Int>& g = geometry->conv;
  std::vector<Int> expected{g.batch, Int(0)};
  for (int axis = 3 - g.dims; axis < 3; ++axis) expected.push_back(g.out[axis]);
  const auto check = [&](const char* name, std::span<const Int> sizes, const Int& channels) {
    const auto is_right = [&](size_t i) {
      return i == 1 ? sizes[1] > 0 && sizes[1] % channels == 0 : sizes[i] == expected[i];
    };
    size_t right = 0;
    if (sizes.size() == expected.size())
      while (right < expected.size() && is_right(right)) ++right;
    if (right == expected.size()) return std::string();
    std::ostringstream shape;
    shape << "[" << g.batch << ", " << channels << " * offset groups";
    for (size_t i = 2; i < expected.size(); ++i) shape << ", " << expected[i];
    // The words of torchvision, for those that look for them.
    const std::string what =
        sizes.size() == expected.size() ? text(": ", name, ".shape[", right, "] is not valid") : "";
    return error("expected ", name, " of shape ", shape.str(), "], but got ", list(sizes), what);
  };
  const Int taps = geometry->taps();
  if (const std::string bad = check("offset", offset, taps * g.dims); !bad.empty()) return bad;
  geometry->offset_groups = offset[1] / (taps * g.dims);
  if (g.in_channels % geometry->offset_groups != 0)
    return error("expected offset groups that divide the input's ", g.in_channels, " channels, but got ",
                 geometry->offset_groups, " from offset of size ", list(offset));
  if (mask) {
    if (const std::string bad = check("mask", *mask, taps); !bad.empty()) return bad;
    if ((*mask)[1] / taps != geometry->offset_groups)
      return error("expected mask and offset of as many offset groups, but got mask of size ", list(*mask),
                   " and offset of size ", list(offset), ": mask.shape[1] is not valid");
  }
  return "";
}

}  // namespace torch_ext
