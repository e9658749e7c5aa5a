"""from_keras against Keras itself, on its JAX backend."""

import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import torch_ext

os.environ["KERAS_BACKEND"] = "jax"
pytest.importorskip("jax", reason="JAX, the backend that Keras runs on here, is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")
keras = pytest.importorskip("keras", reason="Keras is not installed")

COMMON: list[dict[str, Any]] = [
    {},
    {"strides": 2, "padding": "same"},
    {"padding": "same", "depth_multiplier": 3, "activation": "relu"},
    {"dilation_rate": 2, "use_bias": False},
    {"strides": 2, "depth_multiplier": 2, "activation": "silu"},
]


def random_weights(layer: Any) -> None:
    generator = numpy.random.default_rng(0)
    layer.set_weights([generator.normal(size=weight.shape).astype("float32") for weight in layer.get_weights()])


def make(n: int, separable: bool, **arguments: Any) -> tuple[Any, numpy.ndarray]:
    """A Keras layer with random weights, and an input for it."""
    size = {1: (12,), 2: (9, 10)}[n]
    if separable:
        layer = getattr(keras.layers, f"SeparableConv{n}D")(5, 3, **arguments)
    else:
        layer = getattr(keras.layers, f"DepthwiseConv{n}D")(3, **arguments)
    input = numpy.random.default_rng(1).normal(size=(2, *size, 4)).astype("float32")
    if arguments.get("data_format") == "channels_first":
        input = numpy.moveaxis(input, -1, 1)
    layer.build(input.shape)
    random_weights(layer)
    return layer, input


@pytest.mark.parametrize("arguments", COMMON, ids=str)
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_layers(n: int, separable: bool, arguments: dict[str, Any]) -> None:
    """A layer, and the list of its weights with the same arguments: the same as Keras."""
    layer, input = make(n, separable, **arguments)
    expected = torch.from_numpy(numpy.array(layer(input))).movedim(-1, 1)
    options = {key: value for key, value in arguments.items() if key not in ("depth_multiplier", "use_bias")}
    for ours in (torch_ext.from_keras(layer), torch_ext.from_keras(layer.get_weights(), **options)):
        output = ours(torch.from_numpy(input).movedim(-1, 1))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", sorted(torch_ext.keras._ACTIVATIONS))
def test_activations(activation: str) -> None:
    layer, input = make(2, True, activation=activation)
    expected = torch.from_numpy(numpy.array(layer(input))).movedim(-1, 1)
    output = torch_ext.from_keras(layer)(torch.from_numpy(input).movedim(-1, 1))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)


def test_bfloat16() -> None:
    layer, _ = make(2, False, dtype="bfloat16")
    ours = torch_ext.from_keras(layer)
    assert ours.weight.dtype == torch.bfloat16
    expected = torch.from_numpy(layer.get_weights()[0].astype("float32"))
    assert torch.equal(ours.weight.float(), expected.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1))


@pytest.mark.parametrize("separable", [False, True])
def test_channels_first_has_the_same_weights(separable: bool) -> None:
    last, input = make(2, separable, padding="same")
    first, _ = make(2, separable, padding="same", data_format="channels_first")
    first.set_weights(last.get_weights())
    ours = torch_ext.from_keras(first)
    expected = torch.from_numpy(numpy.array(last(input))).movedim(-1, 1)
    torch.testing.assert_close(ours(torch.from_numpy(input).movedim(-1, 1)), expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def model() -> Any:
    """Like Xception, but small: strided entry, separable layers with residuals, a nested block, a classifier."""
    layers = keras.layers
    input = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="entry")(input)
    residual = layers.Conv2D(16, 1, strides=2, padding="same", name="shortcut")(x)
    x = layers.SeparableConv2D(16, 3, padding="same", activation="relu", use_bias=False, name="block1_a")(x)
    x = layers.SeparableConv2D(16, 3, strides=2, padding="same", depth_multiplier=2, name="block1_b")(x)
    x = layers.Add()([x, residual])
    for i in (1, 2):
        y = layers.ReLU()(x)
        y = layers.SeparableConv2D(16, 3, padding="same", name=f"middle{i}")(y)
        x = layers.Add()([x, y])
    x = keras.Sequential([layers.DepthwiseConv2D(5, padding="same", activation="relu", name="inner")], name="nested")(x)
    x = layers.GlobalAveragePooling2D()(x)
    made = keras.Model(input, layers.Dense(10, name="logits")(x))
    for layer in made.layers:
        random_weights(layer)
    return made


