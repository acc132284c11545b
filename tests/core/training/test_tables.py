"""Lists and tables of other programs, and the names people give to parts of a data set."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_text
from contrastive_core.training.split_names import canonical_split, find_splits, split_word
from contrastive_core.training.tables import (
    check_local,
    column_names,
    find_columns,
    is_missing,
    local_path,
    plain_cell,
    safe_cell,
    whole_numbers,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_in_any_encoding_and_with_any_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(f"ü.mp4{end}日本.mp4{end}".encode(encoding))
    assert read_text(file, expected="a list") == "ü.mp4\n日本.mp4\n"


@pytest.mark.parametrize("content", ["ü".encode("latin-1"), "a.mp4".encode("utf-16-le"), b"\0\0"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt: .*expected a list; save it again as UTF-8"):
        read_text(file, expected="a list")


def test_paths_are_found_however_they_are_written(tmp_path: Path) -> None:
    split_up = unicodedata.normalize("NFD", "Käse")
    (tmp_path / split_up).mkdir()
    (tmp_path / split_up / "1.mp4").touch()
    (tmp_path / "a\\b.mp4").touch()
    assert local_path(f"{unicodedata.normalize('NFC', split_up)}\\1.mp4", tmp_path) == f"{split_up}/1.mp4"
    # A folder of one system with files of another.
    (tmp_path / split_up / "Über").mkdir()
    composed, mixed = (f"{form}/Über/{end}.mp4" for form, end in (("Käse", "Öl"), (split_up, "Öl")))
    mixed = mixed.replace("Öl", unicodedata.normalize("NFD", "Öl"))
    (tmp_path / mixed).touch()
    assert local_path(composed.replace("/", "\\"), tmp_path) == mixed
    assert local_path(str(tmp_path / composed), tmp_path) == str(tmp_path / mixed)
    assert local_path("Käse/Ähre/1.mp4", tmp_path) == f"{split_up}/Ähre/1.mp4"
    assert local_path("a\\b.mp4", tmp_path) == "a\\b.mp4"
    assert local_path("a\\c.mp4", tmp_path) == "a/c.mp4"
    check_local(tmp_path, [(2, "a/b.mp4"), (3, "c:name.mp4")])
    with pytest.raises(UserError, match=r"Windows drive \(D:/a\.mp4, line 3 and 1 more\)"):
        check_local(tmp_path, [(2, "a.mp4"), (3, "D:/a.mp4"), (4, "D:\\b.mp4")])
    for address in ("https://host/a.mp4", "s3://bucket/a.mp4", "gs://b/a.mp4", "file:///a.mp4"):
        with pytest.raises(UserError, match=r"found addresses \(.*a\.mp4, line 3\), .*; download the files"):
            check_local(tmp_path, [(2, "a.mp4"), (3, address)])


@pytest.mark.parametrize("text", ["=1+1", "-1", "+a", "@b", "\t=c", "cat", "'quoted'", "", "a=b"])
def test_escaped_cells_are_read_as_they_were(text: str) -> None:
    assert plain_cell(safe_cell(text)) == text


def test_columns_are_found_by_their_meaning(tmp_path: Path) -> None:
    meanings = {"path": ("path", "file"), "label": ("label", "class")}
    assert find_columns(tmp_path, ["class", "x", "file"], meanings) == ({"path": 2, "label": 0}, [])
    place, notes = find_columns(tmp_path, ["path", "class", "label"], meanings)
    assert place == {"path": 0, "label": 2}
    assert notes == ["of the columns label and class, label is used as the label"]
    assert column_names(["File Name", " class-name ", "Split"]) == ["file_name", "class_name", "split"]
    with pytest.raises(UserError, match="found the column label twice"):
        find_columns(tmp_path, ["path", "label", "label"], meanings)
    assert [is_missing(text) for text in ("NaN", " ", "<na>", "N/A", "none", "0")] == [True] * 4 + [False] * 2


def test_parts_have_many_names(tmp_path: Path) -> None:
    assert [canonical_split(name) for name in ("Train", " VALIDATION ", "Dev", "testing", "holdout")] == [
        "train", "val", "val", "test", "holdout",
    ]  # fmt: skip
    assert split_word("train_videos") == ("train", False, ())
    assert split_word("training-wheels") == ("train", False, ("wheels",))
    assert split_word("trains") is None
    assert find_splits(tmp_path, ["seg_train", "seg_test", "seg_pred"]) == {"train": "seg_train", "test": "seg_test"}
    assert find_splits(tmp_path, ["training-wheels", "bell"]) == {}
    with pytest.raises(UserError, match="found the folders val and valid, all of split val"):
        find_splits(tmp_path, ["val", "valid"])


def test_whole_numbers_lose_their_decimals_only_together() -> None:
    assert whole_numbers(["10.0", "nan", "-1.00", "2"]) == ["10", "nan", "-1", "2"]
    for others in (["1.0", "1.5"], ["1.0", "v2.0"], ["1.", ".0"]):
        assert whole_numbers(others) == others
