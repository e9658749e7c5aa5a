#pragma once

// Separable convolution by strips: some positions of an image at a time, whose depthwise result goes to scratch, where
// the pointwise kernels read it.
//
//   output[n, o, i] = bias[o] + sum over c of pointwise[o, c] * round(hidden[n, c, i])
//   hidden[n, c, i] = sum over taps t of depthwise[c, t] * input[n, c / multiplier, position(i, t)]
//
// An item is one strip. Both steps are the kernels of the tables, each with its own order of sums, so that the result
// is that of the two ops. Strips are rows, or parts of one where rows are long: positions that follow each other.
#include "table.h"

namespace torch_ext::cpu {

inline constexpr int64_t kHiddenBytes = 128 << 10;  // of a strip: it stays in L2 beside what both steps read
inline constexpr int64_t kMaxHiddenBytes = 512 << 10;

struct SeparablePlan {
  CorrelatePlan depthwise;  // whose parts are the strips
  ConvGeometry<int64_t> pointwise;
  bool channels_last;  // hidden and output: channels adjacent, else positions

  int64_t strips() const { return depthwise.parts.count(); }
  Box strip_box(int64_t strip) const { return depthwise.item_box(strip * depthwise.channels.blocks()); }
  int64_t positions() const { return pointwise.in[0] * pointwise.in[1] * pointwise.in[2]; }
  // Of so many positions, and of an image.
  Layout hidden(int64_t count) const { return channels_last ? Layout{1, pointwise.in_channels} : Layout{count, 1}; }
  Layout output() const { return channels_last ? Layout{1, pointwise.out_channels} : Layout{positions(), 1}; }
  // The second step of a strip.
  ConvGeometry<int64_t> strip(int64_t count) const {
    ConvGeometry<int64_t> g = pointwise;
    g.batch = 1;
    g.in = g.out = {{1, 1, count}};
    return g;
  }
  // Of an image.
  int64_t first_position(const Box& b) const {
    return (b.d.begin * pointwise.in[1] + b.h.begin) * pointwise.in[2] + b.w.begin;
  }
};

inline int64_t strip_positions(const Box& b) { return size(b.d) * size(b.h) * size(b.w); }

// Strips of at most kHiddenBytes where the sizes allow it, and enough of them for the threads; with `fewest` rows at
// least, of which a slice has more. Only whole slices, rows of one slice, or a part of one row are positions that
// follow each other.
inline Parts cut_strips(const ConvGeometry<int64_t>& pointwise, int64_t element_bytes, int64_t needed, int64_t fewest) {
  const Triple<int64_t>& size = pointwise.in;
  const int64_t d = size[0], h = size[1], w = size[2];
  const int64_t most = std::max<int64_t>(1, kHiddenBytes / (pointwise.in_channels * element_bytes));
  Parts p{pointwise.batch, d, 1, 1};
  needed = ceil_div(needed, p.n);
  if (h * w <= most && needed <= d) {
    p.d = std::max(needed, ceil_div(d, most / (h * w)));
  } else if (w <= most) {
    p.h =
        std::clamp<int64_t>(std::max(ceil_div(needed, d), ceil_div(h, most / w)), 1, std::max<int64_t>(1, h / fewest));
  } else {
    p.h = h / fewest;
    p.w = fewest > 1 ? 1 : ceil_div(w, most);
  }
  return p;
}

// None where the depthwise kernel does not work by rows.
template <class T>
std::optional<SeparablePlan> plan_separable(const ConvGeometry<int64_t>& depthwise,
                                            const ConvGeometry<int64_t>& pointwise, Layout input, bool channels_last) {
  SeparablePlan p;
  p.pointwise = pointwise;
  p.channels_last = channels_last;
  p.depthwise = plan_correlate<T>(depthwise, false, input, p.hidden(p.positions()));
  if (!p.depthwise.tiling.single || is_staged(p.depthwise.order)) return {};
  const int64_t fewest = p.depthwise.order == Order::kColumnsInPlace ? kStripRows * p.depthwise.axes[1].classes : 1;
  p.depthwise.parts = cut_strips(pointwise, sizeof(T), wanted_parts(pointwise, kPartWork), fewest);
  const Parts& parts = p.depthwise.parts;
  const int64_t positions =
      ceil_div(pointwise.in[0], parts.d) * ceil_div(pointwise.in[1], parts.h) * ceil_div(pointwise.in[2], parts.w);
  if (positions * pointwise.in_channels * static_cast<int64_t>(sizeof(T)) > kMaxHiddenBytes) return {};
  return p;
}

// How many positions there are makes no difference to whether there is such a plan, nor to its packed weight.
template <class T>
std::optional<PixelPlan> plan_strip_pixels(const SeparablePlan& p, int64_t count) {
  return plan_pixels<T>(p.strip(count), false, p.hidden(count), p.output());
}

// The weights of both steps as their kernels take them. Either of the pointwise ones.
template <class T>
struct SeparableWeights {
  const Acc<T>* depthwise;
  const Acc<T>* pointwise_panels;  // of a PixelPlan
  View<const Acc<T>> pointwise;    // of a DirectPlan
  const T* bias;
};

// Strips, one after the other.
template <class T>
class SeparableStrips {
  using A = Acc<T>;

