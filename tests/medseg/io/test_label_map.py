"""Label values to classes and back; no unknown value becomes background."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.io.label_map import LabelMap, read_label_map

HEART = LabelMap(("background", "LV", "RV"), (0, 500, 600))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.float32, np.float64])
def test_values_become_classes_and_values_again(dtype: type) -> None:
    values = np.array([[0, 600], [500, 600]], dtype=dtype)
    classes = HEART.to_classes(values)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 2], [1, 2]]
    back = HEART.lookup[classes]
    assert back.dtype == np.int16
    assert np.array_equal(back, values)


def test_values_are_written_in_the_smallest_type_that_holds_them() -> None:
    kinds = [LabelMap(("b", "x"), (0, value)).lookup[np.array([1])].dtype for value in (255, 256, -1, 40_000)]
    assert kinds == [np.uint8, np.int16, np.int16, np.int32]


def test_floats_within_a_thousandth_are_rounded() -> None:
    assert HEART.to_classes(np.array([0.0009, 499.9991, 600.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 7, 7, 500], "the value 7 in 2 voxels"),
        ([0.4, 500, -1], "the values -1 in 1 voxel, 0.4 in 1 voxel"),
        ([np.nan, 0.0], "the value nan in 1 voxel"),
        ([0.002], "the value 0.002"),
        ([-1], "the value -1"),
    ],
)
def test_other_values_are_refused(values: list[float], words: str) -> None:
    with pytest.raises(UserError, match="expected only 0 background, 500 LV, 600 RV") as caught:
        HEART.to_classes(np.array(values), name="case.nii.gz")
    assert str(caught.value).startswith(f"case.nii.gz: found {words}")


def test_unsigned_values_are_compared_as_numbers() -> None:
    # -1 in a map beside uint8 labels: 255 must not pass for it.
    with pytest.raises(UserError, match="255"):
        LabelMap(("b", "x"), (0, -1)).to_classes(np.array([255], dtype=np.uint8))


def test_json_holds_all_of_it() -> None:
    assert LabelMap.from_json(json.loads(json.dumps(HEART.to_json()))) == HEART
    assert str(HEART) == "0 background, 500 LV, 600 RV"
    assert HEART.structures == ("LV", "RV")
    assert len(HEART) == 3


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (("b", "x"), (0, 0), "contains 0 more than once"),
        (("b", "b"), (0, 1), "contains b more than once"),
        (("b",), (0, 1), "has 1 name and 2 values"),
        ((), (), "has 0 names"),
    ],
)
def test_contradictions_are_refused(names: tuple[str, ...], values: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LabelMap(names, values)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"0": "background", "600": "RV", "500": "LV"}'),
        ("b.json", '{"labels": {"background": 0, "LV": 500, "RV": 600}}'),
        ("c.json", '{"RV": 600, "LV": 500}'),
        ("d.json", '{"names": ["background", "LV", "RV"], "values": [0, 500, 600]}'),
        ("e.tsv", "index\tname\tcolor\n600\tRV\t#fff\n500\tLV\t#000\n"),
        ("f.csv", "Index,Name\n0,background\n500,LV\n600,RV\n"),
        ("g.csv", "index,name\n0.0,background\n500.0,LV\n600.0,RV\n"),  # as pandas writes it beside an empty cell
        ("h.json", '{"background": 0.0, "LV": 5e2, "RV": 600.0}'),
    ],
)
def test_files_of_label_maps(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_label_map(tmp_path / name) == HEART


def test_the_background_may_have_another_value(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"lesion": 1, "Background": 4}')
    assert read_label_map(tmp_path / "map.json") == LabelMap(("Background", "lesion"), (4, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not readable as JSON"),
        ("[1]", "contains a list"),
        ("{}", "found no label map"),
        ('{"labels": {"whole": [1, 2], "core": 2}}', r"gives several values \(a region\) to whole"),
        ('{"background": 0, "x": "one"}', "that is not an integer"),
        ('{"background": 0, "x": 1.5}', "1.5 is not an integer"),
        ('{"background": 0, "x": true}', "True is not an integer"),
        ('{"background": 0, "x": NaN}', "nan is not an integer"),
        ('{"names": ["background", "x"], "values": [0, 1.5]}', "expected a label map"),
        ('{"background": 0, "x": 1, "ignore": 255}', "ignored voxels are not supported"),
        ('{"0": "unlabeled", "1": "x", "255": "Unlabelled"}', "named 'Unlabelled'; ignored voxels are not supported"),
        ('{"PZ": 0, "Background": 1}', "'PZ' to the value 0, and 'background' to the value 1; expected the background"),
        ('{"0": "background", "1": "x", "01": "y"}', "expected each value once"),
    ],
)
def test_files_that_hold_no_label_map(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_label_map(tmp_path / "map.json")
    assert "map.json" in str(caught.value)


@pytest.mark.parametrize(
    ("sided", "others"),
    [
        (("Niere links", "linke_Niere", "KidneyL", "L-Kidney", "hippocampus r", "Re Ovar"), ("Rectum", "RV", "L5")),
        (("rein_gauche", "RognonDroit", "riñón izquierdo", "rene dx", "lobo_direito"), ("direct", "Recto", "rim")),
        (("ren_sin", "arteria dextra", "ЛЕВАЯ почка", "правое лёгкое", "左肾", "肾右"), ("destruction", "почка", "肾")),
    ],
)
def test_names_state_a_side_of_the_body(sided: tuple[str, ...], others: tuple[str, ...]) -> None:
    names = ("background", *others, *sided)
    assert LabelMap(names, tuple(range(len(names)))).sided == sided
