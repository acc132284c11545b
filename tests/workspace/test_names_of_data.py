"""Names from data and models cannot leave the output folder or pass for other names."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from contrastive_core.training.model_file import save_model
from contrastive_core.training.names import check_file_name, check_label

SOURCES = sorted(Path(__file__).parents[2].glob("packages/*/src/**/*.py"))


def small_classifier(folder: Path, classes: list[str]) -> Path:
    from ssl_vision.models import EncoderOptions
    from ssl_vision.models.model_folder import Architecture, classifier_card

    architecture = Architecture(EncoderOptions(width_multiplier=0.125), image_size=8)
    tensors = dict(architecture.build(2).state_dict())
    return save_model(folder, tensors, classifier_card(architecture, classes))


def test_names_in_data_and_models_are_checked(tmp_path: Path) -> None:
    """Names of classes, videos, combinations and structures that reverse text or end a line are refused."""
    from ssl_medseg.datasets.draw_splits import Combination, combine
    from ssl_medseg.io.label_map import LabelMap
    from ssl_video.data.videos import Video, VideoSet
    from ssl_vision.data import open_images
    from ssl_vision.models.model_folder import load_classifier

    folder = tmp_path / "cat\u202egnp.exe"
    (tmp_path / "dog").mkdir()
    folder.mkdir()
    for place in (folder, tmp_path / "dog"):
        Image.new("RGB", (4, 4)).save(place / "1.png")
    model = small_classifier(tmp_path / "model", ["cat", "dog\r"])
    attempts = [
        lambda: load_classifier(str(model), device="cpu"),
        lambda: open_images(str(tmp_path)),
        lambda: VideoSet("set", [Video("a/1.mkv\n2.mkv", tmp_path / "1.mkv")]),
        lambda: VideoSet("set", [Video("a/1.mkv", tmp_path / "1.mkv")], classes=["run\x1b[2J"]),
        lambda: LabelMap(("background", "liver\x07"), (0, 1)),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match="contains control characters"):
            attempt()
    with pytest.raises(UserError, match="contains a path separator"):
        combine(None, {"../../split": Combination(("p1",), ("p2",))}, test=(), unlabelled=())


#: Texts in place of names: separators, parents, controls, reserved names, directions of text, length.
HOSTILE = (
    *(
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "a\\b",
        "C:\\x",
        "C:x",
        "a\nb",
        "a\rb",
        "a\tb",
        "\x00",
        "a\x1b[2J",
        "\u202egnp",
    ),
    *(
        "a\u2028b",
        "con",
        "NUL.nii",
        "COM1",
        " ",
        "",
        "a.",
        " a",
        "x" * 300,
        "é" * 150,
        "-rf",
        "=1+1",
        "<b>",
        "%s",
        ".hidden",
    ),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_descriptions_of_dicom_series_name_no_file_elsewhere(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two series of one study, whose masks are named by their descriptions."""
    import numpy as np
    import pydicom

    from ssl_medseg.commands.predict import _targets
    from ssl_medseg.prediction import find_images
    from tests.medseg.dicom_series import write_series

    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    folder = tmp_path / "study"
    for number in range(2):
        write_series(folder, np.zeros((4, 4, 2)), np.eye(4), study="1.2", description="d", prefix=f"S{number}")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for tag in ("SeriesDescription", "PatientID", "PatientName", "StudyDescription", "ProtocolName", "StudyID"):
            setattr(dataset, tag, text)
        dataset.save_as(file)
    found = find_images(folder)
    _, targets = _targets(found, tmp_path / "out", "auto")
    assert len(set(targets)) == 2
    for target in targets:
        assert target.parent == tmp_path / "out" / "study"
        check_file_name(target.name[-80:], what="mask", source="test")
        assert len(os.fsencode(target.name)) <= 210, "a place for _probabilities and a temporary ending is left"


@pytest.mark.parametrize("text", HOSTILE)
def test_names_in_a_dataset_json_name_no_file_elsewhere(text: str, tmp_path: Path) -> None:
    """Structures and channels are refused or harmless; a case is named by the last part of its path."""
    from ssl_medseg.datasets import open_dataset
    from ssl_medseg.phantom import write_phantom

    write_phantom(tmp_path / "data", patients=2, frames=1, size=16)
    file = tmp_path / "data" / "dataset.json"
    good = json.loads(file.read_text())
    value = max(good["labels"])
    for change in (
        {"labels": {**good["labels"], value: text}},
        {"modality": {"0": text}},
        {"name": text},
        {"training": [{"image": text, "label": good["training"][0]["label"]}, *good["training"][1:]]},
    ):
        file.write_text(json.dumps({**good, **change}))
        try:
            dataset = open_dataset(tmp_path / "data")
        except UserError:
            continue
        channels = {name for case in dataset.cases for name in case.image.channel_names if name}
        for name in (*dataset.names, *dataset.labels.names, *channels):
            check_label(name, what="name", source="test")
        for name in dataset.names:
            check_file_name(name, what="case", source="test")


@pytest.mark.parametrize("text", HOSTILE)
def test_classes_and_parts_of_tables_name_no_file_elsewhere(text: str, tmp_path: Path) -> None:
    """Label files, splits, predictions and flow are named by numbers, hashes and the data set; classes by nothing."""
    from ssl_video.cli import main as video
    from ssl_vision.cli import main as vision

    inside = tmp_path / "work" / "data"
    for name in ("a/0", "a/1", "b/0"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * int(name[2]), 0, ord(name[0]))).save(inside / f"{name}.png")
        (inside / f"{name}.mkv").write_bytes(name.encode())
    for table, ending in (("images.csv", ".png"), ("videos.csv", ".mkv")):
        rows = [("a/0", text, "train"), ("a/1", text, text), ("b/0", "b", "train")]
        with (inside / table).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "class", "split"), *((f"{row[0]}{ending}", *row[1:]) for row in rows)])
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "work" / "out"
    lines = [
        (
            vision,
            [
                "make-splits",
                str(inside / "images.csv"),
                str(out / "splits"),
                "--per-class",
                "1",
                "--draws",
                "1",
                "--fractions",
                "",
            ],
        ),
        (vision, ["embed", "pixels", str(inside / "images.csv"), str(out / "features.npz"), "--device", "cpu"]),
        (video, ["make-splits", str(inside / "videos.csv"), str(out / "videos"), "--per-class", "1", "--draws", "1"]),
    ]
    for main, line in lines:
        assert main(line) in (0, 1)
    new = set(tmp_path.rglob("*")) - before
    assert all(path == out or out in path.parents for path in new)
    for path in new - {out}:
        assert path.name.startswith(".outputs") or check_file_name(path.name, what="file", source="test")


def test_no_archive_is_unpacked() -> None:
    """Members of an archive have names, too; no file is written under them."""
    unpacking = re.compile(r"extractall|unpack_archive|\.extract\(|import tarfile")
    assert len(SOURCES) > 100
    assert [path.name for path in SOURCES if unpacking.search(path.read_text(encoding="utf-8"))] == []
