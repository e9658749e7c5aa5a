#include "cuda/kernels/grouped.cuh"
#include "depthwise_case.h"

namespace torch_ext::test {
namespace {

template <class T>
void run_grouped_forward(ConvProblem<T>* p) {
  cuda::grouped_forward<T>(p->g, p->device_input.input(), p->device_weight.input(), p->device_bias, p->output.view(),
                           p->multiprocessors, p->launch());
}

template <class T>
void run_grouped_grad_input(ConvProblem<T>* p) {
  cuda::grouped_grad_input<T>(p->g, p->device_grad_output.input(), p->device_weight.input(), p->grad_input.view(),
                              p->multiprocessors, p->launch());
}

template <class T>
void check_grouped(const ConvCase& c) {
  SCOPED_TRACE(c.text());
  ConvProblem<T> p(c);
  run_grouped_forward(&p);
  p.output.expect(p.gpu, p.expected_output(), "output");
  run_grouped_grad_input(&p);
  p.grad_input.expect(p.gpu, p.expected_grad_input(), "grad_input");
  run_grad_weight(&p, p.launch());
  p.grad_weight.expect(p.gpu, p.expected_grad_weight(), "grad_weight");
}

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kSliced,
                               Layout::kShifted,    Layout::kBatchLast,    Layout::kShiftedChannelsLast};

class GroupedCuda : public CudaTest {
 protected:
  // Layouts and types in turns; under sanitizers, which take long, only some run.
  void check(ConvCase c) {
    const int i = count_++;
    if ((simt::kThreadSanitizer && i % 10 != 0) || (simt::kAddressSanitizer && i % 4 != 0)) return;
    c.input_layout = i % 3 < 2 ? kLayouts[i % 3] : kLayouts[i / 3 % 6];
    c.output_layout = i % 3 < 2 ? kLayouts[i % 3] : kLayouts[(i / 3 + i / 18) % 6];
    switch ((i + i / 4) % 4) {
      case 0:
        return check_grouped<float>(c);
      case 1:
        return check_grouped<Half>(c);
      case 2:
        return check_grouped<BFloat16>(c);
      default:
        return check_grouped<double>(c);
    }
  }

 private:
  int count_ = 0;
};

ConvCase grouped_case(int64_t groups, int64_t inputs, int64_t outputs, Sizes in, int64_t kernel) {
  ConvCase c = square_case(groups, 1, kernel, kernel / 2);
  c.in_channels = groups * inputs;
  c.out_channels = groups * outputs;
  c.in = std::move(in);
  return c;
}

// Of the largest tensors, in multiples of what there must be: sectors per request, and bytes in grad weight.
template <class T>
void expect_little_traffic(const ConvCase& c, double sectors, double grad_weight_bytes) {
  SCOPED_TRACE(c.text() + ", bytes of a number: " + std::to_string(sizeof(T)));
  ConvProblem<T> p(c);
  run_grouped_forward(&p);
  p.gpu.expect_loads(p.device_input.buffer, sectors, 1.15);
  p.gpu.expect_stores(p.output.buffer, 1.3, 1.15);
  run_grouped_grad_input(&p);
  p.gpu.expect_loads(p.device_grad_output.buffer, sectors, 1.15);
  p.gpu.expect_stores(p.grad_input.buffer, 1.3, 1.15);
  int step = 0;
  run_grad_weight(&p, [&](const simt::LaunchSize& size, auto* kernel, const auto& params) {
    p.gpu.run(size, kernel, params);
    if (step++ > 0) return;
    p.gpu.expect_loads(p.device_grad_output.buffer, sectors, grad_weight_bytes);
    p.gpu.expect_loads(p.device_input.buffer, sectors, grad_weight_bytes);
  });
}

TEST_F(GroupedCuda, Traffic) {
  if (simt::kAddressSanitizer || simt::kThreadSanitizer) GTEST_SKIP() << "counted without sanitizers";
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (int64_t channels : {2, 3, 4, 6, 8})
      for (int64_t kernel : {3, 7}) {
        if (kernel == 7 && channels != 3 && channels != 8) continue;
        const bool by_pixels = layout == Layout::kChannelsLast;
        ConvCase c = grouped_case((channels % 3 == 0 ? 48 : 32) / channels, channels, channels, {14, 32}, kernel);
        c.batch = 4;  // enough blocks without cutting images
        c.input_layout = c.output_layout = layout;
        c.multiprocessors = 1;
        // Groups of an odd number of channels are read one by one. Not all taps and inputs of groups of eight have
        // their sums in one block.
        const bool odd = by_pixels && channels % 2 == 1, many = !by_pixels && channels == 8 && kernel == 7;
        expect_little_traffic<float>(c, odd ? 1.3 : 1.15, many ? 4 : 2);
        expect_little_traffic<Half>(c, odd ? 1.6 : 1.3, many ? 4 : 2);
      }
}

TEST_F(GroupedCuda, ChannelsAndWidths) {
  int i = 0;
  for (auto [inputs, outputs] : {std::pair{2, 2}, {4, 4}, {3, 5}, {8, 8}, {5, 1}, {15, 9}})
    for (int64_t groups : {1, 3})
      for (int64_t width : {1, 4, 9, 33}) {
        ConvCase c = grouped_case(groups, inputs, outputs, {4, width}, 1 + i++ % 3 * 2);
        c.bias = i % 2 == 0;
        check(c);
      }
}

TEST_F(GroupedCuda, KernelsStridesAndDilations) {
  int i = 0;
  for (int64_t kernel : {1, 2, 4, 7, 9})
    for (int64_t stride : {1, 2, 3, 5})
      for (int64_t dilation : {1, 2, 3}) {
        ConvCase c = grouped_case(2, 2 + i % 3, 3 + i / 3 % 2, {5, 19}, kernel);
        c.kernel[0] = 1 + i % 3;
        c.stride = {1 + i % 2, stride};
        c.dilation = {1 + i / 2 % 2, dilation};
        c.padding = {i % 2 * 2, 1, dilation * (kernel - 1), i % 4};
        c.batch = i % 3 + (i % 7 > 0);
        ++i;
        check(c);
      }
}

TEST_F(GroupedCuda, OneAndThreeDimensions) {
  for (int64_t channels : {2, 4}) {
    for (int64_t width : {3, 50, 460})
      check({2, channels * 3, channels * 6, 3, {width}, {4}, {1 + channels / 4}, {3, 0}, {1}});
    for (int64_t width : {4, 11})
      check({2, channels * 3, channels * 3, 3, {3, 4, width}, {2, 3, 3}, {1, 1, 2}, {1, 0, 1, 1, 1, 2}, {1, 2, 1}});
  }
}

TEST_F(GroupedCuda, LargeAndManyImages) {
  ConvCase large = grouped_case(1, 2, 2, {60, 70}, 3);
  large.batch = 1;
  check(large);
  check(large);
  ConvCase many = grouped_case(2, 4, 4, {5, 5}, 3);
  many.batch = 11;
  check(many);
  check(many);
}

TEST_F(GroupedCuda, Direct) {
  check({1, 4, 6, 2, {4, 30}, {2, 3}, {1, 1}, {0, 60000, 30000, 30000}, {60000, 30000}});
  // Windows whose numbers are a little under a multiple of 2^32.
  const ConvCase huge{1, 4, 4, 2, {4, 4}, {2, 2}, {1, 1}, {65533, 0, 65533, 0}, {65536, 65535}};
  check_grouped<float>(huge);
  check_grouped<double>(huge);
}

}  // namespace
}  // namespace torch_ext::test
