"""Deformable convolution: against torchvision, at the edges of the image, in every combination of types, on threads."""

import copy
import itertools
import pickle
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from devices import assert_near, not_emulated, on_gpu, passes, run_process
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck

import torch_ext
from torch_ext import functional, reference, testing
from torch_ext.kernels import core_arguments
from torch_ext.testing import CASES, Case, assert_close

DEFORM = [case for case in CASES if case.op.startswith("deform")]
every_case = pytest.mark.parametrize("case", DEFORM, ids=lambda case: case.name)


def core(case: Case, tensors: list[Tensor | None]) -> tuple[list[Tensor | None], list[list[int]]]:
    """The tensors as the core ops take them, input, offset, weight, mask and bias; and their numbers."""
    input, offset, weight, bias, *mask = tensors
    like = Case(case.op.replace("deform", "group"), "", case.input, case.weights[1:], case.arguments)
    groups = input.shape[1] // weight.shape[1]
    call = {"input": input, "weight": weight, "bias": bias, "groups": groups, "stride": 1, "padding": 0, "dilation": 1}
    *_, stride, padding, dilation, _ = core_arguments(like.op, {**call, **case.arguments})
    return [input, offset, weight, mask[0] if mask else None, bias], [stride, padding, dilation]


def draw_call(draw: random.Random, dtype: torch.dtype, batches: tuple[int, ...] = (1, 2, 3)) -> tuple[Any, ...]:
    """A 2-D call that torchvision takes, too: input, offset, weight, bias, stride, padding, dilation, mask."""
    while True:
        groups, offset_groups = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 4])
        channels = groups * offset_groups * draw.choice([1, 2, 3, 5])
        kernel, stride, padding, dilation = ([draw.randint(low, high) for _ in range(2)] for low, high in
                                             ((1, 4), (1, 3), (0, 3), (1, 3)))  # fmt: skip
        sizes = [draw.randint(1, 9) for _ in range(2)]
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
        ]
        if min(out) > 0:
            break
    batch, taps = draw.choice(batches), kernel[0] * kernel[1]
    outputs = groups * draw.choice([1, 2, 5, 8])
    make = lambda *size: torch.randn(*size, dtype=dtype)  # noqa: E731
    offset = make(batch, 2 * offset_groups * taps, *out) * draw.choice([0.5, 2, 8])
    mask = make(batch, offset_groups * taps, *out) if draw.random() < 0.6 else None
    bias = make(outputs) if draw.random() < 0.6 else None
    input, weight = make(batch, channels, *sizes), make(outputs, channels // groups, *kernel)
    return input, offset, weight, bias, tuple(stride), tuple(padding), tuple(dilation), mask


def gradients(function: Any, call: tuple[Any, ...], grad_output: Tensor | None) -> tuple[Tensor, ...]:
    copies = [t.detach().clone().requires_grad_() if isinstance(t, Tensor) else t for t in call]
    output = function(*copies)
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    return (output, *torch.autograd.grad(output, [t for t in copies if isinstance(t, Tensor)], grad_output))


# Against torchvision


def test_torchvision_agrees(isa: str) -> None:
    """500 calls in float64: forward and every gradient."""
    draw = random.Random(0)
    torch.manual_seed(0)
    for i in range(500):
        call = draw_call(draw, torch.float64)
        expected = gradients(torchvision.ops.deform_conv2d, call, None)
        grad_output = torch.randn_like(expected[0])
        expected = gradients(torchvision.ops.deform_conv2d, call, grad_output)
        ours = gradients(functional.deform_conv2d, call, grad_output)
        for a, b in zip(ours, expected, strict=True):
            largest = max(b.abs().max().item(), 1) if b.numel() else 1
            assert (a - b).abs().max() <= 1e-12 * largest if b.numel() else a.shape == b.shape, (i, call[4:7])


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3.0])
def test_derivative_at_whole_numbers_is_torchvisions(value: float, isa: str) -> None:
    """Offsets of zero, as of a layer that begins: with padding, many coordinates are exactly -1 or the size."""
    torch.manual_seed(0)
    make = lambda *size: torch.randn(*size, dtype=torch.float64)  # noqa: E731
    call = (make(2, 4, 5, 6), torch.full((2, 18, 7, 8), value, dtype=torch.float64), make(3, 4, 3, 3), make(3))
    call = (*call, (1, 1), (2, 2), (1, 1), make(2, 9, 7, 8))
    grad_output = make(2, 3, 7, 8)
    ours = gradients(functional.deform_conv2d, call, grad_output)
    expected = gradients(torchvision.ops.deform_conv2d, call, grad_output)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    # And those of the compositions, which higher orders are made of.
    copies = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in call]
    tensors = [t for t in copies if isinstance(t, Tensor)]
    composed = torch.autograd.grad(functional.deform_conv2d(*copies), tensors, grad_output, create_graph=True)
    for a, b in zip(composed, expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# Values


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 13, 17, 58])
def test_awkward_sizes(isa: str, channels: int) -> None:
    """Widths from 1 to 9, kernels wider than the image, strides over the kernel; offsets in quarters, so exact."""
    draw = random.Random(channels)
    torch.manual_seed(channels)
    integers = lambda *size: torch.randint(-4, 5, size).float()  # noqa: E731
    for width, (kernel, stride, padding, dilation) in itertools.product(
        range(1, 10), [((1, 1), 1, 0, 1), ((3, 3), 1, 1, 1), ((2, 2), 3, 1, 1), ((3, 11), 1, ((1, 1), (5, 4)), 1)]
    ):
        layout = testing.LAYOUTS[draw.choice(["contiguous", "channels_last", "sliced", "permuted"])]
        offset_groups = draw.choice([g for g in (1, 2, channels) if channels % g == 0])
        groups = draw.choice([g for g in (1, channels) if channels % g == 0])
        batch, outputs, taps = draw.choice([1, 2]), groups * draw.choice([1, 2]), kernel[0] * kernel[1]
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        input, weight = layout(integers(batch, channels, 4, width)), integers(outputs, channels // groups, *kernel)
        try:
            shape = functional.group_conv2d(input, weight, groups=groups, **arguments).shape
        except RuntimeError:
            continue  # no output
        offset = layout(integers(batch, 2 * offset_groups * taps, *shape[2:]) / 4)
        mask = layout(integers(batch, offset_groups * taps, *shape[2:]))
        call = (input, offset, weight, integers(outputs))
        run = lambda function: lambda *t: function(*t[:4], **arguments, mask=t[4])  # noqa: B023, E731
        grad_output = layout(integers(*shape))
        ours = gradients(run(functional.deform_conv2d), (*call, mask), grad_output)
        double = [t.double() for t in (*call, mask)]
        expected = gradients(run(reference.deform_conv), tuple(double), grad_output.double())
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a, b.float()), (isa, channels, width, kernel, groups, offset_groups)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", testing.dtypes, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("size", "outputs", "offset_groups", "arguments"),
    [
        ((33, 16, 7, 7), 24, 2, {"padding": 1}),
        ((2, 40, 30, 31), 33, 1, {"padding": 1}),
        ((1, 64, 40, 40), 16, 4, {"padding": 2, "dilation": 2, "stride": 2}),
        ((5, 7, 12, 13), 9, 1, {"padding": 1}),
    ],
)
def test_larger_calls(
    size: tuple[int, ...], outputs: int, offset_groups: int, arguments: dict, dtype: torch.dtype, layout: str, isa: str
) -> None:
    """Of several tiles of positions, taps and runs of channels."""
    torch.manual_seed(0)
    make = lambda *size: testing.LAYOUTS[layout](torch.randn(*size).to(dtype))  # noqa: E731
    input, weight, bias = make(*size), make(outputs, size[1], 3, 3), torch.randn(outputs).to(dtype)
    shape = F.conv2d(input[:, :, :].float(), weight.float(), **arguments).shape
    offset, mask = make(size[0], 18 * offset_groups, *shape[2:]), make(size[0], 9 * offset_groups, *shape[2:])
    run = lambda function: lambda *t: function(*t[:4], **arguments, mask=t[4])  # noqa: E731
    call, grad_output = (input, offset, weight, bias, mask), make(*shape)
    ours = gradients(run(functional.deform_conv2d), call, grad_output)
    expected = gradients(run(reference.deform_conv), tuple(t.double() for t in call), grad_output.double())
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.dtype == dtype
        if (
            i == 2 and dtype != torch.float64
        ):  # coordinates have an error of their own; a slope is large where signs mix
            torch.testing.assert_close(a.double(), b, rtol=0.02, atol=2e-4 * b.abs().max().item())
        else:
            assert_close(a, b)


