"""Names of classes whose folders are WordNet identifiers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.predict import predict
from ssl_vision.commands.report import report
from ssl_vision.data.class_names import find_class_names
from ssl_vision.models import EncoderOptions
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.options import FinetuningOptions

WNIDS = ["n01440764", "n02102040", "n03028079"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("words.txt", "n01440764\ttench, Tinca tinca\nn02102040\tEnglish springer\nn03028079\tchurch, temple\n"),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca\r\nn02102040 English springer\r\nn03028079 church\r\n"),
        ("synset_words.txt", "\ufeffn01440764 tench\nn02102040 English springer\nn03028079 church\nno wnid\n\n"),
    ],
)
@pytest.mark.parametrize("above", [False, True])
def test_names_come_from_the_published_lists(tmp_path: Path, file: str, text: str, above: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / file if above else data / file).write_text(text, encoding="utf-8")
    found = find_class_names(str(data), WNIDS)
    assert found == {"n01440764": "tench", "n02102040": "English springer", "n03028079": "church"}


def test_names_that_no_file_lists_come_from_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    (tmp_path / "words.txt").write_text("n01440764 my own name\n")
    found = find_class_names(str(tmp_path), [*WNIDS, "n99999999"])
    assert found == {"n01440764": "my own name", "n02102040": "English springer", "n03028079": "church"}


def test_the_thousand_classes_of_imagenet_are_known(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    found = find_class_names(str(tmp_path), wnids)
    assert len(found) == 1000
    assert [found[name] for name in WNIDS] == ["tench", "English springer", "church"]


def test_other_classes_have_no_names(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n01440764 tench\n")
    assert find_class_names(str(tmp_path), ["n01440764", "dog"]) == {}
    assert find_class_names("digits", ["0", "1"]) == {}


def test_a_classifier_says_the_names(write, noise, tmp_path: Path) -> None:
    files = {f"{split}/{name}/{i}.png": noise(i) for split in ("train", "test") for name in WNIDS[:2] for i in range(4)}
    root = write({**files, "words.txt": b"n01440764\ttench, Tinca tinca\nn02102040\t=springer\n"})
    run, options = tmp_path / "run", RunOptions(device="cpu", threads=1, progress=False)
    finetune(
        "none",
        str(root),
        run,
        encoder=EncoderOptions(width_multiplier=0.125),
        training=FinetuningOptions(image_size=8, epochs=1),
        run=options,
    )
    predict(
        str(run),
        str(root / "test"),
        tmp_path / "out.csv",
        top=2,
        probabilities=True,
        inference=InferenceOptions(device="cpu"),
    )
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = {"n01440764": "tench", "n02102040": "'=springer"}  # what a spreadsheet would take for a formula
    for row in rows:
        assert row["name"] == names[row["class"]]
        assert row["name_2"] == names[row["class_2"]]
        assert float(row["probability"]) >= float(row["probability_2"]) > 0
        assert float(row[f"p({row['class']})"]) == float(row["probability"])
    assert "tench" in str(evaluate(str(run), str(root), inference=InferenceOptions(device="cpu")))
    page = report(run, device="cpu").read_text()
    assert "tench" in page
