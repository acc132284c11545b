"""A toy program in place of a module, and helpers that call it and expect success or a refusal."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from contrastive_core.app.cli import run
from tests.core.app.toy_program import DEFAULTS, VERBS, fit, fit_noting


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("toy_verbs")
    monkeypatch.setitem(sys.modules, "toy_verbs", module)
    return module


@pytest.fixture
def call(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Call `fit` with these words; return the arguments other than d, o and the defaults."""

    def call(*words: str) -> dict[str, Any]:
        got: dict[str, Any] = {}
        module.fit = fit_noting(got)  # type: ignore[attr-defined]
        status = run("toy", VERBS, ["fit", *words], version="1")
        assert status == 0, capsys.readouterr().err
        return {name: value for name, value in got.items() if value != DEFAULTS[name]}

    return call


@pytest.fixture
def refused(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the message about these words, which must be refused."""

    def refused(*words: str, configs: str | None = None) -> str:
        module.fit = fit  # type: ignore[attr-defined]
        assert run("toy", VERBS, ["fit", *words], version="1", configs=configs) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("toy fit: ")
        assert err.endswith("See `toy fit --help`.\n")
        return err.removeprefix("toy fit: ").removesuffix("\nSee `toy fit --help`.\n")

    return refused
