"""Weights of Keras's depthwise and separable layers, in our layers."""

import json
import operator
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_ext import nn as layers

__all__ = ["from_keras"]

_CLASSES = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")
_ORDER = ["depthwise_kernel", "pointwise_kernel", "kernel", "bias"]  # of Keras 2; a depthwise layer's may be `kernel`
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "log_softmax": lambda: nn.LogSoftmax(1),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softmax": lambda: nn.Softmax(1),
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


def from_keras(
    source: Any,
    name: str | None = None,
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | None = None,
    dilation_rate: int | Sequence[int] | None = None,
    activation: str | None = None,
) -> nn.Module:
    """Makes our layer from one of Keras's `DepthwiseConv1D/2D` or `SeparableConv1D/2D`, with its weights.

    Keras keeps its weights in one order whatever the data_format: depthwise kernel [*k, C, M], pointwise kernel
    [*ones, C * M, O], bias. Our layers take [N, C, *]: data in Keras's channels_last goes in as ``x.movedim(-1, 1)``,
    a view that our kernels read where it lies. Multipliers, ``padding="same"`` with a stride, and one bias for the
    whole are as in Keras (keras.io/api/layers/convolution_layers).

    Args:
        source: A Keras layer; the list that its `get_weights()` gives; or the path of a `.keras`, `.weights.h5` or
            `.h5` file (which needs h5py).
        name: In a file, the layer's name.
        strides, padding, dilation_rate, activation: As in Keras, with its defaults. Only for lists and files of weights
            alone: a layer and a file of a whole model know their own.

    Returns:
        `torch_ext.nn.DepthwiseConv1d/2d` or `SeparableConv1d/2d`; with an activation, an `nn.Sequential` of both.

    Raises:
        ValueError: If the source is none of these, its arrays do not fit, or the activation is not one that
            torch has by the same formula.

    Example:
        >>> import numpy, torch, torch_ext
        >>> weights = [numpy.ones((3, 3, 4, 2)), numpy.ones((1, 1, 8, 5)), numpy.zeros(5)]
        >>> layer = torch_ext.from_keras(weights, strides=2, padding="same")
        >>> layer(torch.ones(1, 9, 9, 4).movedim(-1, 1)).shape
        torch.Size([1, 5, 5, 5])
    """
    given = {"strides": strides, "padding": padding, "dilation_rate": dilation_rate, "activation": activation}
    given = {key: value for key, value in given.items() if value is not None}
    is_file, config = isinstance(source, (str, Path)), None
    if is_file != (name is not None):
        raise ValueError(f"from_keras: expected the name of a layer for a file, and only then, but got {name!r}")
    if is_file:
        config, arrays = _read(Path(source), name)
    elif isinstance(source, (list, tuple)):
        arrays = list(source)
    elif type(source).__name__ in _CLASSES and hasattr(source, "get_weights"):
        # The activation itself: its name in the configuration may be another function's.
        config, arrays = {**source.get_config(), "activation": source.activation}, source.get_weights()
        if not arrays:
            raise ValueError("from_keras: expected a layer that is built, but got one without weights")
    else:
        raise ValueError(
            f"from_keras: expected one of Keras's layers {', '.join(_CLASSES)}, a list of arrays or a file, but got "
            f"{type(source).__name__}"
        )
    if config and given:
        raise ValueError(f"from_keras: expected no {', '.join(given)} for a layer that knows its own, but got {given}")
    tensors = [_tensor(array) for array in arrays]
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64, torch.bfloat16, torch.float16}:
        raise ValueError(f"from_keras: expected arrays of one floating-point dtype, but got {[*map(str, kinds)]}")
    defaults = {"strides": 1, "padding": "valid", "dilation_rate": 1, "activation": None}
    return _build(tensors, config or {**defaults, **given})


