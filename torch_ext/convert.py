"""Whole models: torch.nn's convolutions made ours, and back.

A converted layer changes its class and nothing else: same Parameters, same state_dict, same hooks. Only a depthwise
layer and the pointwise one behind it become one layer, whose parts they are, and an identity, with the same state_dict.
"""

import copy
import sys

import torch
from torch import nn

from torch_ext._loader import build_info
from torch_ext.nn import Conv1d, Conv2d, Conv3d, DeformConv2d, SeparableConv1d, SeparableConv2d, SeparableConv3d
from torch_ext.nn._base import is_served

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}
_SEPARABLE: dict[type[nn.Module], type[nn.Module]] = {
    Conv1d: SeparableConv1d,
    Conv2d: SeparableConv2d,
    Conv3d: SeparableConv3d,
}


def convert(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """Makes a model's convolutions ours where we have a kernel for their weight's shape and dtype.

    Only layers of exactly torch's types (`torch.nn.Conv1d`, `Conv2d`, `Conv3d`) change: subclassed, parametrized and
    lazy ones are left alone. Parameters, state_dict, hooks and results (up to rounding) stay. Convert after casting the
    model to the dtype that it will run in: in bfloat16 and float16 every convolution has a kernel; in float64
    the grouped ones; in float32 groups of up to 64 channels (depthwise or more), pointwise layers with at most 64
    inputs or 6 times as many outputs, and dilated or 3-D dense layers of 16 to 256 channels; of some of these a part of
    the passes. On a GPU, in every dtype, depthwise layers and groups of fewer than 16 channels have one; and pairs stay
    two layers.

    In a `Sequential` (exactly that), a depthwise layer without bias and a pointwise one right behind it, both with a
    kernel and without hooks, become a separable layer and an identity. The keys of the state_dict stay; names of
    parameters, keys of a scripted module, and what the first of the two children gives by itself do not. timm's
    `Conv2dSame` becomes a `torch_ext.nn.Conv2d` with padding 'same', without a padded copy; and
    `torchvision.ops.DeformConv2d`, which is slow in every dtype, a `torch_ext.nn.DeformConv2d`.

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
        elif _is_timms_same(layer) and _has_kernel(layer):
            layer._was = type(layer), layer.padding
            layer.__class__, layer.padding = Conv2d, "same"
        elif _is_torchvisions_deform(layer) and _has_deform_kernel(layer):
            layer.__class__ = DeformConv2d
    for layer in [layer for layer in model.modules() if type(layer) is nn.Sequential]:
        _join_pairs(layer)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Makes the layers that `convert` made ours torch's again, in place.

    Layers of exactly the types `torch_ext.nn.Conv1d`, `Conv2d` and `Conv3d` change, unless their padding is one that
    torch's layers do not have; `torch_ext.nn.DeformConv2d`, to torchvision's if that is imported; and what `convert`
    made of pairs and of timm's layers.

    Args:
        model: The model, or a single layer.

    Returns:
        The model.

    Example:
        >>> import torch, torch_ext
        >>> type(torch_ext.revert(torch_ext.convert(torch.nn.Conv2d(4, 4, 3, groups=4))))
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    for layer in [layer for layer in model.modules() if type(layer) is nn.Sequential]:
        _part_pairs(layer)
    for layer in model.modules():
        torchs = _TORCHS.get(type(layer))
        if type(layer) is Conv2d and "_was" in layer.__dict__:
            layer.__class__, layer.padding = layer.__dict__.pop("_was")
        elif torchs is not None and _torch_has_padding(layer):
            layer.__class__ = torchs
        elif type(layer) is DeformConv2d and not isinstance(layer.padding, str) and _torch_has_padding(layer):
            if "torchvision" in sys.modules:
                layer.__class__ = sys.modules["torchvision"].ops.DeformConv2d
    return model


def _has_kernel(layer: nn.Module) -> bool:
    return is_served(layer.weight) and torch.ops.torch_ext._has_kernel(layer.weight, layer.dilation, layer.groups)


def _has_deform_kernel(layer: nn.Module) -> bool:
    return is_served(layer.weight) and not (layer.weight.is_cuda and build_info()["cuda"] is None)


def _torch_has_padding(layer: nn.Module) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding == "valid" or (layer.padding == "same" and all(step == 1 for step in layer.stride))
    return len(layer.padding) == len(layer.kernel_size)


def _is_timms_same(layer: nn.Module) -> bool:
    """timm's convolution with TensorFlow's SAME padding, which it adds to a copy of the input."""
    kind = type(layer)
    if kind.__name__ != "Conv2dSame" or kind.__module__.partition(".")[0] != "timm" or not isinstance(layer, nn.Conv2d):
        return False
    return tuple(layer.padding) == (0, 0) and layer.padding_mode == "zeros"


def _is_torchvisions_deform(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.__name__ == "DeformConv2d" and kind.__module__ == "torchvision.ops.deform_conv"


class _SecondOfPair(nn.Identity):
    """Where the pointwise layer of a pair was; the separable layer before it has that layer now."""


def _pairs(sequential: nn.Module) -> list[tuple[str, str]]:
    """The names of the pairs that `convert` joined and that are still there."""
    children = list(sequential._modules.items())
    return [
        (first, second)
        for (first, layer), (second, behind) in zip(children, children[1:])
        if type(behind) is _SecondOfPair and type(layer) in _SEPARABLE.values()
    ]


class _Rename:
    """A hook of a Sequential on its state_dict, or on one that it loads: parts of pairs have their old keys there."""

    def __init__(self, loads: bool) -> None:
        self.loads = loads

    def __call__(self, module: nn.Module, state: dict, prefix: str, *_: object) -> None:
        names = {}
        for first, second in _pairs(module):
            names |= {f"{first}.depthwise": first, f"{first}.pointwise": second}
        if self.loads:
            names = {new: old for old, new in names.items()}
        for key in list(state):
            value = state.pop(key)  # and back again, so that the order stays
            place, _, parameter = key.removeprefix(prefix).rpartition(".")
            if key.startswith(prefix) and place in names:
                key = f"{prefix}{names[place]}.{parameter}"
            state[key] = value


def _join_pairs(sequential: nn.Sequential) -> None:
    names = list(sequential._modules)
    for first, second in zip(names, names[1:]):
        depthwise, pointwise = sequential._modules[first], sequential._modules[second]
        if not _is_pair(depthwise, pointwise):
            continue
        kind = _SEPARABLE[type(depthwise)]
        separable = kind.__new__(kind)
        nn.Module.__init__(separable)
        separable.training = depthwise.training
        separable.depthwise, separable.pointwise = depthwise, pointwise
        second_of_pair = _SecondOfPair().train(pointwise.training)
        sequential._modules[first], sequential._modules[second] = separable, second_of_pair
    has_hook = any(isinstance(hook, _Rename) for hook in sequential._state_dict_hooks.values())
    if _pairs(sequential) and not has_hook:
        sequential.register_state_dict_post_hook(_Rename(loads=False))
        sequential.register_load_state_dict_pre_hook(_Rename(loads=True))


def _is_pair(depthwise: nn.Module, pointwise: nn.Module) -> bool:
    """Both are ours by now, and have a kernel."""
    if type(depthwise) not in _SEPARABLE or type(pointwise) is not type(depthwise) or depthwise is pointwise:
        return False
    is_depthwise = depthwise.groups == depthwise.in_channels and depthwise.groups > 1 and depthwise.bias is None
    is_pointwise = all(number == 1 for number in (*pointwise.kernel_size, *pointwise.stride, pointwise.groups))
    is_pointwise &= isinstance(pointwise.padding, str) or not any(pointwise.padding)
    if not (is_depthwise and is_pointwise and _has_kernel(depthwise) and _has_kernel(pointwise)):
        return False
    return not any(_has_hooks(layer) for layer in (depthwise, pointwise))


def _has_hooks(layer: nn.Module) -> bool:
    """Or a forward of its own."""
    own = layer.__dict__
    return "forward" in own or any(value for name, value in own.items() if name.endswith("_hooks"))


def _part_pairs(sequential: nn.Sequential) -> None:
    for first, second in _pairs(sequential):
        separable = sequential._modules[first]
        sequential._modules[first], sequential._modules[second] = separable.depthwise, separable.pointwise
    for hooks in (sequential._state_dict_hooks, sequential._load_state_dict_pre_hooks):
        for key, hook in [*hooks.items()]:
            if isinstance(getattr(hook, "hook", hook), _Rename):
                del hooks[key]
