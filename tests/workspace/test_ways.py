"""A value passes through at most half as many files as before the packages were refiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.ways import BEFORE, WAYS, follow


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_value_passes_half_as_many_files(name: str, tmp_path: Path) -> None:
    with WAYS[name](tmp_path) as call:
        call()  # caches and lazy imports
        handing, _ = follow(call)
    assert 0 < len(handing) <= BEFORE[name] // 2, sorted(handing)
