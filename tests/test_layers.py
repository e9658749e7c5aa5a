"""The layers: torch.nn's weights, names, printing and results, and every padding, in Python and in TorchScript."""

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import on_gpu
from torch import Tensor, nn

import torch_ext
from torch_ext import reference

DIMS = (1, 2, 3)
MODES = ("zeros", "reflect", "replicate", "circular")
SIZES = {1: (11,), 2: (7, 8), 3: (5, 6, 7)}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

every_dim = pytest.mark.parametrize("n", DIMS)
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")


def ours(kind: str, n: int, *args: Any, **kwargs: Any) -> nn.Module:
    return getattr(torch_ext.nn, f"{kind}{n}d")(*args, **kwargs)


def torchs(n: int, *args: Any, **kwargs: Any) -> nn.Module:
    return getattr(nn, f"Conv{n}d")(*args, **kwargs)


def seeded(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(7)
    return make(*args, **kwargs)


def input_of(n: int, dtype: torch.dtype = torch.float32, channels: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, *SIZES[n]).to(dtype)


def three_kinds(n: int, **kwargs: Any) -> list[nn.Module]:
    return [
        seeded(ours, "Conv", n, 4, 6, 3, groups=2, **kwargs),
        seeded(ours, "DepthwiseConv", n, 4, 3, depth_multiplier=2, **kwargs),
        seeded(ours, "SeparableConv", n, 4, 6, 3, **kwargs),
    ]


def paddings(n: int) -> list[Any]:
    """Every form. Axes differ where they can."""
    pairs = ((2, 0), (0, 1), (1, 2))[:n]
    forms = [0, 2, (1,), [2], (2, 1, 0)[:n], pairs, [list(pair) for pair in pairs], ((2, 1),), ((1, 1),)]
    return [*forms, "valid", "same", "same_lower", *(["causal"] if n == 1 else [])]


def expected(layer: nn.Module, input: Tensor, padding: Any, mode: str = "zeros") -> Tensor:
    """F.pad by hand, then torch's convolution, in float64 or complex128."""
    wide = torch.complex128 if input.is_complex() else torch.float64
    first = layer.depthwise if hasattr(layer, "depthwise") else layer
    n = len(first.kernel_size)
    pairs = reference.padding_pairs(padding, input.shape[-n:], first.kernel_size, first.stride, first.dilation)
    widths = [side for pair in reversed(pairs) for side in pair]
    padded = F.pad(input.to(wide), widths, mode="constant" if mode == "zeros" else mode)
    bias = None if first.bias is None else first.bias.to(wide)
    output = CONV[n](padded, first.weight.to(wide), bias, first.stride, 0, first.dilation, first.groups)
    if first is layer:
        return output
    return CONV[n](output, layer.pointwise.weight.to(wide), layer.pointwise.bias.to(wide))


# Weights and names


@every_dim
@pytest.mark.parametrize("bias", [True, False])
def test_conv_has_torchs_weights_and_names(n: int, bias: bool) -> None:
    arguments = (4, 6, 3, 2, 1, 1, 2, bias)
    layer, theirs = seeded(ours, "Conv", n, *arguments), seeded(torchs, n, *arguments)
    assert isinstance(layer, type(theirs))
    state, their_state = layer.state_dict(), theirs.state_dict()
    assert list(state) == list(their_state) == (["weight", "bias"] if bias else ["weight"])
    assert all(torch.equal(state[name], their_state[name]) for name in state)


@every_dim
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_has_torchs_weights_and_names(n: int, bias: bool) -> None:
    layer = seeded(ours, "DepthwiseConv", n, 4, 3, depth_multiplier=3, bias=bias)
    state, their_state = layer.state_dict(), seeded(torchs, n, 4, 12, 3, groups=4, bias=bias).state_dict()
    assert list(state) == list(their_state) == (["weight", "bias"] if bias else ["weight"])
    assert all(torch.equal(state[name], their_state[name]) for name in state)


@every_dim
@pytest.mark.parametrize("bias", [True, False])
def test_separable_draws_depthwise_first(n: int, bias: bool) -> None:
    layer = seeded(ours, "SeparableConv", n, 4, 6, 3, depth_multiplier=2, bias=bias)
    depthwise = seeded(torchs, n, 4, 8, 3, groups=4, bias=False)
    pointwise = torchs(n, 8, 6, 1, bias=bias)
    state = layer.state_dict()
    names = ["depthwise.weight", "pointwise.weight", *(["pointwise.bias"] if bias else [])]
    assert list(state) == names
    their_state = nn.ModuleDict({"depthwise": depthwise, "pointwise": pointwise}).state_dict()
    assert list(their_state) == names
    assert all(torch.equal(state[name], their_state[name]) for name in names)


@every_dim
def test_state_dict_goes_both_ways(n: int) -> None:
    for layer, theirs in [
        (ours("Conv", n, 4, 6, 3, groups=2, padding=1), torchs(n, 4, 6, 3, groups=2, padding=1)),
        (ours("DepthwiseConv", n, 4, 3, padding=1, depth_multiplier=2), torchs(n, 4, 8, 3, groups=4, padding=1)),
    ]:
        input = input_of(n)
        assert not torch.allclose(layer(input), theirs(input))
        layer.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(layer(input), theirs(input))
        with torch.no_grad():
            layer.weight.mul_(-2)
        theirs.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(input), theirs(input))


