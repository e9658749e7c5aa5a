"""TensorFlow's names: its published value, its SAME, its tensors and its argument rules."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from devices import assert_near
from torch import Tensor

from torch_ext import functional, tf


def loop_nest(
    input: Tensor, filter: Tensor, strides: list[int], pairs: list[list[int]], dilations: list[int]
) -> Tensor:
    """depthwise_conv2d on NHWC, one output number at a time; strides, pairs and dilations for height and width."""
    (n, h, w, channels), (kh, kw, _, multiplier) = input.shape, filter.shape
    (top, bottom), (left, right) = pairs
    oh = (h + top + bottom - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    ow = (w + left + right - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    data, taps = input.double().cpu().numpy(), filter.double().cpu().numpy()
    output = torch.zeros(n, oh, ow, channels * multiplier, dtype=torch.float64, device="cpu")
    for b, y, x, c, m in itertools.product(*map(range, (n, oh, ow, channels, multiplier))):
        total = 0.0
        for i, j in itertools.product(range(kh), range(kw)):
            row, column = y * strides[0] + i * dilations[0] - top, x * strides[1] + j * dilations[1] - left
            if 0 <= row < h and 0 <= column < w:
                total += data[b, row, column, c] * taps[i, j, c, m]
        output[b, y, x, c * multiplier + m] = total
    return output.to(input.device)


def integers(*size: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(-4, 5, size).float()


def test_value_published_with_tensorflow() -> None:
    input, filter = torch.arange(1.0, 13).view(1, 2, 3, 2), torch.arange(1.0, 17).view(2, 2, 2, 2)
    output = tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], "VALID")
    assert output.flatten().tolist() == [196, 216, 272, 296, 252, 280, 344, 376]


def test_same_with_a_stride_pads_after() -> None:
    """On a 4x4 input with stride 2 TensorFlow pads (0, 1), where PyTorch's padding=1 would be (1, 1)."""
    input, filter = integers(1, 4, 4, 3), integers(3, 3, 3, 1)
    output = tf.depthwise_conv2d(input, filter, [1, 2, 2, 1], "SAME")
    assert torch.equal(output.double(), loop_nest(input, filter, [2, 2], [[0, 1]] * 2, [1, 1]))
    assert not torch.equal(output.double(), loop_nest(input, filter, [2, 2], [[1, 1]] * 2, [1, 1])[:, :2, :2])


@pytest.mark.parametrize("rate", [{"dilations": 2}, {"dilations": (2, 2)}, {"rate": [2, 2]}])
def test_dilations_and_rate(rate: dict) -> None:
    input, filter = integers(2, 9, 8, 3), integers(3, 3, 3, 2)
    output = tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], "SAME", **rate)
    assert torch.equal(output.double(), loop_nest(input, filter, [1, 1], [[2, 2]] * 2, [2, 2]))


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
    assert torch.equal(output.double(), loop_nest(input, filter, [1, 1], [[2, 1]] * 2, [1, 1]))


def same_pairs(sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[list[int]]:
    """TensorFlow's SAME, from its documentation."""
    pairs = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
        reach = (k - 1) * dilation + 1
        total = max(reach - (stride if size % stride == 0 else size % stride), 0)
        pairs.append([total // 2, total - total // 2])
    return pairs


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [[2, 0], [1, 3]]], ids=str)
@pytest.mark.parametrize(
    ("strides", "dilations"), [([1, 1], None), ([2, 3], None), ([3, 1], [1, 1]), ([1, 1], [3, 2])], ids=str
)
def test_axes_are_not_confused(
    data_format: str, padding: str | list[list[int]], strides: list[int], dilations: list[int] | None
) -> None:
    """Height and width, and a kernel and arguments that differ along them, for every function."""
    nhwc, filter, pointwise = integers(2, 8, 7, 3), integers(3, 2, 3, 2), integers(1, 1, 6, 5)
    dense = torch.zeros(3, 2, 3, 6)
    for c, m in itertools.product(range(3), range(2)):
        dense[:, :, c, c * 2 + m] = filter[:, :, c, m]
    rates = dilations or [1, 1]
    pairs = {"SAME": same_pairs([8, 7], [3, 2], strides, rates), "VALID": [[0, 0]] * 2}.get(str(padding), padding)
    expected = loop_nest(nhwc, filter, strides, pairs, rates)

    last = data_format == "NHWC"
    four = [1, *strides, 1] if last else [1, 1, *strides]
    sides = padding
    if not isinstance(padding, str):
        sides = [[0, 0], *padding, [0, 0]] if last else [[0, 0], [0, 0], *padding]
    input = nhwc if last else nhwc.permute(0, 3, 1, 2).contiguous()

    def check(output: Tensor, expected: Tensor) -> None:
        assert output.is_contiguous()  # in data_format's own order: NHWC is the memory of channels_last
        assert_near(output if last else output.permute(0, 2, 3, 1), expected)

    check(tf.depthwise_conv2d(input, filter, four, sides, data_format, dilations), expected)
    check(tf.depthwise_conv2d(input, filter, four, sides, data_format, rate=dilations), expected)
    separable = tf.separable_conv2d(input, filter, pointwise, four, sides, data_format, dilations)
    check(separable, expected @ pointwise[0, 0].double())
    check(tf.conv2d(input, dense, strides, sides, data_format, dilations), expected)
    four_rates = [1, *rates, 1] if last else [1, 1, *rates]
    check(tf.conv2d(input, dense, four, sides, data_format, four_rates), expected)


def test_separable_is_two_steps() -> None:
    input, first, last = integers(2, 7, 6, 3), integers(3, 3, 3, 2), integers(1, 1, 6, 5)
    output = tf.separable_conv2d(input, first, last, [1, 2, 2, 1], "SAME")
    hidden = tf.depthwise_conv2d(input, first, [1, 2, 2, 1], "SAME")
    assert_near(output, hidden @ last[0, 0])


@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d(groups: int) -> None:
    input, filters = integers(2, 7, 6, 4), integers(3, 3, 4 // groups, 6)
    output = tf.conv2d(input, filters, 2, "SAME", dilations=1)
    padded = F.pad(input.permute(0, 3, 1, 2), (0, 1, 1, 1))  # 6 wide: (0, 1); 7 high: (1, 1)
    expected = F.conv2d(padded, filters.permute(3, 2, 0, 1), stride=2, groups=groups)
    assert_near(output, expected.permute(0, 2, 3, 1))


def image() -> Tensor:
    return torch.zeros(1, 5, 5, 4)


def taps() -> Tensor:
    return torch.zeros(3, 3, 4, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(image(), taps(), [2, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 2], "SAME"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 2, 2, 1], "SAME", dilations=2),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 1], "same"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 1], "FULL"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 1], "SAME", "NCWH"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 1], [[1, 0], [0, 0], [0, 0], [0, 0]]),
        lambda: tf.depthwise_conv2d(image(), taps()[:, :, :3], [1, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(image()[0], taps(), [1, 1, 1, 1], "SAME"),
        lambda: tf.depthwise_conv2d(image(), taps(), [1, 1, 1, 1], "SAME", dilations=2, rate=2),
        lambda: tf.separable_conv2d(image(), taps(), torch.zeros(1, 1, 5, 2), [1, 1, 1, 1], "SAME"),
        lambda: tf.conv2d(image(), torch.zeros(3, 3, 3, 6), 1, "SAME"),
    ],
)
def test_argument_rules(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match="conv2d: expected|conv2d: .*(must|not|one of)"):
        call()


