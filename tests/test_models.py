"""The example networks: sizes, and that they train, convert, script and give what torch's own layers give."""

import copy

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext.models import AlexNet, MobileNetV1, Xception

MODELS = {AlexNet: (60_965_224, 227), MobileNetV1: (4_231_976, 64), Xception: (22_855_952, 71)}


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_number_of_parameters(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = kind()
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == MODELS[kind][0]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_trains_and_scripts(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, size = kind(10), MODELS[kind][1]
    input, target = torch.randn(2, 3, size, size), torch.tensor([3, 7])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(input), target).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    optimizer.step()
    model.eval()
    assert torch.allclose(torch.jit.script(model)(input), model(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_logits_are_those_of_torchs_layers(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, size = kind(10).eval(), MODELS[kind][1]
    plain = Plain(copy.deepcopy(model))
    input = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected, actual = plain(input), model(input)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


class Plain(nn.Module):
    """A model whose convolutions are calls of torch.nn.functional, with the padding written out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for layer in model.modules():
            if isinstance(layer, torch_ext.nn.SeparableConv2d):
                layer.forward = lambda x, of=layer: self.conv(self.conv(x, of.depthwise), of.pointwise)
            elif isinstance(layer, torch_ext.nn.Conv2d):
                layer.forward = lambda x, of=layer: self.conv(x, of)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    @staticmethod
    def conv(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        padding = layer.padding
        if padding == "same":
            sides = []
            for size, k, s in zip(x.shape[2:], layer.kernel_size, layer.stride):
                total = max((-(-size // s) - 1) * s + k - size, 0)
                sides = [total // 2, total - total // 2, *sides]
            x, padding = nn.functional.pad(x, sides), 0
        return nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