@every_dim
def test_parameters_on_device_and_of_dtype(n: int) -> None:
    for layer in three_kinds(n, device="meta", dtype=torch.float64):
        assert all(p.is_meta and p.dtype == torch.float64 and p.requires_grad for p in layer.parameters())
        assert layer(torch.empty(2, 4, *SIZES[n], device="meta", dtype=torch.float64)).is_meta


# Results


@every_dim
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_padding(n: int, stride: int, dilation: int) -> None:
    input = input_of(n)
    for padding in paddings(n):
        if n == 3 and dilation == 2 and padding in (0, "valid"):
            input = F.pad(input, (1, 1) * n)
        for layer in three_kinds(n, stride=stride, padding=padding, dilation=dilation):
            for batch in (input, input[0]):
                output = layer(batch)
                wanted = expected(layer, batch, padding)
                assert output.shape == wanted.shape, (layer, output.shape)
                torch.testing.assert_close(output, wanted.float(), rtol=1e-5, atol=1e-5, msg=str(layer))


@every_dim
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_modes_as_torch(n: int, mode: str) -> None:
    input = input_of(n)
    for padding, stride in itertools.product([0, 1, (2, 1, 0)[:n], "same", "valid"], [1, 2]):
        if padding == "same" and stride != 1:
            continue  # torch has no such layer; below
        kwargs = {"padding": padding, "stride": stride, "padding_mode": mode}
        layer, theirs = (seeded(f, *a, 4, 6, 3, groups=2, **kwargs) for f, a in ((ours, ("Conv", n)), (torchs, (n,))))
        torch.testing.assert_close(layer(input), theirs(input), rtol=1e-5, atol=1e-5)
        layer = seeded(ours, "DepthwiseConv", n, 4, 2, **kwargs)
        theirs = seeded(torchs, n, 4, 4, 2, groups=4, **kwargs)
        torch.testing.assert_close(layer(input), theirs(input), rtol=1e-5, atol=1e-5)
        layer = ours("SeparableConv", n, 4, 6, 2, **kwargs)
        theirs.weight, theirs.bias = layer.depthwise.weight, None
        torch.testing.assert_close(layer(input), layer.pointwise(theirs(input)), rtol=1e-5, atol=1e-5)


@every_dim
@pytest.mark.parametrize("mode", MODES)
def test_padding_modes_with_paddings_of_ours(n: int, mode: str) -> None:
    input = input_of(n)
    forms = ["same", "same_lower", ((2, 1),), ((2, 0), (0, 1), (1, 2))[:n], *(["causal"] if n == 1 else [])]
    for padding, stride in itertools.product(forms, [1, 2, 3]):
        for layer in three_kinds(n, padding=padding, stride=stride, padding_mode=mode):
            wanted = expected(layer, input, padding, mode).float()
            torch.testing.assert_close(layer(input), wanted, rtol=1e-5, atol=1e-5, msg=str(layer))


