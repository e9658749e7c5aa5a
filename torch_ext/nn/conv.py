"""torch.nn.Conv1d, 2d and 3d on our ops."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ext.nn._base import Base, is_served


class Conv1d(Base, nn.Conv1d):
    """`torch.nn.Conv1d` on our ops: same constructor, state_dict and initial weights, and more forms of padding.

    Args: as `torch.nn.Conv1d`; padding may also be ((before, after),), 'same' with a stride, 'same_lower' or 'causal'.

    Raises: ValueError with the argument's name, what was expected and what came.

    Shape: input [N, C, L] or [C, L], output [N, O, ol] or [O, ol], weight [O, C / groups, k], bias [O].

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.nn.Conv1d(4, 6, 3, padding="causal")(torch.randn(2, 4, 9)).shape
        torch.Size([2, 6, 9])
    """

    _dims = 1

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_served(input):
            return F.conv1d(self._padded(input), weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.padding_mode != "zeros":
            return torch.ops.torch_ext.group_conv1d(
                self._padded(input), weight, bias, self.stride, [0], self.dilation, self.groups
            )
        return torch.ops.torch_ext.group_conv1d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv2d(Base, nn.Conv2d):
    """`torch.nn.Conv2d` on our ops: same constructor, state_dict and initial weights, and more forms of padding.

    Args: as `torch.nn.Conv2d`; padding may also be 2 pairs (before, after), ((before, after),) for both axes, 'same'
        with a stride (TensorFlow's SAME) or 'same_lower'.

    Raises: ValueError with the argument's name, what was expected and what came.

    Shape: input [N, C, H, W] or [C, H, W], output [N, O, oh, ow] or [O, oh, ow], weight [O, C / groups, kh, kw], bias
        [O].

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.nn.Conv2d(4, 6, 3, stride=2, padding="same")(torch.randn(2, 4, 9, 8)).shape
        torch.Size([2, 6, 5, 4])
    """

    _dims = 2

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_served(input):
            return F.conv2d(self._padded(input), weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.padding_mode != "zeros":
            return torch.ops.torch_ext.group_conv2d(
                self._padded(input), weight, bias, self.stride, [0], self.dilation, self.groups
            )
        return torch.ops.torch_ext.group_conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv3d(Base, nn.Conv3d):
    """`torch.nn.Conv3d` on our ops: same constructor, state_dict and initial weights, and more forms of padding.

    Args: as `torch.nn.Conv3d`; padding may also be 3 pairs (before, after), ((before, after),) for every axis, 'same'
        with a stride or 'same_lower'.

    Raises: ValueError with the argument's name, what was expected and what came.

    Shape: input [N, C, D, H, W] or [C, D, H, W], output [N, O, od, oh, ow] or [O, od, oh, ow], weight
        [O, C / groups, kd, kh, kw], bias [O].

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.nn.Conv3d(4, 6, 3, padding=((2, 0), (1, 1), (1, 1)))(torch.randn(2, 4, 5, 8, 8)).shape
        torch.Size([2, 6, 5, 8, 8])
    """

    _dims = 3

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_served(input):
            return F.conv3d(self._padded(input), weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.padding_mode != "zeros":
            return torch.ops.torch_ext.group_conv3d(
                self._padded(input), weight, bias, self.stride, [0], self.dilation, self.groups
            )
        return torch.ops.torch_ext.group_conv3d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
