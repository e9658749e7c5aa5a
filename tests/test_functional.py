"""Values, gradients, shapes and formats of every function, on each instruction set."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import Assertion, assert_equal, by_kernel
from torch import Tensor

import torch_ext
from torch_ext import functional, reference, testing
from torch_ext.testing import CASES, Case, assert_close

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
EXACT = (torch.float32, torch.float64)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", testing.dtypes, ids=lambda dtype: str(dtype)[6:])


def integers(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(-4, 5, size).to(dtype)


channels_last = testing.LAYOUTS["channels_last"]


def depthwise(n: int) -> Callable[..., Tensor]:
    return getattr(functional, f"depthwise_conv{n}d")


def leaves(tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The same values and strides, as leaves of another graph."""
    return [t if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def agreement(strict: Assertion, case: Case, tensors: list[Tensor | None]) -> Assertion:
    arguments, named = case.call(*tensors)
    return by_kernel(strict, case.op, *arguments, **named)


# Values


@every_case
@every_dtype
def test_integers_are_exact(case: Case, isa: str, dtype: torch.dtype) -> None:
    """In 16 bit: rounded once, at the end (separable: and between the steps)."""
    tensors = case.tensors(dtype, integers=True)
    before = [None if t is None else t.clone() for t in tensors]
    versions = [None if t is None else t._version for t in tensors]
    output = case.function(*tensors)
    expected = case.expected(*tensors)
    assert output.dtype == dtype
    assert output.shape == expected.shape
    twice = case.op.startswith("depthwise_conv_transpose") and dtype in SIXTEEN_BIT and case.bias
    agreement(assert_close if twice else assert_equal, case, tensors)(output, expected)
    for tensor, copy, version in zip(tensors, before, versions, strict=True):
        if tensor is not None:
            assert torch.equal(tensor, copy)
            assert tensor._version == version
            if output.numel():
                assert output.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@every_case
@every_dtype
def test_random_values(case: Case, isa: str, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    output, agree = case.function(*tensors), agreement(assert_close, case, tensors)
    if case.op.startswith("separable") and dtype in SIXTEEN_BIT:
        # The two-step result: an element between two numbers may be rounded either way between the steps.
        hidden = depthwise(case.dims)(*tensors[:2], **case.arguments)
        assert_close(hidden, reference.depthwise_conv(*tensors[:2], **case.arguments))
        agree(output, reference.group_conv(hidden, *tensors[2:]))
    else:
        agree(output, case.expected(*tensors))


@every_case
def test_float32_gradients_of_integers_are_exact(case: Case, isa: str) -> None:
    tensors = case.tensors(torch.float32, integers=True, requires_grad=True)
    copies = leaves(tensors, torch.float64)
    output, expected, agree = case.function(*tensors), case.expected(*copies), agreement(assert_equal, case, tensors)
    grad_output = integers(*output.shape, dtype=torch.float32)
    agree(output, expected)
    ours = torch.autograd.grad(output, [t for t in tensors if t is not None], grad_output)
    theirs = torch.autograd.grad(expected, [t for t in copies if t is not None], grad_output.double())
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        agree(a, b)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.op.startswith("separable")], ids=lambda case: case.name
)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=lambda dtype: str(dtype)[6:])
def test_16_bit_gradients(case: Case, isa: str, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype, requires_grad=True)
    copies = leaves(tensors, torch.float64)
    output, expected, agree = case.function(*tensors), case.expected(*copies), agreement(assert_close, case, tensors)
    grad_output = torch.randn(output.shape, dtype=dtype)
    ours = torch.autograd.grad(output, [t for t in tensors if t is not None], grad_output)
    theirs = torch.autograd.grad(expected, [t for t in copies if t is not None], grad_output.double())
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        agree(a, b)


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 13, 17, 58])
def test_awkward_sizes(isa: str, channels: int) -> None:
    """Every width from 1 to 9 with kernels, strides and dilations that do not fit it, and all gradients."""
    torch.manual_seed(channels)
    draw = random.Random(channels)
    kernels = [((1, 1), 1, 0, 1), ((1, 3), 1, (0, 1), 1), ((3, 3), 1, 1, 1), ((3, 3), 2, 1, 1), ((2, 2), 3, 1, 1)]
    kernels += [((3, 11), 1, (1, 5), 1), ((5, 5), (1, 4), 2, (1, 2)), ((1, 2), (2, 7), (1, 9), (1, 4))]
    kernels += [((4, 2), 2, (3, 12), (1, 5))]
    for width, (kernel, stride, padding, dilation) in itertools.product(range(1, 10), kernels):
        multiplier = draw.choice([1, 1, 2, 3])
        tensors = [
            draw.choice([Tensor.contiguous, channels_last])(integers(draw.choice([1, 2]), channels, 4, width)),
            integers(channels * multiplier, 1, *kernel),
            integers(channels * multiplier),
        ]
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        pads = padding if isinstance(padding, tuple) else (padding, padding)
        dilations = dilation if isinstance(dilation, tuple) else (dilation, dilation)
        if width + 2 * pads[1] < (kernel[1] - 1) * dilations[1] + 1:
            continue
        for dtype in EXACT:
            ours, theirs = leaves(tensors, dtype), leaves(tensors, torch.float64)
            output = torch_ext.depthwise_conv2d(*ours, **arguments)
            expected = F.conv2d(*theirs, **arguments, groups=channels)
            what = (isa, dtype, channels, width, kernel, arguments, multiplier)
            agree = by_kernel(assert_equal, "depthwise_conv2d", *ours, **arguments)
            agree(output, expected, what)
            grad_output = integers(*expected.shape)
            gradients = torch.autograd.grad(output, ours, grad_output.to(dtype))
            for a, b in zip(gradients, torch.autograd.grad(expected, theirs, grad_output), strict=True):
                agree(a, b, what)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_random_geometries(isa: str, n: int) -> None:
    """Every argument drawn, with two-sided padding and any layout, against the reference."""
    draw = random.Random(n)
    torch.manual_seed(n)
    done = 0
    while done < 60:
        channels, multiplier = draw.choice([1, 2, 5, 8, 11, 16, 19]), draw.choice([1, 1, 2, 4])
        kernel = [draw.randint(1, 5) for _ in range(n)]
        stride, dilation = ([draw.randint(1, 4) for _ in range(n)] for _ in range(2))
        padding = [(draw.randint(0, 5), draw.randint(0, 5)) for _ in range(n)]
        sizes = [draw.randint(1, (40, 12, 7)[n - 1]) for _ in range(n)]
        if any(s + b + a < d * (k - 1) + 1 for s, (b, a), d, k in zip(sizes, padding, dilation, kernel, strict=True)):
            continue
        done += 1
        layout, weight_layout = (draw.choice(sorted(testing.LAYOUTS)) for _ in range(2))
        tensors = [
            testing.LAYOUTS[layout](integers(draw.randint(1, 3), channels, *sizes)),
            testing.LAYOUTS[weight_layout](integers(channels * multiplier, 1, *kernel)),
            integers(channels * multiplier),
        ]
        dtype = draw.choice(EXACT)
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        ours, theirs = leaves(tensors, dtype), leaves(tensors, torch.float64)
        output = depthwise(n)(*ours, **arguments)
        expected = reference.depthwise_conv(*theirs, **arguments)
        what = (isa, dtype, [t.shape for t in tensors], layout, weight_layout, arguments)
        agree = by_kernel(assert_equal, f"depthwise_conv{n}d", *ours, **arguments)
        agree(output, expected, what)
        grad_output = testing.LAYOUTS[draw.choice(sorted(testing.LAYOUTS))](integers(*expected.shape))
        gradients = torch.autograd.grad(output, ours, grad_output.to(dtype))
        for a, b in zip(gradients, torch.autograd.grad(expected, theirs, grad_output), strict=True):
            agree(a, b, what)


