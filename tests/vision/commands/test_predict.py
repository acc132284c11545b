"""Predictions for unlabelled files as a table."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from contrastive_core.app.report.page import to_image
from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions
from ssl_vision.cli import main
from ssl_vision.commands import predict as module
from ssl_vision.commands.predict import predict
from ssl_vision.data import in_memory, open_images
from ssl_vision.models.model_folder import load_classifier

CPU = InferenceOptions(device="cpu")


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, strict=True))


def expected(model: Path, indices: list[int]) -> np.ndarray:
    images = open_images("digits", split="test")
    loaded = load_classifier(str(model), device="cpu")
    with torch.no_grad():
        return loaded.model(in_memory(images)[indices].float() / 255).double().softmax(dim=1).numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-five digits at several depths; their names are their numbers."""
    images = open_images("digits", split="test")
    for i in range(25):
        place = tmp_path / "images" / ["", "a", "a/b c", "z/y/x/w"][i % 4]
        place.mkdir(parents=True, exist_ok=True)
        to_image(images.read(i)).save(place / f"{i:03}{['.png', '.bmp', '.TIFF'][i % 3]}")
    return tmp_path / "images"


def test_rows_are_the_classifier_s_answers(digit_classifier: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.csv"
    result = predict(
        str(digit_classifier),
        str(folder),
        out,
        top=3,
        probabilities=True,
        inference=InferenceOptions(batch_size=7, device="cpu"),
    )
    rows = read(out)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())
    assert [row["path"] for row in rows] == paths
    assert (result.images, result.unreadable) == (25, 0)
    probabilities = expected(digit_classifier, [int(Path(row["path"]).stem) for row in rows])
    for row, given in zip(rows, probabilities, strict=True):
        ranked = np.argsort(-given)
        assert [row["class"], row["class_2"], row["class_3"]] == [str(c) for c in ranked[:3]]
        found = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert found == pytest.approx(given[ranked[:3]], rel=1e-3, abs=1e-6)
        assert [float(row[f"p({c})"]) for c in range(10)] == pytest.approx(given, rel=1e-3, abs=1e-6)
        assert row["error"] == ""


def test_values_that_are_not_finite_are_no_class(
    digit_classifier: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = module.outputs
    monkeypatch.setattr(
        module,
        "outputs",
        lambda *given, **options: iter([next(finite(*given, **options)).index_fill(0, _ONE, torch.nan)]),
    )
    result = predict(str(digit_classifier), str(folder), tmp_path / "out.csv", probabilities=True, inference=CPU)
    rows = read(tmp_path / "out.csv")
    assert (result.unreadable, len(rows)) == (1, 25)
    assert [bool(row["class"]) for row in rows[:3]] == [True, False, True]
    assert "not finite" in rows[1]["error"]
    assert rows[1]["p(0)"] == ""


_ONE = torch.tensor([1])


def test_batch_size_changes_nothing(digit_classifier: Path, folder: Path, tmp_path: Path) -> None:
    files = []
    for size in (1, 4, 100):
        files.append(tmp_path / f"{size}.csv")
        predict(
            str(digit_classifier), str(folder), files[-1], inference=InferenceOptions(batch_size=size, device="cpu")
        )
    tables = [[(row["path"], row["class"]) for row in read(file)] for file in files]
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_odd_file_names_come_back_whole(digit_classifier: Path, tmp_path: Path) -> None:
    names = ["a,b.png", 'say "hi".png', "two\nlines.png", "cr\rname.png", " space.png", "é漢.png", "=1+1.png", "'.png"]
    (tmp_path / "images").mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    raw = os.fsencode(tmp_path / "images") + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "images" / "'.png").read_bytes())
    out = tmp_path / "out.csv"
    predict(str(digit_classifier), str(tmp_path / "images"), out, inference=CPU)
    found = [row["path"] for row in read(out)]
    assert "./=1+1.png" in found  # which no spreadsheet calculates
    assert sorted(path.removeprefix("./") for path in found) == sorted([*names, "\\udcff.png"])
    assert all(row["class"] for row in read(out))


