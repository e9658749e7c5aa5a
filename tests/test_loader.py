"""The loader says what is wrong and what to do; the library alone is enough for torch; `python -m torch_ext info`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_ext
from torch_ext import _loader


def python(*arguments: str, cwd: Path, **env: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, check=True, text=True, stdout=subprocess.PIPE).stdout


def test_missing_library(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"missing\.so does not exist.*was not built.*pip install"):
        _loader.load(tmp_path / "missing.so")


def test_other_minor_release_of_torch(tmp_path: Path) -> None:
    (tmp_path / "library.so").touch()
    (tmp_path / "library.torch").write_text("1.13.1\n")
    with pytest.raises(ImportError, match=r"built with torch 1\.13\.1, but this is torch .*install torch 1\.13"):
        _loader.load(tmp_path / "library.so")


def test_patch_release_and_build_of_torch_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "library.so").symlink_to(_loader.LIBRARY)
    major, minor = torch.__version__.split(".")[:2]
    (tmp_path / "library.torch").write_text(f"{major}.{minor}.99+cpu\n")
    _loader.load(tmp_path / "library.so")


def test_broken_library(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"not a library")
    with pytest.raises(ImportError, match=r"library\.so does not load: .*Likely causes: .*pip install"):
        _loader.load(tmp_path / "library.so")


def test_record_names_this_torch() -> None:
    built_with = _loader.LIBRARY.with_suffix(".torch").read_text().strip()
    assert built_with.split(".")[:2] == torch.__version__.split(".")[:2]


def test_library_needs_no_package(tmp_path: Path) -> None:
    code = f"""
import sys, torch
torch.ops.load_library({str(_loader.LIBRARY)!r})
output = torch.ops.torch_ext.depthwise_conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3))
assert "torch_ext" not in sys.modules
print(output.sum().item())
"""
    assert python("-c", code, cwd=tmp_path) == "72.0\n"


def test_versions_agree() -> None:
    assert json.loads(torch.ops.torch_ext._build_info())["version"] == torch_ext.__version__


def test_info(tmp_path: Path) -> None:
    text = python("-m", "torch_ext", "info", cwd=tmp_path, TORCH_EXT_ISA="scalar")
    rows = dict(line.split(":", 1) for line in text.splitlines())
    assert rows["torch_ext"].strip() == torch_ext.__version__
    assert rows["torch"].split()[0] == torch.__version__
    assert rows["instruction set"].split()[0] == "scalar"
    assert int(rows["threads"]) >= 1
    assert rows["OpenMP"].strip().startswith("yes")
    assert rows["CUDA"].strip().startswith(("yes", "no"))
