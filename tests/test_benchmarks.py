"""The benchmarks run, compare results before they time anything, and know every family of layers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from torch_ext import testing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
pytest.importorskip("matplotlib", reason="the benchmarks need the demo's packages")

import bench  # noqa: E402
import gpu  # noqa: E402
import guard  # noqa: E402
import layers  # noqa: E402
import problems  # noqa: E402
import report  # noqa: E402


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


RIVALS = ["convnextt_dw96_k7", "mobilenetv2_dw96_s2", "dilated_dw128_d2", "conformer_dw512_k31", "x3d_dw54"]


@pytest.mark.parametrize("op", ["depthwise", "transposed"])
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_compute_the_same(name: str, op: str) -> None:
    """PyTorch's own kernel and cuDNN's, which is called as a transposed layer."""
    layer = next(layer for layer in layers.read_layers() if layer.name == name)
    spatial = (40,) if len(layer.spatial) == 1 else (12,) * len(layer.spatial)
    problem = small(name, op, in_channels=3, out_channels=3, groups=3, spatial=spatial)
    expected = problem.expected()
    for dtype, layout in (("float64", "contiguous"), ("float32", "channels_last")):
        for pass_name, (own, cudnn) in problem.rivals(dtype, layout).items():
            assert torch.equal(own().double(), expected[pass_name])
            assert torch.equal(cudnn().double(), expected[pass_name])


def test_rivals_of_a_multiplier() -> None:
    problem = small("multiplier_dw64_m2", "depthwise", in_channels=3, out_channels=6, groups=3, spatial=(9, 9))
    for pass_name, calls in problem.rivals("float64", "contiguous").items():
        assert len(calls) == 2 and all(torch.equal(call(), problem.expected()[pass_name]) for call in calls)


def test_rivals_of_every_layer() -> None:
    """Both take the shapes of all that PyTorch pads by itself."""
    for layer in layers.read_layers():
        if layer.op in ("depthwise", "transposed"):
            problem = problems.Problem(layer, 2, "meta")
            for theirs, _, *rivals in problem.calls("float16", "channels_last").values():
                assert [call().shape for call in rivals] == [theirs().shape] * (2 if layer.symmetric else 1)


def test_rivals_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN has no engine for some layers, and PyTorch pads unevenly in a call of its own."""
    uneven = small("efficientdet_same_s2", "depthwise", in_channels=2, out_channels=2, groups=2, spatial=(8, 8))
    assert {len(calls) for calls in uneven.rivals("float32", "contiguous").values()} == {1}
    even = small("convnextt_dw96_k7", "depthwise", in_channels=3, out_channels=3, groups=3, spatial=(9, 9))
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", lambda *_: torch.empty(-1))  # RuntimeError
    assert [len(calls) for calls in even.rivals("float32", "contiguous").values()] == [1, 2, 1]


def test_native_is_without_cudnn() -> None:
    assert torch.backends.cudnn.enabled
    assert not problems.Native(lambda: torch.backends.cudnn.enabled)()
    assert torch.backends.cudnn.enabled


class Queue:
    """A CPU that launches what a GPU computes: when either is done with what it has, in seconds."""

    def __init__(self) -> None:
        self.cpu = self.gpu = 0.0
        self.log: list[str] = []

    def run(self, name: str, launch: float, compute: float) -> None:
        self.log.append(name)
        self.cpu += launch
        self.gpu = max(self.gpu, self.cpu) + compute

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=-1.0)

        def record() -> None:
            self.log.append("record")
            event.at = max(self.gpu, self.cpu)

        def synchronize() -> None:
            self.cpu = max(self.cpu, event.at)

        event.record, event.synchronize = record, synchronize
        event.query, event.elapsed_time = lambda: event.at <= self.cpu, lambda end: 1e3 * (end.at - event.at)
        return event


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queue.run("spin", 1e-6, 1e-9 * cycles))
    monkeypatch.setattr(gpu, "_cold", lambda: SimpleNamespace(sum=lambda: queue.run("read", 5e-6, 1e-4)))
    return queue


