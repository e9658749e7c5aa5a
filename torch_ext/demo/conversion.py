"""Converts whole torchvision models and measures what that changes, on a photo."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import torch_ext

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Times:
    """Seconds, the least of several rounds."""

    torch: float
    ours: float

    def __str__(self) -> str:
        return f"{1e3 * self.torch:.1f} -> {1e3 * self.ours:.1f}"

    @property
    def verdict(self) -> str:
        if f"{self.torch / self.ours:.2f}" == "1.00":
            return "even"
        faster = self.ours < self.torch
        return f"{self.torch / self.ours:.2f}x faster" if faster else f"{self.ours / self.torch:.2f}x slower"


@dataclass(frozen=True)
class Row:
    model: str
    layout: str
    converted: int
    convolutions: int
    difference: float  # of the logits, relative to the largest logit
    forward: Times
    training: Times  # forward + backward


def photo(size: int) -> Tensor:
    """A photo from scikit-learn's samples and its mirror image, as ImageNet networks expect them [2, 3, size, size]."""
    image = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1).unsqueeze(0) / 255
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    square = image[:, :, top : top + side, left : left + side]
    small = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    normalised = (small - mean) / deviation
    return torch.cat([normalised, normalised.flip(3)])


def seeded_model(name: str, images: Tensor) -> nn.Module:
    """Random weights, but signals of ordinary size: with untouched statistics the logits would nearly vanish."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # running statistics become those of the latest batch, here of the photo
        if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
            nn.init.ones_(module.layer_scale)  # ConvNeXt's 1e-6 would hide its convolutions from the logits
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def compare(name: str, size: int, rounds: int) -> Iterator[Row]:
    """A row for each layout."""
    images = photo(size)
    model = seeded_model(name, images)
    ours = torch_ext.convert(copy.deepcopy(model))
    convolutions = [module for module in ours.modules() if isinstance(module, nn.Conv2d)]
    converted = sum(type(module) is not nn.Conv2d for module in convolutions)
    for layout, memory_format in LAYOUTS.items():
        nets = [copy.deepcopy(net).to(memory_format=memory_format) for net in (model, ours)]
        batch = images.contiguous(memory_format=memory_format)
        with torch.inference_mode():
            expected, logits = (net(batch) for net in nets)
            difference = ((logits - expected).abs().max() / expected.abs().max()).item()
            forward = Times(*fastest([partial(net, batch) for net in nets], rounds))
        training = Times(*fastest([partial(train_step, net.train(), batch) for net in nets], rounds))
        yield Row(name, layout, converted, len(convolutions), difference, forward, training)


def train_step(net: nn.Module, batch: Tensor) -> None:
    net.zero_grad()
    F.cross_entropy(net(batch), torch.zeros(len(batch), dtype=torch.long)).backward()


def fastest(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least time of each, in seconds. They take turns, so that a busy moment of the machine hits all alike."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for turn in range(rounds):
        order = list(enumerate(functions))
        for index, function in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best