@every_dim
def test_same_with_stride_is_ceil(n: int) -> None:
    for size, k, stride, dilation in itertools.product((4, 5, 9), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2)):
        input = torch.randn(1, 2, *(size,) * n)
        layer = ours("DepthwiseConv", n, 2, k, stride, "same", dilation)
        assert layer(input).shape == (1, 2, *(-(-size // stride),) * n)


@every_dim
def test_gradients_reach_parameters(n: int) -> None:
    input = input_of(n).double().requires_grad_()
    for layer in three_kinds(n, padding="same", stride=2, dtype=torch.float64):
        parameters = [input, *layer.parameters()]
        gradients = torch.autograd.grad(layer(input).pow(2).sum(), parameters)
        theirs = torch.autograd.grad(expected(layer, input, "same").pow(2).sum(), parameters)
        for gradient, theirs_ in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(gradient, theirs_)


@every_dim
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_goes_to_torch(n: int, mode: str) -> None:
    input = torch.randn(2, 4, *SIZES[n], dtype=torch.complex64)
    for padding in ["same", ((1, 2),), 1]:
        for layer in three_kinds(n, padding=padding, padding_mode=mode):
            layer = layer.to(torch.complex64)
            output = layer(input)
            assert output.dtype == torch.complex64
            wanted = expected(layer, input, padding, mode)
            torch.testing.assert_close(output, wanted.to(torch.complex64), rtol=1e-4, atol=1e-5)


def test_integers_go_to_torch() -> None:
    input = torch.randint(-4, 5, (2, 4, 7, 8))
    for layer in three_kinds(2, padding=((1, 2), (0, 1))):
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
            parameter.data = torch.randint(-4, 5, parameter.shape)
        if on_gpu():  # where torch has no such convolution
            with pytest.raises(RuntimeError, match="Long|engine"):
                layer(input)
            continue
        output = layer(input)
        assert output.dtype == torch.int64
        assert torch.equal(output.double(), expected(layer, input, ((1, 2), (0, 1))))


@every_dim
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(n: int, dtype: torch.dtype) -> None:
    input = input_of(n, dtype)
    for layer in three_kinds(n, padding=((1, 2),), dtype=dtype):
        output = layer(input)
        assert output.dtype == dtype
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(output.double(), expected(layer, input, ((1, 2),)), rtol=tolerance, atol=tolerance)
        output.float().sum().backward()
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(("n", "format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last(n: int, format: torch.memory_format) -> None:
    for layer in three_kinds(n, padding=1):
        plain = layer(input_of(n))
        layer = layer.to(memory_format=format)
        output = layer(input_of(n).to(memory_format=format))
        assert output.is_contiguous(memory_format=format)
        torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-5)


def test_in_sequential() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        torch_ext.nn.Conv2d(3, 4, 3, 2, "same"),
        nn.ReLU(),
        torch_ext.nn.DepthwiseConv2d(4, 3, padding=1, depth_multiplier=2),
        nn.BatchNorm2d(8),
        torch_ext.nn.SeparableConv2d(8, 5, 3, padding=((0, 2),)),
    )
    output = model(torch.randn(2, 3, 9, 9))
    assert output.shape == (2, 5, 5, 5)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@every_dim
def test_weight_norm(n: int) -> None:
    for layer in three_kinds(n, padding=1):
        before = layer(input_of(n))
        for part in [layer.depthwise, layer.pointwise] if hasattr(layer, "depthwise") else [layer]:
            nn.utils.parametrizations.weight_norm(part)
        after = layer(input_of(n))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        after.sum().backward()
        originals = [p for name, p in layer.named_parameters() if "original" in name]
        assert originals and all(p.grad.abs().sum() > 0 for p in originals)


def test_autocast_as_torch() -> None:
    layer, theirs = (seeded(f, *a, 4, 6, 3, padding=1) for f, a in ((ours, ("Conv", 2)), (torchs, (2,))))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        output, wanted = layer(input_of(2)), theirs(input_of(2))
    assert output.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(output, wanted, rtol=2e-2, atol=2e-2)


# Copies


@every_dim
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_copies(n: int, how: str, tmp_path: Path) -> None:
    for padding, mode in [("same", "zeros"), (((1, 2),), "circular"), (1, "reflect")]:
        for layer in three_kinds(n, stride=2, padding=padding, padding_mode=mode):
            if how == "pickle":
                again = pickle.loads(pickle.dumps(layer))
            elif how == "deepcopy":
                again = copy.deepcopy(layer)
            else:
                torch.save(layer, tmp_path / "layer.pt")
                again = torch.load(tmp_path / "layer.pt", weights_only=False)
            assert type(again) is type(layer)
            assert repr(again) == repr(layer)
            assert all(a is not b for a, b in zip(again.parameters(), layer.parameters(), strict=True))
            assert torch.equal(again(input_of(n)), layer(input_of(n)))


@every_dim
def test_saved_weights_only(n: int, tmp_path: Path) -> None:
    for layer, fresh in zip(three_kinds(n, padding=1), three_kinds(n, padding=1), strict=True):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1)
        torch.save(layer.state_dict(), tmp_path / "state.pt")
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(fresh(input_of(n)), layer(input_of(n)))


# Printing


@every_dim
def test_conv_prints_as_torch(n: int) -> None:
    for kwargs in [
        {},
        {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "padding_mode": "circular"},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": (2, 1, 0)[:n]},
    ]:
        assert repr(ours("Conv", n, 4, 6, 3, **kwargs)) == repr(torchs(n, 4, 6, 3, **kwargs))


def test_prints_what_torch_has_not() -> None:
    assert repr(torch_ext.nn.Conv2d(4, 6, 3, padding=((1, 2), (0, 1)))) == (
        "Conv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=((1, 2), (0, 1)))"
    )
    assert repr(torch_ext.nn.Conv1d(4, 6, 3, padding=((1, 2),))) == (
        "Conv1d(4, 6, kernel_size=(3,), stride=(1,), padding=((1, 2),))"
    )
    assert repr(torch_ext.nn.DepthwiseConv2d(4, 3, 2, "same", depth_multiplier=2, bias=False)) == (
        "DepthwiseConv2d(4, kernel_size=(3, 3), stride=(2, 2), padding=same, depth_multiplier=2, bias=False)"
    )
    assert repr(torch_ext.nn.DepthwiseConv1d(1, 3)) == "DepthwiseConv1d(1, kernel_size=(3,), stride=(1,))"
    assert repr(torch_ext.nn.DepthwiseConv1d(1, 3, depth_multiplier=4)) == (
        "DepthwiseConv1d(1, kernel_size=(3,), stride=(1,), depth_multiplier=4)"
    )
    assert repr(torch_ext.nn.SeparableConv1d(4, 6, 3)) == (
        "SeparableConv1d(\n"
        "  (depthwise): DepthwiseConv1d(4, kernel_size=(3,), stride=(1,), bias=False)\n"
        "  (pointwise): Conv1d(4, 6, kernel_size=(1,), stride=(1,))\n"
        ")"
    )


# TorchScript


@every_dim
@scripts
def test_every_padding_scripted(n: int, tmp_path: Path) -> None:
    for padding in paddings(n):
        for layer in three_kinds(n, padding=padding, stride=2):
            path = tmp_path / "layer.pt"
            torch.jit.script(layer).save(path)
            loaded = torch.jit.load(path)
            assert torch.equal(loaded(input_of(n)), layer(input_of(n))), layer
            assert torch.equal(loaded(input_of(n)[0]), layer(input_of(n)[0])), layer


@every_dim
@pytest.mark.parametrize("mode", MODES[1:])
@scripts
def test_padding_modes_scripted(n: int, mode: str, tmp_path: Path) -> None:
    for padding in [1, "same", ((2, 1),)]:
        for layer in three_kinds(n, padding=padding, stride=2, padding_mode=mode):
            path = tmp_path / "layer.pt"
            torch.jit.script(layer).save(path)
            assert torch.equal(torch.jit.load(path)(input_of(n)), layer(input_of(n))), layer


# Errors of calls; those of constructors are in test_errors.py


@every_dim
def test_errors_of_calls(n: int) -> None:
    for layer in three_kinds(n):
        with pytest.raises(RuntimeError, match="(?i)kernel size can't be greater than actual input size"):
            layer(torch.randn(1, 4, *(2,) * n))
        with pytest.raises(RuntimeError, match="C = 5|have 4 channels|channels"):
            layer(torch.randn(1, 5, *SIZES[n]))
        with pytest.raises(RuntimeError, match="should be the same"):
            layer(input_of(n, torch.float64))