 public:
  SeparableStrips(const SeparablePlan& plan, const Kernels<T>& kernels, View<const T> input,
                  const SeparableWeights<T>& weights, View<T> output)
      : plan_(plan), kernels_(kernels), input_(input), weights_(weights), output_(output) {}

  // reserve(numbers) gives scratch memory, aligned to 64 bytes.
  template <class Reserve>
  void strip(int64_t index, const Reserve& reserve) {
    const Box box = plan_.strip_box(index);
    if (const int64_t count = strip_positions(box); count != count_) set_count(count);
    const ConvGeometry<int64_t>& g = plan_.pointwise;
    const int64_t first = plan_.first_position(box), step = hidden_.spatial[2];
    A* const scratch = reserve(hidden_size_ + depthwise_size_ + pointwise_size_);
    A* const rest = scratch + hidden_size_ + depthwise_size_;
    T* const hidden = reinterpret_cast<T*>(scratch);
    // Positions are counted from the image's first.
    const View<T> target{hidden - first * step, 0, hidden_.c, {{g.in[1] * g.in[2] * step, g.in[2] * step, step}}};
    const int64_t blocks = plan_.depthwise.channels.blocks();
    kernels_.depthwise.correlate(plan_.depthwise, input_, weights_.depthwise, nullptr, target,
                                 {index * blocks, (index + 1) * blocks}, scratch + hidden_size_);
    const View<const T> source{hidden, 0, hidden_.c, hidden_.spatial};
    const View<T> to{output_.at(box.n.begin, 0) + first * output_.spatial[2], 0, output_.c, output_.spatial};
    if (pixels_) kernels_.direct.pixels(*pixels_, source, weights_.pointwise_panels, to, {0, pixels_->items()}, rest);
    else
      kernels_.direct.correlate(*direct_, source, weights_.pointwise, weights_.bias, to, {0, direct_->items()}, rest);
  }

 private:
  // Plans the second step for strips of so many positions.
  void set_count(int64_t count) {
    count_ = count;
    const auto [channel, column] = plan_.hidden(count);
    hidden_ = {nullptr, 0, channel, {{0, 0, column}}};
    pixels_ = plan_strip_pixels<T>(plan_, count);
    if (!pixels_) direct_ = plan_direct<T>(plan_.strip(count), false, plan_.hidden(count), plan_.output());
    const int64_t numbers = plan_.pointwise.in_channels * count;
    hidden_size_ = rounded(ceil_div(numbers * static_cast<int64_t>(sizeof(T)), sizeof(A)));
    depthwise_size_ = rounded(plan_.depthwise.scratch_size());
    pointwise_size_ = pixels_ ? pixels_->scratch_size() : direct_->scratch_size();
  }
  static int64_t rounded(int64_t numbers) { return (numbers / 16 + 1) * 16; }  // to 64 bytes

  const SeparablePlan& plan_;
  const Kernels<T>& kernels_;
  const View<const T> input_;
  const SeparableWeights<T>& weights_;
  const View<T> output_;  // channels, and positions as columns

  int64_t count_ = 0;
  View<const T> hidden_{};  // but for its data
  std::optional<PixelPlan> pixels_;
  std::optional<DirectPlan> direct_;
  int64_t hidden_size_ = 0, depthwise_size_ = 0, pointwise_size_ = 0;  // in scratch
};

}  // namespace torch_ext::cpu
