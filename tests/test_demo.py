"""The demo: its two networks are one network, and every part runs on a small scale."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's dependencies are not installed")
pytest.importorskip("torchvision", reason="the demo's dependencies are not installed")

import torch_ext.nn
from torch_ext.demo import conversion, network, torch_layers, training


def test_twins_start_equal() -> None:
    digits = training.load()
    assert len(digits.labels) + len(digits.held_out_labels) == 1797
    assert abs(len(digits.held_out_labels) - 1797 / 5) < 1
    ours, theirs = network.build(torch_ext.nn), network.build(torch_layers)
    first = training.compare_first_step(ours, theirs, digits.images[:64], digits.labels[:64])
    assert first.weights == 0
    assert first.loss <= 1e-5
    assert first.gradients <= 1e-5


def test_network_is_made_of_our_layers() -> None:
    kinds = {type(layer).__name__ for layer in network.build(torch_ext.nn).modules()}
    assert {"SeparableConv2d", "DepthwiseConv2d", "Conv2d"} <= kinds


def test_comparison_sees_a_difference() -> None:
    digits = training.load()
    ours, theirs = network.build(torch_ext.nn), network.build(torch_layers)
    with torch.no_grad():
        next(theirs.parameters()).add_(0.1)
    first = training.compare_first_step(ours, theirs, digits.images[:64], digits.labels[:64])
    assert first.weights > 0.09
    assert first.loss > 1e-5


def test_comparison_of_a_model() -> None:
    rows = list(conversion.compare("mobilenet_v3_small", 64, 1))
    assert len(rows) == len(conversion.LAYOUTS)
    for row in rows:
        assert 0 < row.converted < row.convolutions
        assert row.difference < 1e-4


def test_whole_demo_in_short(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch_ext.demo", "--quick", "--output", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Every promise kept" in process.stdout
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "digits_scripted.pt").exists()
    assert (tmp_path / "digits_exported.pt2").exists()
