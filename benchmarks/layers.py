"""The layers of layers.csv, their families, and the floors that each family has to reach."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

CONV_PASSES = ("forward", "grad_input", "grad_weight")
PASSES = (*CONV_PASSES, "training")  # separable and deformable layers: forward, and forward with backward


@dataclass(frozen=True)
class Layer:
    name: str
    op: str  # of the benchmark: depthwise, transposed, group, dilated, pointwise, conv, separable or deform
    in_channels: int
    out_channels: int
    groups: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # of each axis: before, after
    dilation: tuple[int, ...]
    network: str
    offset_groups: int = 1  # deform

    @property
    def symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def out_spatial(self) -> tuple[int, ...]:
        return tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, kernel, stride, dilation in zip(
                self.spatial, self.padding, self.kernel, self.stride, self.dilation
            )
        )

    def flops(self, batch: int) -> int:
        """Of any pass; taps in the padding count. Of a separable layer: forward."""
        positions = batch * math.prod(self.out_spatial)
        if self.op == "separable":
            return 2 * positions * self.in_channels * (self.taps + self.out_channels)
        return 2 * positions * self.out_channels * self.taps * self.in_channels // self.groups

    def elements(self, batch: int) -> int:
        """Of input, output and weight together."""
        inputs = batch * self.in_channels * math.prod(self.spatial)
        outputs = batch * self.out_channels * math.prod(self.out_spatial)
        if self.op == "separable":
            return inputs + outputs + self.in_channels * (self.taps + self.out_channels)
        return inputs + outputs + self.out_channels * self.in_channels // self.groups * self.taps


def _axes(text: str, dims: int) -> tuple[int, ...]:
    numbers = [int(number) for number in text.split("x")]
    return tuple(numbers * dims if len(numbers) == 1 else numbers)


def read_layers() -> list[Layer]:
    """Each depthwise layer also as a transposed one, where PyTorch has its like."""
    lines = Path(__file__).with_name("layers.csv").read_text().splitlines()
    layers = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        spatial = tuple(int(size) for size in row["spatial"].split("x"))
        dims = len(spatial)
        sides = [_axes(side, dims) for side in row["padding"].split(":")]
        layers.append(
            Layer(
                name=row["name"],
                op=row["op"],
                in_channels=int(row["in_channels"]),
                out_channels=int(row["out_channels"]),
                groups=int(row["groups"]),
                spatial=spatial,
                kernel=_axes(row["kernel"], dims),
                stride=_axes(row["stride"], dims),
                padding=tuple(zip(sides[0], sides[-1])),
                dilation=_axes(row["dilation"], dims),
                network=row["network"],
                offset_groups=int(row["offset_groups"] or 1),
            )
        )
    transposed = [layer for layer in layers if _has_transposed(layer)]
    return layers + [Layer(**{**vars(layer), "op": "transposed"}) for layer in transposed]


def _has_transposed(layer: Layer) -> bool:
    return layer.op == "depthwise" and layer.symmetric and layer.in_channels == layer.out_channels


def family(layer: Layer) -> str:
    """The row of FLOORS that a layer belongs to."""
    if layer.op == "separable":
        return "separable, C <= 128" if layer.in_channels <= 128 else "separable, wide"
    if layer.op == "deform":
        return "deformable"
    if layer.op == "group":
        per_group = layer.in_channels // layer.groups
        return "group, 2-7" if per_group < 8 else "group, 8-15" if per_group < 16 else "PyTorch's"
    if layer.op == "pointwise":
        few = layer.in_channels <= 64 or layer.out_channels >= 6 * layer.in_channels
        return "pointwise, few channels" if few else "PyTorch's"
    if layer.op in ("conv", "dilated"):
        return "PyTorch's"
    if layer.out_channels > layer.in_channels:
        return "multiplier"
    if layer.in_channels <= 3:
        return "few channels"
    if len(layer.spatial) == 1:
        return "1-D, k <= 4" if layer.taps <= 4 else "1-D, k > 4"
    if len(layer.spatial) == 3:
        return "3-D"
    if max(layer.dilation) > 1:
        return "dilated, d <= 4" if max(layer.dilation) <= 4 else "dilated, d > 4"
    kernel = max(layer.kernel)
    if kernel <= 3:
        return "3x3" if max(layer.stride) == 1 else "3x3, stride 2"
    return "5x5" if kernel <= 5 else "7x7" if kernel <= 7 else "large kernels"


# float32. For each layout, the least times PyTorch / ours (forward, grad input, grad weight); and the share of the
# roofline.
FLOORS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    # family: (channels_last, contiguous, roofline)
    "3x3": ((1.2, 1.15, 1.1), (1.6, 1.8, 1.5), 0.5),
    "3x3, stride 2": ((1.0, 1.0, 1.3), (1.8, 1.8, 1.5), 0.5),
    "few channels": ((3, 3, 3), (3, 3, 3), 0.3),
    "5x5": ((1.1, 1.3, 6), (1.25, 1.8, 15), 0.5),
    "7x7": ((1.1, 1.4, 6), (1.3, 1.6, 12), 0.5),
    "large kernels": ((2, 2, 30), (15, 1.7, 20), 0.55),
    "dilated, d <= 4": ((1.0, 6, 10), (1.5, 8, 8), 0.45),
    "dilated, d > 4": ((10, 6, 10), (6, 8, 8), 0.45),
    "multiplier": ((4, 4, 3), (4, 4, 3), 0.4),
    "1-D, k <= 4": ((1.3, 1.2, 6), (1.3, 1.2, 6), 0.45),
    "1-D, k > 4": ((6, 1.5, 12), (6, 1.5, 12), 0.45),
    "3-D": ((1.0, 5, 7), (3, 8, 10), 0.4),
    "group, 2-7": ((1.8, 1.5, 2), (2, 4, 3), 0.2),
    "group, 8-15": ((1.1, 1.0, 1.0), (1.1, 1.0, 1.0), 0.4),
    "pointwise, few channels": ((1.3, 1.1, 1.1), (1.15, 1.0, 1.0), 0.6),
    "PyTorch's": ((0.95, 0.95, 0.95), (0.95, 0.95, 0.95), 0.0),
}
CONTIGUOUS_ROOFLINE = {"5x5": 0.45, "7x7": 0.45, "large kernels": 0.5, "dilated, d <= 4": 0.4, "dilated, d > 4": 0.4}
FLOAT64 = {"channels_last": 15.0, "contiguous": 3.0}, 0.45  # times PyTorch; share of our own float32 speed
HALF = {"channels_last": 25.0, "contiguous": 4.0}, 0.9


def guard(torch_seconds: float) -> float:
    """Nothing may be slower than this."""
    return 0.9 if torch_seconds < 0.2e-3 else 0.95


# On a GPU: the least share of the roofline of (forward, grad input, grad weight), and times the faster of PyTorch's own
# kernel and cuDNN.
CUDA_FLOORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "channels_last": ((0.8, 0.75, 0.65), (1.2, 1.1, 1.2)),
    "contiguous": ((0.75, 0.7, 0.65), (2, 2, 5)),
    "1-D": ((0.8, 0.75, 0.75), (5, 10, 10)),
    "3-D": ((0.6, 0.5, 0.5), (4, 6, 6)),
    "large kernels": ((0.6, 0.6, 0.6), (5, 5, 5)),
    "group, 2-7": ((0.6, 0.6, 0.6), (2, 2, 2)),
}


def cuda_floors(layer: Layer, layout: str, pass_name: str) -> dict[str, float]:
    """The goals for a GPU, in any dtype."""
    name = family(layer)
    if layer.op == "deform":
        return {"ratio": 2.0}
    if layer.op in ("depthwise", "transposed"):
        name = {1: "1-D", 3: "3-D"}.get(len(layer.spatial), name if name == "large kernels" else layout)
    if name not in CUDA_FLOORS:
        return {}
    roofline, ratio = (values[CONV_PASSES.index(pass_name)] for values in CUDA_FLOORS[name])
    return {"roofline": roofline, "ratio": ratio}


def floors(layer: Layer, batch: int, layout: str, dtype: str, pass_name: str, device: str = "cpu") -> dict[str, float]:
    """The least ratio, share of the roofline, of the speed of our float32, of two ops, of a plain convolution."""
    name = family(layer)
    if device == "cuda":
        return cuda_floors(layer, layout, pass_name)
    if layer.op == "deform":  # at most so many times a plain convolution's time
        of_plain = {"of_plain": 1 / (2.5 if pass_name == "training" else 1.8)}
        return of_plain if dtype in ("float32", "float64") else {**of_plain, "of_float32": 0.9}
    if layer.op == "separable":
        if dtype != "float32":
            return {}
        narrow, training = layer.in_channels <= 128, pass_name == "training"
        return {"ratio": (1.15 if training else 1.25) if narrow else (1.0 if training else 1.05), "of_two_ops": 1.0}
    if dtype != "float32":
        if layer.op not in ("depthwise", "transposed"):
            return {"ratio": 2.0 if dtype != "float64" or layer.groups >= 32 else 0.95}
        ratios, share = FLOAT64 if dtype == "float64" else HALF
        return {"ratio": ratios[layout], "of_float32": share}
    channels_last, contiguous, roofline = FLOORS[name]
    if layout == "contiguous":
        roofline = CONTIGUOUS_ROOFLINE.get(name, roofline)
    ratio = (channels_last if layout == "channels_last" else contiguous)[CONV_PASSES.index(pass_name)]
    if pass_name == "forward" and layout == "channels_last":
        if name == "3x3" and (4 * layer.elements(batch) > 20e6 or layer.spatial[0] <= 7):
            ratio = 1.0
        if name == "7x7" and layer.spatial[0] == 56:
            ratio = 1.0
    if pass_name == "forward" and layout == "contiguous" and name == "3x3" and layer.spatial[0] <= 14:
        ratio = 1.05
    return {"ratio": ratio, "roofline": roofline}
