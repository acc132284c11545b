"""The commands that a page tells its reader to run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands_of(page: str, program: str) -> list[list[str]]:
    """Return the commands of a page's blocks in order, without installations."""
    found = []
    for language, code in _BLOCK.findall(page):
        if language == "python":
            found.append([sys.executable, "-c", code])
            continue
        for line in code.replace("\\\n", " ").splitlines():
            first, *words = shlex.split(line, comments=True)
            if first != "pip":
                assert first == program, line
                found.append([sys.executable, "-m", program.replace("-", "_"), *words])
    return found


def run_all(commands: Iterable[list[str]], folder: Path) -> None:
    """Run commands one after the other in a folder; each must succeed."""
    # One thread: so small a network gains little from a second, and loses much where something else runs.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in commands:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