@pytest.mark.parametrize("launch", [1e-6, 1e-3, 0.02])
def test_gpu_times_are_without_launches(queue: Queue, launch: float) -> None:
    """Neither the gap before a kernel nor those between several."""

    def call() -> None:
        for _ in range(3):
            queue.run("kernel", launch, 1e-5)

    assert gpu.least([call, call], 0.0) == [pytest.approx(3e-5)] * 2


def test_gpu_times_are_without_settings(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = torch.backends.cudnn.flags

    def slow_flags(**settings: bool) -> object:
        queue.run("flags", 1.0, 0.0)  # longer than any spin
        return flags(**settings)

    def call() -> None:
        assert not torch.backends.cudnn.enabled
        queue.run("kernel", 1e-6, 1e-5)

    monkeypatch.setattr(torch.backends.cudnn, "flags", slow_flags)
    assert gpu.least([problems.Native(call)], 0.0, rounds=2) == [pytest.approx(1e-5)]
    window = ["flags", "read", "spin", "record", "kernel", "record"]
    assert queue.log == ["flags", "kernel", *window, *window]


def test_gpu_calls_that_wait_are_timed(queue: Queue) -> None:
    """No spin hides their launches, however long."""

    def call() -> None:
        queue.cpu = max(queue.cpu, queue.gpu)
        queue.run("kernel", 1e-6, 1e-5)

    assert gpu.least([call], 0.0, rounds=1)[0] == pytest.approx(1.1e-5)


class OnCpu(TorchFunctionMode):
    """What is meant for a GPU lies in the CPU's memory."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        args = tuple("cpu" if isinstance(arg, str) and arg == "cuda" else arg for arg in args)
        kwargs = {name: "cpu" if value == "cuda" else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Says that it is a GPU, and takes the CPU's time."""
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, clock_rate=1980000, L2_cache_size=50 << 20
    )

    def event(enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=0.0, query=lambda: False, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", time.perf_counter())
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(testing, "devices", lambda: ["cpu", "cuda"])
    caches = gpu._cold, gpu.copy, gpu.bandwidth
    for cache in caches:
        cache.cache_clear()
    with OnCpu():
        yield
    for cache in caches:
        cache.cache_clear()


def test_gpu_yardsticks(h200: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.peak("float32", 1) == gpu.peak("bfloat16", 1) == pytest.approx(66.9e12, rel=0.01)
    assert gpu.peak("float64", 1) == pytest.approx(33.5e12, rel=0.01)  # 67 with the tensor cores
    assert gpu._cold().nbytes > 50 << 20
    touched = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, source: touched.append(to.nbytes + source.nbytes))
    gpu.copy(1 << 20)()
    assert touched == [1 << 20]


def bench_on_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> dict:
    """What bench.py saves with these options."""
    monkeypatch.setattr(bench.machine, "restart", lambda _: None)
    monkeypatch.setattr(bench, "__file__", str(folder / "bench.py"))
    monkeypatch.setattr(gpu, "COPY_SIZES", [1 << 10] * 3)
    monkeypatch.setattr(gpu, "_cold", lambda: torch.zeros(1))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cuda", "--seconds", "0", *options])
    threads = torch.get_num_threads()
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    (saved,) = (folder / "results").glob("*.json")
    return {"file": saved.name, **json.loads(saved.read_text())}


def test_bench_on_gpu(
    h200: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--filter", "mobilenetv2_dw960", "--batch", "1", "--dtype", "float16", "--layout", "contiguous"]
    saved = bench_on_gpu(monkeypatch, tmp_path, "--op", "depthwise", "--op", "transposed", *options)
    assert saved["file"] == "nvidia-h200-depthwise-transposed-mobilenetv2_dw960.json"
    assert saved["gpu"] == "NVIDIA H200" and len(saved["results"]) == 2 * 3
    for row in saved["results"]:
        assert row["device"] == "cuda"
        shares = {name: row[f"of_{name}"] for name in ("aten", "cudnn", "copy", "float32")}
        assert row["ratio"] <= min(shares["aten"], shares["cudnn"])
        assert row["roofline"] >= shares["copy"] > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ATen", "cuDNN", "copy"))
    assert len(list((tmp_path / "results").glob("*.png"))) == 2


def test_bench_on_gpu_of_other_ops(h200: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch is cuDNN for groups, torchvision for deformable layers; the smallest layers there are."""
    chosen = ("shufflenetv1_pw", "deform_64", "sep_mobilenetv1_64")
    tiny = [replace(layer, spatial=(6, 6)) for layer in layers.read_layers() if layer.name in chosen]
    monkeypatch.setattr(bench, "read_layers", lambda: tiny)
    saved = bench_on_gpu(monkeypatch, tmp_path, "--batch", "2", "--layout", "channels_last")
    names = {row["op"]: {name for name in row if name.startswith("of_")} for row in saved["results"]}
    assert names == {
        "group": {"of_cudnn", "of_copy"},
        "separable": {"of_two_ops", "of_copy"},
        "deform": {"of_plain", "of_copy"},
    }


@pytest.mark.parametrize("device, batches", [("cpu", [1, 8]), ("cuda", [32, 128])])
def test_batches(monkeypatch: pytest.MonkeyPatch, device: str, batches: list[int]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", device])
    assert bench.parse().batch == batches
    sizes = {layer.name: bench.batches(layer, batches) for layer in layers.read_layers()}
    assert sizes["mobilenetv1_dw512"] == batches and sizes["gaussian_blur_rgb"] == [1]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", device, "--batch", "3"])
    assert bench.parse().batch == [3]


def test_only_what_cudnn_computes_may_be_near(h200: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = next(layer for layer in layers.read_layers() if layer.name == "shufflenetv1_pw")
    problem = problems.Problem(replace(layer, spatial=(5, 5)), 1, "cuda")
    expected = problem.expected()
    expected["forward"] *= 1 + 1e-4
    monkeypatch.setattr(problem, "kernel", lambda *_: "direct/cuda")
    with pytest.raises(SystemExit, match="forward: .* wrong"):
        problems.check(problem, expected, "float32", "contiguous")
    monkeypatch.setattr(problem, "kernel", lambda *_: "aten::convolution")
    problems.check(problem, expected, "float32", "contiguous")
    problem.device = "cpu"
    with pytest.raises(SystemExit, match="forward: .* wrong"):
        problems.check(problem, expected, "float32", "contiguous")
    problem.device = "cuda"
    expected["forward"] *= 1.01
    with pytest.raises(SystemExit, match="forward: .* wrong"):
        problems.check(problem, expected, "float32", "contiguous")


def test_report_of_rows_with_different_rivals() -> None:
    """What a row lacks is a blank, and a GPU's row is not a CPU's, whose older files do not name a device."""
    row = dict.fromkeys(("torch_ms", "ours_ms", "ratio", "gflops", "gbytes", "roofline"), 1.0)
    row |= {"device": "cuda", "op": "depthwise", "family": "3x3", "layer": "name", "batch": 1, "layout": "contiguous"}
    row |= {"dtype": "float64", "threads": 1, "pass": "forward", "kernel": "depthwise/cuda", "misses": {}}
    table = report.Table(SimpleNamespace(compare=None, short=False))
    with report.CONSOLE.capture() as capture:
        table.add({**row, "of_aten": 2.0, "of_copy": 0.75})
        table.add({**row, "of_aten": 2.0, "of_cudnn": 3.0, "of_copy": 0.75})
        table.close()
    first, second = (line.split("│") for line in capture.get().splitlines() if "depthwise/cuda" in line)
    assert len(first) == len(second)
    assert [cell.strip() for cell in first[12:16]] == ["2.00", "", "0.75", "depthwise/cuda"]
    old = {name: value for name, value in row.items() if name != "device"}
    assert report.key(row) != report.key(old) == report.key({**row, "device": "cpu"})


@pytest.mark.parametrize("layer", layers.read_layers(), ids=lambda layer: f"{layer.op}-{layer.name}")
def test_layers_have_goals_for_gpus(layer: layers.Layer) -> None:
    for name in ("forward", "training") if layer.op in ("separable", "deform") else layers.CONV_PASSES:
        for layout in ("contiguous", "channels_last"):
            goals = layers.floors(layer, 32, layout, "float16", name, "cuda")
            assert set(goals) <= {"ratio", "roofline"}
            assert ("roofline" in goals) >= (layer.op in ("depthwise", "transposed"))
