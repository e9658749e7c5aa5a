"""The benchmarks run, compare results before they time anything, and know every family of layers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
pytest.importorskip("matplotlib", reason="the benchmarks need the demo's packages")

import bench  # noqa: E402
import guard  # noqa: E402
import layers  # noqa: E402
import problems  # noqa: E402


def run(script: str, *options: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_EXT")}
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_bench(tmp_path: Path) -> None:
    options = ["--op", "depthwise", "--op", "transposed", "--filter", "mobilenetv2_dw960", "--batch", "1"]
    options += ["--dtype", "float32", "bfloat16", "--threads", "1", "--seconds", "0", "--isa", "scalar"]
    saved = tmp_path / "results" / "first.json"
    first = run("bench.py", *options, "--save", str(saved))
    assert first.returncode == 0, first.stderr
    results = json.loads(saved.read_text())
    assert results["isa"] == "scalar"
    assert len(results["results"]) == 2 * 2 * 2 * 3  # ops, dtypes, layouts, passes
    assert {row["kernel"] for row in results["results"]} == {"depthwise/scalar"}
    assert [path.name for path in sorted(saved.parent.glob("*.png"))] == [
        "first-depthwise-3x3.png",
        "first-transposed-3x3.png",
    ]
    second = run("bench.py", *options, "--compare", str(saved))
    assert second.returncode == 0, second.stderr
    assert "roofline" in second.stdout and "depthwise/scalar" in second.stdout


@pytest.mark.parametrize("floor, returncode", [(1e9, 1), (0.0, 0)])
def test_floors_decide_the_exit_code(monkeypatch: pytest.MonkeyPatch, floor: float, returncode: int) -> None:
    """Whatever the times: floors that nothing reaches, or everything."""
    monkeypatch.setattr(bench, "floors", lambda *_: {"ratio": floor, "roofline": floor})
    monkeypatch.setattr(bench, "guard", lambda _: 0.0)
    monkeypatch.setattr(bench.machine, "restart", lambda _: None)
    options = ["--op", "depthwise", "--filter", "mobilenetv2_dw960", "--batch", "1", "--threads", "1", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options, "--isa", "native", "--layout", "contiguous", "--floors"])
    threads = torch.get_num_threads()
    try:
        if returncode:
            with pytest.raises(SystemExit) as stopped:
                bench.main()
            assert stopped.value.code == returncode
        else:
            bench.main()
    finally:
        torch.set_num_threads(threads)


def test_guard() -> None:
    result = run("guard.py", "--shapes", "2", "--seconds", "0", "--seed", "3")
    assert "2 shapes, 12 passes, all as in float64" in result.stdout, result.stderr
    assert result.returncode == int("0 below the guard" not in result.stdout)


def test_random_layers_depend_on_the_seed_alone() -> None:
    first, again, other = (list(guard.random_layers(seed, 40)) for seed in (0, 0, 1))
    assert first == again != other
    for layer, batch in first:
        assert min(layer.out_spatial) > 0 and layer.flops(batch) <= guard.MAX_FLOPS
        assert layer.in_channels % layer.groups == layer.out_channels % layer.groups == 0


@pytest.mark.slow
def test_models() -> None:
    result = run("models.py", "--models", "x3d_block", "--batch", "1", "--dtype", "float32", "--seconds", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("x3d_block") == 4


@pytest.mark.parametrize("layer", layers.read_layers(), ids=lambda layer: f"{layer.op}-{layer.name}")
def test_layers_have_floors(layer: layers.Layer) -> None:
    special = {"separable": {"ratio", "of_two_ops"}, "deform": {"of_plain"}}
    for name in ("forward", "training") if layer.op in special else layers.CONV_PASSES:
        for layout in ("contiguous", "channels_last"):
            expected = special.get(layer.op, {"ratio", "roofline"})
            assert set(layers.floors(layer, 1, layout, "float32", name)) == expected
            assert layer.op in special or "ratio" in layers.floors(layer, 8, layout, "bfloat16", name)


def test_deform_problem() -> None:
    """Ours and torchvision's give the same, in a training step all gradients; a plain convolution is timed beside."""
    layer = next(layer for layer in layers.read_layers() if layer.name == "dcnv2_r50_c5")
    assert layer.offset_groups == 4
    tiny = {"in_channels": 8, "out_channels": 5, "spatial": (7, 8)}
    problem = problems.make_problem(layers.Layer(**{**vars(layer), **tiny}), 2)
    for dtype in ("float32", "bfloat16"):
        for layout in ("contiguous", "channels_last"):
            problems.check(problem, problem.expected(), dtype, layout)
            for pass_name, (theirs, ours, plain) in problem.calls(dtype, layout).items():
                results = [result if isinstance(result, tuple) else (result,) for result in (theirs(), ours(), plain())]
                assert [len(each) for each in results] == ([4, 4, 2] if pass_name == "training" else [1, 1, 1])
                assert results[0][0].shape == results[1][0].shape


def test_separable_problem() -> None:
    """Ours, PyTorch's and the two ops give the same; a training step gives all gradients."""
    layer = next(layer for layer in layers.read_layers() if layer.name == "sep_mobilenetv1_64")
    tiny = {"in_channels": 6, "groups": 6, "out_channels": 5, "spatial": (7, 8)}
    problem = problems.make_problem(layers.Layer(**{**vars(layer), **tiny}), 2)
    for dtype, names in (("float32", ["forward", "training"]), ("bfloat16", ["forward"])):
        for layout in ("contiguous", "channels_last"):
            problems.check(problem, problem.expected(), dtype, layout)
            calls = problem.calls(dtype, layout)
            assert list(calls) == names
            assert all(problem.kernel(dtype, layout, name) for name in names)
            for _, ours, two_ops in calls.values():
                results = [result if isinstance(result, tuple) else (result,) for result in (ours(), two_ops())]
                assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def small(name: str, op: str, **changes: object) -> problems.Problem:
    """A layer with little work, its channels and image made small."""
    layer = next(layer for layer in layers.read_layers() if (layer.name, layer.op) == (name, op))
    return problems.Problem(layers.Layer(**{**vars(layer), **changes}), 2)


@pytest.mark.parametrize("op", ["depthwise", "transposed"])
@pytest.mark.parametrize("name", ["convnextt_dw96_k7", "mobilenetv2_dw96_s2", "dilated_dw128_d2"])
def test_reference_is_pytorchs(name: str, op: str) -> None:
    problem = small(name, op, in_channels=3, out_channels=3, groups=3, spatial=(11, 11))
    expected = problem.expected()
    for pass_name, (theirs, ours) in problem.calls("float64", "channels_last").items():
        assert torch.equal(theirs(), expected[pass_name])
        assert torch.equal(ours(), expected[pass_name])


def test_asymmetric_padding_is_pytorchs() -> None:
    problem = small("efficientdet_same_s2", "depthwise", in_channels=2, out_channels=4, groups=2, spatial=(8, 10))
    for pass_name, (theirs, ours) in problem.calls("float64", "contiguous").items():
        assert torch.equal(theirs(), problem.expected()[pass_name])
        assert torch.equal(ours(), problem.expected()[pass_name])


def test_wrong_results_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small("convnextt_dw96_k7", "depthwise", in_channels=3, out_channels=3, groups=3, spatial=(9, 9))
    expected = problem.expected()
    problems.check(problem, expected, "float32", "contiguous")
    expected["grad_weight"][0, 0, 3, 3] += 1
    with pytest.raises(SystemExit, match="grad_weight: 1 wrong"):
        problems.check(problem, expected, "float32", "contiguous")
