"""The layers of torch_ext.nn that the demo's network uses, made of torch.nn alone, under the same names.

torch.nn.Conv2d refuses padding='same' with a stride, so these pad the input themselves (a copy of it, every call).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """A convolution with TensorFlow's 'same' padding: ceil(size / stride) outputs, the odd element goes after."""

    def __init__(self, *args: Any, padding: str = "same", **options: Any) -> None:
        if padding != "same":
            raise ValueError(f"this twin only knows padding='same', but got {padding!r}")
        super().__init__(*args, **options)

    def forward(self, input: Tensor) -> Tensor:
        pad = []
        for axis in (1, 0):  # F.pad wants the last axis first
            size, stride = input.shape[2 + axis], self.stride[axis]
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pad += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pad))


class DepthwiseConv2d(Conv2d):
    def __init__(self, in_channels: int, kernel_size: int, *, depth_multiplier: int = 1, **options: Any) -> None:
        super().__init__(in_channels, in_channels * depth_multiplier, kernel_size, groups=in_channels, **options)


class SeparableConv2d(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_channels, kernel_size, bias=False, **options)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(input))
