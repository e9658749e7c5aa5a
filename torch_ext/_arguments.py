"""Arguments in the forms that users write, turned into the lists that the ops take."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

IntN: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | Sequence[int] | Sequence[tuple[int, int]] | str

PADDING_STRINGS = ("valid", "same", "same_lower", "causal")


class ArgumentError(ValueError, RuntimeError):
    """A bad argument: the RuntimeError of an op and the ValueError of a constructor at once."""


def numbers(op: str, name: str, value: IntN, n: int) -> list[int]:
    """An int, one int or n ints, as n ints."""
    if _is_int(value):
        return [value] * n
    if _is_sequence(value) and all(_is_int(item) for item in value) and len(value) in (1, n):
        return list(value) * (n if len(value) == 1 else 1)
    expected = "an int or (int,)" if n == 1 else f"an int, (int,) or {n} ints"
    raise ArgumentError(f"{op}: expected {name} to be {expected}, but got {value!r}")


def positive(op: str, name: str, value: IntN, n: int) -> list[int]:
    """As `numbers`, for what a constructor can already refuse."""
    result = numbers(op, name, value, n)
    if any(item < 1 for item in result):
        raise ArgumentError(f"{op}: expected {name} to be at least 1, but got {value!r}")
    return result


def count(op: str, name: str, value: int, least: int) -> int:
    """One int of at least `least`."""
    if not _is_int(value):
        raise ArgumentError(f"{op}: expected {name} to be an int, but got {value!r}")
    if value < least:
        raise ArgumentError(f"{op}: expected {name} to be at least {least}, but got {value}")
    return value


def padding_list(op: str, value: Padding, n: int) -> list[int] | str:
    """A padding as the composite ops take it: n numbers, 2n numbers (axis by axis: before, after) or a string."""
    if isinstance(value, str):
        allowed = PADDING_STRINGS if n == 1 else PADDING_STRINGS[:-1]
        if value not in allowed:
            raise ArgumentError(f"{op}: expected padding to be one of {', '.join(allowed)}, but got {value!r}")
        return value
    if _is_sequence(value) and len(value) in (1, n) and all(_is_pair(item) for item in value):
        pairs = list(value) * (n if len(value) == 1 else 1)
        if all(before == after for before, after in pairs):
            return [before for before, _ in pairs]
        return [number for pair in pairs for number in pair]
    if n == 1 and _is_pair(value):
        raise ArgumentError(
            f"{op}: expected padding before and after to be written (({value[0]}, {value[1]}),), but got {value!r}"
        )
    try:
        return numbers(op, "padding", value, n)
    except ArgumentError:
        forms = "an int, (int,), ((before, after),)" + ("" if n == 1 else f", {n} ints, {n} pairs (before, after)")
        raise ArgumentError(f"{op}: expected padding to be {forms} or a string, but got {value!r}") from None


def both_sides(padding: Sequence[int], n: int) -> list[int]:
    """n or 2n numbers as 2n numbers, axis by axis (before, after)."""
    return list(padding) if len(padding) == 2 * n else [side for side in padding for _ in range(2)]


def _is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) or (
        hasattr(value, "__index__") and not isinstance(value, torch.Tensor)
    )


def _is_sequence(value: object) -> bool:
    return isinstance(value, (list, tuple, torch.Size))


def _is_pair(value: object) -> bool:
    return _is_sequence(value) and len(value) == 2 and all(_is_int(item) for item in value)