@pytest.mark.parametrize("size", [(100, 168), (4, 4096), (100000,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_images_keep_the_fraction(dtype: torch.dtype, size: tuple[int, ...], isa: str) -> None:
    """A coordinate in float32 would have few bits left for it; also in compositions."""
    torch.manual_seed(0)
    n = len(size)
    input, weight = torch.randn(1, 4, *size).to(dtype), torch.randn(4, 4, *(3,) * n).to(dtype)
    # Not near whole numbers, where the derivative jumps.
    offset = torch.randint(-3, 4, (1, n * 3**n, *size)) + torch.rand(1, n * 3**n, *size) * 0.8 + 0.1
    tensors = [t.requires_grad_() for t in (input, offset, weight)]
    output = getattr(functional, f"deform_conv{n}d")(*tensors, padding=1)
    copies = [t.detach().double().requires_grad_() for t in tensors]
    expected = reference.deform_conv(*copies, padding=1)
    assert_close(output, expected)
    grad_output = torch.randn(output.shape).to(dtype)
    theirs = torch.autograd.grad(expected, copies, grad_output.double())
    agree = assert_near if on_gpu() else assert_close  # the weight's gradient is a product over so many positions
    for create_graph in (False, True):
        ours = torch.autograd.grad(output, tensors, grad_output, retain_graph=True, create_graph=create_graph)
        for a, b in zip(ours, theirs, strict=True):
            agree(a.detach(), b)


@pytest.mark.parametrize("wide", [("offset",), ("mask",), ("offset", "mask")], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_offsets_in_float32_with_16_bit(dtype: torch.dtype, wide: tuple[str, ...], isa: str) -> None:
    torch.manual_seed(0)
    tensors = {"input": torch.randn(2, 8, 6, 7), "offset": torch.randn(2, 18, 6, 7), "weight": torch.randn(5, 8, 3, 3),
               "bias": torch.randn(5), "mask": torch.randn(2, 9, 6, 7)}  # fmt: skip
    call = {name: t if name in wide else t.to(dtype) for name, t in tensors.items()}
    call = {name: t.requires_grad_() for name, t in call.items()}
    output = functional.deform_conv2d(**call, padding=1)
    copies = {name: t.detach().double().requires_grad_() for name, t in call.items()}
    expected = reference.deform_conv(**copies, padding=1)
    assert output.dtype == dtype
    assert_close(output, expected)
    ours = torch.autograd.grad(output.sum(), list(call.values()))
    theirs = torch.autograd.grad(expected.sum(), list(copies.values()))
    for tensor, a, b in zip(call.values(), ours, theirs, strict=True):
        assert a.dtype == tensor.dtype
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=1e-3 * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "mask_size"), [(1.0, 1e-3), (1e-2, 1e-3), (1e-4, 1.0), (5e3, 30.0), (0.0, 1.0)])
def test_small_and_large_numbers_in_16_bit(dtype: torch.dtype, size: float, mask_size: float, isa: str) -> None:
    """Products of input and mask, which are outside of the range of float16."""
    torch.manual_seed(0)
    input, offset, mask = torch.randn(2, 8, 9, 9) * size, torch.randn(2, 18, 9, 9), torch.rand(2, 9, 9, 9) * mask_size
    weight = torch.randn(4, 8, 3, 3) * 1e-2
    call = {"input": input.to(dtype), "offset": offset, "weight": weight.to(dtype), "mask": mask}
    copies = {name: tensor.double().requires_grad_() for name, tensor in call.items()}
    call = {name: tensor.requires_grad_() for name, tensor in call.items()}
    output = functional.deform_conv2d(**call, padding=1)
    expected = reference.deform_conv(**copies, padding=1)
    grad_output = torch.randn_like(output) / max(size * mask_size / 100, 1)  # whose sums are in range
    assert_close(output, expected)
    ours = torch.autograd.grad(output, [call["input"], call["weight"]], grad_output)
    theirs = torch.autograd.grad(expected, [copies["input"], copies["weight"]], grad_output.double())
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


def test_not_a_number_stays_where_it_belongs(isa: str) -> None:
    for axis, n in ((0, 2), (1, 2), (0, 1)):
        input = torch.randn(2, 4, *(5,) * n)
        offset, mask = torch.zeros(2, n * 2 * 3**n, *(5,) * n), torch.ones(2, 2 * 3**n, *(5,) * n)
        at = (1, (1 * 3**n + 2) * n + axis, *(2,) * n)  # image 1, offset group 1, tap 2, position 2, 2
        offset[at] = float("nan")
        weight = torch.randn(6, 2, *(3,) * n)  # two groups: the second has the second offset group's channels
        tensors = [t.requires_grad_() for t in (input, offset, weight, mask)]
        output = getattr(functional, f"deform_conv{n}d")(*tensors[:3], padding=1, mask=mask)
        expected = torch.zeros_like(output, dtype=torch.bool)
        expected[(1, slice(3, 6), *(2,) * n)] = True
        assert torch.equal(output.isnan(), expected)
        to_input, to_offset, to_weight, to_mask = torch.autograd.grad(output.sum(), tensors)
        assert to_input.isfinite().all()
        own = torch.zeros_like(offset, dtype=torch.bool)
        first = (1 * 3**n + 2) * n
        own[(1, slice(first, first + n), *(2,) * n)] = True
        assert torch.equal(to_offset.isnan(), own)
        of_mask = torch.zeros_like(mask, dtype=torch.bool)
        of_mask[(1, 1 * 3**n + 2, *(2,) * n)] = True
        assert torch.equal(to_mask.isnan(), of_mask)
        of_weight = torch.zeros(6, 2, 3**n, dtype=torch.bool)
        of_weight[3:, :, 2] = True
        assert torch.equal(to_weight.isnan().flatten(2), of_weight)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30, 2.0**63, -(2.0**63)])
