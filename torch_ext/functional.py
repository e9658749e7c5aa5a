"""Convolutions as functions: thin, typed callers of the C++ composite ops in torch.ops.torch_ext.

The forms of an argument (an int for every axis, pairs for two-sided padding) are settled here; sizes, dtypes, layouts
and the choice of a kernel are settled in C++, so that TorchScript, torch.export and C++ programs behave alike.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_ext import _docs
from torch_ext._arguments import ArgumentError, IntN, Padding, numbers, padding_list

__all__ = [
    f"{name}{n}d"
    for name in ("deform_conv", "depthwise_conv", "depthwise_conv_transpose", "group_conv", "separable_conv")
    for n in (1, 2, 3)
]

Function = TypeVar("Function", bound=Callable[..., Any])


def _documented(template: str, n: int) -> Callable[[Function], Function]:
    """Gives a function its docstring: one text serves the three dimensions."""

    def decorate(function: Function) -> Function:
        function.__doc__ = _docs.fill(template, n)
        return function

    return decorate


def _call(op: str, n: int, tensors: tuple[Tensor | None, ...], stride: IntN, padding: Padding, *rest: Any) -> Tensor:
    packet = getattr(torch.ops.torch_ext, op)
    sides = padding_list(op, padding, n)
    overload = packet.padding if isinstance(sides, str) else packet.default
    return overload(*tensors, numbers(op, "stride", stride, n), sides, *rest)


def _depthwise_conv(
    n: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: IntN, padding: Padding, dilation: IntN
) -> Tensor:
    op = f"depthwise_conv{n}d"
    return _call(op, n, (input, weight, bias), stride, padding, numbers(op, "dilation", dilation, n))


@_documented(_docs.DEPTHWISE_CONV, 1)
def depthwise_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv(1, input, weight, bias, stride, padding, dilation)


@_documented(_docs.DEPTHWISE_CONV, 2)
def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv(2, input, weight, bias, stride, padding, dilation)


@_documented(_docs.DEPTHWISE_CONV, 3)
def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv(3, input, weight, bias, stride, padding, dilation)


def _group_conv(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntN,
    padding: Padding,
    dilation: IntN,
    groups: int,
) -> Tensor:
    op = f"group_conv{n}d"
    return _call(op, n, (input, weight, bias), stride, padding, numbers(op, "dilation", dilation, n), groups)


@_documented(_docs.GROUP_CONV, 1)
def group_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    groups: int = 1,
) -> Tensor:
    return _group_conv(1, input, weight, bias, stride, padding, dilation, groups)


@_documented(_docs.GROUP_CONV, 2)
def group_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    groups: int = 1,
) -> Tensor:
    return _group_conv(2, input, weight, bias, stride, padding, dilation, groups)


@_documented(_docs.GROUP_CONV, 3)
def group_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    groups: int = 1,
) -> Tensor:
    return _group_conv(3, input, weight, bias, stride, padding, dilation, groups)


def _depthwise_conv_transpose(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntN,
    padding: Padding,
    output_padding: IntN,
    dilation: IntN,
) -> Tensor:
    op = f"depthwise_conv_transpose{n}d"
    if isinstance(padding, str):
        raise ArgumentError(f"{op}: expected padding as numbers, but got {padding!r}")
    more = [numbers(op, "output_padding", output_padding, n), numbers(op, "dilation", dilation, n)]
    return _call(op, n, (input, weight, bias), stride, padding, *more)


@_documented(_docs.DEPTHWISE_CONV_TRANSPOSE, 1)
def depthwise_conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    output_padding: IntN = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv_transpose(1, input, weight, bias, stride, padding, output_padding, dilation)


@_documented(_docs.DEPTHWISE_CONV_TRANSPOSE, 2)
def depthwise_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    output_padding: IntN = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv_transpose(2, input, weight, bias, stride, padding, output_padding, dilation)


@_documented(_docs.DEPTHWISE_CONV_TRANSPOSE, 3)
def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    output_padding: IntN = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _depthwise_conv_transpose(3, input, weight, bias, stride, padding, output_padding, dilation)


def _separable_conv(
    n: int,
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    stride: IntN,
    padding: Padding,
    dilation: IntN,
) -> Tensor:
    op = f"separable_conv{n}d"
    tensors = (input, depthwise_weight, pointwise_weight, bias)
    return _call(op, n, tensors, stride, padding, numbers(op, "dilation", dilation, n))


@_documented(_docs.SEPARABLE_CONV, 1)
def separable_conv1d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _separable_conv(1, input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation)


@_documented(_docs.SEPARABLE_CONV, 2)
def separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _separable_conv(2, input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation)


@_documented(_docs.SEPARABLE_CONV, 3)
def separable_conv3d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    return _separable_conv(3, input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation)


def _deform_conv(
    n: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntN,
    padding: Padding,
    dilation: IntN,
    mask: Tensor | None,
) -> Tensor:
    op = f"deform_conv{n}d"
    return _call(op, n, (input, offset, weight, bias), stride, padding, numbers(op, "dilation", dilation, n), mask)


@_documented(_docs.DEFORM_CONV, 1)
def deform_conv1d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    mask: Tensor | None = None,
) -> Tensor:
    return _deform_conv(1, input, offset, weight, bias, stride, padding, dilation, mask)


@_documented(_docs.DEFORM_CONV, 2)
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    mask: Tensor | None = None,
) -> Tensor:
    return _deform_conv(2, input, offset, weight, bias, stride, padding, dilation, mask)


@_documented(_docs.DEFORM_CONV, 3)
def deform_conv3d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    mask: Tensor | None = None,
) -> Tensor:
    return _deform_conv(3, input, offset, weight, bias, stride, padding, dilation, mask)
