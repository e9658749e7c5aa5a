"""Fails if an innermost loop of an AVX2 micro-kernel moves a vector to or from the stack: a register tile that does not
fit in the registers, or that the compiler did not keep there, halves the kernel's speed.

One move for 25 multiply-adds is let pass: strips of 5x5 kernels need all 16 registers, GCC 12 wants a 17th, and is
still faster so than with a part of the weights at a time (benchmarks/ladder). Loops with masked loads are left out:
they are the edges of the image.

Usage: spills.py OBJECT...    (object files or libraries, built with optimisation)
"""

from __future__ import annotations

import re
import sys

from disassembly import functions

KERNELS = re.compile(r"torch_ext::cpu::avx2::(tiles|strip|grad_strips|sum_taps|add_vectors)<")
CODE = re.compile(r"^\s*([0-9a-f]+):\s+(.*)$")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")
STACK = re.compile(r"\(%r[sb]p[,)]")


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """The instructions of every loop that holds no other, found by its jump backwards."""
    code = [(int(match[1], 16), match[2]) for match in map(CODE.match, lines) if match]
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, text) in enumerate(code):
        if (jump := JUMP.match(text)) and (target := int(jump[1], 16)) <= address and target in index:
            loops.append((index[target], i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[text for _, text in code[begin : end + 1]] for begin, end in inner]


def main(paths: list[str]) -> int:
    spills, kernels, checked = [], 0, 0
    for path in paths:
        for name, lines in functions(path):
            if not KERNELS.search(name):
                continue
            kernels += 1
            for loop in innermost_loops(lines):
                if not any("fmadd" in text or "vaddp" in text for text in loop):
                    continue
                if any("vmaskmov" in text for text in loop):
                    continue
                checked += 1
                moves = [f"{name}: {text}" for text in loop if "%ymm" in text and STACK.search(text)]
                if len(moves) * 25 > sum("fmadd" in text for text in loop):
                    spills += moves
    for line in spills:
        print(line)
    print(f"{len(spills)} vectors on the stack in {checked} innermost loops of {kernels} micro-kernels")
    return 1 if spills or checked < 100 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
