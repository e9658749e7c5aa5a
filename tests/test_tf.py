"""TensorFlow's names: its published value, its SAME, its tensors and its argument rules."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ext import functional, tf


def loop_nest(input: Tensor, filter: Tensor, stride: int, sides: tuple[int, int], dilation: int) -> Tensor:
    """depthwise_conv2d on NHWC, written out; sides: zeros before, the same for both axes, and after."""
    n, h, w, channels = input.shape
    kh, kw, _, multiplier = filter.shape
    padded = F.pad(input.double(), (0, 0, *sides, *sides))
    oh, ow = ((size + sum(sides) - (k - 1) * dilation - 1) // stride + 1 for size, k in ((h, kh), (w, kw)))
    output = torch.zeros(n, oh, ow, channels, multiplier, dtype=torch.float64)
    for y in range(oh):
        for x in range(ow):
            for i in range(kh):
                for j in range(kw):
                    pixel = padded[:, y * stride + i * dilation, x * stride + j * dilation, :, None]
                    output[:, y, x] += pixel * filter[i, j].double()
    return output.flatten(3)


def integers(*size: int) -> Tensor:
    return torch.randint(-4, 5, size, generator=torch.Generator().manual_seed(0)).float()


def test_value_published_with_tensorflow() -> None:
    input, filter = torch.arange(1.0, 13).view(1, 2, 3, 2), torch.arange(1.0, 17).view(2, 2, 2, 2)
    output = tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], "VALID")
    assert output.flatten().tolist() == [196, 216, 272, 296, 252, 280, 344, 376]


def test_same_with_a_stride_pads_after() -> None:
    """On a 4x4 input with stride 2 TensorFlow pads (0, 1), where PyTorch's padding=1 would be (1, 1)."""
    input, filter = integers(1, 4, 4, 3), integers(3, 3, 3, 1)
    output = tf.depthwise_conv2d(input, filter, [1, 2, 2, 1], "SAME")
    assert torch.equal(output.double(), loop_nest(input, filter, 2, (0, 1), 1))
    assert not torch.equal(output.double(), loop_nest(input, filter, 2, (1, 1), 1)[:, :2, :2])


@pytest.mark.parametrize("rate", [{"dilations": 2}, {"dilations": (2, 2)}, {"rate": [2, 2]}])
def test_dilations_and_rate(rate: dict) -> None:
    input, filter = integers(2, 9, 8, 3), integers(3, 3, 3, 2)
    output = tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], "SAME", **rate)
    assert torch.equal(output.double(), loop_nest(input, filter, 1, (2, 2), 2))


@pytest.mark.parametrize("name", ["depthwise_conv2d", "separable_conv2d", "group_conv2d"])
def test_nhwc_reaches_the_op_as_a_view(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, function = [], getattr(functional, name)
    monkeypatch.setattr(functional, name, lambda input, *rest: seen.append(input) or function(input, *rest))
    input, filter = integers(2, 9, 8, 3), integers(3, 3, 3, 2)
    if name == "separable_conv2d":
        tf.separable_conv2d(input, filter, integers(1, 1, 6, 5), [1, 2, 2, 1], "SAME")
    else:
        getattr(tf, name.replace("group_", ""))(input, filter, [1, 2, 2, 1], "SAME")
    assert seen[0].data_ptr() == input.data_ptr()
    assert (seen[0].shape, seen[0].stride()) == ((2, 3, 9, 8), (9 * 8 * 3, 1, 8 * 3, 3))


def test_nhwc_is_a_view_and_nchw_agrees() -> None:
    input, filter = integers(2, 9, 8, 3), integers(3, 3, 3, 2)
    output = tf.depthwise_conv2d(input, filter, [1, 2, 2, 1], "SAME")
    assert output.is_contiguous()  # written in channels_last order, not permuted afterwards
    nchw = tf.depthwise_conv2d(input.permute(0, 3, 1, 2), filter, [1, 1, 2, 2], "SAME", "NCHW")
    assert torch.equal(nchw.permute(0, 2, 3, 1), output)


def test_explicit_padding() -> None:
    input, filter = integers(1, 6, 6, 3), integers(3, 3, 3, 1)
    pairs = [[0, 0], [2, 1], [2, 1], [0, 0]]
    output = tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], pairs)
    assert torch.equal(output.double(), loop_nest(input, filter, 1, (2, 1), 1))


def test_separable_is_two_steps() -> None:
    input, first, last = integers(2, 7, 6, 3), integers(3, 3, 3, 2), integers(1, 1, 6, 5)
    output = tf.separable_conv2d(input, first, last, [1, 2, 2, 1], "SAME")
    hidden = tf.depthwise_conv2d(input, first, [1, 2, 2, 1], "SAME")
    assert torch.equal(output, hidden @ last[0, 0])


@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d(groups: int) -> None:
    input, filters = integers(2, 7, 6, 4), integers(3, 3, 4 // groups, 6)
    output = tf.conv2d(input, filters, 2, "SAME", dilations=1)
    padded = F.pad(input.permute(0, 3, 1, 2), (0, 1, 1, 1))  # 6 wide: (0, 1); 7 high: (1, 1)
    expected = F.conv2d(padded, filters.permute(3, 2, 0, 1), stride=2, groups=groups)
    assert torch.equal(output, expected.permute(0, 2, 3, 1))


INPUT, FILTER = torch.zeros(1, 5, 5, 4), torch.zeros(3, 3, 4, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [2, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 2], "SAME"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 2, 2, 1], "SAME", dilations=2),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 1], "same"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 1], "FULL"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 1], "SAME", "NCWH"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 1], [[1, 0], [0, 0], [0, 0], [0, 0]]),
        lambda: tf.depthwise_conv2d(INPUT, FILTER[:, :, :3], [1, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(INPUT[0], FILTER, [1, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(INPUT, FILTER, [1, 1, 1, 1], "SAME", dilations=2, rate=2),
        lambda: tf.separable_conv2d(INPUT, FILTER, torch.zeros(1, 1, 5, 2), [1, 1, 1, 1], "SAME"),
        lambda: tf.conv2d(INPUT, torch.zeros(3, 3, 3, 6), 1, "SAME"),
    ],
)
def test_argument_rules(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match="conv2d: expected|conv2d: .*(must|not|one of)"):
        call()