def test_files_that_cannot_be_read_have_a_row_and_are_counted(
    digit_classifier: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = sorted(path for path in folder.rglob("*.*") if path.is_file())[3:5]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image, and not said to be one")
    out = tmp_path / "out.csv"
    assert main(["predict", str(digit_classifier), str(folder), str(out), "--top", "2"]) == 0
    assert "25 images, of which 2 could not be read" in capsys.readouterr().out
    rows = read(out)
    assert len(rows) == 25
    failed = [row for row in rows if row["error"]]
    assert [folder / row["path"] for row in failed] == bad
    for row in failed:
        assert row["class"] == row["probability"] == row["class_2"] == ""
        assert row["path"] in row["error"]
    others = [row for row in rows if not row["error"]]
    probabilities = expected(digit_classifier, [int(Path(row["path"]).stem) for row in others])
    assert [row["class"] for row in others] == [str(c) for c in probabilities.argmax(axis=1)]


def test_a_batch_of_bad_files_alone(digit_classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(5):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no")
    result = predict(
        str(digit_classifier),
        str(tmp_path / "images"),
        tmp_path / "out.csv",
        inference=InferenceOptions(batch_size=2, device="cpu"),
    )
    assert (result.images, result.unreadable) == (5, 5)
    assert len(read(tmp_path / "out.csv")) == 5


def test_a_stop_in_the_middle_leaves_the_old_file(
    digit_classifier: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")
    batches = iter([None])

    def stop(*arguments: object, **more: object) -> torch.Tensor:
        if next(batches, "over") == "over":
            raise KeyboardInterrupt
        return decode(*arguments, **more)  # type: ignore[arg-type]

    decode = module.decode
    monkeypatch.setattr(module, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(
            str(digit_classifier),
            str(folder),
            out,
            inference=InferenceOptions(batch_size=10, device="cpu"),
            overwrite=True,
        )
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv"]


def test_images_are_read_batch_by_batch(
    digit_classifier: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def record(images: object, indices: range, *arguments: object, **more: object) -> torch.Tensor:
        found = decode(images, indices, *arguments, **more)  # type: ignore[arg-type]
        sizes.append(len(found))
        return found

    decode = module.decode
    monkeypatch.setattr(module, "decode", record)
    predict(
        str(digit_classifier), str(folder), tmp_path / "out.csv", inference=InferenceOptions(batch_size=8, device="cpu")
    )
    assert sizes == [8, 8, 8, 1]


def test_named_sets_and_manifests_are_classified_too(digit_classifier: Path, tmp_path: Path) -> None:
    result = predict(str(digit_classifier), "digits", tmp_path / "out.csv", part="test", inference=CPU)
    assert result.images == 364
    images = open_images("digits", split="test")
    rows = read(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == [images.key(i) for i in range(364)]
    right = [row["class"] == images.classes[int(label)] for row, label in zip(rows, images.labels(), strict=True)]
    assert np.mean(right) > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "1 to 10 classes"),
        (["--top", "11"], "got top=11"),
        (["--batch-size", "0"], "batch_size is 0; expected a whole number of at least 1"),
    ],
)
def test_impossible_settings_are_refused(
    arguments: list[str],
    message: str,
    digit_classifier: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["predict", str(digit_classifier), str(folder), str(tmp_path / "out.csv"), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_without_images_is_refused(digit_classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("a")
    with pytest.raises(UserError, match="found no images among 1 file;"):
        predict(str(digit_classifier), str(tmp_path / "images"), tmp_path / "out.csv")


def test_images_of_kinds_that_are_not_read_have_rows(digit_classifier: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "IMG_7.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "IMG_8.CR2").write_bytes(b"II*\0\x10\0\0\0CR")
    result = predict(str(digit_classifier), str(folder), tmp_path / "out.csv", inference=CPU)
    assert (result.images, result.unreadable) == (27, 2)
    rows = {row["path"]: row for row in read(tmp_path / "out.csv")}
    assert "found a HEIC image, which is not read" in rows["a/IMG_7.HEIC"]["error"]
    assert rows["IMG_8.CR2"]["class"] == ""
    assert "cannot be decoded" in rows["IMG_8.CR2"]["error"] or "TIFF" in rows["IMG_8.CR2"]["error"]


def test_the_name_of_the_file_says_its_format(digit_classifier: Path, folder: Path, tmp_path: Path) -> None:
    tables = {}
    for ending in (".csv", ".tsv", ".jsonl", ".parquet"):
        out = tmp_path / f"out{ending}"
        predict(str(digit_classifier), str(folder), out, top=2, inference=InferenceOptions(batch_size=7, device="cpu"))
        if ending == ".jsonl":
            tables[ending] = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        elif ending == ".parquet":
            tables[ending] = parquet.read_table(out).to_pylist()
        else:
            with out.open(newline="", encoding="utf-8") as stream:
                tables[ending] = list(csv.DictReader(stream, delimiter="\t" if ending == ".tsv" else ",", strict=True))
    assert tables[".tsv"] == tables[".csv"]
    for ending in (".jsonl", ".parquet"):
        for row, expected_row in zip(tables[ending], tables[".csv"], strict=True):
            assert {name: "" if value is None else str(value) for name, value in row.items()} == expected_row
    with pytest.raises(UserError, match=r"found the suffix '\.xlsx', expected one of \.csv, \.tsv, \.jsonl, \.parquet"):
        predict(str(digit_classifier), str(folder), tmp_path / "out.xlsx", inference=CPU)


def test_no_cell_is_a_formula(digit_classifier: Path, folder: Path, tmp_path: Path) -> None:
    source = next(folder.rglob("*.png"))
    for name in ("=cmd|' A0.png", "+1.png", "-x.png", "@sum.png"):
        (folder / name).write_bytes(source.read_bytes())
    predict(str(digit_classifier), str(folder), tmp_path / "out.csv", inference=CPU)
    rows = read(tmp_path / "out.csv")
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert all((folder / row["path"]).is_file() for row in rows)
    assert "./=cmd|' A0.png" in {row["path"] for row in rows}
