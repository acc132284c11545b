"""The examples of contrastive-core's README, pages and docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import contrastive_core

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "contrastive-core" / "README.md"
PAGES = [README, *sorted((ROOT / "docs" / "contrastive-core").glob("*.md"))]
BLOCKS = [
    pytest.param(block, f"{page.name}, block {number}", id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL), 1
    )
]
MODULES = [module.name for module in pkgutil.walk_packages(contrastive_core.__path__, "contrastive_core.")]


@pytest.mark.parametrize(("block", "where"), BLOCKS)
def test_block(block: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a run
    torch.manual_seed(0)
    exec(compile(block, where, "exec"), {"__name__": "readme"})


def test_readme_and_pages_show_every_public_name() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in contrastive_core.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == []
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name: str) -> None:
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
