"""Signatures read from source, without running the module."""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from contrastive_core.app.cli import Verb, run
from contrastive_core.app.declarations import UndeclaredError, declared_function

OPTIONS = """
from __future__ import annotations
import heavy_library
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal
Size = Literal["small", "large"]
LARGEST = 3
def doubled(x):
    return heavy_library.double(x)
@dataclass(frozen=True)
class Net:
    \"\"\"A network.

    Attributes:
        size: Its size.
    \"\"\"
    size: Size = "small"
    doubled: int = LARGEST
    widths: list[int] = field(default_factory=lambda: [1])
    def __post_init__(self):
        heavy_library.check(self)
"""
INIT = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .options import Net
def __getattr__(name):
    raise RuntimeError("ran")
"""
VERB = """
from __future__ import annotations
import heavy_library
from pathlib import Path
from . import Net
from .options import Size as Sized
@heavy_library.compiled
def fit(out: Path, *, size: Sized | None = None, net: Net = Net(doubled=4)) -> heavy_library.Model:
    \"\"\"Fit it.\"\"\"
    return heavy_library.fit(net)
def bad(x: heavy_library.Model): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "declared_toy"
    folder.mkdir()
    for name, text in (("__init__", INIT), ("options", OPTIONS), ("verb", VERB)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "declared_toy"


def test_a_signature_is_read_without_running_its_module(package: str) -> None:
    fit = declared_function(f"{package}.verb:fit")
    parameters, hints = inspect.signature(fit).parameters, typing.get_type_hints(fit)
    assert list(parameters) == ["out", "size", "net"]
    assert hints["out"] is Path
    assert hints["size"] == Literal["small", "large"] | None
    assert inspect.getdoc(fit) == "Fit it."
    net: Any = parameters["net"].default
    assert (net.size, net.doubled, net.widths) == ("small", 4, [1])
    assert typing.get_type_hints(hints["net"])["widths"] == list[int]
    assert f"{package}.verb" not in sys.modules


@pytest.mark.parametrize(
    ("target", "said"),
    [("verb:bad", "heavy_library"), ("verb:none", "does not declare none"), ("nowhere:f", "has no source file")],
)
def test_what_is_not_declared_has_to_be_imported(package: str, target: str, said: str) -> None:
    with pytest.raises(UndeclaredError, match=said):
        declared_function(f"{package}.{target}")


def test_a_module_that_is_loaded_is_not_read_again() -> None:
    assert declared_function("tests.core.app.test_cli_declarations:package") is package


OPTIONAL = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass(frozen=True)
class Net:
    width: float = 1.0
def fit(*, net: Net | None = None, more: dict[str, Net] | None = None) -> None:
    print(net, more)
"""


def test_the_fields_of_an_optional_dataclass_are_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser imports the module of such a dataclass, so its declaration alone is not enough."""
    (tmp_path / "optional_toy.py").write_text(OPTIONAL)
    monkeypatch.syspath_prepend(tmp_path)
    verbs = {"fit": Verb("optional_toy:fit", "Fit a network.")}
    assert run("toy", verbs, ["fit", "--net.width", "0.5", "--more", '{"a": {"width": 2}}'], version="1") == 0
    assert capsys.readouterr().out == "Net(width=0.5) {'a': Net(width=2.0)}\n"
