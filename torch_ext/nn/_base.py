"""What the layers share: a constructor that takes every form of padding, padding by hand, printing.

A layer keeps its padding as the ops take it: n numbers, 2n numbers (axis by axis: before, after) or a string. So
forward has nothing to work out, and TorchScript sees plain constants; a layer made by torch.nn is in this form already.
"""

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from torch_ext._arguments import ArgumentError, IntN, Padding, both_sides, count, padding_list, positive

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def is_served(input: Tensor) -> bool:
    """Whether our ops take this input; what they do not take (complex, integers, other devices) goes to torch."""
    if not torch.jit.is_scripting():
        if isinstance(input, torch.fx.Proxy):
            return True  # torch.fx traces one way: ours
    return (
        input.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        and input.device.type in ("cpu", "cuda", "meta")
        and input.layout == torch.strided
    )


class Base(_ConvNd):
    """Put before torch.nn.ConvNd in the bases of a layer, whose constructor it calls."""

    _dims = 0  # a layer has 1, 2 or 3 (no annotation: it would hide those that torch has for TorchScript)

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
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        name, n = type(self).__name__, self._dims
        kernel_size, stride, dilation = (
            tuple(positive(name, what, value, n))
            for what, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )
        sides = padding_list(name, padding, n)
        if not isinstance(sides, str) and min(sides) < 0:
            raise ArgumentError(f"{name}: negative padding is not supported, but got {padding!r}")
        count(name, "groups", groups, 1)
        for channels, size in (("in_channels", in_channels), ("out_channels", out_channels)):
            if count(name, channels, size, 0) % groups != 0:
                raise ArgumentError(f"{name}: {channels} must be divisible by groups = {groups}, but got {size}")
        if padding_mode not in PADDING_MODES:
            raise ArgumentError(
                f"{name}: padding_mode must be one of {', '.join(PADDING_MODES)}, but got {padding_mode!r}"
            )
        # torch's constructor knows fewer forms of padding, so it gets none and ours is set below.
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias, padding_mode, device, dtype
        )
        self.padding = sides if isinstance(sides, str) else tuple(sides)
        # What torch's own forward reads, should `revert` make this layer torch's ('same': of stride 1 there).
        if sides == "same":
            ones = [1] * n  # with a stride of 1, the input's size does not matter
            sides = torch.ops.torch_ext._same_padding(ones, kernel_size, ones, dilation, "same")
        if not isinstance(sides, str):
            self._reversed_padding_repeated_twice = _last_axis_first(both_sides(sides, n), n)

    def _padded(self, input: Tensor) -> Tensor:
        """The input with its padding written out."""
        if isinstance(self.padding, str):
            spatial = input.shape[input.dim() - len(self.kernel_size) :]
            sides = torch.ops.torch_ext._same_padding(
                spatial, self.kernel_size, self.stride, self.dilation, self.padding
            )
            widths = _last_axis_first(sides, len(self.kernel_size))
        else:
            widths = self._reversed_padding_repeated_twice
        return F.pad(input, widths, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if isinstance(self.padding, str) or len(self.padding) == len(self.kernel_size):
            return text
        pairs = tuple(zip(self.padding[::2], self.padding[1::2], strict=True))
        return text.replace(f"padding={self.padding}", f"padding={pairs}")


def _last_axis_first(sides: list[int], n: int) -> list[int]:
    """2n numbers in the order of torch.nn.functional.pad."""
    result: list[int] = []
    for axis in range(n - 1, -1, -1):
        result.append(sides[2 * axis])
        result.append(sides[2 * axis + 1])
    return result
