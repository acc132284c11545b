"""Names from data and models cannot leave the output folder or pass for other names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from contrastive_core.training.model_file import save_model

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


def test_no_archive_is_unpacked() -> None:
    """Members of an archive have names, too; no file is written under them."""
    unpacking = re.compile(r"extractall|unpack_archive|\.extract\(|import tarfile")
    assert len(SOURCES) > 100
    assert [path.name for path in SOURCES if unpacking.search(path.read_text(encoding="utf-8"))] == []
