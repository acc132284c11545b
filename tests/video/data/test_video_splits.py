"""Splits: nested, balanced by class, disjoint, hashed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
from ssl_video.data import open_videos
from ssl_video.data.splits import Split, read_split, select_labelled, write_split
from tests.video.conftest import Write


@pytest.fixture(autouse=True)
def empty_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let empty files stand for videos, except in tests of unreadable ones."""
    if "unreadable" not in request.node.name:
        monkeypatch.setattr("ssl_video.commands.make_splits.unreadable", lambda _: {})


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
    said = make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.1, 0.5), per_class=(2,), draws=2))
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


def test_splits_with_the_same_labelled_videos_are_noted(ucf: Path, tmp_path: Path) -> None:
    said = make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.05, 0.1, 0.5), draws=2))
    found = {path.stem: read_split(path) for path in (tmp_path / "out").iterdir()}
    for draw in (0, 1):
        assert found[f"5percent-draw{draw}"].labelled == found[f"10percent-draw{draw}"].labelled
        assert f"note: 5percent-draw{draw} and 10percent-draw{draw} label the same samples" in said
    assert said.count("the same samples") == 2


def test_blocks_are_taken_from_the_end(ucf: Path, tmp_path: Path) -> None:
    make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.25,), draws=1), by="block", blocks=5)
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
    make_splits(
        str(tmp_path / "x.csv"),
        tmp_path / "out",
        draw=LabelDrawOptions(fractions=(0.5,), draws=1, validation_fraction=0.0),
        test_fraction=0.25,
    )
    split = read_split(tmp_path / "out/50percent-draw0.json")
    films = {key[2] for key, _ in split.test}
    assert not films & {key[2] for key in split.train}
    assert {label for _, label in split.test} == {"a", "b"}


def test_official_lists_decide(ucf: Path, tmp_path: Path) -> None:
    keys = [video.key for video in open_videos(ucf).videos]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{key} 1\n" for key in keys if "_g00_" not in key))
    (tmp_path / "testlist01.txt").write_text("".join(f"{key}\n" for key in keys if "_g00_" in key))
    (tmp_path / "few.txt").write_text(f"{keys[4]}\n{keys[-1]}\n")
    lists = {
        "train_list": tmp_path / "trainlist01.txt",
        "test_list": tmp_path / "testlist01.txt",
    }
    draw = LabelDrawOptions(fractions=(0.2,), draws=1, validation_fraction=0.0)
    make_splits(str(ucf), tmp_path / "out", draw=draw, **lists)
    split = read_split(tmp_path / "out/20percent-draw0.json")
    assert {key for key, _ in split.test} == {key for key in keys if "_g00_" in key}
    assert len(split.train) + len(split.test) == len(keys)
    make_splits(str(ucf), tmp_path / "out", draw=draw, labelled_list=tmp_path / "few.txt", **lists)
    assert read_split(tmp_path / "out/listed.json").labelled == ((keys[4], "Dive"), (keys[-1], "Row"))
    with pytest.raises(UserError, match="without train_list"):
        make_splits(str(ucf), tmp_path / "out", test_list=tmp_path / "testlist01.txt")
    (tmp_path / "few.txt").write_text(f"{keys[4]}\n{keys[-1]}\n./{keys[4]}\n")
    with pytest.raises(UserError, match=rf"few\.txt: lists {keys[4]} more than once"):
        make_splits(str(ucf), tmp_path / "new", draw=draw, labelled_list=tmp_path / "few.txt", **lists)


