"""Depthwise separable layers."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_ext._arguments import ArgumentError, IntN, Padding
from torch_ext._docs import fill
from torch_ext.nn._base import Base, is_served
from torch_ext.nn.conv import Conv1d, Conv2d, Conv3d
from torch_ext.nn.depthwise import DepthwiseBase, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d

_DOC = """A depthwise separable {n}-D convolution: a depthwise one (no bias), then a pointwise one across channels.

    Its parameters live in the submodules `depthwise` and `pointwise`, which are drawn in this order; both steps run as
    one op, so hooks on the submodules do not fire. See Xception (Chollet, 2017, arXiv:1610.02357).

    Args:
        in_channels: C, the number of input channels.
        out_channels: O, the number of output channels.
        kernel_size: Of the depthwise step: an int or {n} int(s).
        stride: Step of the kernel in elements. Default: 1.
        padding: As in `torch_ext.functional.separable_conv{n}d`. Default: 0.
        dilation: Distance between kernel elements. Default: 1.
        depth_multiplier: M, channels between the steps per input channel. Default: 1.
        bias: Whether to learn a bias [O]. Default: True.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'. Default: 'zeros'.
        device, dtype: Of the parameters. Default: torch's.

    Raises:
        ValueError: If an argument does not fit; the message has what was expected and what came.

    Shape:
        input [N, C, {sizes}] or [C, {sizes}], output [N, O, {out}] or [O, {out}], depthwise.weight [C * M, 1, {k}],
        pointwise.weight [O, C * M, {ones}], pointwise.bias [O].

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.nn.SeparableConv{n}d(4, 6, 3, stride=2, padding="same")(torch.randn(2, 4, {eights})).shape
        torch.Size([2, 6, {fours}])
    """


class SeparableBase(nn.Module):
    """The constructor of the separable layers."""

    _parts: ClassVar[tuple[type[DepthwiseBase], type[Base]]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntN,
        stride: IntN = 1,
        padding: Padding = 0,
        dilation: IntN = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        Depthwise, Pointwise = self._parts
        where = {"device": device, "dtype": dtype}
        try:
            self.depthwise = Depthwise(
                in_channels, kernel_size, stride, padding, dilation, depth_multiplier, False, padding_mode, **where
            )
            self.pointwise = Pointwise(in_channels * depth_multiplier, out_channels, 1, bias=bias, **where)
        except ArgumentError as error:
            raise ArgumentError(f"{type(self).__name__}: {error}") from None


class SeparableConv1d(SeparableBase):
    __doc__ = fill(_DOC, 1)
    _parts = (DepthwiseConv1d, Conv1d)

    def forward(self, input: Tensor) -> Tensor:
        if not is_served(input):
            return self.pointwise(self.depthwise(input))
        depthwise, pointwise = self.depthwise.weight, self.pointwise.weight
        if self.depthwise.padding_mode != "zeros":
            padded = self.depthwise._padded(input)
            return torch.ops.torch_ext.separable_conv1d(
                padded, depthwise, pointwise, self.pointwise.bias, self.depthwise.stride, [0], self.depthwise.dilation
            )
        return torch.ops.torch_ext.separable_conv1d(
            input,
            depthwise,
            pointwise,
            self.pointwise.bias,
            self.depthwise.stride,
            self.depthwise.padding,
            self.depthwise.dilation,
        )


class SeparableConv2d(SeparableBase):
    __doc__ = fill(_DOC, 2)
    _parts = (DepthwiseConv2d, Conv2d)

    def forward(self, input: Tensor) -> Tensor:
        if not is_served(input):
            return self.pointwise(self.depthwise(input))
        depthwise, pointwise = self.depthwise.weight, self.pointwise.weight
        if self.depthwise.padding_mode != "zeros":
            padded = self.depthwise._padded(input)
            return torch.ops.torch_ext.separable_conv2d(
                padded, depthwise, pointwise, self.pointwise.bias, self.depthwise.stride, [0], self.depthwise.dilation
            )
        return torch.ops.torch_ext.separable_conv2d(
            input,
            depthwise,
            pointwise,
            self.pointwise.bias,
            self.depthwise.stride,
            self.depthwise.padding,
            self.depthwise.dilation,
        )


class SeparableConv3d(SeparableBase):
    __doc__ = fill(_DOC, 3)
    _parts = (DepthwiseConv3d, Conv3d)

    def forward(self, input: Tensor) -> Tensor:
        if not is_served(input):
            return self.pointwise(self.depthwise(input))
        depthwise, pointwise = self.depthwise.weight, self.pointwise.weight
        if self.depthwise.padding_mode != "zeros":
            padded = self.depthwise._padded(input)
            return torch.ops.torch_ext.separable_conv3d(
                padded, depthwise, pointwise, self.pointwise.bias, self.depthwise.stride, [0], self.depthwise.dilation
            )
        return torch.ops.torch_ext.separable_conv3d(
            input,
            depthwise,
            pointwise,
            self.pointwise.bias,
            self.depthwise.stride,
            self.depthwise.padding,
            self.depthwise.dilation,
        )
