"""One layer as PyTorch's calls and ours, with the float64 results that both have to give."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
import torchvision
from layers import CONV_PASSES, Layer

Result = torch.Tensor | tuple[torch.Tensor, ...]
Calls = tuple[Callable[[], Result], ...]  # PyTorch's, ours; and others to be compared with
# What a transposed layer calls the passes of the convolution.
TRANSPOSED = {"forward": "grad_input", "grad_input": "forward", "grad_weight": "grad_weight"}


@dataclasses.dataclass(frozen=True)
class Native:
    """A call without cuDNN. Who takes its time calls `call` under `setting`, to leave that out of the time."""

    call: Callable[[], Result]

    def setting(self) -> contextlib.AbstractContextManager:
        return torch.backends.cudnn.flags(enabled=False)

    def __call__(self) -> Result:
        with self.setting():
            return self.call()


def integers(*shape: int, device: str = "cpu") -> torch.Tensor:
    """Exact in every dtype, and so are sums of their products."""
    return torch.randint(-4, 5, shape, device=device).to(torch.float32)


class Problem:
    """Tensors of a layer: x -> y is the convolution; a transposed layer goes from y to x."""

    def __init__(self, layer: Layer, batch: int, device: str = "cpu") -> None:
        self.layer, self.device = layer, device
        depthwise = layer.op in ("depthwise", "transposed")
        self.others = () if device == "cpu" else ("aten", "cudnn") if depthwise else ("cudnn",)
        shapes = (
            (batch, layer.in_channels, *layer.spatial),
            (batch, layer.out_channels, *layer.out_spatial),
            (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel),
        )
        self.tensors = [integers(*shape, device=device) for shape in shapes]

    def _windows(self, padded: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
        """For each tap: what it meets, as a view of the padded image with the output's size."""
        layer = self.layer
        for tap in product(*(range(kernel) for kernel in layer.kernel)):
            window = padded
            for axis, t in enumerate(tap):
                first, step = t * layer.dilation[axis], layer.stride[axis]
                length = (layer.out_spatial[axis] - 1) * step + 1
                window = window.narrow(2 + axis, first, length)
            yield tap, window[(..., *(slice(None, None, step) for step in layer.stride))]

    def reference(self) -> dict[str, torch.Tensor]:
        """The passes of the convolution in float64: a sum over taps if depthwise, else PyTorch's own."""
        layer, m = self.layer, self.layer.out_channels // self.layer.in_channels
        x, y, w = (tensor.double() for tensor in self.tensors)
        if layer.in_channels != layer.groups:
            sides = self._sides("float64", "contiguous", layer.op)
            return dict(zip(CONV_PASSES, (theirs() for theirs, _ in sides.values())))
        pad = [side for pair in reversed(layer.padding) for side in pair]
        padded = F.pad(x, pad).repeat_interleave(m, 1)
        forward, grad_padded, grad_weight = torch.zeros_like(y), torch.zeros_like(padded), torch.zeros_like(w)
        grads = self._windows(grad_padded)
        broadcast = (1, -1) + (1,) * len(layer.spatial)
        for tap, window in self._windows(padded):
            factor = w[(slice(None), 0, *tap)].view(broadcast)
            forward.addcmul_(window, factor)
            next(grads)[1].addcmul_(y, factor)
            grad_weight[(slice(None), 0, *tap)] = (window * y).flatten(2).sum(2).sum(0)
        grad_padded = grad_padded.unflatten(1, (layer.in_channels, m)).sum(2)
        return dict(zip(CONV_PASSES, (forward, F.pad(grad_padded, [-side for side in pad]), grad_weight)))

    def expected(self) -> dict[str, torch.Tensor]:
        """float64 results of the layer's own passes."""
        results = self.reference()
        return {TRANSPOSED[name]: results[name] for name in results} if self.layer.op == "transposed" else results

    def calls(self, dtype: str, layout: str) -> dict[str, Calls]:
        """What is timed: PyTorch's, ours, and `others`, as far as there are such."""
        sides = self._sides(dtype, layout, self.layer.op)
        if "aten" in self.others:
            rivals = self.rivals(dtype, layout)
            return {name: sides[name] + rivals[name] for name in sides}
        return {name: sides[name] + sides[name][: len(self.others)] for name in sides}  # PyTorch's are cuDNN's

    def rivals(self, dtype: str, layout: str) -> dict[str, Calls]:
        """Of a depthwise layer: PyTorch's own kernel, and cuDNN's.

        A transposed layer has the same passes under other names, and PyTorch leaves it to cuDNN in any dtype and
        layout; `torch.backends.cudnn.depthwise_kernel` does so in contiguous float16 alone.
        """
        conv, transposed = (self._sides(dtype, layout, op) for op in ("depthwise", "transposed"))
        result: dict[str, Calls] = {}
        for name, other in TRANSPOSED.items():
            key = other if self.layer.op == "transposed" else name
            cudnn = transposed[other][0]
            usable = self.layer.symmetric and _runs(cudnn)  # otherwise PyTorch pads in a call of its own
            result[key] = (Native(conv[name][0]), cudnn) if usable else (Native(conv[name][0]),)
        return result

    def _sides(self, dtype: str, layout: str, op: str) -> dict[str, Calls]:
        """The core ops on both sides, each pass by itself, as autograd calls them."""
        layer, dims = self.layer, len(self.layer.spatial)
        x, y, w = (_laid_out(tensor, self.device, dtype, layout) for tensor in self.tensors)
        flat = [side for pair in layer.padding for side in pair]
        before = [pair[0] for pair in layer.padding]
        ours = list(layer.stride), flat, list(layer.dilation), layer.groups
        conv, conv_backward = torch.ops.torch_ext.conv, torch.ops.torch_ext.conv_backward
        aten_conv, aten_backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
        masks = [True, False, False], [False, True, False]
        our_forward: Callable[[], torch.Tensor] = lambda: conv(x, w, None, *ours)  # noqa: E731
        our_grad_input: Callable[[], torch.Tensor] = lambda: conv_backward(y, x, w, *ours, masks[0])[0]  # noqa: E731
        our_grad_weight: Callable[[], torch.Tensor] = lambda: conv_backward(y, x, w, *ours, masks[1])[1]  # noqa: E731

        if op == "transposed":
            # The sizes that a stride leaves open.
            extra = [
                size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
                for size, out, stride, pad, dilation, kernel in zip(
                    layer.spatial, layer.out_spatial, layer.stride, before, layer.dilation, layer.kernel
                )
            ]
            theirs = list(layer.stride), before, list(layer.dilation), True, extra, layer.groups
            our_transposed = getattr(torch.ops.torch_ext, f"depthwise_conv_transpose{dims}d")
            transposed = list(layer.stride), before, extra, list(layer.dilation)
            return {
                "forward": (lambda: aten_conv(y, w, None, *theirs), lambda: our_transposed(y, w, None, *transposed)),
                "grad_input": (lambda: aten_backward(x, y, w, None, *theirs, masks[0])[0], our_forward),
                "grad_weight": (lambda: aten_backward(x, y, w, None, *theirs, masks[1])[1], our_grad_weight),
            }

        # PyTorch pads by itself only alike on both sides: else F.pad before, and the gradient cropped.
        pad = [0] * (2 * dims) if layer.symmetric else [s for pair in reversed(layer.padding) for s in pair]
        theirs = list(layer.stride), before if layer.symmetric else [0] * dims, list(layer.dilation), False
        theirs += [0] * dims, layer.groups
        padded = x if layer.symmetric else F.pad(x, pad)
        crop = [-side for side in pad]
        if layer.symmetric:
            forward: Callable[[], torch.Tensor] = lambda: aten_conv(x, w, None, *theirs)  # noqa: E731
            grad_input: Callable[[], torch.Tensor] = lambda: aten_backward(y, x, w, None, *theirs, masks[0])[0]  # noqa: E731
        else:
            forward = lambda: aten_conv(F.pad(x, pad), w, None, *theirs)  # noqa: E731
            grad_input = lambda: F.pad(aten_backward(y, padded, w, None, *theirs, masks[0])[0], crop)  # noqa: E731
        grad_weight: Callable[[], torch.Tensor] = lambda: aten_backward(y, padded, w, None, *theirs, masks[1])[1]  # noqa: E731
        loses_format = layout == "channels_last" and (dims == 1 or (dims == 3 and dtype == "float64"))
        if (
            layer.symmetric
            and not loses_format
            and not torch.ops.torch_ext._has_kernel(w, layer.dilation, layer.groups)
        ):
            # The composite op calls PyTorch's, and autograd then takes its gradients.
            ours_of_groups = getattr(torch.ops.torch_ext, f"group_conv{dims}d")
            composite = list(layer.stride), before, list(layer.dilation), layer.groups
            our_forward = lambda: ours_of_groups(x, w, None, *composite)  # noqa: E731
            our_grad_input, our_grad_weight = grad_input, grad_weight
        return {
            "forward": (forward, our_forward),
            "grad_input": (grad_input, our_grad_input),
            "grad_weight": (grad_weight, our_grad_weight),
        }

    def kernel(self, dtype: str, layout: str, pass_name: str) -> str:
        """Which kernel serves the layer's pass: the convolution's own name for it."""
        layer = self.layer
        x, w = (_laid_out(self.tensors[i], self.device, dtype, layout) for i in (0, 2))
        if layer.op == "transposed":
            pass_name = TRANSPOSED[pass_name]
        flat = [side for pair in layer.padding for side in pair]
        arguments = list(layer.stride), flat, list(layer.dilation), layer.groups
        return torch.ops.torch_ext._which_kernel("conv", x, w, None, *arguments, pass_name)


