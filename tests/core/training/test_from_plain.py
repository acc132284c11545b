"""Typed objects from plain values: the inverse of `plain`, with one error for values of another kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from contrastive_core.errors import UserError
from contrastive_core.training.config import from_plain, plain
from contrastive_core.training.documents import read_json_lines, reading


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, int]
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float
    place: Path | None = None
    flag: bool = False
    scores: Mapping[str, float | None] = field(default_factory=dict)
    several: list[Inner] = field(default_factory=list)
    free: Any = None


VALUE = Outer(
    Inner((1, 2), ("x", "y"), "b"), 0.5, Path("a/b"), True, {"x": 1.0, "y": None}, [Inner((3, 4))], {"any": [1, "2"]}
)


def test_it_is_the_reverse_of_plain() -> None:
    assert from_plain(Outer, json.loads(json.dumps(plain(VALUE, "outer"))), "outer") == VALUE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": 3}, "outer.inner is 3; expected Inner"),
        ({"inner": {"sizes": [1]}}, "outer.inner.sizes has 1 entries; expected 2"),
        ({"inner": {"sizes": [1, True]}}, r"outer.inner.sizes\[1\] is True; expected int"),
        ({"inner": {"sizes": [1, 2.0]}}, r"outer.inner.sizes\[1\] is 2.0; expected int"),
        ({"inner": {"sizes": [1, 2], "kind": "c"}}, "outer.inner.kind is 'c'; expected one of a, b"),
        ({"rate": "0.5"}, "outer.rate is '0.5'; expected float"),
        ({"rate": False}, "outer.rate is False; expected float"),
        ({"flag": 1}, "outer.flag is 1; expected bool"),
        ({"scores": {"x": "1"}}, "outer.scores.x is '1'"),
        ({"scores": []}, r"outer.scores is \[\]"),
        ({"place": 1}, "outer.place is 1"),
        ({"other": 1}, "outer has the unknown entry 'other'"),
    ],
)
def test_other_values_are_refused_by_their_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        from_plain(Outer, {**plain(VALUE, "outer"), **change}, "outer")


def test_fields_without_a_default_must_be_there() -> None:
    with pytest.raises(TypeError, match="inner"):
        from_plain(Outer, {"rate": 1}, "outer")


@pytest.mark.parametrize(
    "error", [SyntaxError("x"), KeyError("x"), AssertionError("x"), MemoryError(), OSError(28, "x")]
)
def test_whatever_a_reader_raises_is_the_error_of_the_file(error: Exception) -> None:
    expected = pytest.raises(UserError, match=r"^a/b: is damaged \(.+\); copy it again$")
    with expected, reading("a/b", "is damaged", "copy it again"):
        raise error


def test_errors_of_ours_get_the_path_if_they_have_none() -> None:
    for words in ("it is bad", "a/b: it is bad"):
        with pytest.raises(UserError, match=r"^a/b: it is bad$"), reading("a/b", "is damaged", "copy it again"):
            raise UserError(words)


def test_messages_are_fit_for_a_terminal() -> None:
    message = str(UserError("\x1b[2J\u202egnp\n\ttwo\x00 " + "a" * 5000 + "end"))
    assert message.startswith("\\x1b[2J\\u202egnp\n\ttwo\\x00 aaa")
    assert message.endswith("aaend")
    assert max(map(len, message.split("\n"))) <= 2000


def test_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"b": 2}\n{"c"')
    assert read_json_lines(file) == [{"a": 1}, {"b": 2}]
    for text in ("[1]\n", "{\n", '"a"\n{"a": 1}\n'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"x\.jsonl: is damaged .* one JSON object per line"):
            read_json_lines(file)