def test_a_list_that_contradicts_the_classes_of_the_data_is_noted(ucf: Path, tmp_path: Path) -> None:
    keys = [video.key for video in open_videos(ucf).videos]
    draw = LabelDrawOptions(fractions=(0.2,), draws=1, validation_fraction=0.0)

    def told(out: str, lines: list[str], *, data: Path = ucf) -> str:
        (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
        return make_splits(str(data), tmp_path / out, draw=draw, test_fraction=0, train_list=tmp_path / "list.txt")

    classes = [key.partition("/")[0] for key in keys]
    other = {"Dive": "Row", "Row": "Jump", "Jump": "Dive"}
    wrong = [f"{key} {other[c] if n < 2 else c}" for n, (key, c) in enumerate(zip(keys, classes, strict=True))]
    assert (
        "the lists state another class than the data for 2 videos, and the class in the data is used: "
        f"{keys[0]} (Row in the list, Dive in the data), {keys[1]} (Row in the list"
    ) in told("wrong", wrong)
    assert (
        dict(read_split(tmp_path / "wrong/20percent-draw0.json").labelled).items()
        <= dict(zip(keys, classes, strict=True)).items()
    )
    for out, spelled in (
        ("case", [f"{key} {c.upper()}" for key, c in zip(keys, classes, strict=True)]),
        ("number", [f"{key} {sorted(set(classes)).index(c)}" for key, c in zip(keys, classes, strict=True)]),
        ("names", keys),
    ):
        assert "another class" not in told(out, spelled)
    # Classes of a table apply, whatever folder the videos lie in; a list of these videos repeats the folder only.
    rows = [f"{key},{other[c]}" for key, c in zip(keys, classes, strict=True)]
    (ucf / "table.csv").write_text("\n".join(["Path,Class Name", *rows]))
    assert "another class" not in told("table", keys, data=ucf / "table.csv")
    assert open_videos(ucf / "table.csv")[0].label == other[classes[0]]


def test_split_files_are_believed_only_whole(ucf: Path, tmp_path: Path) -> None:
    make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.5,), draws=1))
    file = tmp_path / "out/50percent-draw0.json"
    before = file.read_bytes()
    make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.5,), draws=1))
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="already exists with another content"):
        make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.5,), draws=1, seed=1))
    content = json.loads(before)
    content["test"].append([content["train"][0], "Dive"])
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_split(file)
    for text, said in (
        ("[]", "is not a split file"),
        ("{", "is not readable as JSON"),
        ('{"format": "x"}', "found format 'x'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_split(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_split(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": (("a", "x"),)}, "1 video in train and also in test"),
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
    with pytest.raises(UserError, match=r"in class Row, but in .* it has class Dive"):
        select_labelled(videos, ((key, "Row"),), ("Dive", "Row"), file="s.json")
    with pytest.raises(UserError, match="1 video not in"):
        select_labelled(videos, (("other.avi", "Row"),), ("Dive", "Row"), file="s.json")
    assert select_labelled(videos, ((key, "Dive"),), ("A", "Dive"), file="s.json").labels().tolist() == [1]


def test_wrong_numbers_are_refused(ucf: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"fractions": (0.0,)}, "fractions contains 0; expected shares above 0"),
        ({"fractions": ()}, "nothing to label"),
        ({"validation_fraction": 0.6}, "together less than 1"),
        ({"per_class": (50,)}, "expected at least 50"),
    ):
        with pytest.raises(UserError, match=said):
            make_splits(str(ucf), tmp_path / "out", draw=LabelDrawOptions(**wrong), test_fraction=0.5)
    with pytest.raises(UserError, match="blocks is 1; expected at least 2"):
        make_splits(str(ucf), tmp_path / "out", blocks=1)


def pool(tmp_path: Path, *extra: str) -> Path:
    """Two classes of eight videos, with other videos beside them."""
    names = [f"{label}/{number}.mp4" for label in ("blue", "red") for number in range(8)]
    for name in (*names, *extra):
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pool" / name).touch()
    return tmp_path / "pool"


def listed_pool(tmp_path: Path) -> Path:
    file = tmp_path / "some.csv"
    rows = [f"{label}/{number}.mp4,{label}" for label in ("blue", "red") for number in range(8)]
    file.write_text("path,class\n" + "\n".join(rows) + "\n" + "".join(f"u{i}.mp4,\n" for i in range(6)))
    return file


@pytest.mark.parametrize("where", ["loose", "folder", "csv"])
def test_videos_without_a_class_are_learned_from_and_nothing_else(where: str, tmp_path: Path) -> None:
    data = {
        "loose": lambda: pool(tmp_path, *(f"u{i}.mp4" for i in range(6))),
        "folder": lambda: pool(tmp_path, *(f"unlabelled/u{i}.mp4" for i in range(6))),
        "csv": lambda: listed_pool(tmp_path),
    }[where]()
    told = make_splits(
        str(data), tmp_path / "s", draw=LabelDrawOptions(fractions=(0.5,), draws=2, validation_fraction=0.2)
    )
    assert "6 of them without a class" in told
    for draw in range(2):
        split = read_split(tmp_path / f"s/50percent-draw{draw}.json")
        found = parts(split)
        assert {key for key in found["train"] if "u" in Path(key).stem} == {
            key for key in (video.key for video in open_videos(data).videos) if "u" in Path(key).stem
        }
        assert split.classes == ("blue", "red")
        for part in ("labelled", "validation", "test"):
            assert found[part]
            assert not {key for key in found[part] if "u" in Path(key).stem}


