"""The code of a library, function by function, as objdump shows it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")


def functions(path: str) -> Iterator[tuple[str, list[str]]]:
    """Demangled names and the lines of their code."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, lines = "", []
    for line in listing.splitlines():
        if match := SYMBOL.match(line):
            yield name, lines
            name, lines = match[1], []
        else:
            lines.append(line)
    yield name, lines
