"""Every op and layer through TorchScript and torch.export; a saved model in a process without the Python package."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from devices import not_emulated
from torch import Tensor, nn

import torch_ext
from torch_ext._loader import LIBRARY
from torch_ext.testing import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")

PADDINGS = [1, (2,), (1, 2), ((1, 2), (0, 1)), ((2, 1),), "valid", "same", "same_lower"]
MODES = ["zeros", "reflect", "replicate", "circular"]


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for padding in PADDINGS:
        made.append(torch_ext.nn.Conv2d(4, 6, 3, padding=padding, groups=2))
        made.append(torch_ext.nn.DepthwiseConv2d(4, 3, padding=padding, depth_multiplier=2))
        made.append(torch_ext.nn.SeparableConv2d(4, 6, 3, padding=padding))
    for mode in MODES:
        made.append(torch_ext.nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode))
        made.append(torch_ext.nn.DepthwiseConv2d(4, 3, stride=2, padding="same", padding_mode=mode))
        made.append(torch_ext.nn.SeparableConv2d(4, 6, 3, padding=((1, 0), (0, 2)), padding_mode=mode))
    return made


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_layer_scripts_and_exports(layer: nn.Module, tmp_path: Path) -> None:
    layer = layer.to(torch.get_default_device())  # which was another one when they were made
    input = torch.randn(2, 4, 9, 8)
    expected = layer(input)
    path = tmp_path / "layer.pt"
    torch.jit.script(layer).save(path)
    assert torch.equal(torch.jit.load(path)(input), expected)
    exported = torch.export.export(layer, (input,))
    assert torch.equal(exported.module()(input), expected)
    assert torch.equal(exported.run_decompositions().module()(input), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_layers_of_other_dimensions(n: int) -> None:
    input = torch.randn(2, 4, *(6,) * n)
    paddings = ["same", ((1, 0),), 1] + (["causal"] if n == 1 else [])
    for padding in paddings:
        for name, arguments in [("Conv", (4, 6, 3)), ("DepthwiseConv", (4, 3)), ("SeparableConv", (4, 6, 3))]:
            layer = getattr(torch_ext.nn, f"{name}{n}d")(*arguments, padding=padding)
            assert torch.equal(torch.jit.script(layer)(input), layer(input))
            assert torch.equal(torch.export.export(layer, (input,)).module()(input), layer(input))


# TorchScript takes an int, a list, a tuple or a string for the arguments of the composite ops themselves.
def script_int(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.depthwise_conv2d(input, weight, None, 2, 1, 1)


def script_list(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.depthwise_conv2d(input, weight, None, [2, 1], [1, 0, 2, 1], [1, 1])


def script_tuple(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.depthwise_conv2d(input, weight, None, (2, 1), (1, 2), (1, 1))


def script_string(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.depthwise_conv2d(input, weight, None, 2, "same", 1)


def script_defaults(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.group_conv2d(input, weight, groups=4)


def script_separable(input: Tensor, weight: Tensor) -> Tensor:
    pointwise = torch.ones(2, 4, 1, 1, device=input.device)
    return torch.ops.torch_ext.separable_conv2d(input, weight, pointwise, None, 1, "same_lower")


def script_transposed(input: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.torch_ext.depthwise_conv_transpose2d(input, weight, None, 2, 1, 1)


@pytest.mark.parametrize(
    ("scripted", "expected"),
    [
        (script_int, lambda x, w: torch_ext.depthwise_conv2d(x, w, stride=2, padding=1)),
        (script_list, lambda x, w: torch_ext.depthwise_conv2d(x, w, stride=(2, 1), padding=((1, 0), (2, 1)))),
        (script_tuple, lambda x, w: torch_ext.depthwise_conv2d(x, w, stride=(2, 1), padding=(1, 2))),
        (script_string, lambda x, w: torch_ext.depthwise_conv2d(x, w, stride=2, padding="same")),
        (script_defaults, lambda x, w: torch_ext.group_conv2d(x, w, groups=4)),
        (script_separable, lambda x, w: torch_ext.separable_conv2d(x, w, torch.ones(2, 4, 1, 1), padding="same_lower")),
        (script_transposed, lambda x, w: torch_ext.depthwise_conv_transpose2d(x, w, None, 2, 1, 1)),
    ],
    ids=lambda function: getattr(function, "__name__", ""),
)
def test_scripted_ops(scripted: Callable, expected: Callable) -> None:
    input, weight = torch.randn(2, 4, 9, 8), torch.randn(4, 1, 3, 3)
    assert torch.equal(torch.jit.script(scripted)(input, weight), expected(input, weight))


@pytest.mark.parametrize("case", [case for case in CASES if case.dims == 2 and case.input[0]], ids=lambda c: c.name)
def test_export_of_every_case(case: Case) -> None:
    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return case.function(*tensors)

    tensors = tuple(case.tensors(torch.float32))
    exported = torch.export.export(Module(), tensors)
    assert torch.equal(exported.module()(*tensors), case.function(*tensors))


def test_export_with_dynamic_batch_and_size() -> None:
    model = nn.Sequential(
        torch_ext.nn.DepthwiseConv2d(4, 3, padding=1),
        torch_ext.nn.SeparableConv2d(4, 6, 3, padding=((1, 1), (0, 2))),
    )
    shapes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (torch.randn(2, 4, 9, 8),), dynamic_shapes=shapes)
    lowered = exported.run_decompositions()
    assert any("torch_ext.conv.default" in str(node.target) for node in lowered.graph.nodes)
    for size in [(1, 4, 9, 8), (5, 4, 12, 7), (3, 4, 20, 21)]:
        input = torch.randn(size)
        assert torch.equal(exported.module()(input), model(input))
        assert torch.equal(lowered.module()(input), model(input))


FRESH_PROCESS = """
import sys, torch
torch.ops.load_library(sys.argv[1])
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.deterministic = True
input, expected = torch.load("tensors.pt")
assert torch.equal(torch.jit.load("scripted.pt")(input), expected)
assert torch.equal(torch.export.load("exported.pt2").module()(input), expected)
assert "torch_ext" not in sys.modules
print("equal")
"""


@not_emulated
def test_saved_model_needs_the_library_only(tmp_path: Path) -> None:
    model = torch_ext.nn.SeparableConv2d(4, 6, 3, stride=2, padding="same")
    input = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        # The fresh process takes its own default instruction set, and so must the expected result.
        torch.ops.torch_ext._set_isa("")
        torch.save((input, model(input)), tmp_path / "tensors.pt")
    torch.jit.script(model).save(tmp_path / "scripted.pt")
    torch.export.save(torch.export.export(model, (input,)), tmp_path / "exported.pt2")
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(LIBRARY)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout == "equal\n", process.stderr
