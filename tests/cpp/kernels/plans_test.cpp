#include "kernel_case.h"

// The plans of the passes, without running them.
namespace torch_ext::test {
namespace {

// Calls body(plan) for the plans of every pass and kind of layout.
template <class T, class Body>
void for_each_plan(const Geometry& g, const Body& body) {
  for (const cpu::Layout layout : {cpu::Layout{1000, 1}, cpu::Layout{1, 1000}, cpu::Layout{7, 1000}}) {
    body(cpu::plan_correlate<T>(g, false, layout, layout));
    body(cpu::plan_correlate<T>(g, true, layout, layout));
    body(cpu::plan_grad_weight<T>(g, layout, layout));
    body(cpu::plan_grad_bias<T>(g, layout));
  }
}

// Scratch does not grow with the problem.
void expect_bounded(const Case& c) {
  SCOPED_TRACE(c.text());
  const Geometry g = c.geometry();
  const auto check_type = [&]<class T>(T) {
    for_each_plan<T>(g, [](const auto& plan) {
      EXPECT_LE(plan.scratch_size() * static_cast<int64_t>(sizeof(Acc<T>)), 1 << 20);
      EXPECT_GE(plan.items(), 1);
    });
  };
  check_type(float{});
  check_type(double{});
  check_type(BFloat16{});
}

TEST(DepthwisePlans, ScratchIsBounded) {
  for (int64_t kernel : {1, 2, 3, 31, 255})
    for (int64_t dilation : {1, 7, 1000})
      for (int64_t stride : {1, 2, 8, 1000})
        for (int64_t channels : {1, 8, 64}) {
          const int64_t pad = (kernel - 1) * dilation / 2 + 1;
          const Case line{8, channels, channels, channels, {1000000}, {kernel}, {stride}, {pad, pad}, {dilation}};
          expect_bounded(line);
          expect_bounded({1,
                          channels,
                          (channels > 1 ? 4 : 1) * channels,
                          channels,
                          {1000, 999},
                          {kernel, kernel},
                          {stride, stride},
                          {pad, pad, pad, pad},
                          {dilation, dilation}});
          if (channels > 1)
            expect_bounded({1,
                            4 * channels,
                            channels,
                            channels,
                            {50, 100, 99},
                            {kernel, kernel, kernel},
                            {stride, stride, stride},
                            {pad, pad, pad, pad, pad, pad},
                            {dilation, dilation, dilation}});
        }
}

// The same, with axes that have nothing to do with each other.
TEST(DepthwisePlans, ScratchIsBoundedForOddAxes) {
  expect_bounded({2, 8, 8, 8, {1000000}, {3}, {100000}, {0, 0}, {1}});
  expect_bounded({64, 8, 8, 8, {2001, 16}, {3, 3}, {1, 1}, {0, 0, 1, 1}, {1000, 1}});
  expect_bounded({64, 16, 16, 16, {202, 8}, {3, 1}, {2, 1}, {0, 0, 0, 0}, {100, 1}});
  std::mt19937 random(1);
  const auto draw = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
  for (int i = 0; i < 20000; ++i) {
    Case c{draw({1, 2, 3, 64}), 0, 0, draw({2, 6, 8, 16, 70}), {}, {}, {}, {}, {}};
    c.in_channels = c.groups;
    c.out_channels = c.groups * draw({1, 1, 2});
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t kernel = draw({1, 2, 3, 4, 5, 7, 13, 31}), dilation = draw({1, 1, 2, 30, 2663});
      const int64_t reach = (kernel - 1) * dilation, in = draw({1, 7, 56, 174, 253, 481, 2437});
      const int64_t pad = in > reach && random() % 2 ? 0 : reach / 2 + 1;  // without padding, also of one position
      c.in.push_back(pad == 0 && random() % 2 ? reach + 1 : in);
      c.kernel.push_back(kernel);
      c.stride.push_back(draw({1, 1, 2, 5, 86, 111}));
      c.dilation.push_back(dilation);
      c.padding.insert(c.padding.end(), {pad, pad});
    }
    expect_bounded(c);
  }
}

TEST(DepthwisePlans, Orders) {
  using cpu::Order;
  const auto expect_orders = [](const Case& c, auto type, cpu::Layout layout, Order correlate, Order grad_weight) {
    SCOPED_TRACE(c.text());
    using T = decltype(type);
    const Geometry g = c.geometry();
    EXPECT_EQ(cpu::plan_correlate<T>(g, false, layout, layout).order, correlate);
    EXPECT_EQ(cpu::plan_correlate<T>(g, true, layout, layout).order, correlate);
    EXPECT_EQ(cpu::plan_grad_weight<T>(g, layout, layout).order, grad_weight);
  };
  Case c = square(144, 56, 3, 1);
  const cpu::Layout contiguous{56 * 56, 1}, channels_last{1, 144};
  expect_orders(c, float{}, contiguous, Order::kColumnsInPlace, Order::kColumnsInPlace);
  expect_orders(c, double{}, contiguous, Order::kColumnsInPlace, Order::kColumnsInPlace);
  expect_orders(c, float{}, channels_last, Order::kChannelsInPlace, Order::kChannelsInPlace);
  expect_orders(c, BFloat16{}, contiguous, Order::kStagedColumns, Order::kStagedChannels);
  expect_orders(c, BFloat16{}, channels_last, Order::kChannelsInPlace, Order::kChannelsInPlace);
  c.kernel = {31, 31}, c.padding = {15, 15, 15, 15};
  expect_orders(c, float{}, contiguous, Order::kPackedColumns, Order::kPackedColumns);
  c = square(144, 56, 3, 1);
  c.stride = {2, 2};
  expect_orders(c, float{}, contiguous, Order::kPackedChannels, Order::kStagedChannels);
  expect_orders(c, float{}, channels_last, Order::kChannelsInPlace, Order::kChannelsInPlace);
  expect_orders(square(144, 28, 3, 1), float{}, {28 * 28, 1}, Order::kColumnsInPlace, Order::kStagedChannels);
  expect_orders(square(3, 28, 3, 1), float{}, {28 * 28, 1}, Order::kColumnsInPlace, Order::kColumnsInPlace);
  expect_orders(square(3, 512, 3, 1), BFloat16{}, {512 * 512, 1}, Order::kPackedColumns, Order::kPackedColumns);
  // Pixels 2048 bytes apart share a few sets of the L1 cache.
  expect_orders(square(512, 56, 3, 1), float{}, {1, 512}, Order::kPackedChannels, Order::kPackedChannels);
  expect_orders(square(512, 56, 3, 1), BFloat16{}, {1, 512}, Order::kChannelsInPlace, Order::kChannelsInPlace);
  expect_orders(square(256, 56, 3, 1), float{}, {1, 256}, Order::kChannelsInPlace, Order::kChannelsInPlace);
  expect_orders(square(256, 56, 5, 1), float{}, {1, 256}, Order::kPackedChannels, Order::kPackedChannels);
  expect_orders(square(144, 56, 5, 1), float{}, channels_last, Order::kChannelsInPlace, Order::kChannelsInPlace);
  expect_orders(square(144, 56, 7, 1), float{}, channels_last, Order::kPackedChannels, Order::kChannelsInPlace);
}

TEST(DirectPlans, ScratchIsBounded) {
  const auto check_type = []<class T>(const Geometry& g, T) {
    const auto expect_bounded = [](const auto& plan) {
      EXPECT_LE(plan.scratch_size() * static_cast<int64_t>(sizeof(Acc<T>)), 1 << 20);
    };
    for (const cpu::Layout layout : {cpu::Layout{1000, 1}, cpu::Layout{1, 1000}, cpu::Layout{7, 1000}}) {
      for (bool transposed : {false, true}) {
        expect_bounded(cpu::plan_direct<T>(g, transposed, layout, layout));
        if (const auto pixels = cpu::plan_pixels<T>(g, transposed, layout, layout)) expect_bounded(*pixels);
      }
      expect_bounded(cpu::plan_direct_grad_weight<T>(g, layout, layout));
      if (const auto pixels = cpu::plan_pixel_grad_weight<T>(g, layout, layout)) expect_bounded(*pixels);
    }
  };
  for (int64_t inputs : {1, 2, 8, 15, 64, 250})
    for (int64_t outputs : {1, 4, 16, 64, 500})
      for (int64_t groups : {1, 4, 32})
        for (int64_t kernel : {1, 3, 11})
          for (int64_t size : {1, 14, 56, 3000}) {
            const int64_t pad = kernel / 2;
            const Case c{2, groups * inputs, groups * outputs, groups, {size}, {kernel}, {1}, {pad, pad}, {1}};
            const Case square{2,         groups * inputs,  groups * outputs, groups,
                              {size, 9}, {kernel, kernel}, {1, 2},           {pad, pad, pad, pad},
                              {1, 1}};
            const int64_t dilation = 1 + size % 3, reach = dilation * pad, stride = size % 2 ? 9 : 8;
            const Case strided{2,           groups * inputs, groups * outputs,     groups,       {size, size},
                               {1, kernel}, {1, stride},     {0, 0, reach, reach}, {1, dilation}};
            for (const Geometry& g : {c.geometry(), square.geometry(), strided.geometry()}) {
              SCOPED_TRACE(c.text());
              check_type(g, float{});
              check_type(g, double{});
              check_type(g, BFloat16{});
            }
          }
}

TEST(DirectPlans, GroupsThatShareVectors) {
  constexpr cpu::Layout kAdjacent{1, 1000}, kContiguous{1000, 1};
  const auto geometry = [](int64_t groups, int64_t inputs, int64_t outputs, int64_t kernel) {
    return Case{1, groups * inputs, groups * outputs, groups, {20, 20}, {kernel, kernel}, {1, 1}, {0, 0, 0, 0}, {1, 1}}
        .geometry();
  };
  const auto share = [&](const Geometry& g) { return cpu::groups_share_vectors<float>(g, kAdjacent, kAdjacent); };
  for (int64_t channels : {2, 4}) {
    const Geometry g = geometry(8, channels, channels, 3);
    EXPECT_TRUE(share(g));
    EXPECT_TRUE(cpu::grad_weight_shares_vectors<float>(g, kAdjacent, kAdjacent));
    EXPECT_EQ(cpu::plan_correlate<float>(g, false, kAdjacent, kAdjacent).order, cpu::Order::kChannelsInPlace);
    EXPECT_EQ(cpu::plan_grad_weight<float>(g, kAdjacent, kAdjacent).order, cpu::Order::kChannelsInPlace);
    EXPECT_FALSE(cpu::groups_share_vectors<float>(g, kContiguous, kAdjacent));
    EXPECT_EQ(cpu::groups_share_vectors<double>(g, kAdjacent, kAdjacent), channels == 2);
  }
  EXPECT_TRUE(share(geometry(8, 4, 4, 5)));
  EXPECT_FALSE(share(geometry(8, 4, 4, 6)));
  EXPECT_FALSE(share(geometry(8, 3, 3, 3)));
  EXPECT_FALSE(share(geometry(8, 4, 2, 3)));
  EXPECT_FALSE(share(geometry(8, 8, 8, 3)));
  EXPECT_FALSE(share(geometry(3, 2, 2, 3)));
  EXPECT_FALSE(cpu::grad_weight_shares_vectors<float>(geometry(8, 4, 4, 1), kAdjacent, kAdjacent));
}

TEST(DepthwisePlans, FeedSixtyFourThreads) {
  const auto feeds = [&](const Case& c) {
    SCOPED_TRACE(c.text());
    for_each_plan<float>(c.geometry(), [](const auto& plan) { EXPECT_GE(plan.items(), 56); });
  };
  feeds({1, 3, 3, 3, {1200, 1200}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}});
  feeds({1, 1, 1, 1, {1000000}, {31}, {1}, {15, 15}, {1}});
  feeds({8, 128, 128, 128, {56, 56}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}});
}

}  // namespace
}  // namespace torch_ext::test
