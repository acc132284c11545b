"""Names that are loaded on first use, and the message where an extra is missing."""

from __future__ import annotations

import sys

import pytest

from contrastive_core._lazy import load_on_use


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    monkeypatch.delitem(sys.modules, "contrastive_core.training.run", raising=False)
    get, names = load_on_use("contrastive_core.training", {"Run": "contrastive_core.training.run"}, extra="train")
    with pytest.raises(ModuleNotFoundError, match=r"training\.Run needs lightning_fabric.*contrastive-core\[train\]"):
        get("Run")
    assert "Run" in names()
    with pytest.raises(AttributeError, match="has no attribute 'Runs'"):
        get("Runs")
