"""Run a command of a package that may take only some bytes of memory more than it has before it begins.

python -m tests.workspace.limited BYTES PACKAGE WORDS...
"""

from __future__ import annotations

import importlib
import resource
import sys
from pathlib import Path


def main(room: str, package: str, *words: str) -> int:
    command = importlib.import_module(f"{package}.cli").main
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(room), used + int(room)))
    status: int = command(list(words))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
