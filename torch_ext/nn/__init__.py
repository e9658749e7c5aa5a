"""Layers: torch.nn's convolutions on our ops, depthwise, separable and deformable ones."""

from torch_ext.nn.conv import Conv1d, Conv2d, Conv3d
from torch_ext.nn.deform import DeformConv1d, DeformConv2d, DeformConv2dPack, DeformConv3d
from torch_ext.nn.depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from torch_ext.nn.separable import SeparableConv1d, SeparableConv2d, SeparableConv3d

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformConv3d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
]
