"""Importing the core is cheap, and a command line answers --help without torch: tested by lists of imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SAY = "import json, sys; print(); print(json.dumps(sorted(sys.modules)))"


def loaded(program: str) -> set[str]:
    """Return the modules that a program has imported at its end, in its own Python process."""
    done = subprocess.run([sys.executable, "-c", f"{program}\n{SAY}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def strangers(program: str, *friends: str, beside: str = "") -> set[str]:
    """Return top-level modules that a program loads beyond another one, Python's library and related ones."""
    tops = {name.partition(".")[0] for name in loaded(program) - loaded(beside)}
    return tops - {*sys.stdlib_module_names, *friends, "__main__"}


def test_importing_the_core_loads_nothing() -> None:
    assert strangers("import contrastive_core", "contrastive_core") == set()


def test_a_loss_loads_torch_and_the_core_only() -> None:
    program = "import torch; from contrastive_core import *"
    assert strangers(program, "contrastive_core", "torch", beside="import torch") == set()
    # torch's compiler takes longer to import than all the rest; a decorator of torch.compiler is enough to load it.
    assert "torch._dynamo" not in loaded(program)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["pretrian"]])
def test_a_command_line_answers_without_torch(words: list[str]) -> None:
    program = f"from ssl_vision.cli import main; main({words})"
    assert strangers(program, "contrastive_core", "ssl_vision") == set()


def test_importing_ssl_vision_loads_nothing() -> None:
    assert strangers("import ssl_vision", "ssl_vision", "contrastive_core") == set()


def test_a_stranger_is_seen() -> None:
    assert "numpy" in strangers("import numpy")


def test_ssl_video_answers_without_torch() -> None:
    program = "import ssl_video; from ssl_video.cli import main; main(['--help'])"
    assert strangers(program, "ssl_video", "contrastive_core") == set()


def test_ssl_medseg_answers_without_torch() -> None:
    program = "import ssl_medseg; from ssl_medseg.cli import main; main(['--help'])"
    assert strangers(program, "ssl_medseg", "contrastive_core") == set()
