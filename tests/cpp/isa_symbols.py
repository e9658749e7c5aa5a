"""Fails if code outside the AVX2 namespace uses a 256-bit register: it would crash on a CPU without AVX.

Usage: isa_symbols.py OBJECT...    (object files or libraries)
"""

from __future__ import annotations

import sys

from disassembly import functions

NAMESPACE = "torch_ext::cpu::avx2::"


def offenders(path: str) -> list[str]:
    """The symbols of a file that use ymm registers and do not belong to the AVX2 namespace."""
    return [name for name, lines in functions(path) if NAMESPACE not in name and any("%ymm" in line for line in lines)]


def main(paths: list[str]) -> int:
    found = [f"{path}: {symbol}" for path in paths for symbol in offenders(path)]
    for line in found:
        print(f"uses a ymm register outside of {NAMESPACE} {line}")
    return 1 if found or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