class SeparableProblem:
    """A separable layer: forward, and a training step, forward with all gradients."""

    others = ("two_ops",)  # ours

    def __init__(self, layer: Layer, batch: int, device: str = "cpu") -> None:
        self.layer, self.device, ones = layer, device, (1,) * len(layer.spatial)
        shapes = (
            (batch, layer.in_channels, *layer.spatial),
            (layer.in_channels, 1, *layer.kernel),
            (layer.out_channels, layer.in_channels, *ones),
            (batch, layer.out_channels, *layer.out_spatial),
        )
        *self.tensors, self.grad_output = (integers(*shape, device=device) for shape in shapes)

    def expected(self) -> dict[str, Result]:
        return {name: calls[0]() for name, calls in self.calls("float64", "contiguous").items()}

    def calls(self, dtype: str, layout: str) -> dict[str, Calls]:
        layer, n = self.layer, len(self.layer.spatial)
        tensors = [_laid_out(tensor, self.device, dtype, layout) for tensor in self.tensors]
        grad_output = _laid_out(self.grad_output, self.device, dtype, layout)
        ours, theirs = torch.ops.torch_ext, getattr(F, f"conv{n}d")
        stride, dilation = list(layer.stride), list(layer.dilation)
        padding = [before for before, _ in layer.padding]  # the same after
        depthwise, pointwise, separable = (
            getattr(ours, f"{name}{n}d") for name in ("depthwise_conv", "group_conv", "separable_conv")
        )

        def pytorchs(x: torch.Tensor, d: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return theirs(theirs(x, d, None, stride, padding, dilation, layer.groups), p)

        def two_ops(x: torch.Tensor, d: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return pointwise(depthwise(x, d, None, stride, padding, dilation), p)

        def one_op(x: torch.Tensor, d: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return separable(x, d, p, None, stride, padding, dilation)

        def step(function: Callable[..., torch.Tensor]) -> Callable[[], Result]:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            return lambda: torch.autograd.grad(function(*leaves), leaves, grad_output)

        functions = pytorchs, one_op, two_ops
        result = {"forward": tuple(lambda f=f: f(*tensors) for f in functions)}
        if dtype in ("float32", "float64"):  # in 16 bit what lies between the steps is rounded on the way back, too
            result["training"] = tuple(step(f) for f in functions)
        return result

    def kernel(self, dtype: str, layout: str, pass_name: str) -> str:
        layer, n = self.layer, len(self.layer.spatial)
        tensors = (_laid_out(tensor, self.device, dtype, layout) for tensor in self.tensors)
        flat = [side for pair in layer.padding for side in pair]
        numbers = list(layer.stride), flat, list(layer.dilation)
        output = "forward" if pass_name == "forward" else "grad_weight"
        return torch.ops.torch_ext._which_separable_kernel(f"separable_conv{n}d", *tensors, None, *numbers, output)


class DeformProblem:
    """A deformable layer with a mask, against torchvision's, and a plain convolution of the same size in float32."""

    others = ("plain",)

    def __init__(self, layer: Layer, batch: int, device: str = "cpu") -> None:
        self.layer, self.device = layer, device
        samples = layer.offset_groups * layer.taps
        shapes = (
            (batch, layer.in_channels, *layer.spatial),
            (batch, 2 * samples, *layer.out_spatial),
            (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel),
            (batch, samples, *layer.out_spatial),
            (batch, layer.out_channels, *layer.out_spatial),
        )
        *self.tensors, self.grad_output = (integers(*shape, device=device) for shape in shapes)
        self.tensors[1] /= 4  # sums of quarters are exact, too

    def expected(self) -> dict[str, Result]:
        return {name: calls[0]() for name, calls in self.calls("float64", "contiguous").items()}

    def calls(self, dtype: str, layout: str) -> dict[str, Calls]:
        numbers = [list(self.layer.stride), [before for before, _ in self.layer.padding], list(self.layer.dilation)]
        # torchvision has no bfloat16, and is slow in float16.
        theirs = "float64" if dtype == "float64" else "float32"
        given = {name: [_laid_out(t, self.device, name, layout) for t in (*self.tensors, self.grad_output)]
                 for name in {dtype, theirs}}  # fmt: skip

        def ours(x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.ops.torch_ext.deform_conv2d(x, offset, w, None, *numbers, mask)

        def torchvisions(x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torchvision.ops.deform_conv2d(x, offset, w, None, *map(tuple, numbers), mask)

        def plain(x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, w, None, *numbers, self.layer.groups)

        sides = (torchvisions, theirs), (ours, dtype), (plain, theirs)

        def forward(function: Callable[..., torch.Tensor], name: str) -> Callable[[], Result]:
            return lambda: function(*given[name][:4])

        def step(function: Callable[..., torch.Tensor], name: str) -> Callable[[], Result]:
            leaves = [tensor.detach().requires_grad_() for tensor in given[name][:4]]
            wanted = leaves[::2] if function is plain else leaves
            return lambda: torch.autograd.grad(function(*leaves), wanted, given[name][4])

        return {"forward": tuple(forward(*side) for side in sides), "training": tuple(step(*side) for side in sides)}

    def kernel(self, dtype: str, layout: str, pass_name: str) -> str:
        if self.device == "cuda":
            return "deform/cuda"
        return "deform/scalar" if torch.ops.torch_ext._isa() == "scalar" else "deform/avx2"


AnyProblem = Problem | SeparableProblem | DeformProblem


def make_problem(layer: Layer, batch: int, device: str = "cpu") -> AnyProblem:
    return {"separable": SeparableProblem, "deform": DeformProblem}.get(layer.op, Problem)(layer, batch, device)


def _runs(call: Callable[[], Result]) -> bool:
    """cuDNN has no engine for some layers: RuntimeError."""
    try:
        call()
    except RuntimeError:
        return False
    return True


def _laid_out(tensor: torch.Tensor, device: str, dtype: str, layout: str) -> torch.Tensor:
    """Channels innermost for channels_last, in any number of dimensions."""
    tensor = tensor.to(device, getattr(torch, dtype))
    if layout == "contiguous":
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def check(problem: AnyProblem, expected: dict[str, Result], dtype: str, layout: str) -> None:
    """Our results are the float64 ones, rounded once.

    On a GPU cuDNN's are near them: Winograd's sums are not exact. So are deformable ones in 16 bit: their columns are
    rounded.
    """
    tolerance = {"float64": 1e-12, "float32": 1e-3}.get(dtype, 0.02)
    for name, (_, ours, *_) in problem.calls(dtype, layout).items():
        columns = problem.layer.op == "deform" and dtype in ("bfloat16", "float16")
        rough = problem.device == "cuda" and (columns or "aten" in problem.kernel(dtype, layout, name))
        results, wanted = (value if isinstance(value, tuple) else (value,) for value in (ours(), expected[name]))
        for actual, exact in zip(results, wanted, strict=True):
            rounded = exact.to(actual)
            atol = tolerance * rounded.abs().max().item()
            near = rough and torch.allclose(actual, rounded, rtol=tolerance, atol=atol)
            if not near and not torch.equal(actual, rounded):
                wrong = (actual != rounded).sum().item()
                layer = problem.layer
                raise SystemExit(f"{layer.op} {layer.name} {layout} {dtype}: {name}: {wrong} wrong numbers")