def test_a_list_of_labelled_videos_leaves_the_others_without_labels(tmp_path: Path) -> None:
    data = pool(tmp_path, "u0.mp4")
    (tmp_path / "lab.txt").write_text(
        "".join(f"{label}/{number}.mp4\n" for label in ("blue", "red") for number in (0, 7))
    )
    make_splits(
        str(data),
        tmp_path / "s",
        labelled_list=tmp_path / "lab.txt",
        test_fraction=0.5,
        draw=LabelDrawOptions(validation_fraction=0),
    )
    split = read_split(tmp_path / "s/listed.json")
    assert dict(split.labelled) == {"blue/0.mp4": "blue", "blue/7.mp4": "blue", "red/0.mp4": "red", "red/7.mp4": "red"}
    assert len(split.test) == 6
    assert "u0.mp4" in split.train
    assert not {key for key, _ in split.labelled} & {key for key, _ in split.test}
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(6):
        (flat / f"{number}.mp4").touch()
    (tmp_path / "words.txt").write_text("0.mp4 jump\n1.mp4 run\n")
    told = make_splits(str(flat), tmp_path / "f", labelled_list=tmp_path / "words.txt")
    split = read_split(tmp_path / "f/listed.json")
    assert (split.classes, dict(split.labelled)) == (("jump", "run"), {"0.mp4": "jump", "1.mp4": "run"})
    assert (len(split.train), split.test) == (6, ())
    assert "no videos held out for test" in told


def test_parts_that_the_data_have_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        for label in ("blue", "red"):
            for number in range(count):
                (tmp_path / "given" / part / label).mkdir(parents=True, exist_ok=True)
                (tmp_path / "given" / part / label / f"{number}.mp4").touch()
    (tmp_path / "given/test/loose.mp4").touch()
    told = make_splits(str(tmp_path / "given"), tmp_path / "s", draw=LabelDrawOptions(fractions=(0.5,), draws=1))
    split = read_split(tmp_path / "s/50percent-draw0.json")
    assert {key.split("/")[0] for key in split.train} == {"train"}
    assert {key.split("/")[0] for key, _ in split.validation} == {"val"}
    assert {key.split("/")[0] for key, _ in split.test} == {"test"}
    assert (len(split.train), len(split.labelled), len(split.validation), len(split.test)) == (12, 6, 6, 4)
    assert "1 video without a class left out" in told


def test_a_class_of_one_video_is_learned_from(tmp_path: Path) -> None:
    data = pool(tmp_path, "green/only.mp4")
    told = make_splits(str(data), tmp_path / "s", draw=LabelDrawOptions(fractions=(0.1,), draws=1))
    split = read_split(tmp_path / "s/10percent-draw0.json")
    assert ("green/only.mp4", "green") in split.labelled
    assert "no videos held out for test in 1 class with too few: green" in told
    (tmp_path / "one/green").mkdir(parents=True)
    (tmp_path / "one/green/1.mp4").touch()
    with pytest.raises(UserError, match="found 1 class"):
        make_splits(str(tmp_path / "one"), tmp_path / "t")


def test_unlabelled_clips_of_a_tested_recording_are_not_learned_from(tmp_path: Path) -> None:
    names = [f"{label}/v_x_g{group:02}_c{clip:02}.avi" for label in "ab" for group in range(5) for clip in range(2)]
    file = tmp_path / "ucf.csv"
    rows = [f"{name},{name[0] if name.endswith('00.avi') else ''},{name[:-8]}" for name in names]
    file.write_text("path,class,group\n" + "\n".join(rows) + "\n")
    told = make_splits(str(file), tmp_path / "s", draw=LabelDrawOptions(fractions=(0.5,), draws=1), by="group")
    split = read_split(tmp_path / "s/50percent-draw0.json")
    held = {key[:-8] for key, _ in (*split.test, *split.validation)}
    assert held
    assert not held & {key[:-8] for key in split.train}
    assert "recordings are held out" in told


