"""Whole models: torch.nn's convolutions made ours, and back.

A converted layer changes its class and nothing else: same Parameters, same state_dict, same hooks.
"""

import copy

import torch
from torch import nn

from torch_ext.nn import Conv1d, Conv2d, Conv3d
from torch_ext.nn._base import is_served

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """Makes a model's convolutions ours where we have a kernel for their weight's shape and dtype.

    Only layers of exactly torch's types (`torch.nn.Conv1d`, `Conv2d`, `Conv3d`) change: subclassed, parametrized and
    lazy ones are left alone. Parameters, state_dict, hooks and results (up to rounding) stay. Convert after casting the
    model to the dtype that it will run in: in bfloat16 and float16 every convolution has a kernel; in float64
    the grouped ones; in float32 groups of up to 15 channels (depthwise or more) and pointwise layers with at most 64
    inputs or 6 times as many outputs.

    Args:
        model: The model, or a single layer.
        inplace: Whether to change the model itself or a deep copy of it. Default: True.

    Returns:
        The model, or its copy.

    Example:
        >>> import torch, torch_ext
        >>> type(torch_ext.convert(torch.nn.Conv2d(4, 4, 3, groups=4, dtype=torch.bfloat16)))
        <class 'torch_ext.nn.conv.Conv2d'>
    """
    model = model if inplace else copy.deepcopy(model)
    for layer in model.modules():
        ours = _OURS.get(type(layer))
        if ours is not None and _has_kernel(layer):
            layer.__class__ = ours
    return model


def revert(model: nn.Module) -> nn.Module:
    """Makes the layers that `convert` made ours torch's again, in place.

    Layers of exactly the types `torch_ext.nn.Conv1d`, `Conv2d` and `Conv3d` change, unless their padding is one that
    torch's layers do not have.

    Args:
        model: The model, or a single layer.

    Returns:
        The model.

    Example:
        >>> import torch, torch_ext
        >>> type(torch_ext.revert(torch_ext.convert(torch.nn.Conv2d(4, 4, 3, groups=4))))
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    for layer in model.modules():
        torchs = _TORCHS.get(type(layer))
        if torchs is not None and _torch_has_padding(layer):
            layer.__class__ = torchs
    return model


def _has_kernel(layer: nn.Module) -> bool:
    return is_served(layer.weight) and torch.ops.torch_ext._has_kernel(layer.weight, layer.groups)


def _torch_has_padding(layer: nn.Module) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding == "valid" or (layer.padding == "same" and all(step == 1 for step in layer.stride))
    return len(layer.padding) == len(layer.kernel_size)
