"""`make-splits`: by patient, nested and disjoint draws, the papers' lists without their leaks."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml

from contrastive_core.errors import UserError
from ssl_medseg.cli import main
from ssl_medseg.commands import make_splits as command
from ssl_medseg.commands.make_splits import make_splits
from ssl_medseg.datasets import Case, DataOptions, DataSet, Split, open_dataset, read_split
from ssl_medseg.datasets.draw_splits import Combination, Draws, Pool, combine, draw
from ssl_medseg.datasets.splits import read_fingerprints
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from tests.medseg.small_sets import SHAPE, decathlon, save_case

CONFIGS = Path(command.__file__).parents[1] / "configs"


def people(number: int, *, bare: int = 0) -> DataSet:
    """Patients p00, p01, ... with two volumes each; the last `bare` of them lack one label."""
    cases = []
    for i, frame in product(range(number), ("ED", "ES")):
        label = None if i >= number - bare and frame == "ES" else Path("y")
        cases.append(Case(f"p{i:02}_{frame}", f"p{i:02}", ImageFile(Path("x")), label))
    return DataSet("People", Path(), tuple(cases), LabelMap(("background", "LV"), (0, 1)), "csv")


def patients(names: tuple[str, ...]) -> set[str]:
    return {name.partition("_")[0] for name in names}


def test_draws_are_by_patient_nested_and_disjoint() -> None:
    data = people(20, bare=3)
    splits = draw(Pool.of(data, data.cases), Draws(labelled=(1, 2, 3), draws=4, validation=2, test=3))
    assert len(splits) == 13
    held = {(split.test, split.validation) for split in splits.values()}
    assert len(held) == 1
    for split in splits.values():
        split.check(data)
        assert sorted(name for part in split.parts.values() for name in part) == sorted(data.names)
        assert patients(split.unlabelled) >= {"p17", "p18", "p19"}  # one of their volumes has no label
        assert (len(split.test), len(split.validation)) == (6, 4)
    for number in range(1, 5):
        one, two, three = (patients(splits[f"{size}-labelled-draw{number}"].labelled) for size in (1, 2, 3))
        assert (len(one), len(two), len(three)) == (1, 2, 3)
        assert one < two < three
    threes = [patients(splits[f"3-labelled-draw{number}"].labelled) for number in range(1, 5)]
    assert len(set.union(*threes)) == 12
    assert len(patients(splits["all-labelled"].labelled)) == 12
    assert patients(splits["all-labelled"].unlabelled) == {"p17", "p18", "p19"}


def test_draws_are_a_function_of_the_seed() -> None:
    data = people(12)
    pool, turned = Pool.of(data, data.cases), Pool.of(data, data.cases[::-1])
    first = draw(pool, Draws(seed=1))
    assert {n: set(s.labelled) for n, s in first.items()} == {
        n: set(s.labelled) for n, s in draw(turned, Draws(seed=1)).items()
    }
    assert first["1-labelled-draw1"] != draw(pool, Draws(seed=2))["1-labelled-draw1"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Draws(labelled=(9,)), "leave 8, fewer than the 9 labelled patients requested"),
        (Draws(labelled=(1,), validation=10), "leave 0, fewer than the 1"),
        (Draws(labelled=(1,), draws=9), "9 draws were requested, but only 8 patients can be drawn"),
        (Draws(labelled=(0,)), "at least 1"),
        (Draws(validation=-1), "expected draws and n_labelled of at least 1"),
    ],
)
def test_too_few_patients(how: Draws, words: str) -> None:
    data = people(10)
    with pytest.raises(UserError, match=words):
        draw(Pool.of(data, data.cases), how)


def test_named_patients_never_leak() -> None:
    data = people(8, bare=1)
    pool = Pool.of(data, data.cases)
    chosen = {"c1": Combination(("p00",), ("p01",)), "c2": Combination(("p01", "p02"))}
    splits = combine(pool, chosen, test=("p03",), unlabelled=("p00", "p01", "p02", "p04"))
    assert patients(splits["c1"].unlabelled) == {"p02", "p04"}
    assert patients(splits["c2"].unlabelled) == {"p00", "p04"}
    assert splits["c1"].test == ("p03_ED", "p03_ES")
    with pytest.raises(UserError, match="combination c needs labels of p07, which have none"):
        combine(pool, {"c": Combination(("p07",))}, test=(), unlabelled=())
    with pytest.raises(UserError, match="p00_ED is in labelled and in test"):
        combine(pool, {"c": Combination(("p00",))}, test=("p00",), unlabelled=())
    with pytest.raises(UserError, match="has no labelled patient"):
        combine(pool, {"c": Combination(())}, test=(), unlabelled=())


def test_files_and_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = decathlon(tmp_path / "data", [f"p{i}_{f}" for i in range(5) for f in ("ED", "ES")], unlabelled=["p9"])
    out = tmp_path / "splits"
    line = [
        "make-splits",
        str(root),
        str(out),
        "--n-labelled",
        "[1,2]",
        "--draws",
        "2",
        "--n-validation",
        "1",
        "--n-test",
        "1",
    ]
    assert main(line) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "patients",
        "/",
        "volumes",
        "/",
        "slices",
        "labelled",
        "validation",
        "test",
        "unlabelled",
    ]
    slices = SHAPE[2]
    assert f"1 / 2 / {2 * slices}" in printed[1]
    assert printed[1].endswith(f"3 / 5 / {5 * slices}")  # two patients of two volumes, and the one without a label
    names = [f"{size}-labelled-draw{number}.json" for size in (1, 2) for number in (1, 2)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "all-labelled.json"]
    split = read_split(out / names[0], open_dataset(root))
    assert split.settings == {"seed": 0, "draw": 1}
    # The same again changes nothing; another seed must not replace what runs may have used.
    assert main(line) == 0
    assert main([*line, "--seed", "1"]) == 1
    assert "already exists with another content" in capsys.readouterr().err


def test_hashes_say_nothing_of_unlabelled_cases_labels(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    written = make_splits(str(root), tmp_path / "a", n_labelled=(1,), draws=1, n_validation=1, n_test=1)
    file, split = next(iter(written.files.items()))
    prints = read_fingerprints(file)
    assert {name: sorted(hashes) for name, hashes in prints.items()} == {
        name: ["image"] if name in split.unlabelled else ["image", "label"] for name in ("p1", "p2", "p3", "p4")
    }
    (hidden,) = split.unlabelled
    (root / "labelsTr" / f"{hidden}.nii.gz").write_bytes(b"cannot be read")
    again = make_splits(str(root), tmp_path / "b", n_labelled=(1,), draws=1, n_validation=1, n_test=1)
    assert next(iter(again.files)).read_bytes() == file.read_bytes()
    (root / "imagesTr" / f"{hidden}.nii.gz").touch()
    save_case(root, hidden, number=9)
    other = make_splits(str(root), tmp_path / "c", n_labelled=(1,), draws=1, n_validation=1, n_test=1)
    assert read_fingerprints(next(iter(other.files)))[hidden] != prints[hidden]


def test_test_patients_from_a_table_and_from_the_data_set(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data", [f"p{i}_{f}" for i in range(5) for f in ("ED", "ES")])
    table = tmp_path / "split.csv"
    table.write_text("case,patient,split\np1_ED,p1,val\np2_ED,p2,train\np3_ES,p3,val\n")
    how = {"n_labelled": (1,), "draws": 1, "n_validation": 1}
    written = make_splits(str(root), tmp_path / "a", table=table, table_test=("val",), **how)
    assert {patients(split.test) == {"p1", "p3"} for split in written.files.values()} == {True}
    with pytest.raises(
        UserError, match=r"no row has the split test; found train, val\. Name the test values with --table-test"
    ):
        make_splits(str(root), tmp_path / "b", table=table, **how)
    content = json.loads((root / "dataset.json").read_text())
    content["test"] = [content["training"].pop(0)["image"]]
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="1 label file without an image"):
        make_splits(str(root), tmp_path / "c", **how)
    (root / "labelsTr" / "p0_ED.nii.gz").unlink()
    written = make_splits(str(root), tmp_path / "c", **how)
    # The other volume of a test patient is for test as well.
    assert {split.test for split in written.files.values()} == {("p0_ES", "p0_ED")}


def test_patients_who_are_not_there(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data", ["p1", "p2", "p3"])
    chosen = {"a": Combination(("p1",), ("p2",)), "b": Combination(("p8",))}
    with pytest.raises(UserError, match="has no cases of p8, p9; its patients are p1, p2, p3"):
        make_splits(str(root), tmp_path / "s", combinations=chosen, test_patients=("p9", "p3"))
    written = make_splits(
        str(root), tmp_path / "s", combinations=chosen, test_patients=("p9", "p3"), missing="leave_out"
    )
    assert list(written.files.values()) == [Split(("p1",), ("p2",), ("p3",))]
    assert "left out p8, p9, which are not in Small" in str(written)
    assert "left out the combinations b" in str(written)


def test_only_some_cases(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data", [f"p{i}_{f}" for i in range(4) for f in ("ED", "ES")])
    written = make_splits(str(root), tmp_path / "s", n_labelled=(1,), draws=1, only="_ED$")
    for split in written.files.values():
        assert sorted(n for names in split.parts.values() for n in names) == ["p0_ED", "p1_ED", "p2_ED", "p3_ED"]
    assert "no test cases" in str(written)
    with pytest.raises(UserError, match=r"no case name, such as p0_ED.*, matches --only"):
        make_splits(str(root), tmp_path / "s", only="_MD$")
    with pytest.raises(UserError, match="is not a valid regular expression"):
        make_splits(str(root), tmp_path / "s", only="(")


@pytest.mark.parametrize(
    ("name", "counts", "test", "pool"),
    [
        ("acdc", {1: 5, 2: 5, 8: 3, 77: 1}, 20, 52),
        ("prostate", {1: 5, 2: 5, 8: 3, 10: 3, 15: 1}, 15, 17),
        ("mmwhs", {1: 5, 2: 4, 8: 3}, 10, 10),
    ],
)
def test_the_papers_protocols(name: str, counts: dict[int, int], test: int, pool: int, tmp_path: Path) -> None:
    """On a data set with the papers' patients; leaks of the released code's lists are not in the splits."""
    content = yaml.safe_load((CONFIGS / f"splits-{name}.yaml").read_text())
    lists = [*content["combinations"].values()]
    everybody = {p for c in lists for p in (*c["labelled"], *c["validation"])}
    everybody |= {*content["test_patients"], *content["unlabelled_patients"]}
    cases = tuple(Case(f"{p}_frame01", p, ImageFile(Path("x")), Path("y")) for p in sorted(everybody))
    data = DataSet(name, tmp_path, cases, LabelMap(("background", "x"), (0, 1)), "csv")
    combinations = {
        key: Combination(tuple(c["labelled"]), tuple(c["validation"])) for key, c in content["combinations"].items()
    }
    splits = combine(
        Pool.of(data, cases), combinations, test=content["test_patients"], unlabelled=content["unlabelled_patients"]
    )
    sizes = [len(split.labelled) for split in splits.values()]
    assert {size: sizes.count(size) for size in sizes} == counts
    for split in splits.values():
        split.check(data)  # no patient in two parts: that is what the papers' lists do
        assert len(split.validation) == 2
        assert len(split.test) == test
        left_out = {*split.labelled, *split.validation} & {f"{p}_frame01" for p in content["unlabelled_patients"]}
        assert len(split.unlabelled) == pool - len(left_out)


def test_a_protocol_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((CONFIGS / "splits-mmwhs.yaml").read_text())
    names = [*content["unlabelled_patients"], *content["test_patients"][:1]]
    root = decathlon(tmp_path / "data", names)
    line = ["make-splits", str(root), str(tmp_path / "s"), "--config", "splits-mmwhs"]
    assert main(line) == 1
    assert "has no cases of mr_train_1012" in capsys.readouterr().err
    assert main([*line, "--missing", "leave_out"]) == 0
    assert "2-labelled-c4.json           2 / 2 / 8" in capsys.readouterr().out
    assert len(list((tmp_path / "s").iterdir())) == 12


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    """ACDC's 10 patients marked val can be used as test patients."""
    table = shared_data / "acdc" / "split.csv"
    written = make_splits(str(shared_data / "acdc"), tmp_path, table=table, table_test=("val",), draws=1, hashes=False)
    assert {len(split.test) for split in written.files.values()} == {20}
    parts = written.counts[tmp_path / "8-labelled-draw1.json"]
    assert {part: counts[:2] for part, counts in parts.items()} == {
        "labelled": (8, 16),
        "validation": (2, 4),
        "test": (10, 20),
        "unlabelled": (40, 80),
    }
    assert (
        read_split(tmp_path / "1-labelled-draw1.json", open_dataset(shared_data / "acdc")).test[0]
        == "patient002_frame01"
    )


def test_the_options_of_reading_are_flags(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "data", ["a-1", "a-2", "b-1", "c-1", "d-1"])
    line = [
        "make-splits",
        str(root),
        str(tmp_path / "s"),
        "--patient-pattern",
        "^[a-z]",
        "--n-labelled",
        "[1]",
        "--draws",
        "1",
    ]
    assert main(line) == 0
    read_split(tmp_path / "s" / "1-labelled-draw1.json", open_dataset(root, patient_pattern="^[a-z]"))
    with pytest.raises(UserError, match="disagree about the patients"):
        read_split(tmp_path / "s" / "1-labelled-draw1.json", open_dataset(root))
    assert make_splits(str(root), tmp_path / "t", opening=DataOptions(patient_pattern="^[a-z]"), draws=1)