@every_dtype
@pytest.mark.parametrize("format", [Tensor.contiguous, channels_last])
def test_kernel_of_31(isa: str, dtype: torch.dtype, format: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    tensors = [format(torch.randn(1, 9, 20, 17, dtype=dtype)), torch.randn(9, 1, 31, 31, dtype=dtype)]
    ours, theirs = leaves(tensors, dtype), leaves(tensors, torch.float64)
    output = torch_ext.depthwise_conv2d(*ours, padding=15)
    expected = F.conv2d(*theirs, padding=15, groups=9)
    assert_close(output, expected)
    grad_output = torch.randn_like(output)
    gradients = torch.autograd.grad(output, ours, grad_output)
    for a, b in zip(gradients, torch.autograd.grad(expected, theirs, grad_output.double()), strict=True):
        assert_close(a, b)


@every_dtype
def test_long_sums_are_accurate(isa: str, dtype: torch.dtype) -> None:
    """Weight and bias gradients over a batch of images: values of one sign are where sums lose their last digits."""
    torch.manual_seed(0)
    tensors = [torch.rand(4, 3, 128, 128, dtype=dtype), torch.rand(3, 1, 3, 3, dtype=dtype), torch.rand(3, dtype=dtype)]
    ours, theirs = leaves(tensors, dtype), leaves(tensors, torch.float64)
    output = torch_ext.depthwise_conv2d(*ours, padding=1)
    expected = F.conv2d(*theirs, padding=1, groups=3)
    scale = 2.0**-8 if dtype == torch.float16 else 1.0  # float16 ends at 65504
    grad_output = torch.rand_like(output) * scale
    gradients = torch.autograd.grad(output, ours, grad_output)
    for a, b in zip(gradients, torch.autograd.grad(expected, theirs, grad_output.double()), strict=True):
        assert_close(a, b)


def test_not_a_number_and_infinity_stay_where_they_belong(isa: str) -> None:
    for special in (float("nan"), float("inf"), -float("inf")):
        input, weight = torch.zeros(2, 9, 7, 7), torch.ones(9, 1, 3, 3)
        input[1, 4, 3, 3] = special
        output = torch_ext.depthwise_conv2d(input, weight, padding=1)
        expected = torch.zeros(2, 9, 7, 7)
        expected[1, 4, 2:5, 2:5] = special
        assert torch.equal(output.nan_to_num(7, 8, 9), expected.nan_to_num(7, 8, 9))


# Nothing to compute


@pytest.mark.parametrize("n", [1, 2, 3])
@every_dtype
def test_empty_batch(isa: str, n: int, dtype: torch.dtype) -> None:
    for m, op in itertools.product((1, 2), ("depthwise", "group", "transpose", "separable")):
        weight = torch.randn(4 * m, 1, *(3,) * n, dtype=dtype)
        call, shape, channels = {
            "depthwise": (depthwise(n), (3,) * n, 4 * m),
            "group": (getattr(functional, f"group_conv{n}d"), (3,) * n, 6),
            "transpose": (getattr(functional, f"depthwise_conv_transpose{n}d"), (7,) * n, 4 * m),
            "separable": (getattr(functional, f"separable_conv{n}d"), (3,) * n, 5),
        }[op]
        if op == "group":
            weight = torch.randn(6, 4, *(3,) * n, dtype=dtype)
        if op == "transpose":
            weight = torch.randn(4, m, *(3,) * n, dtype=dtype)
        tensors = [torch.randn(0, 4, *(5,) * n, dtype=dtype), weight]
        if op == "separable":
            tensors.append(torch.randn(5, 4 * m, *(1,) * n, dtype=dtype))
        tensors = [t.requires_grad_() for t in (*tensors, torch.randn(channels, dtype=dtype))]
        output = call(*tensors)
        assert output.shape == (0, channels, *shape)
        assert output.dtype == dtype
        for tensor, gradient in zip(tensors, torch.autograd.grad(output.sum(), tensors), strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
@every_dtype
def test_images_without_elements(isa: str, n: int, dtype: torch.dtype, channels: int) -> None:
    """Padding makes a result of them: the bias. Only the bias has a gradient."""
    torch.manual_seed(0)
    for axis in range(n):
        sizes = [4] * n
        sizes[axis] = 0
        tensors = torch.randn(2, channels, *sizes, dtype=dtype), torch.randn(6, 1, *(3,) * n, dtype=dtype)
        tensors = [t.requires_grad_() for t in (*tensors, torch.randn(6, dtype=dtype))]
        output = depthwise(n)(*tensors, padding=2)
        assert output.shape == (2, 6, *(size + 2 for size in sizes))
        assert torch.equal(output, tensors[2].view(-1, *(1,) * n).expand(output.shape))
        grad_input, grad_weight, grad_bias = torch.autograd.grad(output.sum(), tensors)
        assert grad_input.shape == tensors[0].shape
        assert torch.equal(grad_weight, torch.zeros_like(grad_weight))
        assert torch.equal(grad_bias, torch.full_like(grad_bias, output.numel() // 6))
        without_bias = depthwise(n)(*tensors[:2], padding=2)
        assert torch.equal(without_bias, torch.zeros_like(without_bias))
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            depthwise(n)(*tensors)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_zero_channels_through_the_core_op(isa: str, n: int) -> None:
    """Four output channels of nothing: the bias."""
    input, weight = torch.randn(2, 0, *(5,) * n), torch.randn(4, 0, *(3,) * n)
    numbers = ([1] * n, [0] * 2 * n, [1] * n, 1)
    bias = torch.randn(4)
    output = torch.ops.torch_ext.conv(input, weight, bias, *numbers)
    assert torch.equal(output, bias.view(-1, *(1,) * n).expand(2, 4, *(3,) * n))
    gradients = torch.ops.torch_ext.conv_backward(output, input, weight, *numbers, [True] * 3)
    assert [g.shape for g in gradients] == [input.shape, weight.shape, bias.shape]
    torch.testing.assert_close(gradients[2], output.sum([0, *range(2, n + 2)]))


@every_dtype
def test_no_input_channels(dtype: torch.dtype) -> None:
    input, weight = torch.randn(2, 0, 5, 5).to(dtype), torch.randn(3, 0, 3, 3).to(dtype)
    bias = torch.randn(3).to(dtype)
    for tensor in (input, weight, bias):
        tensor.requires_grad_()
    output = functional.group_conv2d(input, weight, bias, padding=1)
    assert torch.equal(output, bias.view(3, 1, 1).expand(2, 3, 5, 5))
    output.sum().backward()
    assert (input.grad.shape, weight.grad.shape) == (input.shape, weight.shape)
    assert torch.equal(bias.grad, torch.full_like(bias, 50))


# Formats


@every_case
def test_meta_gives_the_same(case: Case) -> None:
    for dtype in testing.dtypes:
        tensors = case.tensors(dtype)
        output = case.function(*tensors)
        meta = case.function(
            *(t if t is None else torch.empty_strided(t.shape, t.stride(), dtype=dtype, device="meta") for t in tensors)
        )
        assert meta.is_meta
        assert (meta.shape, meta.dtype, meta.stride()) == (output.shape, output.dtype, output.stride())


def in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    """With the strides that say so even if one channel is contiguous either way."""
    order = [0, *range(2, tensor.dim()), 1] if channels_last else list(range(tensor.dim()))
    strides, step = [0] * tensor.dim(), 1
    for axis in reversed(order):
        strides[axis], step = step, step * tensor.shape[axis]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("op", ["depthwise_conv", "group_conv"])
@every_dtype
def test_channels_last_if_input_or_weight_is(isa: str, op: str, n: int, dtype: torch.dtype) -> None:
    format = {2: torch.channels_last, 3: torch.channels_last_3d}[n]
    function = getattr(functional, f"{op}{n}d")
    size = (8, 1, *(3,) * n) if op == "depthwise_conv" else (8, 4, *(3,) * n)
    for input_last, weight_last in itertools.product((False, True), repeat=2):
        input = in_format(integers(2, 4, *(5,) * n, dtype=dtype), input_last)
        weight = in_format(integers(*size, dtype=dtype), weight_last)
        output = function(input, weight, padding=1)
        last = input_last or weight_last
        assert output.is_contiguous(memory_format=format if last else torch.contiguous_format)
        expected = CONV[n](input.double(), weight.double(), padding=1, groups=4 // size[1])
        by_kernel(assert_equal, f"{op}{n}d", input, weight, padding=1)(output, expected)


@pytest.mark.parametrize("op", ["depthwise_conv1d", "group_conv1d", "separable_conv1d", "depthwise_conv_transpose1d"])
@every_dtype
def test_channels_last_in_one_dimension(isa: str, op: str, dtype: torch.dtype) -> None:
    weights = {
        "depthwise_conv1d": [(8, 1, 3)],
        "group_conv1d": [(8, 4, 3)],
        "separable_conv1d": [(4, 1, 3), (8, 4, 1)],
        "depthwise_conv_transpose1d": [(4, 2, 3)],
    }[op]
    weights = [integers(*size, dtype=dtype) for size in weights]
    input = integers(2, 4, 6, dtype=dtype)
    output = getattr(functional, op)(input, *weights, padding=1)
    assert output.shape == (2, 8, 6)
    assert output.stride() == (48, 6, 1)
    last = getattr(functional, op)(channels_last(input), *weights, padding=1)
    assert last.stride() == (48, 1, 8)
    by_kernel(assert_equal, op, input, *weights, padding=1)(last, output)


def test_one_channel_or_one_element_has_no_format() -> None:
    assert torch_ext.depthwise_conv1d(torch.randn(2, 1, 6), torch.randn(1, 1, 3)).stride() == (4, 4, 1)
    assert torch_ext.depthwise_conv1d(torch.randn(2, 4, 1), torch.randn(4, 1, 1)).stride() == (4, 1, 1)


@pytest.mark.parametrize("n", [1, 2, 3])
@every_dtype
def test_any_strides(isa: str, n: int, dtype: torch.dtype) -> None:
    """Overlapping, transposed, broadcast and offset input and grad_output."""
    torch.manual_seed(n)
    sizes = (6, 5, 4)[:n]
    weight, bias = integers(6, 1, *(2,) * n, dtype=dtype), integers(6, dtype=dtype)
    storage = integers(4000, dtype=dtype)
    overlapping = storage.as_strided((2, 3, *sizes), (7, 2, *range(1, n + 1)), 3)
    broadcast = storage[:3].view(1, 3, *(1,) * n).expand(2, 3, *sizes)
    inputs = [overlapping, broadcast, storage[:1].expand(2, 3, *sizes)]
    inputs += [layout(integers(2, 3, *sizes, dtype=dtype)) for layout in testing.LAYOUTS.values()]
    for input in inputs:
        output = depthwise(n)(input, weight, bias, padding=1)
        assert torch.equal(output, depthwise(n)(input.contiguous(), weight, bias, padding=1))
        numbers = ([1] * n, [1] * 2 * n, [1] * n, 3, [True] * 3)
        plain = torch.randint(-4, 5, output.shape).to(dtype)
        for layout in testing.LAYOUTS.values():
            grad_output = layout(plain)
            ours = torch.ops.torch_ext.conv_backward(grad_output, input, weight, *numbers)
            packed = (grad_output.contiguous(), input.contiguous(), weight)
            for a, b in zip(ours, torch.ops.torch_ext.conv_backward(*packed, *numbers), strict=True):
                assert torch.equal(a, b)


# Separable convolution in pieces


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("outputs", [1, 8, 100])
@pytest.mark.parametrize("size", [(1,), (2,), (1, 1), (2, 1), (1, 2), (2, 2), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_separable_of_tiny_images_is_exact(
    dtype: torch.dtype, size: tuple[int, ...], outputs: int, layout: str, isa: str
) -> None:
    """Whose axes are as short as the ones that they lack; also where the pointwise step is PyTorch's, or depthwise."""
    n = len(size)
    for channels in (1, 8, 80):
        shapes = (3, channels, *size), (channels, 1, *(3,) * n), (outputs, channels, *(1,) * n)
        factors = [testing.LAYOUTS[layout](integers(*shape, dtype=dtype) / 4).requires_grad_() for shape in shapes]
        output = getattr(functional, f"separable_conv{n}d")(*factors, padding=1)
        copies = leaves(factors, torch.float64)
        expected = reference.separable_conv(*copies, padding=1)
        agree = by_kernel(assert_equal, f"separable_conv{n}d", *factors, padding=1)
        agree(output, expected)
        grad_output = integers(*output.shape, dtype=dtype)
        ours = torch.autograd.grad(output, factors, grad_output)
        theirs = torch.autograd.grad(expected, copies, grad_output.double())
        for a, b in zip(ours, theirs, strict=True):
            if dtype == torch.float32:
                agree(a, b)
            else:
                torch.testing.assert_close(a.double(), b, rtol=0.02, atol=0.02 * b.abs().max().item())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("size", "kernel", "arguments"),
    [
        ((1, 8, 201, 190), (3, 3), {"padding": 1}),
        ((2, 8, 190, 210), (7, 5), {"padding": ((2, 5), (0, 3)), "dilation": (2, 1)}),
        ((1, 8, 402, 501), (3, 2), {"stride": (2, 3), "padding": ((2, 0), (1, 1))}),
        ((1, 8, 500, 400), (1, 2), {"stride": (3, 2)}),
        ((1, 8, 60, 700), (3, 9), {"padding": "same"}),
        ((1, 8, 44000), (31,), {"padding": "causal"}),
        ((1, 8, 10, 70, 60), (3, 3, 3), {"padding": 1}),
    ],
)
def test_separable_of_large_images_is_exact(
    size: tuple[int, ...], kernel: tuple[int, ...], arguments: dict[str, Any], layout: str, isa: str
) -> None:
    """Cut between rows: their neighbours' terms are all there, once."""
    n, ones = len(kernel), (1,) * len(kernel)
    factors = [integers(*shape) for shape in (size, (16, 1, *kernel), (8, 16, *ones))]
    factors = [testing.LAYOUTS[layout](t).requires_grad_() for t in factors]
    output = getattr(functional, f"separable_conv{n}d")(*factors, **arguments)
    copies = leaves(factors, torch.float64)
    hidden = reference.depthwise_conv(*copies[:2], **arguments)
    assert hidden.numel() / hidden.shape[0] * 4 > 2 << 20
    expected = reference.group_conv(hidden, copies[2])
    # Sums of a sparse gradient are exact, too.
    grad_output = integers(*output.shape, dtype=torch.float32) * (torch.rand(output.shape) < 1e-3)
    ours = torch.autograd.grad(output, factors, grad_output)
    theirs = torch.autograd.grad(expected, copies, grad_output.double())
    agree = by_kernel(assert_equal, f"separable_conv{n}d", *factors, **arguments)
    for a, b in zip((output, *ours), (expected, *theirs), strict=True):
        agree(a, b)
