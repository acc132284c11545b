"""Names that come from data."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrastive_core.errors import UserError
from contrastive_core.training.names import (
    as_file_name,
    check_file_name,
    check_label,
    check_path,
)


@pytest.mark.parametrize("name", ["case 1", "Doe^John", "患者一", "sub-01_ses-2.nii", "a" * 200, "CONTROL", "x..y"])
def test_names_of_files(name: str) -> None:
    assert check_file_name(name, what="case", source="list.csv") == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "has an empty name"),
        (" ", "has an empty name"),
        ("../../x", "path separator"),
        ("/etc/passwd", "path separator"),
        ("a\\b", "path separator"),
        ("C:x", "names a drive"),
        ("..", "begins with a dot"),
        (".outputs.json", "begins with a dot"),
        ("a\x00b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x1b[31m", "control characters"),
        ("gnp\u202etxt.exe", "control characters"),
        ("a\u2028b", "control characters"),
        ("caf\udce9", "not text in UTF-8"),
        ("nul", "reserved"),
        ("COM1.nii", "reserved"),
        ("a.", "ends with a dot"),
        (" a", "space"),
        ("é" * 101, "longer than 200 bytes"),
        (7, "is a int, expected text"),
    ],
)
def test_names_that_no_file_gets(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^list\.csv: .*{problem}"):
        check_file_name(name, what="case", source="list.csv")


def test_the_locale_is_named_where_it_cannot_read_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    for name, problem in (("Müller".encode(), "PYTHONUTF8=1"), ("Müller".encode("latin-1"), "rename it there")):
        with pytest.raises(UserError, match=problem):
            check_label(name.decode("ascii", "surrogateescape"), what="case", source="x")


def test_labels_may_hold_separators() -> None:
    assert check_label("left/right", what="class", source="x") == "left/right"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("../../etc/passwd", "etc-passwd"), ("C:\\dir\\t2", "C-dir-t2"), ("t2\ntse\x00", "t2-tse"),
        (".hidden", "hidden"),
        ("con", "other-con"), ("aux.txt", "other-aux.txt"), ("...", "other"), ("", "other"),
        ("Müller 3.5 mm", "Müller-3.5-mm"),
        ("é" * 300, "é" * 100), ("\u202egnp", "gnp"),
    ],
)  # fmt: skip
def test_free_text_becomes_a_file_name(text: str, expected: str) -> None:
    name = as_file_name(text, otherwise="other")
    assert name == expected
    assert check_file_name(name, what="name", source="here") == name


@given(st.text())
def test_any_text_becomes_a_file_name(text: str) -> None:
    name = as_file_name(text, otherwise="other")
    assert check_file_name(name, what="name", source="here") == name


@pytest.mark.parametrize(
    ("path", "problem"), [("a\0b", "null character"), ("x" * 300, "300 characters"), ("a/" * 3000, "6,000")]
)
def test_paths_that_no_system_takes(path: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_path(path, what="image", source="list.csv")
    assert check_path("../any where/x.nii", what="image", source="list.csv") == "../any where/x.nii"
