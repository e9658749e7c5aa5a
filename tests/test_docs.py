"""Every example in a docstring runs, and every public function and layer has one."""

import doctest
import inspect

import pytest

import torch_ext
from torch_ext import functional, kernels, nn, testing, tf


def public() -> dict[str, object]:
    found = {f"functional.{name}": getattr(functional, name) for name in functional.__all__}
    for module in (nn, tf):
        for name, value in vars(module).items():
            if (
                not name.startswith("_")
                and callable(value)
                and getattr(value, "__module__", "").startswith("torch_ext")
            ):
                found[f"{module.__name__}.{name}"] = value
    found |= {
        "convert": torch_ext.convert,
        "revert": torch_ext.revert,
        "which_kernel": kernels.which_kernel,
    }
    functions = {name: getattr(testing, name) for name in testing.__all__}
    found |= {f"testing.{name}": value for name, value in functions.items() if inspect.isfunction(value)}
    assert all(value.__doc__ for value in found.values())
    return {name: value for name, value in found.items() if name.split(".")[-1][0] != "_"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(public()))
def test_example_runs(name: str) -> None:
    examples = doctest.DocTestParser().get_doctest(public()[name].__doc__, {}, name, None, 0)
    assert examples.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    runner.run(examples, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_every_function_and_layer_is_looked_at() -> None:
    names = {name.split(".")[-1] for name in public()}
    assert {*functional.__all__, *nn.__all__, *tf.__all__} <= names
    assert {"assert_close", "devices", "isa", "isas", "override_aten", "tolerances"} <= names
    for layer in ("Conv", "DepthwiseConv", "SeparableConv"):
        assert {f"{layer}{n}d" for n in (1, 2, 3)} <= names


def parts(name: str) -> list[str]:
    if name.startswith(("functional.", "torch_ext.tf.")):
        return ["Args", "Returns", "Raises", "Example"]
    if name.startswith("torch_ext.nn."):
        return ["Args", "Raises", "Shape", "Example"]
    return ["Example"] if name.startswith("testing.") else ["Args", "Returns", "Example"]


@pytest.mark.parametrize("name", sorted(public()))
def test_docstring_has_its_parts(name: str) -> None:
    document = inspect.getdoc(public()[name])
    lines = document.splitlines()
    assert lines[0].strip() and (len(lines) == 1 or not lines[1].strip()), "a summary line, then an empty one"
    for part in parts(name):
        assert any(line.startswith(f"{part}:") for line in lines), f"{name} has no {part}"
    assert "{" not in document.split("Example:")[0], "a template that was not filled in"


@pytest.mark.parametrize("name", sorted(name for name in public() if name.startswith(("functional.", "torch_ext.tf."))))
def test_every_argument_is_described(name: str) -> None:
    document = inspect.getdoc(public()[name])
    described = document.split("Args:")[1].split("Returns:")[0]
    headings = " ".join(line.split(":")[0] for line in described.splitlines() if ":" in line).replace(",", " ").split()
    assert set(inspect.signature(public()[name]).parameters) <= set(headings)