class Twin(nn.Module):
    """The same model in PyTorch; `get` gives a layer by its name."""

    def __init__(self, keras_model: Any, get: Any) -> None:
        super().__init__()
        self.dense = {name: keras_model.get_layer(name).get_weights() for name in ("entry", "shortcut", "logits")}
        names = ("block1_a", "block1_b", "middle1", "middle2", "inner")
        self.layers = nn.ModuleDict({name: get(name) for name in names})

    def conv(self, name: str, x: Tensor) -> Tensor:
        kernel, bias = (torch.from_numpy(array) for array in self.dense[name])
        return torch_ext.group_conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv("entry", x).relu()
        x = self.layers["block1_b"](self.layers["block1_a"](x)) + self.conv("shortcut", x)
        for i in (1, 2):
            x = x + self.layers[f"middle{i}"](x.relu())
        kernel, bias = (torch.from_numpy(array) for array in self.dense["logits"])
        return self.layers["inner"](x).mean((2, 3)) @ kernel + bias


def test_whole_model(model: Any, tmp_path: Path) -> None:
    """The same logits from the layers themselves, and from each kind of file."""
    input = numpy.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = torch.from_numpy(numpy.array(model(input)))
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    layers = {layer.name: layer for layer in (*model.layers, *model.get_layer("nested").layers)}
    arguments = {
        "block1_a": {"padding": "same", "activation": "relu"},
        "block1_b": {"padding": "same", "strides": 2},
        "middle1": {"padding": "same"},
        "middle2": {"padding": "same"},
        "inner": {"padding": "same", "activation": "relu"},
    }
    sources = [
        lambda name: torch_ext.from_keras(layers[name]),
        lambda name: torch_ext.from_keras(tmp_path / "model.keras", name),
        lambda name: torch_ext.from_keras(str(tmp_path / "model.h5"), name),
        lambda name: torch_ext.from_keras(tmp_path / "model.weights.h5", name, **arguments[name]),
    ]
    for get in sources:
        logits = Twin(model, get)(torch.from_numpy(input).movedim(-1, 1))
        assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def softplus(x: Any) -> Any:
    """Not Keras's."""
    return x


def test_errors(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    kernel, pointwise = numpy.ones((3, 3, 4, 2)), numpy.ones((1, 1, 8, 5))
    for call, words in [
        (lambda: torch_ext.from_keras(keras.layers.Conv2D(3, 3)), "expected one of Keras's layers .* got Conv2D"),
        (lambda: torch_ext.from_keras(tmp_path / "model.keras"), "expected the name of a layer"),
        (lambda: torch_ext.from_keras(tmp_path / "model.keras", "entry"), "block1_a, block1_b.* got 'entry'"),
        (lambda: torch_ext.from_keras(tmp_path / "model.weights.h5", "none"), "the file, but got 'none'"),
        (lambda: torch_ext.from_keras([]), r"but got arrays of shapes \[\]"),
        (lambda: torch_ext.from_keras([kernel, pointwise, pointwise[0, 0, 0], kernel]), "perhaps a bias, but got"),
        (lambda: torch_ext.from_keras([kernel, pointwise[:, :, :7]]), r"pointwise kernel of shape \[1, 1, 8, 'O'\]"),
        (lambda: torch_ext.from_keras([kernel, pointwise, numpy.ones(4)]), r"bias of shape \[5\], but got \[4\]"),
        (lambda: torch_ext.from_keras([kernel], activation="cube"), "expected one of the activations .*'cube'"),
        (lambda: torch_ext.from_keras(make(2, False, activation=softplus)[0]), "expected one of the activations"),
        (lambda: torch_ext.from_keras(make(2, False)[0], strides=2), "expected no strides for a layer"),
        (lambda: torch_ext.from_keras([kernel], "name"), "for a file, and only then, but got 'name'"),
        (lambda: torch_ext.from_keras(keras.layers.DepthwiseConv2D(3)), "expected a layer that is built"),
        (lambda: torch_ext.from_keras([kernel.astype(int)]), "of one floating-point dtype, but got .*int64"),
        (lambda: torch_ext.from_keras([kernel, numpy.ones(8, "float32")]), "of one floating-point dtype"),
        (lambda: torch_ext.from_keras([kernel, pointwise[..., :0]]), "expected a pointwise kernel"),
        (lambda: torch_ext.from_keras(tmp_path / "model.weights.h5", "entry"), "but 'entry' is conv2d"),
        (lambda: torch_ext.from_keras([kernel], padding="SAME"), "padding"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
