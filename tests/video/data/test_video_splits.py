"""Splits: nested, by class, nothing shared between their parts, hashed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from ssl_video.commands.make_splits import make_splits
from ssl_video.data import open_videos
from ssl_video.data.splits import Split, read_split, select_labelled, write_split


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Three classes of 20, 10 and 10 clips in groups of 4 (or 2)."""
    root = tmp_path / "data"
    for label, groups, clips in (("Dive", 5, 4), ("Jump", 5, 2), ("Row", 5, 2)):
        (root / label).mkdir(parents=True)
        for group in range(groups):
            for clip in range(clips):
                (root / label / f"v_{label}_g{group:02}_c{clip:02}.avi").touch()
    return root


def parts(split: Split) -> dict[str, set[str]]:
    return {
        "train": set(split.train),
        **{name: {key for key, _ in getattr(split, name)} for name in ("labelled", "validation", "test")},
    }


def group(key: str) -> str:
    return key.rpartition("_")[0]


def test_groups_stay_together_and_choices_are_nested(ucf: Path, tmp_path: Path) -> None:
    said = make_splits(str(ucf), tmp_path / "out", fractions=(0.1, 0.5), per_class=(2,), draws=2)
    assert "kept together by group" in said
    found = {path.stem: read_split(path) for path in sorted((tmp_path / "out").iterdir())}
    assert sorted(found) == [
        "10percent-draw0",
        "10percent-draw1",
        "2each-draw0",
        "2each-draw1",
        "50percent-draw0",
        "50percent-draw1",
    ]
    first = parts(found["10percent-draw0"])
    everything = first["train"] | first["validation"] | first["test"]
    assert everything == {video.key for video in open_videos(ucf).videos}
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not {group(key) for key in first[a]} & {group(key) for key in first[b]}
    for split in found.values():
        assert parts(split)["test"] == first["test"]
        assert parts(split)["train"] == first["train"]
    for draw in (0, 1):
        small, large = (parts(found[f"{n}percent-draw{draw}"])["labelled"] for n in (10, 50))
        assert small < large
    assert parts(found["50percent-draw0"])["labelled"] != parts(found["50percent-draw1"])["labelled"]
    counts = Counter(label for _, label in found["50percent-draw0"].labelled)
    left = Counter(key.split("/")[0] for key in first["train"])
    assert counts == {label: max(1, round(0.5 * n)) for label, n in left.items()}
    assert Counter(label for _, label in found["10percent-draw0"].labelled) == {"Dive": 1, "Jump": 1, "Row": 1}
    # Half of a class's clips come from as few groups as that takes.
    dive = {group(key) for key, label in found["50percent-draw0"].labelled if label == "Dive"}
    assert len(dive) == 2


def test_blocks_are_taken_from_the_end(ucf: Path, tmp_path: Path) -> None:
    make_splits(str(ucf), tmp_path / "out", fractions=(0.25,), draws=1, by="block", blocks=5)
    split = read_split(tmp_path / "out/25percent-draw0.json")
    dive = sorted(video.key for video in open_videos(ucf).videos if video.label == "Dive")
    assert sorted(key for key, label in split.test if label == "Dive") == dive[16:]
    assert sorted(key for key, label in split.validation if label == "Dive") == dive[12:16]
    labelled = sorted(dive.index(key) for key, label in split.labelled if label == "Dive")
    assert len(labelled) == 3
    assert labelled[-1] - labelled[0] < 4  # of one block


def test_a_group_of_several_classes_goes_out_of_all(tmp_path: Path) -> None:
    rows = [f"{label}/{g}{c}.avi,{label},film{g}" for label in "ab" for g in range(4) for c in range(2)]
    (tmp_path / "x.csv").write_text("path,class,group\n" + "\n".join(rows) + "\n")
    make_splits(str(tmp_path / "x.csv"), tmp_path / "out", fractions=(0.5,), draws=1, validation=0.0, test=0.25)
    split = read_split(tmp_path / "out/50percent-draw0.json")
    films = {key[2] for key, _ in split.test}
    assert not films & {key[2] for key in split.train}
    assert {label for _, label in split.test} == {"a", "b"}


