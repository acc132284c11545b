"""Splits by patient: what is refused, and that a changed file is not trusted."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from ssl_medseg.datasets import Case, DataSet, Split, read_split, write_split
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile


def heart(*, root: Path = Path("data"), **patients: str) -> DataSet:
    """Cases a_ED, a_ES, b_ED, ... of patients a to e; e has no labels."""
    cases = []
    for p, frame in product("abcde", ("ED", "ES")):
        label = None if p == "e" else root / f"{p}_{frame}_gt.nii"
        cases.append(Case(f"{p}_{frame}", patients.get(p, p), ImageFile(root / f"{p}_{frame}.nii"), label))
    return DataSet("Heart", root, tuple(cases), LabelMap(("background", "LV"), (0, 1)), "folders")


SPLIT = Split(("a_ED", "a_ES"), ("b_ED",), ("c_ED", "c_ES"), ("d_ED", "e_ED", "e_ES"))


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    split = Split(**SPLIT.parts, settings={"seed": 3})
    write_split(tmp_path / "new" / "split.json", split, heart())
    read = read_split(tmp_path / "new" / "split.json", heart())
    assert read == SPLIT
    assert read.settings == {"seed": 3}
    write_split(tmp_path / "new" / "split.json", split, heart())  # the same again


def test_a_split_that_runs_may_have_used_is_not_overwritten(tmp_path: Path) -> None:
    write_split(tmp_path / "split.json", SPLIT, heart())
    with pytest.raises(UserError, match="already exists with another content"):
        write_split(tmp_path / "split.json", Split(("a_ED",)), heart())


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (lambda: Split(("a_ED",), ("a_ED",)), "a_ED is in labelled and in validation"),
        (lambda: Split(("a_ED",), unlabelled=("d_ED", "d_ED")), "d_ED is twice in unlabelled"),
        (lambda: Split(("a_ED",), test=("a_ES",)), "patient a is in both labelled and test"),
        (lambda: Split(("a_ED",), unlabelled=("a_ES",)), "patient a is in both labelled and unlabelled"),
        (lambda: Split(("e_ED",)), "e_ED is in the part labelled, but Heart has no label"),
        (lambda: Split(("a_ED",), ("e_ED",)), "e_ED is in the part validation, but Heart has no label"),
        (lambda: Split(("a_ED",), unlabelled=("d_EX",)), "no case 'd_EX' among its 10 cases; did you mean d_E"),
    ],
)
def test_overlap_and_missing_labels_are_refused(split: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        write_split(tmp_path / "split.json", split(), heart())
    assert not (tmp_path / "split.json").exists()


def test_a_changed_file_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    write_split(file, SPLIT, heart())
    original = file.read_text()
    file.write_text(original.replace('["c_ED", "c"],\n', ""))
    with pytest.raises(UserError, match="was modified after it was written"):
        read_split(file, heart())
    # Cases that merely change sides are noticed as well.
    content = json.loads(original)
    content["unlabelled"], content["test"] = content["test"], content["unlabelled"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was modified"):
        read_split(file, heart())


def test_patients_must_be_those_the_split_was_made_with(tmp_path: Path) -> None:
    write_split(tmp_path / "split.json", SPLIT, heart())
    with pytest.raises(UserError, match=r"c_ED \(c there, cc here\), c_ES"):
        read_split(tmp_path / "split.json", heart(c="cc"))
    with pytest.raises(UserError, match="patient a is in both labelled and test"):
        read_split(tmp_path / "split.json", heart(c="a"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no", "is not readable as JSON"),
        ("{}", "found format None"),
        ('{"format": "ssl-medseg split 1"}', "is not a split"),
        (
            '{"format": "ssl-medseg split 1", "labelled": [1], "validation": [], "test": [], "unlabelled": []}',
            "not a split",
        ),
    ],
)
def test_other_files_are_no_splits(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_split(tmp_path / "split.json", heart())
