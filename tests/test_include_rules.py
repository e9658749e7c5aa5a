"""Who may include whom in csrc: the folder of a file says what it may know."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})

STANDARD = r"[a-z_]+"  # <vector>: no slash, no suffix
INTRINSICS = "(cpuid|immintrin).h"
ATEN = r"(ATen|c10)/(?!cuda/).+"
LIBRARY = r"torch/(library|version)\.h"
INTERNALS = r"torch/(csrc/(autograd|dynamo)|headeronly)/.+"
CUDA = r"(cuda.*|(ATen|c10)/cuda/.+)"
TOOLKIT = r"cuda_(bf16|fp16)\.h"

SHARED = ["ops/aten.h", "ops/call.h", "ops/check.h", "ops/cuda.h", "ops/tensors.h"]  # what ops has for the backends

# Folder or file of csrc (the longest that matches counts): what its files may include, of csrc and of others.
RULES = {
    "core": (["core"], [STANDARD]),
    "cpu/kernels": (["core", "cpu/kernels"], [STANDARD, INTRINSICS]),
    "cuda/kernels": (["core", "cuda/kernels"], [STANDARD]),
    "cuda/kernels/simt_device.h": (["core", "cuda/kernels"], [STANDARD, TOOLKIT]),
    "ops": (["core", "ops", "torch_ext.h"], [STANDARD, ATEN, LIBRARY, INTERNALS]),
    "cpu": (["core", "cpu", *SHARED], [STANDARD, INTRINSICS, ATEN, LIBRARY]),
    "cuda": (["core", "cuda", *SHARED], [STANDARD, ATEN, LIBRARY, CUDA]),
    "torch_ext.h": ([], [STANDARD, r"ATen/core/Tensor\.h"]),
}


def forbidden(path: str, text: str) -> list[str]:
    """The includes in the text of csrc/path that the rules do not allow."""
    rule = max((rule for rule in RULES if within(path, rule)), key=len)
    folders, headers = RULES[rule]
    wrong = []
    for opening, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text, re.MULTILINE):
        target = in_csrc(path, name)
        if target is not None:
            allowed = any(within(target, folder) for folder in folders)
        else:
            allowed = opening == "<" and any(re.fullmatch(header, name) for header in headers)
        if not allowed:
            wrong.append(name)
    return wrong


def in_csrc(path: str, name: str) -> str | None:
    """Where in csrc an include leads: relative to the file that has it, or to csrc."""
    for base in ((CSRC / path).parent, CSRC):
        target = (base / name).resolve()
        if target.is_file() and target.is_relative_to(CSRC):
            return str(target.relative_to(CSRC))
    return None


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CSRC)))
def test_includes(file: Path) -> None:
    assert forbidden(str(file.relative_to(CSRC)), file.read_text()) == []


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("core/new.h", "<ATen/ATen.h>"),
        ("core/new.h", '"../ops/check.h"'),
        ("cpu/kernels/new.h", '"ops/check.h"'),
        ("cpu/kernels/new.h", "<torch/library.h>"),
        ("cpu/new.cpp", '"ops/composite.h"'),
        ("cpu/new.cpp", "<torch/csrc/autograd/function.h>"),
        ("cpu/new.cpp", "<c10/cuda/CUDAStream.h>"),
        ("cuda/kernels/new.cuh", "<cuda_fp16.h>"),
        ("cuda/kernels/new.cuh", "<ATen/ATen.h>"),
        ("cuda/kernels/new.cuh", '"cpu/kernels/table.h"'),
        ("cuda/kernels/simt_device.h", "<cuda_runtime.h>"),
        ("ops/new.cpp", '"cpu/kernels/table.h"'),
        ("ops/new.cpp", "<torch/extension.h>"),
        ("ops/new.cpp", "<Python.h>"),
        ("torch_ext.h", '"core/geometry.h"'),
    ],
)
def test_the_test_finds(path: str, include: str) -> None:
    assert forbidden(path, f"#include <vector>\n#include {include}\n") == [include[1:-1]]