def test_identical_files_are_in_one_part_alone(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(10):
            (root / label / f"{number}.mp4").write_bytes(f"{label} {number // 2}".encode())  # each file twice
    for number in range(5):
        (root / f"{number}.mp4").write_bytes(f"a {number}".encode())  # and unlabelled ones
    said = make_splits(str(root), tmp_path / "out", draw=LabelDrawOptions(fractions=(0.5,), draws=1), by="clip")
    split = read_split(tmp_path / "out/50percent-draw0.json")
    contents = {name: {(root / key).read_bytes() for key in keys} for name, keys in parts(split).items()}
    assert contents["test"]
    assert not contents["test"] & contents["train"]
    assert not contents["validation"] & (contents["train"] | contents["test"])
    listed = {*split.train, *(key for key, _ in (*split.validation, *split.test))}
    assert f"{25 - len(listed)} videos left out: identical to videos of another part" in said
    assert "several classes" not in said
    (root / "a/0.mp4").write_bytes(b"b 4")
    said = make_splits(str(root), tmp_path / "new", draw=LabelDrawOptions(fractions=(0.5,), draws=1), by="clip")
    assert "identical videos in several classes: a/0.mp4, b/8.mp4, b/9.mp4; keep each in one class" in said


def test_other_parts_of_a_list_are_not_trained_on(tmp_path: Path) -> None:
    rows = ["path,class,split"]
    rows += [
        f"{label}{part}{number}.mp4,{label},{part}"
        for label in "ab"
        for part in ("Train", "holdout")
        for number in (1, 2)
    ]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    said = make_splits(
        str(tmp_path / "data.csv"),
        tmp_path,
        draw=LabelDrawOptions(fractions=(1.0,), draws=1, validation_fraction=0),
        by="clip",
        test_fraction=0,
    )
    assert "4 videos of other parts left out: holdout 4" in said
    assert not [key for key in read_split(tmp_path / "100percent-draw0.json").train if "holdout" in key]
    (tmp_path / "folds.csv").write_text("path,class,split\n1.mp4,a,fold1\n2.mp4,b,fold2\n")
    with pytest.raises(UserError, match="found the parts fold1, fold2 and no training part"):
        make_splits(str(tmp_path / "folds.csv"), tmp_path)


def test_unreadable_videos_are_named_and_left_out(write_video: Write, tmp_path: Path) -> None:
    still = np.zeros((2, 16, 16, 3), np.uint8)
    for label in ("a", "b"):
        for number in range(4):
            still[:] = 20 * number + (label == "b")
            write_video(f"data/{label}/{number}.mp4", still)
    (tmp_path / "data/a/1.mp4").write_bytes(b"")
    (tmp_path / "data/b/2.mp4").write_text("no video")
    (tmp_path / "data/c").mkdir()
    (tmp_path / "data/c/0.mp4").symlink_to(tmp_path / "gone.mp4")
    draw = LabelDrawOptions(fractions=(), per_class=(1,), draws=1, validation_fraction=0)
    said = make_splits(str(tmp_path / "data"), tmp_path / "s", draw=draw, by="clip", test_fraction=0)
    assert "6 training videos, 2 classes" in said
    assert "note: 3 videos left out, because they cannot be read: a/1.mp4 is empty, " in said
    assert "b/2.mp4 cannot be read as a video" in said
    assert "c/0.mp4 " in said
    assert "no videos remain of 1 class: c" in said
    split = read_split(tmp_path / "s/1each-draw0.json")
    assert split.classes == ("a", "b")
    assert sorted(split.train) == ["a/0.mp4", "a/2.mp4", "a/3.mp4", "b/0.mp4", "b/1.mp4", "b/3.mp4"]
    # An official list may name them.
    (tmp_path / "train.txt").write_text("".join(f"{label}/{n}.mp4 1\n" for label in "ab" for n in range(3)))
    (tmp_path / "test.txt").write_text("a/3.mp4 1\nb/3.mp4 2\n")
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    make_splits(str(tmp_path / "data"), tmp_path / "t", draw=draw, by="clip", **lists)
    split = read_split(tmp_path / "t/1each-draw0.json")
    assert sorted(split.train) == ["a/0.mp4", "a/2.mp4", "b/0.mp4", "b/1.mp4"]
    assert [key for key, _ in split.test] == ["a/3.mp4", "b/3.mp4"]


def test_a_set_of_unreadable_videos_is_an_error(ucf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its 40 videos can be read; the first: Dive/.*avi is empty"):
        make_splits(str(ucf), tmp_path / "s")
    assert not (tmp_path / "s").exists()
