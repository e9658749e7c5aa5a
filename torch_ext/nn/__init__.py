"""Layers: torch.nn's convolutions on our ops, depthwise and separable ones."""

from torch_ext.nn.conv import Conv1d, Conv2d, Conv3d
from torch_ext.nn.depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from torch_ext.nn.separable import SeparableConv1d, SeparableConv2d, SeparableConv3d

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
]