ONES, NONE = [1, 1, 1, 1], [[0, 0]] * 4


def zeros(call: dict) -> dict:
    """With tensors for their sizes, which are tuples."""
    return {name: torch.zeros(value) if isinstance(value, tuple) else value for name, value in call.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": 1}, ["expected strides of length 4", "got 1"]),
        ({"strides": [1, 0, 1, 1]}, ["expected strides of at least 1", "got [1, 0, 1, 1]"]),
        ({"strides": [2, 1, 1, 1]}, ["strides of batch and channels to be 1", "got [2, 1, 1, 1]"]),
        ({"dilations": [1, 1, 1, 1]}, ["dilations to be a number or (height, width)", "got [1, 1, 1, 1]"]),
        ({"dilations": 0}, ["dilations of at least 1", "got 0"]),
        ({"strides": [1, 2, 2, 1], "rate": 2}, ["strides of 1 with dilations above 1", "got [1, 2, 2, 1] and 2"]),
        ({"dilations": 1, "rate": 1}, ["dilations or rate", "got both"]),
        ({"padding": "same"}, ["'SAME', 'VALID' or four pairs", "got 'same'"]),
        ({"padding": [[0, 0]] * 2}, ["four pairs", "got [[0, 0], [0, 0]]"]),
        ({"padding": [0, 1, 1, 0]}, ["four pairs", "got [0, 1, 1, 0]"]),
        ({"padding": [*NONE[:3], [0, 1]]}, ["no padding of batch and channels", "[0, 1]]"]),
        ({"padding": [NONE[0], [-1, 0], *NONE[:2]]}, ["negative padding is not supported", "[-1, 0]"]),
        ({"data_format": "NHCW"}, ["data_format 'NHWC' or 'NCHW'", "got 'NHCW'"]),
        ({"input": (5, 5, 4)}, ["input of 4 dimensions", "got size [5, 5, 4]"]),
        ({"filter": (3, 3, 4)}, ["filter of shape [kh, kw, C, M] with C = 4", "got [3, 3, 4]"]),
    ],
    ids=str,
)
def test_errors_name_expected_and_got(changes: dict, words: list[str]) -> None:
    arguments = zeros({"input": (1, 5, 5, 4), "filter": (3, 3, 4, 1), "strides": ONES, "padding": "SAME", **changes})
    with pytest.raises(ValueError) as caught:
        tf.depthwise_conv2d(**arguments)
    assert all(word in str(caught.value) for word in ["depthwise_conv2d: ", *words]), str(caught.value)
    arguments["depthwise_filter"] = arguments.pop("filter")
    with pytest.raises(ValueError) as caught:
        tf.separable_conv2d(**arguments, pointwise_filter=torch.zeros(1, 1, 4, 2))
    assert all(word in str(caught.value) for word in ["separable_conv2d: ", *words]), str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": [1, 2, 1]}, ["strides to be 1, 2 or 4 numbers", "got [1, 2, 1]"]),
        ({"dilations": [1, 2, 1, 2]}, ["dilations of batch and channels to be 1", "got [1, 2, 1, 2]"]),
        ({"filters": (3, 3, 0, 2)}, ["filters of shape [kh, kw, C / groups, O] with C = 4", "[3, 3, 0, 2]"]),
    ],
    ids=["strides", "dilations", "filters"],
)
def test_errors_of_conv2d(changes: dict, words: list[str]) -> None:
    arguments = zeros({"input": (1, 5, 5, 4), "filters": (3, 3, 4, 2), "strides": 1, "padding": "SAME", **changes})
    with pytest.raises(ValueError) as caught:
        tf.conv2d(**arguments)
    assert all(word in str(caught.value) for word in ["conv2d: ", *words]), str(caught.value)
