"""A small network after Xception (Chollet, 2017), for images of 8 x 8 pixels."""

from types import ModuleType

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(main(x) + shortcut(x))"""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.main(input) + self.shortcut(input))


def build(layers: ModuleType, width: int = 32, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """The network made of `layers`: torch_ext.nn, or torch_layers for its twin. One seed, one set of weights."""
    torch.manual_seed(seed)
    same = {"padding": "same", "bias": False}  # batch-norm follows every convolution, so a bias would be idle

    def norm(convolution: nn.Module, channels: int) -> nn.Sequential:
        return nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def separable(channels: int, out_channels: int, **options: int) -> nn.Sequential:
        return norm(layers.SeparableConv2d(channels, out_channels, 3, **same, **options), out_channels)

    def entry(channels: int, out_channels: int) -> Residual:
        """Halves the image, as TensorFlow's 'same' does with a stride of 2."""
        main = nn.Sequential(
            separable(channels, out_channels), nn.ReLU(), separable(out_channels, out_channels, stride=2)
        )
        shortcut = norm(layers.Conv2d(channels, out_channels, 1, stride=2, **same), out_channels)
        return Residual(main, shortcut)

    def multiplied(channels: int, depth_multiplier: int = 2) -> Residual:
        """Every channel gives `depth_multiplier` channels, which a grouped convolution brings together again."""
        inner = channels * depth_multiplier
        main = nn.Sequential(
            norm(layers.DepthwiseConv2d(channels, 3, depth_multiplier=depth_multiplier, **same), inner),
            nn.ReLU(),
            norm(layers.Conv2d(inner, channels, 3, groups=4, **same), channels),
        )
        return Residual(main, nn.Identity())

    def dilated(channels: int) -> Residual:
        main = nn.Sequential(separable(channels, channels, dilation=2), nn.ReLU(), separable(channels, channels))
        return Residual(main, nn.Identity())

    return nn.Sequential(
        norm(layers.Conv2d(1, width, 3, **same), width),
        nn.ReLU(),
        entry(width, 2 * width),  # 8 x 8 -> 4 x 4
        multiplied(2 * width),
        dilated(2 * width),
        entry(2 * width, 4 * width),  # 4 x 4 -> 2 x 2
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