def test_official_lists_decide(ucf: Path, tmp_path: Path) -> None:
    keys = [video.key for video in open_videos(ucf).videos]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{key} 1\n" for key in keys if "_g00_" not in key))
    (tmp_path / "testlist01.txt").write_text("".join(f"{key}\n" for key in keys if "_g00_" in key))
    (tmp_path / "few.txt").write_text(f"{keys[4]}\n{keys[-1]}\n")
    lists = {"train_list": tmp_path / "trainlist01.txt", "test_list": tmp_path / "testlist01.txt", "validation": 0.0}
    make_splits(str(ucf), tmp_path / "out", fractions=(0.2,), draws=1, **lists)
    split = read_split(tmp_path / "out/20percent-draw0.json")
    assert {key for key, _ in split.test} == {key for key in keys if "_g00_" in key}
    assert len(split.train) + len(split.test) == len(keys)
    make_splits(str(ucf), tmp_path / "out", labelled_list=tmp_path / "few.txt", **lists)
    assert read_split(tmp_path / "out/listed.json").labelled == ((keys[4], "Dive"), (keys[-1], "Row"))
    with pytest.raises(UserError, match="without train_list"):
        make_splits(str(ucf), tmp_path / "out", test_list=tmp_path / "testlist01.txt")


def test_split_files_are_believed_only_whole(ucf: Path, tmp_path: Path) -> None:
    make_splits(str(ucf), tmp_path / "out", fractions=(0.5,), draws=1)
    file = tmp_path / "out/50percent-draw0.json"
    before = file.read_bytes()
    make_splits(str(ucf), tmp_path / "out", fractions=(0.5,), draws=1)
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="says something else"):
        make_splits(str(ucf), tmp_path / "out", fractions=(0.5,), draws=1, seed=1)
    content = json.loads(before)
    content["test"].append([content["train"][0], "Dive"])
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_split(file)
    for text, said in (("[]", "is not a split file"), ("{", "is not JSON"), ('{"format": "x"}', "found format 'x'")):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_split(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_split(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": (("a", "x"),)}, "1 videos are in train and in test"),
        ({"labelled": (("c", "x"),)}, "not in train"),
        ({"labelled": (("a", "y"),)}, "does not list"),
        ({"labelled": (("a", "x"), ("a", "x"))}, "twice"),
        ({"labelled": ()}, "none with a label"),
    ],
)
def test_overlap_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    split = Split(**{"classes": ("x",), "train": ("a", "b"), "labelled": (("a", "x"),), **changes})
    with pytest.raises(UserError, match=said):
        write_split(tmp_path / "s.json", split)


def test_a_split_of_other_data_is_refused(ucf: Path) -> None:
    videos = open_videos(ucf)
    key = videos[0].key
    with pytest.raises(UserError, match=r"is of class Row, in .* it is of Dive"):
        select_labelled(videos, ((key, "Row"),), ("Dive", "Row"), file="s.json")
    with pytest.raises(UserError, match="1 videos that are not in"):
        select_labelled(videos, (("other.avi", "Row"),), ("Dive", "Row"), file="s.json")
    assert select_labelled(videos, ((key, "Dive"),), ("A", "Dive"), file="s.json").labels().tolist() == [1]


def test_wrong_numbers_are_refused(ucf: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"fractions": (0.0,)}, "fractions are"),
        ({"fractions": ()}, "nothing to choose"),
        ({"validation": 0.6, "test": 0.5}, "together less than 1"),
        ({"per_class": (50,)}, "expected at least 50"),
    ):
        with pytest.raises(UserError, match=said):
            make_splits(str(ucf), tmp_path / "out", **wrong)
