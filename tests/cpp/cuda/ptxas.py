"""Reads what nvcc's -Xptxas=-v says of kernels; fails if one spills registers or has too many of them.

Usage: ptxas.py LOG    (the output of a build)
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MOST_REGISTERS = 128
# Eight corners in float64 have more, with fewer threads, rather than spill.
MOST_OF_WIDE = 168
WIDE = re.compile(r"position_spread_kernel<3, .*double>")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernels(log: str) -> list[tuple[str, str, int, int]]:
    """Kernel, architecture, registers, bytes spilled."""
    found, entry, spilled = [], None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry, spilled = match.groups(), 0
        elif match := SPILLS.search(line):
            spilled = int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and entry:
            found.append((*entry, int(match[1]), spilled))
            entry = None
    names = subprocess.run(
        ["c++filt"], input="\n".join(k[0] for k in found), capture_output=True, text=True, check=True
    )
    return [(name, *rest) for name, (_, *rest) in zip(names.stdout.splitlines(), found, strict=True)]


def main(path: str) -> int:
    found = kernels(Path(path).read_text())
    bad = [k for k in found if k[2] > (MOST_OF_WIDE if WIDE.search(k[0]) else MOST_REGISTERS) or k[3] > 0]
    for name, architecture, registers, spilled in bad:
        print(f"{architecture} {name}: {registers} registers, {spilled} bytes spilled")
    most = max((k[2] for k in found), default=0)
    print(f"{len(found)} kernels, at most {most} registers; {len(bad)} spill or have too many")
    return 1 if bad or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
