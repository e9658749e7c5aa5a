"""convert and revert: which layers change, and what stays."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from devices import cuda_ops
from torch import nn

import torch_ext


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, (3, 5), stride=2, padding=(1, 2), groups=8, bias=False),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.Conv2d(16, 16, 3, padding="same", dilation=2, groups=16, padding_mode="reflect"),
    )


class Own(nn.Conv2d):
    pass


SERVED = [1, 3, 4, 5]
joins = pytest.mark.cpu_only  # a GPU's pointwise layers are PyTorch's


def kinds(model: nn.Module) -> list[type]:
    return [type(layer) for layer in model]


def test_layers_with_a_kernel_change_and_nothing_else_does() -> None:
    model, before = network(), network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [id(parameter) for parameter in model.parameters()]
    assert torch_ext.convert(model) is model
    for i, (layer, old) in enumerate(zip(model, before)):
        assert type(layer) is (torch_ext.nn.Conv2d if i in SERVED else type(old))
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch_ext.revert(model) is model
    assert kinds(model) == kinds(before)
    assert [layer.__dict__.keys() for layer in model] == [layer.__dict__.keys() for layer in before]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_stay(dtype: torch.dtype, format: torch.memory_format) -> None:
    model = network().to(dtype).to(memory_format=format)
    converted = torch_ext.convert(copy.deepcopy(model))
    results = []
    for each in (model, converted):
        torch.manual_seed(1)
        input = torch.randn(2, 3, 20, 18).to(dtype)
        output = each(input.to(memory_format=format).requires_grad_())
        results.append([output, *torch.autograd.grad(output.square().mean(), list(each.parameters()))])
    for actual, expected in zip(results[1], results[0]):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_every_convolution_changes(dtype: torch.dtype) -> None:
    """But the first, which is dense, on a GPU."""
    model = torch_ext.convert(network().to(dtype))
    expected = [not cuda_ops(), True, False, True, True, True]
    assert [type(layer) is torch_ext.nn.Conv2d for layer in model] == expected


def test_other_types_are_left_alone() -> None:
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, groups=4))
    others = [
        Own(4, 4, 3, groups=4),
        nn.LazyConv2d(4, 3, groups=4),
        parametrized,
        nn.ConvTranspose2d(4, 4, 3, groups=4),
    ]
    model = nn.ModuleList(others)
    before = kinds(model)
    assert kinds(torch_ext.convert(model)) == before


def test_a_copy_on_request() -> None:
    model = network()
    converted = torch_ext.convert(model, inplace=False)
    assert kinds(model) == kinds(network())
    assert type(converted[1]) is torch_ext.nn.Conv2d
    assert converted[1].weight is not model[1].weight


def test_hooks_stay_and_a_single_layer_will_do() -> None:
    layer, calls = nn.Conv2d(4, 4, 3, groups=4), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    torch_ext.convert(layer)(torch.randn(1, 4, 5, 5))
    assert type(layer) is torch_ext.nn.Conv2d
    assert calls == [1]


def test_twice_is_once_and_our_paddings_are_not_reverted() -> None:
    model = torch_ext.convert(torch_ext.convert(network()))
    assert [type(model[i]) for i in SERVED] == [torch_ext.nn.Conv2d] * len(SERVED)
    for padding in ("same_lower", ((1, 0), (0, 1))):
        layer = torch_ext.nn.Conv2d(4, 4, 3, groups=4, padding=padding)
        assert type(torch_ext.revert(layer)) is torch_ext.nn.Conv2d


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_converted_model_is_copied_pickled_and_scripted() -> None:
    model, input = torch_ext.convert(network()).eval(), torch.randn(1, 3, 20, 18)
    expected = model(input)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.jit.script(model)):
        assert torch.equal(other(input), expected)


def test_converted_model_is_traced_by_fx() -> None:
    """torch.fx takes torch's layers as they are, but looks into ours."""
    model, input = torch_ext.convert(network()).eval(), torch.randn(1, 3, 20, 18)
    last = torch_ext.nn.SeparableConv2d(16, 4, 3, padding="same")
    traced = torch.fx.symbolic_trace(nn.Sequential(model, last))
    assert any("group_conv2d" in str(node.target) for node in traced.graph.nodes)
    assert torch.equal(traced(input), last(model(input)))


def test_padding_may_be_changed_afterwards() -> None:
    """As model builders do with torch's layers."""
    layer, input = torch_ext.convert(nn.Conv2d(4, 4, 3, groups=4)), torch.randn(1, 4, 5, 5)
    layer.padding, layer.stride = (1, 2), (2, 1)
    expected = nn.functional.conv2d(input, layer.weight, layer.bias, (2, 1), (1, 2), groups=4)
    torch.testing.assert_close(layer(input), expected)


