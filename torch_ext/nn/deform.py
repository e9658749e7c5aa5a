"""Deformable layers."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from torch_ext._arguments import ArgumentError, IntN, Padding, count, padding_list, positive
from torch_ext._docs import fill
from torch_ext.nn.conv import Conv2d

_DOC = """A deformable {n}-D convolution: as `torch_ext.functional.deform_conv{n}d`, which has the sources.

    In 2-D the constructor, state_dict and initial weights of ``torchvision.ops.DeformConv2d``. Offsets, and a mask if
    there is one, are given in each call; `DeformConv2dPack` computes them itself.

    Args:
        in_channels: C, the number of input channels.
        out_channels: O, the number of output channels.
        kernel_size: An int or {n} int(s).
        stride: Step of the kernel in elements. Default: 1.
        padding: As in `torch_ext.functional.deform_conv{n}d`. Default: 0.
        dilation: Distance between kernel elements. Default: 1.
        groups: Divides C and O. Default: 1.
        bias: Whether to learn a bias [O]. Default: True.
        device, dtype: Of the parameters. Default: torch's.

    Raises:
        ValueError: If an argument does not fit; the message has what was expected and what came.

    Shape:
        input [N, C, {sizes}], offset [N, {n} * G * taps, {out}], mask [N, G * taps, {out}], output [N, O, {out}],
        weight [O, C / groups, {k}], bias [O]; all but the last two may be unbatched.

    Example:
        >>> import torch, torch_ext
        >>> layer = torch_ext.nn.DeformConv{n}d(4, 6, 3, padding=1)
        >>> layer(torch.randn(2, 4, {eights}), torch.zeros(2, {n} * {taps}, {eights})).shape
        torch.Size([2, 6, {eights}])
    """


class DeformBase(nn.Module):
    """The constructor of the deformable layers."""

    _dims = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntN,
        stride: IntN = 1,
        padding: Padding = 0,
        dilation: IntN = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self._dims
        self.in_channels = count(name, "in_channels", in_channels, 1)
        self.out_channels = count(name, "out_channels", out_channels, 1)
        self.groups = count(name, "groups", groups, 1)
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ArgumentError(f"{name}: expected {what} to be divisible by groups {groups}, but got {channels}")
        self.kernel_size = tuple(positive(name, "kernel_size", kernel_size, n))
        self.stride = tuple(positive(name, "stride", stride, n))
        self.dilation = tuple(positive(name, "dilation", dilation, n))
        sides = padding_list(name, padding, n)
        if not isinstance(sides, str) and min(sides) < 0:
            raise ArgumentError(f"{name}: negative padding is not supported, but got padding {padding!r}")
        self.padding = sides if isinstance(sides, str) else tuple(sides)
        size = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if isinstance(self.padding, str):
            text += f", padding={self.padding!r}"
        elif len(self.padding) > self._dims:
            text += f", padding={tuple(zip(self.padding[::2], self.padding[1::2], strict=True))}"
        elif any(self.padding):
            text += f", padding={self.padding}"
        if any(step != 1 for step in self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else f"{text}, bias=False"


class DeformConv1d(DeformBase):
    __doc__ = fill(_DOC, 1)
    _dims = 1

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.ops.torch_ext.deform_conv1d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


class DeformConv2d(DeformBase):
    __doc__ = fill(_DOC, 2)
    _dims = 2

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.ops.torch_ext.deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


class DeformConv3d(DeformBase):
    __doc__ = fill(_DOC, 3)
    _dims = 3

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.ops.torch_ext.deform_conv3d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


class DeformConv2dPack(DeformConv2d):
    """A deformable 2-D convolution that computes its offsets, and its mask, from its input.

    A convolution `conv_offset` of the same kernel gives them; its weights begin as zeros, so that the layer begins as a
    plain convolution (times 0.5 with a mask, which goes through a sigmoid). State_dict and channel order are those of
    mmcv's ``ModulatedDeformConv2dPack`` and, not modulated, ``DeformConv2dPack`` (which has no bias). At coordinates
    of exactly -1 mmcv's derivative differs: see `torch_ext.functional.deform_conv2d`.

    Args:
        in_channels: C, the number of input channels.
        out_channels: O, the number of output channels.
        kernel_size: An int or 2 ints.
        stride: Step of the kernel in elements. Default: 1.
        padding: As in `torch_ext.functional.deform_conv2d`. Default: 0.
        dilation: Distance between kernel elements. Default: 1.
        groups: Divides C and O. Default: 1.
        deform_groups: G, offset groups. Divides C. Default: 1.
        bias: Whether to learn a bias [O]. Default: True.
        modulated: Whether there is a mask. Default: True.
        device, dtype: Of the parameters. Default: torch's.

    Raises:
        ValueError: If an argument does not fit; the message has what was expected and what came.

    Shape:
        input [N, C, H, W] or [C, H, W], output [N, O, oh, ow] or [O, oh, ow], weight [O, C / groups, kh, kw], bias [O],
        conv_offset.weight [3 * G * kh * kw, C, kh, kw] (2 * G without a mask), conv_offset.bias.

    Example:
        >>> import torch, torch_ext
        >>> layer = torch_ext.nn.DeformConv2dPack(4, 6, 3, stride=2, padding=1, deform_groups=2)
        >>> layer(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 6, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntN,
        stride: IntN = 1,
        padding: Padding = 0,
        dilation: IntN = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype)
        name = type(self).__name__
        self.deform_groups = count(name, "deform_groups", deform_groups, 1)
        self.modulated = bool(modulated)
        if in_channels % deform_groups:
            raise ArgumentError(
                f"{name}: expected in_channels to be divisible by deform_groups {deform_groups}, but got {in_channels}"
            )
        self.offsets = 2 * deform_groups * math.prod(self.kernel_size)
        channels = self.offsets // 2 * (3 if modulated else 2)
        self.conv_offset = Conv2d(
            in_channels, channels, kernel_size, stride, padding, dilation, device=device, dtype=dtype
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        computed = self.conv_offset(input)
        mask: Tensor | None = None
        if self.modulated:
            mask = computed.narrow(-3, self.offsets, self.offsets // 2).sigmoid()
        return torch.ops.torch_ext.deform_conv2d(
            input,
            computed.narrow(-3, 0, self.offsets),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}, modulated={self.modulated}"
