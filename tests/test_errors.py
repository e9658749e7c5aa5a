# ruff: noqa: B023 (the calls run at once, in the loop that makes them)
"""Bad input gives an exception that names the op and says what was expected; nothing crashes."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import not_emulated, run_process
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ext.testing
from torch_ext._loader import build_info

ops = torch.ops.torch_ext


def x() -> Tensor:
    return torch.zeros(1, 4, 6, 6)


def w() -> Tensor:
    return torch.zeros(4, 1, 3, 3)


def made(change: dict) -> dict:
    """With tensors for the functions that make them, on the device of the test."""
    return {name: value() if callable(value) else value for name, value in change.items()}


def core(change: dict) -> tuple:
    call = {"input": x, "weight": w, "bias": None, "stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1)}
    *tensors, stride, padding, dilation, groups = made({**call, "groups": 4, **change}).values()
    return *tensors, list(stride), list(padding), list(dilation), groups


CASES = [
    (dict(stride=(0, 1)), "non-positive stride is not supported"),
    (dict(stride=(-1, 1)), "non-positive stride is not supported"),
    (dict(padding=(0, -1, 0, 0)), "negative padding is not supported"),
    (dict(dilation=(1, 0)), "dilation should be greater than zero"),
    (dict(groups=0), "non-positive groups is not supported"),
    (dict(groups=3), "Given groups=3"),
    (dict(groups=2), "Given groups=2"),
    (dict(stride=(1,)), r"expected stride to have 2 numbers, but got \[1\]"),
    (dict(stride=()), r"expected stride to have 2 numbers, but got \[\]"),
    (dict(padding=(1, 1)), "expected padding to have 4 numbers"),
    (dict(dilation=(1, 1, 1)), "expected dilation to have 2 numbers"),
    (dict(dilation=(3, 1)), "Kernel size can't be greater than actual input size"),
    (dict(dilation=(2**62, 1)), "do not fit in 64 bits"),
    (dict(padding=(2**63 - 1, 2**63 - 1, 0, 0)), "do not fit in 64 bits"),
    (dict(padding=(2**61, 2**61, 2**61, 0)), r"at most 2\^50 elements"),
    (dict(weight=lambda: torch.zeros(1).expand(4, 1, 2**52, 3), padding=(2**52, 0, 0, 0)), r"at most 2\^50 elements"),
    (dict(input=lambda: x()[:0], padding=(2**61, 0, 2**61, 0)), r"at most 2\^50 elements"),
    (dict(input=lambda: x()[:, :, :0], padding=(2**40, 0, 2**40, 0)), r"at most 2\^50 elements"),
    (dict(weight=lambda: w().double()), "should be the same"),
    (dict(weight=lambda: w().to("meta")), "should be the same"),
    (dict(bias=lambda: torch.zeros(4, dtype=torch.float64)), "should be the same"),
    (dict(bias=lambda: torch.zeros(5)), r"expected bias of size \[4\]"),
    (dict(bias=lambda: torch.zeros(4, 1)), "expected bias of 1 dimension"),
    (dict(input=lambda: x()[0]), "same number of dimensions"),
    (dict(input=lambda: x()[0, 0]), "expected a batched input"),
    (dict(input=lambda: torch.zeros(())), "expected a batched input"),
    (dict(weight=lambda: w()[0, 0]), "weight should have at least three dimensions"),
    (dict(weight=lambda: torch.zeros(4, 1, 0, 3)), "expected kernel sizes of at least 1"),
    (dict(input=lambda: x().long(), weight=lambda: w().long()), "expected float32, float64, bfloat16 or float16"),
    (dict(input=lambda: x().cfloat(), weight=lambda: w().cfloat()), "expected float32, float64, bfloat16 or float16"),
    (dict(input=lambda: x().to_sparse()), "Sparse"),
]


@pytest.mark.parametrize(
    ("backward", "change", "message"),
    [(backward, *case) for backward in (False, True) for case in CASES if not (backward and "bias" in case[0])],
)
def test_core_ops(backward: bool, change: dict, message: str) -> None:
    input, weight, bias, *numbers = core(change)
    op = "conv_backward" if backward else "conv"
    with pytest.raises((RuntimeError, NotImplementedError), match=message) as caught:
        if backward:
            ops.conv_backward(torch.zeros(1, 4, 4, 4), input, weight, *numbers, [True] * 3)
        else:
            ops.conv(input, weight, bias, *numbers)
    assert "Sparse" in message or f"{op}: " in str(caught.value)


@pytest.mark.parametrize("size", [(1, 4, 4, 5), (1, 4, 4), (2, 4, 4, 4), (0,), ()])
def test_size_of_grad_output(size: tuple[int, ...]) -> None:
    input, weight, _, *numbers = core({})
    with pytest.raises(RuntimeError, match=r"conv_backward: expected grad_output of the output's size \[1, 4, 4, 4\]"):
        ops.conv_backward(torch.zeros(size), input, weight, *numbers, [True] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch_ext.depthwise_conv2d(torch.zeros(1, 32, 9, 9), torch.zeros(64, 2, 3, 3)),
         r"depthwise_conv2d: expected weight of shape \[C\*M, 1, kh, kw\] with C = 32, but got \[64, 2, 3, 3\]"),
        (lambda: torch_ext.depthwise_conv1d(torch.zeros(1, 4, 9), torch.zeros(4, 1, 3), padding=(1, 0)),
         r"depthwise_conv1d: expected padding before and after to be written \(\(1, 0\),\)"),
        (lambda: torch_ext.depthwise_conv2d(x(), w(), padding="causal"), "depthwise_conv2d: expected padding"),
        (lambda: ops.depthwise_conv2d(x(), w(), None, [1, 1], "causal"), "depthwise_conv2d: expected padding"),
        (lambda: torch_ext.depthwise_conv2d(x(), w(), stride=(1, 2, 3)), "depthwise_conv2d: expected stride"),
        (lambda: ops.depthwise_conv2d(x(), w(), None, [1, 2, 3]), "depthwise_conv2d: expected stride"),
        (lambda: ops.depthwise_conv2d(x(), w(), None, [1], [1, 2, 3]),
         "depthwise_conv2d: expected padding to have 1, 2"),
        (lambda: torch_ext.group_conv2d(x(), w(), groups=3), "group_conv2d: Given groups=3"),
        (lambda: torch_ext.depthwise_conv2d(x(), torch.zeros(3, 3, 4, 2)), r"the functions of torch_ext\.tf"),
        (lambda: torch_ext.separable_conv2d(x(), torch.zeros(3, 3, 4, 1), torch.zeros(1, 1, 4, 5)),
         r"the functions of torch_ext\.tf"),
        (lambda: torch_ext.separable_conv2d(x(), w(), torch.zeros(1, 1, 4, 5)), r"torch_ext\.tf\.separable_conv2d"),
        (lambda: torch_ext.separable_conv2d(x(), torch.zeros(0, 1, 3, 3), torch.zeros(5, 0, 1, 1)),
         r"depthwise_weight of shape \[C\*M, 1, kh, kw\] with C = 4, but got \[0, 1, 3, 3\]"),
        (lambda: torch_ext.separable_conv2d(x(), w(), torch.zeros(5, 3, 1, 1)),
         r"separable_conv2d: expected pointwise_weight of shape \[O, C\*M, 1, ...\] with C\*M = 4"),
        (lambda: torch_ext.depthwise_conv_transpose2d(x(), w(), output_padding=1), "output padding must be smaller"),
        (lambda: torch_ext.depthwise_conv_transpose2d(x(), w(), padding=9), "expected a positive output size"),
        (lambda: torch_ext.depthwise_conv_transpose2d(x(), w(), torch.zeros(5)), r"expected bias of shape \[C\*M\]"),
        (lambda: torch_ext.depthwise_conv_transpose2d(x()[:0], w(), stride=2**40),
         r"depthwise_conv_transpose2d: expected tensors of at most 2\^50 elements"),
        (lambda: torch_ext.depthwise_conv_transpose2d(x()[:, :, :0], w()),
         "depthwise_conv_transpose2d: expected input sizes of at least 1"),
        (lambda: torch_ext.depthwise_conv1d(torch.zeros(1, 4, 0), w()[:, :, 0], stride=2, padding="same"),
         "depthwise_conv1d: expected input and kernel sizes of at least 1"),
        (lambda: ops._same_padding([8], [2**62], [1], [2**62], "same"), "do not fit in 64 bits"),
        (lambda: torch_ext.which_kernel("conv9d", x(), w()), "which_kernel: expected one of"),
        (lambda: torch_ext.testing.isa("mmx").__enter__(), "expected an instruction set"),
    ],
)  # fmt: skip
def test_users_functions(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


WEIGHTS = {
    "depthwise_conv": lambda: (w(),),
    "group_conv": lambda: (x()[:, :, :3, :3],),
    "separable_conv": lambda: (w(), x()[:, :, :1, :1]),
    "depthwise_conv_transpose": lambda: (w(),),
}


@pytest.mark.parametrize("family", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 0}, "non-positive stride is not supported"),
        ({"stride": (1, -1)}, "non-positive stride is not supported"),
        ({"padding": -1}, "negative padding is not supported"),
        ({"padding": ((0, 0), (0, -1))}, "negative padding is not supported"),
        ({"dilation": (0, 1)}, "dilation should be greater than zero"),
        ({"dilation": 2**62}, "fits? in 64 bits"),
        ({"padding": 1.5}, "expected padding"),
        ({"padding": []}, "expected padding"),
        ({"stride": []}, "expected stride"),
        ({"dilation": [1, 1, 1]}, "expected dilation"),
        ({"input": lambda: x()[0, 0]}, "expected input of 4 or 3 dimensions"),
        ({"input": lambda: x()[:0], "padding": 2**60}, "(at most 2\\^50 elements|positive output size)"),
        ({"input": lambda: x().double()}, "should be the same"),
        ({"input": lambda: x().to("meta")}, "should be the same"),
        ({"bias": lambda: torch.zeros(7)}, "expected bias of"),
    ],
)
def test_every_composite(family: str, change: dict, message: str) -> None:
    op, arguments = f"{family}2d", {"input": x(), **made(change)}
    with pytest.raises(RuntimeError, match=message) as caught:
        getattr(torch_ext, op)(arguments.pop("input"), *WEIGHTS[family](), **arguments)
    assert str(caught.value).startswith(f"{op}: ")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kernel_size": (3,) * 4}, ["kernel_size", "an int, (int,) or 2 ints", "(3, 3, 3, 3)"]),
        ({"kernel_size": 0}, ["kernel_size", "at least 1", "0"]),
        ({"kernel_size": 2.5}, ["kernel_size", "an int", "2.5"]),
        ({"stride": 0}, ["stride", "at least 1", "0"]),
        ({"stride": (1, 2, 3)}, ["stride", "2 ints", "(1, 2, 3)"]),
        ({"dilation": -1}, ["dilation", "at least 1", "-1"]),
        ({"padding": -1}, ["negative padding is not supported", "-1"]),
        ({"padding": ((0, -2), (0, 0))}, ["negative padding is not supported", "((0, -2), (0, 0))"]),
        ({"padding": "SAME"}, ["padding", "valid, same, same_lower", "'SAME'"]),
        ({"padding": "causal"}, ["padding", "valid, same, same_lower", "'causal'"]),
        ({"padding": (1, 2, 3)}, ["padding", "2 pairs (before, after)", "(1, 2, 3)"]),
        ({"padding": (1, 2, 3, 4)}, ["padding", "2 pairs (before, after)", "(1, 2, 3, 4)"]),
        ({"padding_mode": "mirror"}, ["padding_mode", "zeros, reflect, replicate, circular", "'mirror'"]),
    ],
    ids=str,
)
def test_constructor_errors(kwargs: dict[str, Any], words: list[str]) -> None:
    for name, arguments in [
        ("Conv2d", {"in_channels": 4, "out_channels": 6}),
        ("DepthwiseConv2d", {"in_channels": 4}),
        ("SeparableConv2d", {"in_channels": 4, "out_channels": 6}),
    ]:
        with pytest.raises(ValueError) as caught:
            getattr(torch_ext.nn, name)(**arguments, **{"kernel_size": 3, **kwargs})
        assert all(word in str(caught.value) for word in [name, *words]), str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch_ext.nn.Conv2d(5, 6, 3, groups=2), ["Conv2d", "in_channels must be divisible by groups", "5"]),
        (lambda: torch_ext.nn.Conv2d(4, 5, 3, groups=2), ["Conv2d", "out_channels must be divisible by groups", "5"]),
        (lambda: torch_ext.nn.Conv2d(4, 6, 3, groups=0), ["Conv2d", "groups", "at least 1", "0"]),
        (lambda: torch_ext.nn.Conv2d(4, 6, 3, groups=2.0), ["Conv2d", "groups", "an int", "2.0"]),
        (lambda: torch_ext.nn.Conv2d("4", 6, 3), ["Conv2d", "in_channels", "an int", "'4'"]),
        (lambda: torch_ext.nn.Conv1d(-4, 6, 3), ["Conv1d", "in_channels", "-4"]),
        (lambda: torch_ext.nn.DepthwiseConv3d(0, 3), ["DepthwiseConv3d", "in_channels", "at least 1", "0"]),
        (
            lambda: torch_ext.nn.DepthwiseConv1d(4, 3, depth_multiplier=0),
            ["DepthwiseConv1d", "depth_multiplier", "at least 1", "0"],
        ),
        (
            lambda: torch_ext.nn.SeparableConv1d(4, 6, 3, depth_multiplier=1.5),
            ["SeparableConv1d", "depth_multiplier", "an int", "1.5"],
        ),
        (lambda: torch_ext.nn.SeparableConv1d(0, 6, 3), ["SeparableConv1d", "in_channels", "at least 1", "0"]),
        (lambda: torch_ext.nn.SeparableConv2d(4, -6, 3), ["SeparableConv2d", "out_channels", "-6"]),
        (lambda: torch_ext.nn.DepthwiseConv1d(4, 3, padding=(1, 2)), ["written ((1, 2),)", "got (1, 2)"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_channel_errors(make: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


HOSTILE = [0, -1, 1, 2, 3, 7, 2**31, 2**62, 2**63 - 1, -(2**63)]


def hostile_calls(seed: int, count: int) -> int:
    """Random calls of every op; returns how many raised. Run in a process of its own, which must survive."""
    random.seed(seed)
    dtypes = [torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64]

    def tensor() -> Any:
        if random.random() < 0.03:
            return None
        size = [random.choice([0, 1, 2, 3, 4, 5]) for _ in range(random.choice([0, 1, 2, 3, 3, 4, 4, 4, 5, 6, 7]))]
        made = torch.randn(size).to(random.choice(dtypes))
        return made.to("meta") if random.random() < 0.03 else made

    def numbers() -> list[int]:
        pool = HOSTILE if random.random() < 0.4 else [1, 1, 1, 2, 0]
        return [random.choice(pool) for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4, 4, 6]))]

    def group() -> int:
        return random.choice(HOSTILE if random.random() < 0.3 else [1, 2, 3, 4])

    raised = 0
    for _ in range(count):
        n = random.choice([1, 2, 2, 3])
        x, w = tensor(), tensor()
        if random.random() < 0.7 and isinstance(x, torch.Tensor) and x.dim() > 2:
            size = [x.shape[1] * random.choice([1, 2]), 1, *[random.choice([1, 2, 3])] * (x.dim() - 2)]
            w = torch.randn(size).to(x.dtype)
            n = min(x.dim() - 2, 3)
        b = random.choice([None, None, tensor()])
        p = tensor()
        if random.random() < 0.7 and isinstance(w, torch.Tensor) and w.dim() > 2:
            p = torch.randn(random.choice([0, 1, 4]), w.shape[0], *[1] * (w.dim() - 2)).to(w.dtype)
        calls = [
            lambda: ops.conv(x, w, b, numbers(), numbers(), numbers(), group()),
            lambda: ops.conv_backward(tensor(), x, w, numbers(), numbers(), numbers(), group(), [True] * 3),
            lambda: getattr(ops, f"depthwise_conv{n}d")(x, w, b, numbers(), numbers(), numbers()),
            lambda: getattr(ops, f"depthwise_conv{n}d").padding(x, w, b, numbers(), "same", numbers()),
            lambda: getattr(ops, f"group_conv{n}d")(x, w, b, numbers(), numbers(), numbers(), group()),
            lambda: getattr(ops, f"separable_conv{n}d")(x, w, p, b, numbers(), numbers(), numbers()),
            lambda: ops.separable_conv(x, w, p, b, numbers(), numbers(), numbers()),
            lambda: ops.separable_conv_backward(tensor(), x, w, p, numbers(), numbers(), numbers(), [True] * 4),
            lambda: ops._which_separable_kernel("op", x, w, p, b, numbers(), numbers(), numbers(), "forward"),
            lambda: getattr(ops, f"depthwise_conv_transpose{n}d")(x, w, b, numbers(), numbers(), numbers(), numbers()),
            lambda: ops._which_kernel("op", x, w, b, numbers(), numbers(), numbers(), group(), "forward"),
            lambda: ops._same_padding(numbers(), numbers(), numbers(), numbers(), "same"),
            lambda: ops._has_kernel(w, numbers(), group()),
        ]  # fmt: skip
        try:
            random.choice(calls)()
        except (RuntimeError, TypeError, ValueError, NotImplementedError, MemoryError):
            raised += 1
    return raised


@pytest.mark.cpu_only
@pytest.mark.skipif(build_info()["cuda"] is not None, reason="this build has CUDA kernels")
def test_builds_without_cuda_say_so() -> None:
    """What calls with CUDA tensors come to."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    w, one = torch.ones(1, 1, 1), ([1], [0, 0], [1])
    calls: list[tuple[Any, ...]] = [
        (ops.conv, w, w, None, *one, 1),
        (ops.conv_backward, w, w, w, *one, 1, [True] * 3),
        (ops.separable_conv, w, w, w, None, *one),
        (ops.separable_conv_backward, w, w, w, w, *one, [True] * 4),
        (ops.deform_conv, w, w, w, None, None, *one),
        (ops.deform_conv_backward, w, w, w, w, None, *one, [True] * 5),
        (ops._which_kernel, "conv", w, w, None, *one, 1, "forward"),
        (ops._which_separable_kernel, "separable_conv1d", w, w, w, None, *one, "forward"),
    ]
    for op, *arguments in calls:
        with pytest.raises(NotImplementedError, match="has no CUDA kernels.* FORCE_CUDA=1 pip install"):
            op.default.redispatch(cuda, *arguments)
    with FakeTensorMode(), pytest.raises(NotImplementedError, match="deform_conv1d: .* has no CUDA kernels"):
        w = torch.empty(1, 1, 1, device="cuda")
        torch_ext.which_kernel("deform_conv1d", w, w, w)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_no_call_crashes_the_process(seed: int) -> None:
    script = f"import sys; sys.path.insert(0, {__file__.rpartition('/')[0]!r})\n"
    printed = run_process(script + f"from test_errors import hostile_calls\nprint(hostile_calls({seed}, 6000))")
    assert 1000 < int(printed) < 6000