def test_torchvision_model() -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model, input = models.mobilenet_v2().eval(), torch.randn(1, 3, 64, 64)
    expected = model(input)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
    converted = torch_ext.convert(model)
    ours = sum(type(layer) is torch_ext.nn.Conv2d for layer in converted.modules())
    assert (convolutions, ours) == (52, 17 if cuda_ops() else 34)  # the depthwise ones, and narrow pointwise ones
    torch.testing.assert_close(converted(input), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_gradients_of_a_torchvision_model() -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model, input = models.mobilenet_v2().eval().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    converted = torch_ext.convert(model, inplace=False)
    pairs = []
    for each in (model, converted):
        own = input.clone().requires_grad_()
        pairs.append(torch.autograd.grad(each(own).square().sum(), [own, *each.parameters()]))
    for theirs, ours in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    reverted = torch_ext.revert(converted)
    assert [type(layer) for layer in reverted.modules()] == [type(layer) for layer in model.modules()]
    assert torch.equal(reverted(input), model(input))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_dimension(n: int) -> None:
    make, input = getattr(nn, f"Conv{n}d"), torch.randn(2, 4, *(7,) * n)
    for kwargs in ({"padding": 1, "stride": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}):
        layer = make(4, 8, 3, groups=4, **kwargs)
        expected = layer(input)
        assert type(torch_ext.convert(layer)) is getattr(torch_ext.nn, f"Conv{n}d")
        torch.testing.assert_close(layer(input), expected, rtol=1e-5, atol=1e-5)
        assert type(torch_ext.revert(layer)) is make
        assert torch.equal(layer(input), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"], ids=str)
def test_layers_made_ours_are_reverted(padding: str | int | tuple[int, int], mode: str) -> None:
    """torch's forward reads an attribute that its own constructor works out."""
    layer, input = torch_ext.nn.Conv2d(4, 4, (3, 4), 1, padding, 2, 4, padding_mode=mode), torch.randn(1, 4, 9, 11)
    expected = layer(input)
    assert type(torch_ext.revert(layer)) is nn.Conv2d
    torch.testing.assert_close(layer(input), expected, rtol=1e-5, atol=1e-5)
    fresh = nn.Conv2d(4, 4, (3, 4), 1, padding, 2, 4, padding_mode=mode)
    assert list(layer._reversed_padding_repeated_twice) == list(fresh._reversed_padding_repeated_twice)


def test_dtypes_that_we_do_not_serve_are_left_alone() -> None:
    assert type(torch_ext.convert(nn.Conv2d(4, 4, 3, groups=4, dtype=torch.complex64))) is nn.Conv2d


def test_lazy_layer_is_converted_once_it_has_weights() -> None:
    model = torch_ext.convert(nn.Sequential(nn.LazyConv2d(4, 3, groups=4)))
    model(torch.randn(1, 4, 5, 5))
    assert type(model[0]) is nn.Conv2d
    assert type(torch_ext.convert(model)[0]) is torch_ext.nn.Conv2d


def test_every_kind_of_hook_stays() -> None:
    layer, calls = nn.Conv2d(4, 4, 3, groups=4), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.weight.register_hook(lambda _: calls.append("weight"))
    torch_ext.convert(layer)(torch.randn(1, 4, 5, 5, requires_grad=True)).sum().backward()
    assert sorted(calls) == ["after", "backward", "before", "weight"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_converted_layer_is_scripted_saved_and_loaded(n: int, mode: str, tmp_path: Path) -> None:
    """torch keeps its padding in other types than our constructors do."""
    input = torch.randn(2, 4, *(7,) * n)
    for padding in (1, (2, 1, 0)[:n], "same", "valid"):
        layer = torch_ext.convert(getattr(nn, f"Conv{n}d")(4, 4, 3, padding=padding, groups=4, padding_mode=mode))
        assert type(layer) is getattr(torch_ext.nn, f"Conv{n}d")
        torch.jit.script(layer).save(tmp_path / "layer.pt")
        assert torch.equal(torch.jit.load(tmp_path / "layer.pt")(input), layer(input))


def pairs(n: int = 2) -> nn.Sequential:
    """Two pairs, and what is none: channels mixed, a bias, a stride, something between."""
    torch.manual_seed(0)
    conv = getattr(nn, f"Conv{n}d")
    return nn.Sequential(
        conv(16, 16, 3, padding=1, groups=16, bias=False),
        conv(16, 32, 1),
        conv(32, 64, 3, stride=2, groups=32, bias=False, padding_mode="reflect", padding=1),
        conv(64, 16, 1, bias=False),
        conv(16, 16, 3, groups=16),
        conv(16, 16, 1),
        conv(16, 16, 1, groups=16, bias=False),
        conv(16, 16, 1, stride=2),
        conv(16, 16, 1, groups=16, bias=False),
        nn.ReLU(),
        conv(16, 16, 1),
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@joins
def test_pairs_become_separable_layers(n: int) -> None:
    model = pairs(n)
    input = torch.randn(2, 16, *(24,) * n)
    expected, state = model(input), {key: value.clone() for key, value in model.state_dict().items()}
    parameters = {id(parameter) for parameter in model.parameters()}
    converted = torch_ext.convert(copy.deepcopy(model))
    separable = getattr(torch_ext.nn, f"SeparableConv{n}d")
    assert [i for i, layer in enumerate(converted) if type(layer) is separable] == [0, 2]
    assert [i for i, layer in enumerate(converted) if isinstance(layer, nn.Identity)] == [1, 3]
    assert not any(layer.training for layer in torch_ext.convert(pairs(n).eval()).modules())
    for each in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        torch.testing.assert_close(each(input), expected, rtol=1e-5, atol=1e-5)
        assert list(each.state_dict()) == list(state)
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.zero_()
        each.load_state_dict(state)
        torch.testing.assert_close(each(input), expected, rtol=1e-5, atol=1e-5)
    # In a larger model, too; and back.
    larger = nn.Sequential(nn.Identity(), converted)
    assert list(larger.state_dict()) == [f"1.{key}" for key in state]
    larger.load_state_dict({f"1.{key}": value for key, value in state.items()})
    torch_ext.revert(converted)
    assert kinds(converted) == kinds(model)
    assert [layer.__dict__.keys() for layer in converted] == [layer.__dict__.keys() for layer in model]
    assert not converted._state_dict_hooks and not converted._load_state_dict_pre_hooks
    assert torch.equal(converted(input), expected)
    assert {id(parameter) for parameter in torch_ext.convert(model).parameters()} == parameters


def test_pairs_stay_on_a_gpu() -> None:
    assert any(type(layer) is torch_ext.nn.SeparableConv2d for layer in torch_ext.convert(pairs())) != cuda_ops()


@joins
def test_pairs_that_are_left_alone() -> None:
    """With hooks, in a subclass of Sequential, and where the second step is PyTorch's."""

    class OwnSequential(nn.Sequential):
        pass

    def separables(model: nn.Module) -> int:
        return sum(isinstance(layer, torch_ext.nn.SeparableConv2d) for layer in torch_ext.convert(model).modules())

    assert separables(pairs()) == 2
    hooked = pairs()
    hooked[1].register_forward_hook(lambda *_: None)
    assert separables(hooked) == 1
    assert separables(OwnSequential(*pairs())) == 0
    assert separables(pairs().double()) == 0
    assert separables(nn.Sequential(nn.Conv2d(96, 96, 3, groups=96, bias=False), nn.Conv2d(96, 96, 1))) == 0
    assert separables(nn.ModuleList(pairs())) == 0


@joins
def test_converted_pairs_in_an_edited_sequential() -> None:
    """What is still a pair has its old keys; what is none any more has its own; nothing is lost."""
    for edit in (
        lambda model: model.__setitem__(0, nn.Conv2d(16, 32, 1)),
        lambda model: model.insert(0, nn.ReLU()),
        lambda model: model.__delitem__(0),
        lambda model: model.__delitem__(1),
        lambda model: model.append(nn.Conv2d(16, 4, 1)),
    ):
        model = torch_ext.convert(pairs())
        edit(model)
        state = model.state_dict()
        assert len(state) == len(list(model.parameters()))
        assert not any(".pointwise." in key for key in state if not key.startswith("0."))
        model.load_state_dict(state)
        again = torch_ext.convert(torch_ext.revert(model))
        assert len(again.state_dict()) == len(state)


@joins
def test_pairs_with_a_forward_of_their_own_are_left_alone() -> None:
    model = pairs()
    model[0].forward = lambda input: input
    torch_ext.convert(model)
    assert type(model[0]) is torch_ext.nn.Conv2d
    assert type(model[2]) is torch_ext.nn.SeparableConv2d


@joins
def test_converted_pairs_script_and_train() -> None:
    model = pairs()
    converted, input = torch_ext.convert(copy.deepcopy(model)), torch.randn(2, 16, 24, 24)
    torch.testing.assert_close(torch.jit.script(converted)(input), model(input), rtol=1e-5, atol=1e-5)
    for each in (model, converted):
        each(input).square().sum().backward()
    for ours, torchs in zip(converted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, torchs.grad, rtol=1e-4, atol=1e-3)


def timms_same(**arguments: object) -> nn.Module:
    """What timm has: SAME as TensorFlow's, by a padded copy."""

    class Conv2dSame(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            sides = []
            for size, k, s, d in zip(input.shape[2:], self.kernel_size, self.stride, self.dilation):
                total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                sides = [total // 2, total - total // 2, *sides]
            return super().forward(nn.functional.pad(input, sides))

    Conv2dSame.__module__ = "timm.layers.conv2d_same"
    return Conv2dSame(8, 8, **arguments)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 4])
def test_timms_same_convolution(k: int, stride: int) -> None:
    layer = timms_same(kernel_size=k, stride=stride, groups=8)
    kind, input = type(layer), torch.randn(2, 8, 15, 16)
    expected = layer(input)
    assert type(torch_ext.convert(layer)) is torch_ext.nn.Conv2d
    assert layer.padding == "same"
    torch.testing.assert_close(layer(input), expected, rtol=1e-5, atol=1e-5)
    assert type(torch_ext.revert(layer)) is kind
    assert torch.equal(layer(input), expected)
    assert "_was" not in layer.__dict__
    assert type(torch_ext.convert(timms_same(kernel_size=k, padding=1))) is not torch_ext.nn.Conv2d
