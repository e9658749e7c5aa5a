"""The oracle itself, against PyTorch's convolutions and TensorFlow's published numbers."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ext import reference

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def integers(*size: int) -> Tensor:
    return torch.randint(-4, 5, size).double()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_conv(n: int, groups: int) -> None:
    torch.manual_seed(n)
    sizes, kernels = (7, 6, 5)[:n], (3, 1, 2)[:n]
    for stride, padding, dilation, bias in itertools.product((1, 2, 4), (0, 2), (1, 2), (False, True)):
        input, weight = integers(2, 4, *sizes), integers(8, 4 // groups, *kernels)
        arguments = (input, weight, integers(8) if bias else None, stride, padding, dilation, groups)
        assert torch.equal(reference.group_conv(*arguments), CONV[n](*arguments))
        unbatched = (input[0], *arguments[1:])
        assert torch.equal(reference.group_conv(*unbatched), CONV[n](*unbatched))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_conv(n: int, multiplier: int) -> None:
    torch.manual_seed(n)
    for stride, padding, dilation in itertools.product((1, 3), (0, 1), (1, 2)):
        input = integers(2, 5, *(7, 6, 5)[:n])
        weight, bias = integers(5 * multiplier, 1, *(3, 2, 1)[:n]), integers(5 * multiplier)
        arguments = (stride, padding, dilation)
        expected = CONV[n](input, weight, bias, *arguments, groups=5)
        assert torch.equal(reference.depthwise_conv(input, weight, bias, *arguments), expected)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_conv_transpose(n: int, multiplier: int) -> None:
    torch.manual_seed(n)
    draw = random.Random(n)
    for _ in range(20):
        stride, dilation = [draw.randint(1, 3) for _ in range(n)], [draw.randint(1, 3) for _ in range(n)]
        padding = [draw.randint(0, 2) for _ in range(n)]
        output_padding = [draw.randint(0, max(pair) - 1) for pair in zip(stride, dilation, strict=True)]
        input = integers(2, 3, *(6, 5, 4)[:n])
        weight, bias = integers(3, multiplier, *(3, 4, 2)[:n]), integers(3 * multiplier)
        ours = reference.depthwise_conv_transpose(input, weight, bias, stride, padding, output_padding, dilation)
        torchs = TRANSPOSED[n](input, weight, bias, stride, padding, output_padding, groups=3, dilation=dilation)
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_separable_conv(n: int) -> None:
    torch.manual_seed(n)
    input, depthwise = integers(2, 3, *(6, 5, 4)[:n]), integers(6, 1, *(2,) * n)
    pointwise, bias = integers(4, 6, *(1,) * n), integers(4)
    expected = CONV[n](CONV[n](input, depthwise, None, 2, 1, 1, 3), pointwise, bias)
    assert torch.equal(reference.separable_conv(input, depthwise, pointwise, bias, 2, 1), expected)


def test_separable_conv_rounds_between_the_steps() -> None:
    input, depthwise = torch.tensor([[[1.0, 2**-9]]]).bfloat16(), torch.ones(1, 1, 2).bfloat16()
    assert reference.separable_conv(input, depthwise, torch.ones(1, 1, 1).bfloat16()).item() == 1.0
    assert reference.depthwise_conv(input, depthwise).item() == 1.0 + 2**-9


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_same_padding_with_stride_one_is_that_of_torch(n: int, dilation: int) -> None:
    torch.manual_seed(n)
    for kernel in (1, 2, 3, 4):
        input, weight = integers(2, 3, *(7, 6, 5)[:n]), integers(4, 3, *(kernel,) * n)
        expected = CONV[n](input, weight, None, 1, "same", dilation)
        assert torch.equal(reference.group_conv(input, weight, None, 1, "same", dilation), expected)
        valid = (input, integers(4, 3, *(1,) * n), None, 2, "valid")
        assert torch.equal(reference.group_conv(*valid), CONV[n](*valid))


def test_same_padding_by_its_definition() -> None:
    for size, k, s, d in itertools.product(range(1, 12), range(1, 5), range(1, 5), range(1, 4)):
        [(before, after)] = reference.padding_pairs("same", [size], [k], [s], [d])
        out = (size + before + after - d * (k - 1) - 1) // s + 1
        assert out == -(-size // s)
        assert before + after == max((out - 1) * s + (k - 1) * d + 1 - size, 0)
        assert after - before in (0, 1)
        assert reference.padding_pairs("same_lower", [size], [k], [s], [d]) == [(after, before)]
        assert reference.padding_pairs("causal", [size], [k], [s], [d]) == [(d * (k - 1), 0)]


def test_two_sided_padding() -> None:
    torch.manual_seed(0)
    input, weight = integers(2, 3, 5, 4), integers(3, 1, 3, 2)
    expected = F.conv2d(F.pad(input, (3, 0, 1, 2)), weight, groups=3)
    assert torch.equal(reference.depthwise_conv(input, weight, padding=((1, 2), (3, 0))), expected)
    expected = F.conv2d(F.pad(input, (1, 2, 1, 2)), weight, groups=3)
    assert torch.equal(reference.depthwise_conv(input, weight, padding=((1, 2),)), expected)


def test_value_published_with_tensorflow() -> None:
    """tensorflow/python/kernel_tests/nn_ops/depthwise_conv_op_test.py, testConv2D2x2Filter."""
    input = torch.arange(1.0, 13.0).view(1, 2, 3, 2).permute(0, 3, 1, 2)
    filter = torch.arange(1.0, 17.0).view(2, 2, 2, 2)  # [kh, kw, C, M]
    weight = filter.permute(2, 3, 0, 1).reshape(4, 1, 2, 2)
    output = reference.depthwise_conv(input, weight).permute(0, 2, 3, 1)
    assert output.dtype == torch.float64
    assert output.flatten().tolist() == [196, 216, 272, 296, 252, 280, 344, 376]


def test_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    tensors = [t.requires_grad_() for t in (integers(2, 4, 6, 5), integers(8, 2, 3, 2), integers(8))]
    ours = reference.group_conv(*tensors, stride=2, padding=1, groups=2)
    torchs = F.conv2d(*tensors, stride=2, padding=1, groups=2)
    grad_output = integers(*ours.shape)
    for a, b in zip(*(torch.autograd.grad(y, tensors, grad_output) for y in (ours, torchs)), strict=True):
        assert torch.equal(a, b)