@not_emulated
def test_outputs_of_padding_alone() -> None:
    """Which oneDNN dies of."""
    input = torch.empty_strided((2, 64, 14, 1), (896, 1, 64, 64)).normal_()
    weight, bias = torch.randn(16, 64, 4, 1), torch.randn(16)
    output = torch.ops.torch_ext.conv(input, weight, bias, [3, 3], [1, 1, 2, 2], [1, 3], 1)
    assert torch.equal(output, bias.view(16, 1, 1).expand(2, 16, 5, 2))


@pytest.mark.cpu_only
def test_dense_layers_of_a_gpu_that_pytorch_refuses() -> None:
    """Empty axes, and formats that it does not keep: sizes and strides as on the CPU, by tensors without numbers."""
    float64, last = torch.float64, torch.channels_last
    calls = [
        (torch.empty(2, 0, 5, 5), torch.empty(4, 0, 3, 3)),
        (torch.empty(2, 32, 0, 5), torch.empty(4, 32, 2, 3)),
        (torch.empty(2, 32, 5, 6, dtype=float64).to(memory_format=last), torch.empty(4, 32, 3, 3, dtype=float64)),
        (torch.empty(2, 5, 32, dtype=float64).transpose(1, 2), torch.empty(4, 32, 3, dtype=float64)),
    ]
    for call in calls:
        function = getattr(torch_ext, f"group_conv{call[0].dim() - 2}d")
        expected = function(*call, padding=1)
        with FakeTensorMode():
            fake = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in call]
            output = function(*fake, padding=1)
        assert (output.shape, output.stride()) == (expected.shape, expected.stride())


@pytest.mark.cpu_only
def test_huge_strides_never_reach_pytorch() -> None:
    """Whose library dies of them."""
    for n, stride, channels in ((1, 100000, 8), (1, 70000, 65), (2, 2**40, 65)):
        input, weight = torch.randn(2, channels, *(6,) * n), torch.randn(channels, channels, *(3,) * n)
        tensors = [input.requires_grad_(), weight.requires_grad_()]
        output = getattr(torch_ext, f"group_conv{n}d")(*tensors, stride=stride)
        expected = torch.einsum("nck,ock->no", input[..., :3].flatten(2), weight.flatten(2)) if n == 1 else None
        assert output.shape == (2, channels, *(1,) * n)
        if expected is not None:
            torch.testing.assert_close(output.flatten(1), expected, rtol=1e-4, atol=1e-4)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.sum(), tensors))
        assert "aten" not in torch_ext.which_kernel(f"group_conv{n}d", *tensors, stride=stride)
