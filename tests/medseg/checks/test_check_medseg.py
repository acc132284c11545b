"""`check` finds every problem at its case, reports nothing else, and changes nothing."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from contrastive_core.app.checks import Finding
from contrastive_core.errors import UserError
from ssl_medseg.checks import Report, examine
from ssl_medseg.checks.pictures import draw_pictures
from ssl_medseg.cli import main
from ssl_medseg.commands.make_splits import make_splits
from ssl_medseg.datasets import DataOptions, open_dataset
from ssl_medseg.preprocessing import choose_preprocessing
from ssl_medseg.preprocessing.cases import prepare_cases, skipped_notes
from tests.medseg.broken_set import AFFINE, SHAPE, broken
from tests.medseg.small_sets import ball, decathlon, save


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return examine(root)


def found(report: Report) -> dict[str, dict[str, set[str]]]:
    """Return level -> kind -> names of cases and files."""
    levels: dict[str, dict[str, set[str]]] = {"error": {}, "warning": {}, "note": {}}
    for finding in report.findings:
        names = {name for item in finding.items for name in item.files}
        levels[finding.level].setdefault(finding.kind, set()).update(names)
    return levels


def one(report: Report, kind: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def test_a_copy_in_another_orientation_is_found(tmp_path: Path) -> None:
    root = decathlon(tmp_path, ["a", "b", "c"])
    for folder in ("imagesTr", "labelsTr"):
        image = nib.load(root / folder / "a.nii.gz")
        nib.save(image.as_reoriented([[1, -1], [2, 1], [0, -1]]), root / folder / "c.nii.gz")
    assert found(examine(root))["error"]["same_voxels"] == {"a", "c"}


def test_every_problem_is_found_at_its_case(report: Report) -> None:
    assert found(report) == {
        "error": {
            "missing_image": {"imagesTr/gone.nii.gz"},
            "missing_label": {"labelsTr/gone.nii.gz"},
            "no_label": {"bare"},
            "label_without_image": {"labelsTr/gonne.nii.gz"},
            "unreadable": {"cut_off", "no_nifti"},
            "several_volumes": {"frames"},
            "not_finite": {"nan"},
            "constant": {"constant"},
            "unreadable_label": {"cut_label"},
            "grid": {"grid_shape", "grid_shift", "grid_mirror"},
            "fraction": {"fraction"},
            "unknown_value": {"unknown"},
            "never_labelled": set(),
            "same_voxels": {"good1", "copy_of_good1"},
        },
        "warning": {
            "unlisted": {"imagesTr/unlisted.nii.gz"},
            "empty_label": {"empty"},
            "odd_volume": {"huge", "spacing", "tiny"},
            "duplicate": {"good2", "good2_frame2"},
            # The generated labels are few; that of `same_label` is a copied file.
            "same_label_voxels": found(report)["warning"]["same_label_voxels"],
            "geometry": {"sform"},
            "small": {"tiny"},
            "odd_spacing": {"spacing"},
        },
        "note": {
            "rounded": {"rounded"},
            "absent": {"huge", "unknown", "tiny"},
            "cut_off": {"tiny", "huge"},
            "folded": {"good2", "good2_frame2"},
            "orientation": set(),
            "header_text": set(),
        },
    }
    assert {"good3", "same_label"} <= found(report)["warning"]["same_label_voxels"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("not_finite", "nan: 17 of 7,200 voxels"),
        ("grid", "grid_shape: 38 x 36 x 5 voxels against 40 x 36 x 5"),
        ("grid", "grid_shift: voxels up to 15 mm apart, 10 times a voxel's side: shifted by -15, 0, 0 mm"),
        (
            "grid",
            "grid_mirror: the same voxels in another order: axis 0 flipped, or its affine is wrong; --repair grid "
            "reorders it",
        ),
        ("fraction", "fraction: 5 voxels, such as 0.5"),
        ("constant", "constant: all but 0.014 % of the voxels are 7: the image is nearly empty"),
        ("unknown_value", "unknown: 7 in "),
        ("missing_label", "labelsTr/gone.nii.gz: there is gonne.nii.gz"),
        ("geometry", "sform: sform and qform contradict each other, by up to"),
        ("same_voxels", "good1, copy_of_good1: patients copy_of_good1, good1"),
        ("odd_spacing", "spacing: pixels of 6 mm, the median is 1.5"),
        ("several_volumes", "frames: has the shape 40 x 36 x 5 x 2"),
    ],
)
def test_what_is_said_of_a_case(kind: str, words: str, report: Report) -> None:
    lines = [f"{', '.join(item.files)}: {item.detail}" for item in one(report, kind).items]
    assert any(line.startswith(words) for line in lines), lines


def test_the_structure_no_label_has_is_named(report: Report) -> None:
    assert one(report, "never_labelled").title.startswith("never: in no label")


def test_it_changes_nothing_and_ends_with_1(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.*")}
    assert main(["check", str(root), "--out", str(tmp_path / "new" / "check.json")]) == 1
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.*")} == before
    printed = capsys.readouterr().out
    assert printed.startswith("Broken (decathlon): 27 volumes of 26 patients, 26 with labels\n\nERRORS\n")
    assert printed.rstrip().endswith("14 errors, 9 warnings, 8 notes")
    content = json.loads((tmp_path / "new" / "check.json").read_text())
    assert len(content["errors"]) == 14
    (case,) = [case for case in content["cases"] if case["case"] == "good3"]
    assert case["image"]["shape"] == list(SHAPE)
    assert case["image"]["spacing_mm"] == [1.5, 1.5, 8]
    label = np.asarray(nib.load(root / "labelsTr" / "good3.nii.gz").dataobj)
    assert case["label"]["voxels"] == {"shell": int((label == 1).sum()), "core": int((label == 2).sum()), "never": 0}
    assert case["label"]["slices"]["core"] == int((label == 2).any(axis=(0, 1)).sum())


def test_paths_and_headers_only_when_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(root)])
    main(["check", str(root), "--json"])
    printed = capsys.readouterr().out
    assert "header (descrip 1)" in printed
    assert "JANE" not in printed
    assert str(root) not in printed
    main(["check", str(root), "--show-headers"])
    assert "sform: descrip 'DOE^JANE 1970-01-01'" in capsys.readouterr().out
    main(["check", str(root), "--json", "--show_paths"])
    assert str(root / "imagesTr" / "good1.nii.gz") in capsys.readouterr().out


def test_pictures_of_suspicious_cases(report: Report, tmp_path: Path) -> None:
    names = ("unknown", "grid_mirror", "nan", "rounded", "cut_off")
    few = replace(report, facts=[one for one in report.facts if one.case.name in names])
    files = draw_pictures(few, tmp_path)
    assert {path.stem for path in files} == {"unknown", "grid_mirror", "nan"}
    colours = {path.stem: np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int) for path in files}
    # The fourth colour, after those of the three structures: values not in the map, voxels that are no numbers.
    fourth = {name: int((np.abs(rgb - [0x5F, 0xE0, 0x8A]).sum(axis=1) < 30).sum()) for name, rgb in colours.items()}
    assert fourth["unknown"] > fourth["nan"] > fourth["grid_mirror"] == 0
    every = draw_pictures(few, tmp_path / "all", every=True, most=4)
    assert [path.stem for path in every][-1] == "rounded"
    assert len(draw_pictures(few, tmp_path / "one", most=1)) == 1


def test_a_good_data_set_has_nothing_to_say_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("a", "b", "c")):
        image, label = ball(number, SHAPE)
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", image, AFFINE)
        save(tmp_path / "labelsTr" / f"{name}.nii.gz", np.roll(label, number, axis=1), AFFINE)
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ("a", "b", "c")]
    content = {"labels": {"0": "background", "1": "shell", "2": "core"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings, 0 notes" in printed
    assert "spacing    1.5 mm in-plane, 8 mm between slices" in printed
    assert "stored     LPS 3" in printed
    every = {value: (ball(0, SHAPE)[1] == value).any(axis=(0, 1)) for value in (1, 2)}
    full, shown = 3 * (every[1] & every[2]).sum(), 3 * (every[1] | every[2]).sum()
    assert 0 < full < shown
    assert f"{full} of {shown} slices with labels show every structure ({full / shown:.0%})" in printed


def test_a_label_map_is_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, label = ball(0, SHAPE)
    save(tmp_path / "images" / "a.nii.gz", image, AFFINE)
    save(tmp_path / "labels" / "a.nii.gz", (label.astype(np.int16) * 300), AFFINE)
    proposed = tmp_path / "map.json"
    assert main(["check", str(tmp_path), "--propose-map", str(proposed)]) == 1
    assert "(0 in 1 label, 300 in 1 label, 600 in 1 label)" in capsys.readouterr().out
    assert json.loads(proposed.read_text()) == {"0": "background", "300": "structure 300", "600": "structure 600"}
    assert main(["check", str(tmp_path), "--label-map", str(proposed)]) == 0
    proposed.write_text(proposed.read_text().replace("structure 300", "liver"))
    assert main(["check", str(tmp_path), "--propose-map", str(proposed)]) == 1
    assert "map.json is an input of `ssl-medseg check` and would be replaced" in capsys.readouterr().err
    assert "liver" in proposed.read_text()


def test_a_split_is_checked(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    written = make_splits(str(data), tmp_path / "s", n_labelled=(1,), draws=1, n_validation=1, n_test=1)
    file, split = next(iter(written.files.items()))
    kinds = {finding.kind for finding in examine(data, split=file).findings}
    assert kinds.isdisjoint({"split", "changed", "never_in_labelled"})
    (labelled,), (hidden,) = split.labelled, split.unlabelled
    path = data / "labelsTr" / f"{labelled}.nii.gz"
    label = np.asarray(nib.load(path).dataobj)
    save(path, np.where(label == 2, 1, label).astype(np.uint8))
    (data / "labelsTr" / f"{hidden}.nii.gz").unlink()
    report = examine(data, split=file, opening=DataOptions(allow_unlabelled=True))
    assert [(item.files, item.detail) for item in one(report, "changed").items] == [([labelled], "label")]
    assert one(report, "never_in_labelled").title.startswith("core: in no label of the split's labelled cases")
    file.write_text(file.read_text().replace(f'["{hidden}", "{hidden}"]', ""))
    assert one(examine(data, split=file, opening=DataOptions(allow_unlabelled=True)), "split").level == "error"


def test_names_with_dates_are_noted(tmp_path: Path) -> None:
    data = decathlon(tmp_path, ["scan-19700131", "p20240230", "visit_2020-02-29_b", "p12345678"])
    assert {name for item in one(examine(data), "date_in_name").items for name in item.files} == {
        "scan-19700131",
        "p20240230",
        "visit_2020-02-29_b",
    }


def test_memory_is_that_of_one_volume(tmp_path: Path) -> None:
    shape, count = (96, 96, 32), 12
    for number in range(count):
        image, label = ball(number, shape)
        save(tmp_path / "imagesTr" / f"p{number}.nii", image)
        save(tmp_path / "labelsTr" / f"p{number}.nii", label)
    entries = [{"image": f"imagesTr/p{n}.nii", "label": f"labelsTr/p{n}.nii"} for n in range(count)]
    content = {"labels": {"0": "background", "1": "shell", "2": "core"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    examine(tmp_path)  # what is imported and compiled on the way
    tracemalloc.start()
    examine(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    volume = 4 * np.prod(shape)  # float32
    assert peak < 6 * volume


def test_layouts_are_looked_at_alike(tmp_path: Path) -> None:
    image, label = ball(0, SHAPE)
    save(tmp_path / "images" / "a.nii.gz", image, AFFINE)
    save(tmp_path / "labels" / "a.nii.gz", label, AFFINE)
    save(tmp_path / "unlabelled" / "b.nii.gz", image + 1, AFFINE)
    (tmp_path / "labels.json").write_text('{"shell": 1, "core": 2}')
    report = examine(tmp_path)
    assert (report.layout, len(report.facts), report.errors) == ("folders", 2, [])
    assert one(report, "unlabelled").title.startswith("1 of 2 cases declared as unlabelled")
    with pytest.raises(UserError, match="there is no such file or folder"):
        examine(tmp_path / "nowhere")


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    report = examine(shared_data / "prostate")
    assert report.findings == []
    assert [one.image.grid.shape[:2] for one in report.facts if one.image.grid] == [(320, 320)] * 10
    assert {one.image.orientation for one in report.facts} == {"LPS"}


def test_the_source_of_patients_is_named(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"])
    assert examine(data).rule.startswith("derived from the names of cases")
    table = data / "cases.csv"
    rows = "a,P1,imagesTr/a.nii.gz,labelsTr/a.nii.gz\nb,{},imagesTr/b.nii.gz,labelsTr/b.nii.gz\n"
    table.write_text("case,patient,image,label\n" + rows.format("P1"))
    assert "patients   1, listed in the column patient; a belongs to P1" in examine(table).text()
    table.write_text("case,patient,image,label\n" + rows.format(""))
    assert examine(table).rule.startswith("listed in the column patient for 1 case, otherwise derived from the names")
    assert examine(table, opening=DataOptions(patient_pattern=".")).rule == (
        "derived from the names of cases with the pattern '.'"
    )


def test_labels_of_single_slices_are_warned_of(tmp_path: Path) -> None:
    """Annotators may label every second or fifth slice only; training would learn the others as background."""
    shape = (24, 20, 12)
    for number, name in enumerate(("whole", "every_second", "two_lesions")):
        image, label = ball(number, shape)
        if name == "every_second":
            label[:, :, ::2] = 0
        elif name == "two_lesions":
            label[:, :, [n for n in range(12) if n not in (4, 8)]] = 0
        for folder, array in (("images", image), ("labels", label)):
            save(tmp_path / folder / f"{name}.nii.gz", array.swapaxes(0, 2), AFFINE[:, [2, 1, 0, 3]])
    (tmp_path / "labels.json").write_text(json.dumps({"background": 0, "shell": 1, "core": 2}))
    assert found(examine(tmp_path))["warning"]["skipped_slices"] == {"every_second"}
    dataset = open_dataset(tmp_path)
    chosen, _ = choose_preprocessing(dataset, dataset.names, labelled=dataset.names)
    (note,) = skipped_notes(prepare_cases(dataset, dataset.names, chosen, labels=True))
    assert note.startswith("warning: every_second: single labelled slices with unlabelled ones between them")
