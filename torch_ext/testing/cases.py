"""One list of small calls, for forward and gradient tests, opcheck, gradcheck and benchmarks."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ext import functional, reference
from torch_ext.kernels import core_arguments

Size = tuple[int, ...]


def _channels_last(tensor: Tensor) -> Tensor:
    """Values as they were, channels adjacent in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _permuted(tensor: Tensor) -> Tensor:
    """Axes in reverse order in memory."""
    axes = list(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


def _sliced(tensor: Tensor) -> Tensor:
    """Every second element, along every axis, of a larger tensor, beginning at an odd place."""
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
    view = larger[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor)


def _expanded(tensor: Tensor) -> Tensor:
    """The first sample, for all samples: a stride of 0 (this one changes the values)."""
    return tensor[:1].expand(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels_last": _channels_last,
    "permuted": _permuted,
    "sliced": _sliced,
    "expanded": _expanded,
}


@dataclass(frozen=True)
class Case:
    """A call of a function of torch_ext.functional."""

    op: str
    what: str  # what is special about it
    input: Size
    weights: tuple[Size, ...]  # one; separable: depthwise and pointwise; deformable: offset and weight
    arguments: dict[str, Any] = field(default_factory=dict)  # all that are not tensors
    bias: bool = True
    layout: str = "contiguous"  # of the input: a key of LAYOUTS
    weight_layout: str = "contiguous"
    mask: Size | None = None  # deformable: then there is a bias, too

    @property
    def name(self) -> str:
        return f"{self.op}-{self.what}".replace(" ", "-")

    @property
    def dims(self) -> int:
        return int(self.op[-2])

    def tensors(
        self,
        dtype: torch.dtype = torch.float64,
        device: str | None = None,
        *,
        integers: bool = False,
        requires_grad: bool = False,
    ) -> list[Tensor | None]:
        """Input, weights, bias (or None), and a mask if there is one: the same in every run, on every device.

        Integers lie in [-4, 4], and offsets in quarters of them, so that sums are exact.
        """
        generator = torch.Generator().manual_seed(0)

        def make(size: Size, layout: str = "contiguous") -> Tensor:
            if integers:
                values = torch.randint(-4, 5, size, generator=generator, device="cpu").double()
            else:
                values = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
            tensor = LAYOUTS[layout](values.to(device=device or torch.get_default_device(), dtype=dtype))
            return tensor.requires_grad_(requires_grad)

        weights = [make(size, self.weight_layout if size == self.weights[0] else "contiguous") for size in self.weights]
        if integers and self.op.startswith("deform"):
            weights[0] = (weights[0].detach() / 4).requires_grad_(requires_grad)
        bias = make((self._out_channels(),)) if self.bias else None
        mask = [make(self.mask, self.layout)] if self.mask else []
        return [make(self.input, self.layout), *weights, bias, *mask]

    def call(self, *tensors: Tensor | None) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
        """The function's arguments, those by position and those by name. Takes what `tensors` gives."""
        mask = {"mask": tensors[4]} if len(tensors) > 4 else {}
        return tensors[:4], {**self.arguments, **mask}

    def function(self, *tensors: Tensor | None) -> Tensor:
        """Our result. Takes what `tensors` gives."""
        arguments, named = self.call(*tensors)
        return getattr(functional, self.op)(*arguments, **named)

    def expected(self, *tensors: Tensor | None) -> Tensor:
        """The reference's result, in float64."""
        arguments, named = self.call(*tensors)
        return getattr(reference, self.op[:-2])(*arguments, **named)

    def core(self, *tensors: Tensor | None) -> tuple[Any, ...]:
        """The arguments of torch.ops.torch_ext.conv for this call, if it is a depthwise or a group convolution."""
        call = inspect.signature(getattr(functional, self.op)).bind(*tensors, **self.arguments)
        call.apply_defaults()
        return core_arguments(self.op, call.arguments)

    @property
    def is_conv(self) -> bool:
        """Whether `core` has an answer."""
        return self.op.startswith(("depthwise_conv1", "depthwise_conv2", "depthwise_conv3", "group_conv"))

    def _out_channels(self) -> int:
        size = self.weights[-1]
        return size[0] * size[1] if "transpose" in self.op else size[0]


def _cases(n: int) -> Iterator[Case]:
    sizes = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}[n]
    kernel, twos, ones = (3,) * n, (2,) * n, (1,) * n

    def case(family: str, what: str, input: Size, *weights: Size, **more: Any) -> Case:
        own = {key: more.pop(key) for key in ("bias", "layout", "weight_layout", "mask") if key in more}
        return Case(f"{family}{n}d", what, input, weights, more, **own)

    def depthwise(what: str, batch: int = 2, c: int = 3, m: int = 1, size: Size = sizes, k: Size = kernel, **more: Any):
        return case("depthwise_conv", what, (batch, c, *size), (c * m, 1, *k), **more)

    yield depthwise("plain")
    yield depthwise("padding", padding=1)
    yield depthwise("no bias", padding=1, bias=False)
    yield depthwise("multiplier", m=2, padding=1)
    yield depthwise("nine channels, multiplier 3", batch=1, c=9, m=3, size=twos, k=twos, padding=1)
    yield depthwise("seventeen channels", batch=1, c=17, size=(4,) + ones[1:], padding=1)
    yield depthwise("one channel", c=1, padding=1)
    yield depthwise("stride", stride=2, padding=1)
    yield depthwise("stride over kernel", k=twos, stride=3)
    yield depthwise("dilation", padding=2, dilation=2)
    yield depthwise("two-sided padding", padding=tuple((i, 3 - i) for i in range(n)))
    yield depthwise("axes differ", k=(3, 2, 1)[:n], stride=(1, 2, 1)[:n], padding=(2, 0, 1)[:n], dilation=(2, 1, 3)[:n])
    yield depthwise("same", k=twos, padding="same")
    yield depthwise("same with stride", stride=2, padding="same")
    yield depthwise("same_lower", k=twos, padding="same_lower", stride=2)
    yield depthwise("kernel wider than image", size=twos, k=(5,) * n, padding=2)
    yield depthwise("unpadded taps outside", size=twos, padding=4, dilation=3)
    yield depthwise("empty batch", batch=0, padding=1)
    yield depthwise("channels last", c=9, size=(3,) * n, m=2, padding=1, layout="channels_last")
    yield depthwise("permuted", layout="permuted", weight_layout="permuted", padding=1)
    yield depthwise("sliced", layout="sliced", weight_layout="sliced", padding=1)
    yield depthwise("expanded", layout="expanded", padding=1)
    yield case("depthwise_conv", "unbatched", (3, *sizes), (6, 1, *kernel), padding=1)
    if n == 1:
        yield depthwise("causal", padding="causal", dilation=2)
        yield depthwise("causal with stride", padding="causal", stride=2)

    yield case("group_conv", "dense", (2, 3, *sizes), (4, 3, *kernel), padding=1)
    yield case("group_conv", "two groups", (2, 4, *sizes), (6, 2, *twos), padding=1, groups=2, stride=2)
    yield case("group_conv", "two-sided padding", (2, 4, *sizes), (2, 2, *twos), padding=((1, 0),), groups=2)
    yield case("group_conv", "one output channel a group", (2, 6, *sizes), (3, 2, *kernel), padding=1, groups=3)
    yield case("group_conv", "dilation, channels last", (2, 4, *sizes), (4, 2, *twos), dilation=2, groups=2,
               layout="channels_last")  # fmt: skip
    yield case("group_conv", "pointwise", (2, 3, *sizes), (4, 3, *ones), bias=False)
    yield case("group_conv", "unbatched", (4, *sizes), (2, 2, *kernel), groups=2, padding="same")
    yield case("group_conv", "empty batch", (0, 4, *sizes), (2, 2, *kernel), groups=2)

    yield case("depthwise_conv_transpose", "plain", (2, 3, *twos), (3, 1, *kernel))
    yield case("depthwise_conv_transpose", "stride", (2, 3, *twos), (3, 2, *kernel), stride=2, padding=1,
               output_padding=1)  # fmt: skip
    yield case("depthwise_conv_transpose", "dilation", (1, 3, *twos), (3, 1, *twos), dilation=3, output_padding=2)
    yield case("depthwise_conv_transpose", "two-sided padding", (2, 3, *twos), (3, 1, *kernel), padding=((0, 1),))
    yield case("depthwise_conv_transpose", "channels last", (2, 3, *twos), (3, 2, *kernel), layout="channels_last")
    yield case("depthwise_conv_transpose", "unbatched", (3, *twos), (3, 2, *twos), bias=False)

    yield case("separable_conv", "plain", (2, 3, *sizes), (3, 1, *kernel), (4, 3, *ones), padding=1)
    yield case("separable_conv", "multiplier", (2, 3, *sizes), (6, 1, *kernel), (2, 6, *ones), stride=2, padding="same")
    yield case("separable_conv", "two-sided padding", (1, 3, *sizes), (3, 1, *twos), (2, 3, *ones), padding=((1, 0),),
               bias=False)  # fmt: skip
    yield case("separable_conv", "channels last", (2, 3, *sizes), (3, 1, *twos), (9, 3, *ones), layout="channels_last")
    yield case("separable_conv", "unbatched", (3, *sizes), (3, 1, *twos), (2, 3, *ones), dilation=2)

    def deform(what: str, out: Size, c: int = 4, o: int = 3, g: int = 1, k: Size = twos, batch: int = 2, **more: Any):
        """g: groups; its own masks' and offsets' groups are two where channels are even."""
        taps, offset_groups = math.prod(k), 2 - c % 2
        if more.pop("masked", False):
            more["mask"] = (batch, offset_groups * taps, *out)
        offset = (batch, n * offset_groups * taps, *out)
        return case("deform_conv", what, (batch, c, *sizes), offset, (o, c // g, *k), **more)

    less, half = tuple(s - 1 for s in sizes), tuple(s // 2 for s in sizes)
    yield deform("plain", less)
    yield deform("mask", sizes, k=kernel, masked=True, padding=1)
    yield deform("groups, stride", half, c=6, o=6, g=3, k=twos, masked=True, stride=2)
    yield deform(
        "two-sided padding, dilation", tuple(s + 1 for s in sizes), c=9, masked=True, padding=((1, 2),), dilation=2
    )
    yield deform("channels last", less, c=9, o=8, layout="channels_last", bias=False)
    yield deform("sliced", less, c=10, layout="sliced", weight_layout="sliced", masked=True)
    yield deform("empty batch", less, batch=0, masked=True)


CASES: list[Case] = [case for n in (1, 2, 3) for case in _cases(n)]
