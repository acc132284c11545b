"""The examples of contrastive-core's README and docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import contrastive_core

README = Path(__file__).parents[2] / "packages" / "contrastive-core" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
MODULES = [module.name for module in pkgutil.walk_packages(contrastive_core.__path__, "contrastive_core.")]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block(number: int) -> None:
    torch.manual_seed(0)
    exec(compile(BLOCKS[number], f"{README.name}, block {number + 1}", "exec"), {"__name__": "readme"})


def test_readme_shows_every_public_name() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [name for name in contrastive_core.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == []
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name: str) -> None:
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
