"""Untrusted text files: bounded, with one error that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_json, read_object, read_rows, read_text, read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "integer string conversion"),
        ("{", "Expecting"),
        ("", "Expecting value"),
        (b"\xff\xfe{", "UTF-8|decode"),
    ],
)
def test_json(tmp_path: Path, content: str | bytes, said: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=rf"x\.json: .*({said})"):
        read_json(file)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('"x"', "str")])
def test_an_object(tmp_path: Path, content: str, kind: str) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": [1]}')
    assert read_object(file) == {"a": [1]}
    file.write_text(content)
    with pytest.raises(UserError, match=rf"x\.json: contains a {kind}; expected a JSON object"):
        read_object(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 5000, "deeper than 100"),
        ("a: " + "9" * 5000, "integer string conversion"),
        (LAUGHS, "more than 1,000,000"),
        ("a: &a [*a]", "refers to the value that contains it"),
        ("a: [", "YAML"),
        ("a: !!python/object/apply:os.abort []", "could not determine a constructor"),
        ("a: 2026-99-99", "month must be"),
    ],
)
def test_yaml(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=rf"x\.yaml: .*{said}"):
        read_yaml(file)


def test_yaml_with_aliases(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}}
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "x.yaml") is None


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes('\ufeffcase,image\r\n"a,\nb",c\r\n\r\n'.encode())
    assert read_rows(file) == [["case", "image"], ["a,\nb", "c"]]
    file.write_text("x" * 200_000)
    with pytest.raises(UserError, match=r"x\.csv: .*field limit"):
        read_rows(file)


def test_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x" * 100)
    with pytest.raises(UserError, match="larger than 99 B"):
        read_text(tmp_path / "x", largest=99)
    for path in (tmp_path, tmp_path / "none", tmp_path / "x" / "y"):
        with pytest.raises(UserError, match="cannot be read"):
            read_text(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"x\.json: is a pipe or device; expected a text file"):
        read_json(tmp_path / "x.json")


def test_a_missing_file_is_not_called_badly_encoded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: cannot be read, because there is no such file; expected a"):
        read_text(tmp_path / "a.json", expected="a label file")