def test_far_coordinates_are_outside(value: float, isa: str) -> None:
    input, weight = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
    offset = torch.full((1, 18, 3, 3), value, requires_grad=True)
    output = functional.deform_conv2d(input, offset, weight)
    assert torch.equal(output, torch.zeros(1, 2, 3, 3))
    for gradient in torch.autograd.grad(output.sum(), (input, offset, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_pixels_outside_are_not_read(isa: str) -> None:
    """Infinity times a weight of zero would be no number."""
    input = torch.full((1, 8, 4, 4), float("inf"))
    input[..., 1:3, 1:3] = 1
    offset = torch.zeros(1, 2, 4, 4)
    offset[0, 0] = -5  # rows above the image
    output = functional.deform_conv2d(input, offset, torch.ones(1, 8, 1, 1))
    assert torch.equal(output, torch.zeros(1, 1, 4, 4))
    output = functional.deform_conv2d(input, torch.full((1, 2, 6, 6), -1.0), torch.ones(1, 8, 1, 1), padding=1)
    assert torch.equal(output[..., 0, :], torch.zeros(1, 1, 6))


# Derivatives


def smooth(case: Case) -> list[Tensor]:
    """Tensors whose coordinates are no whole numbers, where the value has a kink."""
    tensors = [t for t in case.tensors() if t is not None]
    tensors[1] = tensors[1] - tensors[1].floor().sub(tensors[1]).abs().lt(0.05) * 0.1
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("case", [c for c in DEFORM if c.input[0]], ids=lambda case: case.name)
def test_second_derivatives(case: Case) -> None:
    tensors = smooth(case)
    assert passes(gradcheck, case.function, tensors, check_forward_ad=True, fast_mode=True)
    assert passes(gradgradcheck, case.function, tensors, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("masked", [False, True])
def test_functional_transforms(masked: bool) -> None:
    torch.manual_seed(0)
    make = lambda *size: torch.randn(*size, dtype=torch.float64)  # noqa: E731
    input, offset, weight = make(1, 2, 4, 3), make(1, 8, 3, 2), make(2, 2, 2, 2)
    mask = make(1, 4, 3, 2) if masked else None

    def loss(function: Any) -> Any:
        return lambda *t: function(*t, mask=mask).pow(3).sum()

    ours, expected = loss(functional.deform_conv2d), loss(reference.deform_conv)
    for transform in (torch.func.grad, torch.func.hessian):
        for i in range(3):
            a = transform(ours, i)(input, offset, weight)
            b = transform(expected, i)(input, offset, weight)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    images = make(3, 1, 2, 4, 3)
    each = torch.stack([functional.deform_conv2d(image, offset, weight, mask=mask) for image in images])
    mapped = torch.func.vmap(lambda image: functional.deform_conv2d(image, offset, weight, mask=mask))(images)
    torch.testing.assert_close(mapped, each)


# Registration


@pytest.mark.parametrize("case", [c for c in DEFORM if c.layout != "sliced"], ids=lambda case: case.name)
def test_opcheck(case: Case) -> None:
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    tensors, numbers = core(case, case.tensors(torch.float32, requires_grad=True))
    opcheck(torch.ops.torch_ext.deform_conv.default, (*tensors, *numbers), test_utils=utilities)
    grad_output = torch.randn_like(torch.ops.torch_ext.deform_conv(*tensors, *numbers))
    given = [t if t is None else t.detach() for t in (grad_output, *tensors[:4])]
    for wanted in ([True] * 5, [False, True, False, False, False], [True, False, True, False, True]):
        arguments = (*given, *numbers, [*wanted[:3], wanted[3] and given[4] is not None, wanted[4]])
        opcheck(torch.ops.torch_ext.deform_conv_backward.default, arguments, test_utils=utilities)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_meta_agrees_with_the_cpu(case: Case, dtype: torch.dtype) -> None:
    tensors, numbers = core(case, case.tensors(dtype))
    results = []
    for given in (tensors, [t if t is None else t.to("meta") for t in tensors]):
        output = torch.ops.torch_ext.deform_conv(*given, *numbers)
        backward = torch.ops.torch_ext.deform_conv_backward(output, *given[:4], *numbers, [True] * 5)
        if case.layout == "sliced":  # the copy on meta is dense
            results.append([(t.shape, t.dtype) for t in (output, *backward) if t is not None])
        else:
            results.append([(t.shape, t.dtype, t.stride()) for t in (output, *backward) if t is not None])
    assert results[0] == results[1]


def test_only_what_is_asked_for(deterministic: None) -> None:
    tensors, numbers = core(DEFORM[1], DEFORM[1].tensors(torch.float32))
    output = torch.ops.torch_ext.deform_conv(*tensors, *numbers)
    whole = torch.ops.torch_ext.deform_conv_backward(output, *tensors[:4], *numbers, [True] * 5)
    for wanted in itertools.product([False, True], repeat=5):
        some = torch.ops.torch_ext.deform_conv_backward(output, *tensors[:4], *numbers, list(wanted))
        for is_wanted, a, b in zip(wanted, some, whole, strict=True):
            assert torch.equal(a, b) if is_wanted else a is None or not a.numel()


@not_emulated  # the sums of PyTorch's products depend on the threads
@every_case
def test_bit_equal_on_any_number_of_threads(case: Case, isa: str, deterministic: None) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    tensors, numbers = core(case, case.tensors(torch.float32))
    big = [torch.randn(1, 40, 30, 30), torch.randn(1, 36, 30, 30), torch.randn(9, 40, 3, 3), None, torch.randn(9)]
    images = [torch.randn(5, 3, 20, 20), torch.randn(5, 18, 20, 20), torch.randn(4, 3, 3, 3), None, torch.randn(4)]
    calls = [(tensors, numbers), *((call, [[1, 1], [1] * 4, [1, 1]]) for call in (big, images))]
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([])
            for given, lists in calls:
                output = torch.ops.torch_ext.deform_conv(*given, *lists)
                backward = torch.ops.torch_ext.deform_conv_backward(output, *given[:4], *lists, [True] * 5)
                results[-1] += [t for t in (output, *backward) if t is not None]
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_autocast() -> None:
    """In float32 inside; the result in the input's dtype, as torchvision's."""
    input, offset = torch.randn(1, 4, 6, 6), torch.randn(1, 18, 6, 6)
    weight, mask = torch.randn(3, 4, 3, 3), torch.rand(1, 9, 6, 6)
    expected = functional.deform_conv2d(input, offset, weight, padding=1, mask=mask)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        output = functional.deform_conv2d(input, offset, weight, padding=1, mask=mask)
        assert torch.equal(output, expected)
        half = functional.deform_conv2d(input.bfloat16(), offset.bfloat16(), weight, padding=1, mask=mask)
    assert half.dtype == torch.bfloat16
    wide = functional.deform_conv2d(input.bfloat16().float(), offset.bfloat16().float(), weight, padding=1, mask=mask)
    assert torch.equal(half, wide.bfloat16())


def test_autocast_leaves_derivatives_alone() -> None:
    """Those of a call that is under autocast, and of one that is not."""
    input, weight = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    offset = torch.randn(1, 18, 6, 6, requires_grad=True)
    tensors = input, offset, weight
    call = lambda *t: functional.deform_conv2d(*t, padding=1)  # noqa: E731
    expected = torch.autograd.grad(call(*tensors).sum(), tensors)
    tangents = torch.func.jvp(call, tensors, expected)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        for create_graph in (False, True):
            ours = torch.autograd.grad(call(*tensors).sum(), tensors, create_graph=create_graph)
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(*map(forward_ad.make_dual, tensors, expected))).tangent
        torch.testing.assert_close(tangent, tangents[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_compositions_keep_formats(n: int) -> None:
    layout = testing.LAYOUTS["channels_last"]
    tensors = (
        layout(torch.randn(2, 4, *(5,) * n)),
        layout(torch.randn(2, n * 3**n, *(5,) * n)),
        torch.randn(3, 4, *(3,) * n),
    )
    tensors = [t.requires_grad_() for t in tensors]
    call = lambda *t: getattr(functional, f"deform_conv{n}d")(*t, padding=1)  # noqa: E731
    output = call(*tensors)
    plain = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    composed = torch.autograd.grad(output.sum(), tensors, create_graph=True)
    assert [t.stride() for t in composed] == [t.stride() for t in plain]
    primal, tangent = torch.func.jvp(call, tuple(tensors), tuple(plain))
    assert primal.stride() == tangent.stride() == output.stride()


def test_compositions_of_what_is_not_there(isa: str) -> None:
    """An image without rows, and no numbers at samples outside of one."""
    tensors = torch.randn(1, 2, 0, 3), torch.randn(1, 18, 2, 5), torch.randn(3, 2, 3, 3), torch.randn(3)
    tensors = [t.requires_grad_() for t in tensors]
    output = functional.deform_conv2d(*tensors, padding=2)
    plain = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    for a, b in zip(torch.autograd.grad(output.sum(), tensors, create_graph=True), plain, strict=True):
        assert torch.equal(a, b)
    input, offset = torch.randn(1, 2, 4, 4, requires_grad=True), torch.full((1, 2, 4, 4), 50.0)
    mask = torch.full((1, 1, 4, 4), float("nan"))
    output = functional.deform_conv2d(input, offset, torch.ones(1, 2, 1, 1), mask=mask)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(output.sum(), input, retain_graph=True, create_graph=create_graph)
        assert torch.equal(gradient, torch.zeros_like(input))


# Errors


def test_errors() -> None:
    make = torch.randn
    good = {
        "input": make(2, 4, 6, 7),
        "offset": make(2, 36, 6, 7),
        "weight": make(6, 2, 3, 3),
        "mask": make(2, 18, 6, 7),
    }
    call = lambda **changed: functional.deform_conv2d(**{**good, "padding": 1, **changed})  # noqa: E731
    assert call().shape == (2, 6, 6, 7)
    for changed, message in [
        (
            {"offset": make(2, 35, 6, 7)},
            r"deform_conv2d: expected offset of shape \[2, 18 \* offset groups, 6, 7\], but got",
        ),
        ({"offset": make(2, 36, 6, 6)}, r"expected offset of shape .*: offset.shape\[3\] is not valid"),
        ({"offset": make(1, 36, 6, 7)}, "expected offset of shape"),
        ({"offset": make(2, 0, 6, 7)}, "expected offset of shape"),
        (
            {"offset": make(2, 54, 6, 7), "mask": None},
            "expected offset groups that divide the input's 4 channels, but got 3",
        ),
        ({"mask": make(2, 17, 6, 7)}, r"expected mask of shape .*: mask.shape\[1\] is not valid"),
        (
            {"mask": make(2, 9, 6, 7)},
            r"expected mask and offset of as many offset groups, .*: mask.shape\[1\] is not valid",
        ),
        ({"offset": good["offset"][0]}, "expected offset of as many dimensions as input's 4"),
        ({"offset": good["offset"].double()}, "offset type .* should be the same"),
        ({"mask": good["mask"].bfloat16()}, "mask type .* should be the same"),
        ({"weight": make(6, 3, 3, 3)}, "expected weight's second size to divide the input's channels"),
        ({"weight": make(3, 2, 3, 3)}, "divisible by groups"),
        ({"weight": make(6, 2, 9, 9)}, "Kernel size can't be greater than actual input size"),
        ({"stride": 0}, "non-positive stride is not supported"),
        ({"dilation": 0}, "dilation should be greater than zero"),
        ({"padding": -1}, "negative padding is not supported"),
        ({"padding": 2**31}, "at most 2^50 elements".replace("^", r"\^")),
        ({"padding": 2**62}, "do not fit in 64 bits"),
        ({"bias": make(5)}, "expected bias of size"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(**changed)


HOSTILE = """
import random, torch, torch_ext
draw = random.Random(0)
numbers = [0, -1, 1, 2, 3, 2**31, 2**62, 2**63 - 1, -(2**63)]
done = 0

def tensor(rank):
    sizes = [draw.choice([0, 1, 2, 3, 4, 9, 18]) for _ in range(draw.choice([rank, rank, rank, draw.randint(0, 6)]))]
    dtype = draw.choice([torch.float32] * 12 + [torch.int64, torch.bfloat16, torch.complex64])
    return torch.ones(sizes, dtype=dtype)

def numbers_list(rank):
    count = draw.choice([rank - 2, 2 * rank - 4, 0, 1])
    return [draw.choice(numbers if draw.random() < 0.3 else [1, 2]) for _ in range(max(count, 0))]

for i in range(4000):
    n, groups = draw.randint(1, 3), draw.choice([1, 2])
    kernel, stride, dilation = ([draw.choice([1, 2]) for _ in range(n)] for _ in range(3))
    padding = [draw.choice([0, 1]) for _ in range(2 * n)]
    sizes = [4 + p + q - d * (k - 1) - 1 for p, q, k, d in zip(padding[::2], padding[1::2], kernel, dilation)]
    out = [size // s + 1 for size, s in zip(sizes, stride)]
    input, weight = torch.ones(2, 4, *[4] * n), torch.ones(6, 4 // groups, *kernel)
    taps = weight[0, 0].numel()
    offset, mask = torch.ones(2, n * 2 * taps, *out), torch.ones(2, 2 * taps, *out)
    grad_output = torch.ones(2, 6, *out)
    lists, rank = [stride, padding, dilation], n + 2
    change = draw.randrange(4)  # nothing, a number, a list, a tensor
    if change == 1:
        changed = draw.choice(lists)
        changed[draw.randrange(len(changed))] = draw.choice(numbers)
    elif change == 2:
        lists[draw.randrange(3)] = numbers_list(rank)
    elif change == 3:
        which = draw.randrange(5)
        input, offset, weight, mask, grad_output = (
            tensor(rank) if j == which else t for j, t in enumerate((input, offset, weight, mask, grad_output))
        )
    mask = draw.choice([None, mask])
    masks = [draw.random() < 0.5 for _ in range(5)]
    for call in (
        lambda: torch.ops.torch_ext.deform_conv(input, offset, weight, mask, None, *lists),
        lambda: torch.ops.torch_ext.deform_conv_backward(grad_output, input, offset, weight, mask, *lists, masks),
    ):
        try:
            call()
            done += 1
        except (RuntimeError, TypeError):
            pass
print("survived", done)
"""


def test_hostile_calls_do_not_crash() -> None:
    assert int(run_process(HOSTILE).split()[1]) > 2000


# Layers


def test_layers_are_torchvisions() -> None:
    for arguments in [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": 2, "dilation": (1, 2), "groups": 2, "bias": False},
    ]:
        torch.manual_seed(0)
        ours = torch_ext.nn.DeformConv2d(4, 6, **arguments)
        torch.manual_seed(0)
        theirs = torchvision.ops.DeformConv2d(4, 6, **arguments)
        assert str(ours) == str(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same", ((0, 1),)])
def test_layers_script_and_export(n: int, padding: Any) -> None:
    layer = getattr(torch_ext.nn, f"DeformConv{n}d")(4, 6, 3, padding=padding)
    input = torch.randn(2, 4, *(6,) * n)
    out = 5 if padding == ((0, 1),) else 6
    offset, mask = torch.randn(2, n * 3**n, *(out,) * n), torch.rand(2, 3**n, *(out,) * n)
    expected = layer(input, offset, mask)
    assert torch.equal(torch.jit.script(layer)(input, offset, mask), expected)
    exported = torch.export.export(layer, (input, offset, mask))
    assert torch.equal(exported.module()(input, offset, mask), expected)
    torch.testing.assert_close(layer(input[0], offset[0], mask[0]), expected[0])
    assert torch.equal(copy.deepcopy(layer)(input, offset, mask), expected)


def test_mmcvs_state_dicts_load() -> None:
    """Of its two pack layers, of which the first has no bias."""
    offsets = {"conv_offset.weight": torch.randn(18, 4, 3, 3), "conv_offset.bias": torch.randn(18)}
    layer = torch_ext.nn.DeformConv2dPack(4, 6, 3, bias=False, modulated=False)
    layer.load_state_dict({"weight": torch.randn(6, 4, 3, 3), **offsets})
    modulated = {"conv_offset.weight": torch.randn(27, 4, 3, 3), "conv_offset.bias": torch.randn(27)}
    layer = torch_ext.nn.DeformConv2dPack(4, 6, 3)
    layer.load_state_dict({"weight": torch.randn(6, 4, 3, 3), "bias": torch.randn(6), **modulated})
    again = pickle.loads(pickle.dumps(layer))
    input = torch.randn(1, 4, 5, 5)
    assert torch.equal(again(input), layer(input))


@pytest.mark.parametrize("modulated", [False, True])
def test_pack_layer(modulated: bool) -> None:
    torch.manual_seed(0)
    layer = torch_ext.nn.DeformConv2dPack(4, 6, 3, padding=1, stride=2, deform_groups=2, modulated=modulated)
    input = torch.randn(2, 4, 9, 8)
    plain = F.conv2d(input, layer.weight * (0.5 if modulated else 1), None, 2, 1) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(input), plain)  # as it begins
    nn.init.normal_(layer.conv_offset.weight)
    computed = F.conv2d(input, layer.conv_offset.weight, layer.conv_offset.bias, 2, 1)
    # mmcv's order: halves of the offsets of all groups, then the masks.
    first, second, *mask = computed.chunk(3 if modulated else 2, dim=1)
    mask = mask[0].sigmoid() if modulated else None
    offset = torch.cat((first, second), dim=1)
    expected = torchvision.ops.deform_conv2d(input, offset, layer.weight, layer.bias, 2, 1, 1, mask)
    torch.testing.assert_close(layer(input), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(layer)(input), expected, rtol=1e-4, atol=1e-4)
    assert layer(input[0]).shape == expected[0].shape
    assert list(layer.state_dict()) == ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]


def test_layers_refuse_bad_arguments() -> None:
    for arguments, message in [
        ((4, 6, 3, 1, 0, 1, 3), "in_channels to be divisible by groups 3, but got 4"),
        ((4, 5, 3, 1, 0, 1, 2), "out_channels to be divisible by groups 2, but got 5"),
        ((4, 6, 0), "kernel_size to be at least 1"),
        ((4, 6, 3, 1, -1), "negative padding"),
    ]:
        with pytest.raises(ValueError, match=f"DeformConv2d: .*{message}"):
            torch_ext.nn.DeformConv2d(*arguments)
    with pytest.raises(ValueError, match="divisible by deform_groups 3"):
        torch_ext.nn.DeformConv2dPack(4, 6, 3, deform_groups=3)


def test_convert_takes_torchvisions_layers() -> None:
    model = nn.ModuleDict({"deform": torchvision.ops.DeformConv2d(4, 6, 3, padding=1)})
    input, offset = torch.randn(2, 4, 5, 5), torch.randn(2, 18, 5, 5)
    expected, keys = model["deform"](input, offset), list(model.state_dict())
    weight = model["deform"].weight
    torch_ext.convert(model)
    assert type(model["deform"]) is torch_ext.nn.DeformConv2d
    assert model["deform"].weight is weight and list(model.state_dict()) == keys
    torch.testing.assert_close(model["deform"](input, offset), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.jit.script(model["deform"])(input, offset), model["deform"](input, offset))
    torch_ext.revert(model)
    assert type(model["deform"]) is torchvision.ops.DeformConv2d
    assert torch.equal(model["deform"](input, offset), expected)
    # What the other side does not have stays.
    own = torch_ext.nn.DeformConv2d(4, 6, 3, padding="same")
    assert type(torch_ext.revert(own)) is torch_ext.nn.DeformConv2d
    integers = torchvision.ops.DeformConv2d(4, 6, 3)
    integers.weight = nn.Parameter(torch.ones(6, 4, 3, 3, dtype=torch.int64), requires_grad=False)
    assert type(torch_ext.convert(integers)) is torchvision.ops.DeformConv2d


def test_override_routes_torchvision() -> None:
    layer = torchvision.ops.DeformConv2d(4, 6, 3)
    input, offset = torch.randn(1, 4, 5, 5), torch.randn(1, 18, 3, 3)
    with testing.override_aten():
        assert layer(input, offset).grad_fn.name() == "torch_ext::DeformConvBackward"
    assert "torch_ext" not in layer(input, offset).grad_fn.name()


class Detector(nn.Module):
    """A backbone and a head, as small as they can be."""

    def __init__(self, deform: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.deform = deform(8, 16, 3, padding=1, deform_groups=2)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.deform(self.stem(image).relu()).relu())


class TorchvisionPack(torch_ext.nn.DeformConv2dPack):
    """The same parameters, computed by torchvision."""

    def forward(self, input: Tensor) -> Tensor:
        computed = F.conv2d(input, self.conv_offset.weight, self.conv_offset.bias, self.stride, self.padding)
        offset, mask = computed[:, : self.offsets], computed[:, self.offsets :].sigmoid()
        return torchvision.ops.deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


def test_a_detector_trains_as_with_torchvision() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(4, 3, 16, 16), torch.randn(4, 5, 8, 8)
    losses = []
    for deform in (torch_ext.nn.DeformConv2dPack, TorchvisionPack):
        torch.manual_seed(0)
        model = Detector(deform).double()
        nn.init.normal_(model.deform.conv_offset.weight, std=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses.append([])
        for _ in range(5):
            loss = F.mse_loss(model(images.double()), targets.double())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)


MEMORY = """
import torch, torch_ext
torch.set_num_threads(1)

def peak(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) << 10
    before = status("VmRSS:")
    result = call()
    return status("VmHWM:") - before - sum(t.nbytes for t in result if t is not None)

numbers = [1, 1], [1] * 4, [1, 1]
def calls(n, c, o, h, w, groups=1, layout=lambda t: t):
    tensors = [torch.full((n, c, h, w), 0.5), torch.full((n, 18 * groups, h, w), 0.25), torch.full((o, c, 3, 3), 0.5)]
    tensors[0] = layout(tensors[0])
    grad_output = torch.full((n, o, h, w), 0.5)
    mask = torch.full((n, 9 * groups, h, w), 0.5)
    forward = lambda: [torch.ops.torch_ext.deform_conv(*tensors, mask, None, *numbers)]
    backward = lambda: torch.ops.torch_ext.deform_conv_backward(grad_output, *tensors, mask, *numbers, [True] * 5)
    return forward, backward

for call in calls(1, 8, 8, 8, 8):
    call()
last = lambda t: t.to(memory_format=torch.channels_last)
for size in ((1, 64, 32, 200, 200), (16, 32, 32, 64, 64), (1, 8, 8, 600, 500), (1, 3, 8, 400, 400),
             (1, 8, 1024, 40, 40), (1, 64, 16, 40, 40, 64), (1, 128, 64, 100, 100, 2, last)):
    n, c, o, h, w = size[:5]
    image, weight = c * h * w * 4, c * o * 9 * 4
    for what, images, call in zip(("forward", "backward"), (1, 2), calls(*size)):
        # Scratch of one thread, images in channels_last, the weight packed and summed, and a page here and there.
        allowed = (2 << 20) + images * image + images * weight + (1 << 19)
        used = peak(call)
        print(size[:6], what, used >> 10, "KiB of", allowed >> 10, "TOO MUCH" if used > allowed else "")
"""


@pytest.mark.cpu_only
def test_no_columns_of_a_whole_image() -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("KiB of") == 14
    assert "TOO MUCH" not in run.stdout, run.stdout