def _tensor(array: Any) -> torch.Tensor:
    import numpy

    if isinstance(array, torch.Tensor):
        return array.detach().clone()
    array = numpy.array(array)
    if array.dtype.name == "bfloat16":  # which numpy has from an extension, and torch does not know there
        return torch.from_numpy(array.view(numpy.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _build(arrays: list[torch.Tensor], config: dict[str, Any]) -> nn.Module:
    shapes = [list(array.shape) for array in arrays]
    n = len(shapes[0]) - 2 if shapes else 0
    separable = len(shapes) > 1 and len(shapes[1]) > 1
    if n not in (1, 2) or len(shapes) > 2 + separable or not all(shapes[0]):
        raise ValueError(
            "from_keras: expected a depthwise kernel [*k, C, M], perhaps a pointwise kernel [*ones, C * M, O], and "
            f"perhaps a bias, but got arrays of shapes {shapes}"
        )
    *kernel, channels, multiplier = shapes[0]
    outputs, ones = channels * multiplier, [1] * n
    if separable:
        if shapes[1][:-1] != [*ones, outputs] or shapes[1][-1] == 0:
            raise ValueError(
                f"from_keras: expected a pointwise kernel of shape {[*ones, outputs, 'O']}, but got {shapes[1]}"
            )
        outputs = shapes[1][-1]
    bias = arrays[1 + separable] if len(arrays) > 1 + separable else None
    if bias is not None and list(bias.shape) != [outputs]:
        raise ValueError(f"from_keras: expected a bias of shape {[outputs]}, but got {list(bias.shape)}")

    arguments = {
        "stride": _numbers(config["strides"]),
        "padding": config["padding"],
        "dilation": _numbers(config["dilation_rate"]),
        "depth_multiplier": multiplier,
        "bias": bias is not None,
        "dtype": arrays[0].dtype,
    }
    depthwise = arrays[0].movedim((-2, -1), (0, 1)).flatten(0, 1).unsqueeze(1)  # [C * M, 1, *k]
    if separable:
        layer = getattr(layers, f"SeparableConv{n}d")(channels, outputs, tuple(kernel), **arguments)
        state = {"depthwise.weight": depthwise, "pointwise.weight": arrays[1].movedim((-1, -2), (0, 1))}
    else:
        layer = getattr(layers, f"DepthwiseConv{n}d")(channels, tuple(kernel), **arguments)
        state = {"weight": depthwise}
    if bias is not None:
        state["pointwise.bias" if separable else "bias"] = bias
    layer.load_state_dict(state)
    activation = _activation(config["activation"])
    return layer if activation is None else nn.Sequential(layer, activation)


def _numbers(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else operator.index(value)


def _activation(value: Any) -> nn.Module | None:
    if value is None:
        return None
    is_keras = getattr(value, "__module__", "").partition(".")[0] in ("keras", "tensorflow", "tf_keras")
    name = value if isinstance(value, str) else value.__name__ if is_keras and callable(value) else None
    if name == "linear":
        return None
    if name not in _ACTIVATIONS:
        raise ValueError(f"from_keras: expected one of the activations {', '.join(_ACTIVATIONS)}, but got {value!r}")
    return _ACTIVATIONS[name]()


def _read(path: Path, name: str) -> tuple[dict[str, Any] | None, list[Any]]:
    """A layer's configuration, if the file has it, and its arrays."""
    import h5py

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
            with h5py.File(BytesIO(archive.read("model.weights.h5")), "r") as file:
                return _config(model, name), _arrays(file, name)
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        return (_config(json.loads(text), name) if text is not None else None), _arrays(file, name)


def _config(model: Any, name: str) -> dict[str, Any]:
    found = [entry["config"] for entry in _dicts(model) if _is_layer(entry) and entry["config"].get("name") == name]
    if len(found) != 1:
        names = sorted(entry["config"]["name"] for entry in _dicts(model) if _is_layer(entry))
        raise ValueError(f"from_keras: expected the name of one of the layers {', '.join(names)}, but got {name!r}")
    return found[0]


def _is_layer(entry: dict[str, Any]) -> bool:
    return entry.get("class_name") in _CLASSES and isinstance(entry.get("config"), dict)


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _dicts(value)


def _arrays(file: Any, name: str) -> list[Any]:
    """A layer's arrays. Keras 3 numbers them and notes the layer's name; Keras 2 names groups and arrays."""
    import h5py

    noted, named = [], []

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and any(isinstance(child, h5py.Dataset) for child in item.values()):
            kind = path.removesuffix("/vars").split("/")[-1]  # in Keras 2 the layer's name
            if item.attrs.get("name") == name:
                if not kind.startswith(("depthwise_conv", "separable_conv")):
                    raise ValueError(f"from_keras: expected a depthwise or separable layer, but {name!r} is {kind}")
                noted.append(item)
            elif kind == name:
                named.append(item)

    file.visititems(visit)
    groups = noted or named
    if len(groups) != 1:
        raise ValueError(f"from_keras: expected the name of one layer with weights in the file, but got {name!r}")
    arrays = {key.split(":")[0]: dataset[()] for key, dataset in groups[0].items()}
    return [arrays[key] for key in sorted(arrays, key=lambda key: (_ORDER.index(key) if key in _ORDER else 0, key))]
