#pragma once

// Forward and grad input of a convolution with kernels of one tap where the channels of a pixel lie side by side:
//
//   target[p, c] = bias[c] + sum over terms r of weight[c, r] * source[p, first(c) + r]
//
// with first as in direct.h: for each group a matrix product. Lanes are targets. An item is a range of the pixels of an
// image. The weight is packed in panels of a few vectors; a panel stays in the L1 cache while some pixels pass by,
// whose numbers are read where they lie, one for all lanes. 16-bit pixels are widened first.
#include "pack.h"
#include "products.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

// weight[target][term] and bias, zero beyond the last target.
template <class T>
void pack_panels(const PixelPlan& p, View<const T> weight, const T* bias, Acc<T>* packed) {
  using A = Acc<T>;
  const int64_t target_stride = p.transposed ? weight.c : weight.n, term_stride = p.transposed ? weight.n : weight.c;
  A* to_bias = packed + p.groups * p.vectors() * p.lanes * p.terms;
  for (int64_t g = 0; g < p.groups; ++g) {
    const T* from = weight.data + g * (p.transposed ? p.terms : p.targets) * weight.n;
    for (int64_t i = 0; i < p.panels(); ++i) {
      const Range vectors = part(p.vectors(), p.panels(), i);
      const int64_t pitch = size(vectors) * p.lanes;
      for (int64_t v = vectors.begin; v < vectors.end; ++v) {
        const Lanes<A> lanes(v * p.lanes, p.targets, {1, 1}, target_stride);
        pack_columns(from, term_stride, lanes, p.terms, packed + (v - vectors.begin) * p.lanes, pitch);
      }
      packed += p.terms * pitch;
    }
    for (int64_t c = 0; c < p.vectors() * p.lanes; ++c)
      *to_bias++ = bias && c < p.targets ? widen(bias[g * p.targets + c]) : 0;
  }
}

template <class T>
class Pixels {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

 public:
  Pixels(const PixelPlan& plan, View<const T> source, const A* weight, View<T> target, A* scratch)
      : plan_(plan),
        source_(source),
        weight_(weight),
        bias_(weight + plan.groups * plan.vectors() * plan.lanes * plan.terms),
        target_(target),
        packed_source_(scratch),
        packed_target_(scratch + plan.source_size()) {}

  void item(int64_t index) {
    const int64_t n = index / plan_.parts;
    const Range all = part(plan_.positions, plan_.parts, index % plan_.parts);
    for (int64_t first = all.begin; first < all.end; first += plan_.pixels)
      for (int64_t g = 0; g < plan_.groups; ++g) pixels(n, g, first, std::min(plan_.pixels, all.end - first));
  }

 private:
  void pixels(int64_t n, int64_t g, int64_t first, int64_t count) {
    const int64_t column = count > 1 ? source_.spatial[2] : 0;
    const T* const source = source_.at(n, g * plan_.terms) + first * source_.spatial[2];
    TapLine<A> lines[1];
    Products<A> p{};
    p.lines = lines;
    p.line_count = 1;
    p.weight_step = 1;
    p.weight_output = column;
    const A* from;
    if constexpr (std::is_same_v<T, A>) {
      from = source;
    } else {
      from = packed_source_;
      p.weight_output = ceil_div(plan_.terms, L) * L;
      for (int64_t j = 0; j < count; ++j)
        pack_line(source + j * column, 1, plan_.terms, packed_source_ + j * p.weight_output);
    }
    const A* weight = weight_ + g * plan_.vectors() * L * plan_.terms;
    const A* bias = bias_ + g * plan_.vectors() * L;
    T* target = target_.at(n, g * plan_.targets) + first * target_.spatial[2];
    for (int64_t i = 0; i < plan_.panels(); ++i) {
      const Range vectors = part(plan_.vectors(), plan_.panels(), i);
      p.step = size(vectors) * L;
      p.out = packed_target_;
      p.out_pitch = p.step;
      if constexpr (std::is_same_v<T, A>)
        if (!plan_.packs_target) {
          p.out = target;
          p.out_pitch = count > 1 ? target_.spatial[2] : 0;
        }
      for (int64_t r = 0; r < plan_.terms; r += kTapsPerSum) {  // a sum starts from zero again, to stay exact
        lines[0] = {weight + r * p.step, from + r, std::min(kTapsPerSum, plan_.terms - r)};
        p.start_columns = r == 0 ? bias : nullptr;
        add_product_rows(p, count, size(vectors));
      }
      if (plan_.packs_target) {
        const int64_t targets = std::min(p.step, plan_.targets - vectors.begin * L);
        for (int64_t j = 0; j < count; ++j)
          unpack_line(packed_target_ + j * p.step, targets, 1, target + j * target_.spatial[2]);
      }
      weight += plan_.terms * p.step;
      bias += p.step;
      target += p.step;
    }
  }

  const PixelPlan& plan_;
  const View<const T> source_;
  const A* const weight_;
  const A* const bias_;
  const View<T> target_;
  A* const packed_source_;
  A* const packed_target_;
};

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
