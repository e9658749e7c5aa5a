"""Every example in a docstring runs, and every public function and layer has one."""

import doctest

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
        "which_kernel": kernels.which_kernel,
        "isa": testing.isa,
        "override_aten": testing.override_aten,
    }
    return {name: value for name, value in found.items() if value.__doc__ and name.split(".")[-1][0] != "_"}


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
    assert set(functional.__all__) <= names
    for layer in ("Conv", "DepthwiseConv", "SeparableConv"):
        assert {f"{layer}{n}d" for n in (1, 2, 3)} <= names
