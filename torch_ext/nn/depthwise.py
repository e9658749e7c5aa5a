"""Depthwise layers: convolutions with groups = in_channels."""

from typing import Any

from torch_ext._arguments import IntN, Padding, count
from torch_ext._docs import fill
from torch_ext.nn._base import Base
from torch_ext.nn.conv import Conv1d, Conv2d, Conv3d

_DOC = """A depthwise {n}-D convolution: every input channel has depth_multiplier kernels of its own.

    Equivalent to ``torch.nn.Conv{n}d(in_channels, in_channels * depth_multiplier, kernel_size, …,
    groups=in_channels)``, with its initial weights for the same seed.

    Args:
        in_channels: C, the number of input channels.
        kernel_size: An int or {n} int(s).
        stride: Step of the kernel in elements. Default: 1.
        padding: As in `torch_ext.functional.depthwise_conv{n}d`. Default: 0.
        dilation: Distance between kernel elements. Default: 1.
        depth_multiplier: M, output channels per input channel. Default: 1.
        bias: Whether to learn a bias [C * M]. Default: True.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'. Default: 'zeros'.
        device, dtype: Of the parameters. Default: torch's.

    Raises:
        ValueError: If an argument does not fit; the message has what was expected and what came.

    Shape:
        input [N, C, {sizes}] or [C, {sizes}], output [N, C * M, {out}] or [C * M, {out}], weight [C * M, 1, {k}], bias
        [C * M].

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.nn.DepthwiseConv{n}d(4, 3, padding=1, depth_multiplier=2)(torch.randn(2, 4, {eights})).shape
        torch.Size([2, 8, {eights}])
    """


class DepthwiseBase(Base):
    """The constructor and the printing of the depthwise layers."""

    def __init__(
        self,
        in_channels: int,
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
        for what, value in (("in_channels", in_channels), ("depth_multiplier", depth_multiplier)):
            count(type(self).__name__, what, value, 1)
        super().__init__(
            in_channels,
            in_channels * depth_multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.depth_multiplier = depth_multiplier

    def extra_repr(self) -> str:
        text = super().extra_repr().replace(f"{self.in_channels}, {self.out_channels}", f"{self.in_channels}", 1)
        multiplier = f", depth_multiplier={self.depth_multiplier}" if self.depth_multiplier != 1 else ""
        return text.replace(f", groups={self.groups}", multiplier) if self.groups != 1 else text + multiplier


class DepthwiseConv1d(DepthwiseBase, Conv1d):
    __doc__ = fill(_DOC, 1)


class DepthwiseConv2d(DepthwiseBase, Conv2d):
    __doc__ = fill(_DOC, 2)


class DepthwiseConv3d(DepthwiseBase, Conv3d):
    __doc__ = fill(_DOC, 3)
