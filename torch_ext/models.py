"""Networks that grouped, depthwise and separable convolutions come from, on our layers: examples to read and to run.

They have random weights. Where padding is 'same' with a stride, it is TensorFlow's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from torch_ext.nn import Conv2d, DepthwiseConv2d, SeparableConv2d

__all__ = ["AlexNet", "MobileNetV1", "Xception"]


class AlexNet(nn.Module):
    """AlexNet with its two groups (Krizhevsky et al., 2012, "ImageNet Classification with Deep CNNs").

    Args:
        classes: Number of outputs. Default: 1000.

    Shape:
        input [N, 3, 227, 227], output [N, classes]. 60,965,224 parameters with 1000 classes.

    Example:
        >>> import torch
        >>> from torch_ext.models import AlexNet
        >>> AlexNet(10)(torch.randn(1, 3, 227, 227)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)

        self.features = nn.Sequential(
            *(Conv2d(3, 96, 11, stride=4), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
            *(Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
            *(Conv2d(256, 384, 3, padding=1), nn.ReLU()),
            *(Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
            *(Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes)),
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.features(input).flatten(1))


class MobileNetV1(nn.Module):
    """MobileNet (Howard et al., 2017, arXiv:1704.04861): depthwise and pointwise, each with its norm and activation.

    Args:
        classes: Number of outputs. Default: 1000.

    Shape:
        input [N, 3, H, W], output [N, classes]. 4,231,976 trainable parameters with 1000 classes.

    Example:
        >>> import torch
        >>> from torch_ext.models import MobileNetV1
        >>> MobileNetV1(10).eval()(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()

        def active(convolution: nn.Module) -> list[nn.Module]:
            return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6()]

        layers, channels = active(Conv2d(3, 32, 3, stride=2, padding="same", bias=False)), 32
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        for outputs, stride in zip([64, 128, 128, 256, 256, *[512] * 6, 1024, 1024], strides, strict=True):
            layers += active(DepthwiseConv2d(channels, 3, stride=stride, padding="same", bias=False))
            layers += active(Conv2d(channels, outputs, 1, bias=False))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.features(input).mean((2, 3)))


class Xception(nn.Module):
    """Xception (Chollet, 2017, arXiv:1610.02357): separable convolutions, three to a block in the middle flow.

    Args:
        classes: Number of outputs. Default: 1000.

    Shape:
        input [N, 3, H, W] (299 x 299 in the paper), output [N, classes]. 22,855,952 trainable parameters with 1000
        classes.

    Example:
        >>> import torch
        >>> from torch_ext.models import Xception
        >>> Xception(10).eval()(torch.randn(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.entry = nn.Sequential(
            *(Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
            _Block(64, [128, 128], halves=True, activates_first=False),
            _Block(128, [256, 256], halves=True),
            _Block(256, [728, 728], halves=True),
        )
        self.middle = nn.Sequential(*(_Block(728, [728, 728, 728]) for _ in range(8)))
        self.exit = nn.Sequential(
            _Block(728, [728, 1024], halves=True),
            *(*_separable(1024, 1536), nn.ReLU()),
            *(*_separable(1536, 2048), nn.ReLU()),
        )
        self.classifier = nn.Linear(2048, classes)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.exit(self.middle(self.entry(input))).mean((2, 3)))


def _separable(channels: int, outputs: int) -> list[nn.Module]:
    return [SeparableConv2d(channels, outputs, 3, padding="same", bias=False), nn.BatchNorm2d(outputs)]


class _HalvingPool(nn.Module):
    """The largest of 3 x 3, every second one, with TensorFlow's SAME padding."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        padded = F.pad(input, [width % 2, 1, height % 2, 1], value=-float("inf"))
        return F.max_pool2d(padded, 3, 2)


class _Block(nn.Module):
    """Separable convolutions with a residual around them; some halve the image."""

    def __init__(self, channels: int, outputs: list[int], halves: bool = False, activates_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, each in zip([channels, *outputs], outputs):
            layers += [nn.ReLU()] if layers or activates_first else []
            layers += _separable(inputs, each)
        layers += [_HalvingPool()] if halves else []
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if halves:
            convolution = Conv2d(channels, outputs[-1], 1, stride=2, padding="same", bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs[-1]))

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input) + self.shortcut(input)
