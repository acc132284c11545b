"""Features as files and maps: readable by other programs, equal to the output of the encoder."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from contrastive_core.app.report.figures import to_svg
from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.cli import main
from ssl_vision.commands.embed import embed
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import open_images
from ssl_vision.evaluation.features import extract, write_npz
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder
from ssl_vision.reports.feature_map import layout, map_figure
from ssl_vision.training.options import PretrainingOptions

CPU = InferenceOptions(device="cpu")

Write = Callable[[Mapping[str, Image.Image | bytes | str]], Path]
Noise = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("embed") / "run"
    options = RunOptions(device="cpu", threads=1, progress=False)
    pretrain(
        "digits",
        run,
        training=PretrainingOptions(epochs=1, batch_size=512, image_size=16),
        encoder=EncoderOptions(width_multiplier=0.125),
        run=options,
    )
    return str(run)


@pytest.fixture
def photos(write: Write, noise: Noise) -> Path:
    """Two classes of seven files each, in many formats."""
    kinds = ("png", "jpg", "webp", "bmp", "png", "gif", "tiff")
    return write(
        {
            f"train/{name}/{i}.{kind}": noise(10 * len(name) + i)
            for name in ("cat", "fish")
            for i, kind in enumerate(kinds)
        }
    )


def test_npz_holds_what_the_encoder_gives(model: str, photos: Path, tmp_path: Path) -> None:
    file = embed(
        model, str(photos), tmp_path / "deep" / "features.npz", inference=InferenceOptions(device="cpu", batch_size=4)
    )
    images = open_images(str(photos))
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays) == {"features", "ids", "paths", "labels", "classes"}
        # Another batch size than above: features are the image's own, whatever it is computed beside.
        expected = extract(load_encoder(model, device="cpu"), images, batch_size=14).numpy()
        assert arrays["features"].dtype == np.float32
        np.testing.assert_allclose(arrays["features"], expected, rtol=1e-5, atol=1e-6)
        assert arrays["ids"].tolist() == list(range(14))
        assert arrays["labels"].tolist() == [0] * 7 + [1] * 7
        assert arrays["classes"].tolist() == ["cat", "fish"]
        assert [Path(path).is_file() for path in arrays["paths"]] == [True] * 14
        assert [Path(path).parent.name for path in arrays["paths"]] == ["cat"] * 7 + ["fish"] * 7


def test_npz_is_the_same_bytes_again(photos: Path, tmp_path: Path) -> None:
    files = [embed("pixels", str(photos), tmp_path / f"{i}.npz", inference=CPU) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_images_without_classes_have_features_too(write: Write, noise: Noise, tmp_path: Path) -> None:
    folder = write({f"in/{i}.png": noise(i) for i in range(6)}) / "in"
    with np.load(
        embed("pixels", str(folder), tmp_path / "f.npz", inference=CPU, part="all"),
        allow_pickle=False,
    ) as f:
        assert f["labels"].tolist() == [-1] * 6
        assert f["classes"].tolist() == []
        assert f["features"].shape == (6, 3 * 32 * 32)


def test_parquet_has_a_row_per_image(model: str, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(embed(model, str(photos), tmp_path / "features.parquet", inference=CPU))
    images = open_images(str(photos))
    assert table.column_names == ["id", "path", "label", "class", "features"]
    assert table["id"].to_pylist() == list(range(14))
    assert table["path"].to_pylist() == [images.path(i) for i in range(14)]
    assert table["label"].to_pylist() == images.labels().tolist()
    assert table["class"].to_pylist() == ["cat"] * 7 + ["fish"] * 7
    features = extract(load_encoder(model, device="cpu"), images).numpy()
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), features)


def test_parquet_without_labels_has_nulls(write: Write, noise: Noise, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = write({f"in/{i}.png": noise(i) for i in range(3)}) / "in"
    table = parquet.read_table(embed("pixels", str(folder), tmp_path / "f.parquet", inference=CPU, part="all"))
    assert table["label"].to_pylist() == table["class"].to_pylist() == [None] * 3


def test_missing_pyarrow_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'ssl-vision\[parquet\]'"):
        embed("no such model", "no such data", tmp_path / "f.parquet")


def test_a_map_is_not_written_among_the_images(photos: Path, tmp_path: Path) -> None:
    for out in (photos / "train" / "map.png", photos / "train" / "maps" / "map.PNG"):
        with pytest.raises(
            UserError, match=r"map.* would be one of the images of .* from then on, which `ssl-vision embed`"
        ):
            embed("pixels", str(photos), out, inference=CPU)
        assert not out.parent.joinpath("map.png").exists()


def test_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'\.csv', expected one of \.npz, \.parquet, \.png, \.svg"):
        embed("pixels", "digits", tmp_path / "f.csv")


def test_a_failed_write_leaves_the_old_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(str(photos))
    features = extract(load_encoder("pixels", device="cpu"), images)
    file = tmp_path / "out" / "f.npz"
    write_npz(file, features, images)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        write_npz(file, features, images)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["f.npz"]


def test_map_is_a_function_of_data_and_seed(tmp_path: Path) -> None:
    pictures = [
        embed("pixels", "digits", tmp_path / f"{i}.png", inference=CPU, points=60, seed=seed).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert pictures[0] == pictures[1] != pictures[2]
    with Image.open(io.BytesIO(pictures[0])) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 600
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20  # ten classes, and shades between


def test_map_as_svg_says_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    assert main(["embed", "pixels", "digits", "--out", str(file), "--points", "60", "--device", "cpu"]) == 0
    root = ElementTree.fromstring(file.read_text())
    name = "{http://www.w3.org/2000/svg}"
    text = " ".join(" ".join(node.itertext()) for node in root.iter(f"{name}text"))
    assert "60 of 1,433 images, chosen at random" in text
    assert "t-SNE with perplexity 19.7, seed 0" in text
    assert all(f" {digit} " in f" {text} " for digit in range(10))
    # A point per image, and one per class in the legend.
    assert len(list(root.iter(f"{name}use"))) == 60 + 10


def test_layout_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 30))
    labels = np.repeat(np.arange(4), 25)
    features = (centres[labels] + 0.1 * rng.normal(size=(100, 30))).astype(np.float32)
    # The length of a feature means nothing to a cosine; it must mean nothing to the map.
    positions, how = layout(features * rng.uniform(0.1, 10, size=(100, 1)).astype(np.float32), seed=0)
    assert "PCA to 30 dimensions (100 % of the variance)" in how
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()


def test_map_of_many_classes_names_the_largest() -> None:
    labels = np.concatenate([np.full(30 - c, c) for c in range(25)]).astype(np.int64)
    positions = np.random.default_rng(0).normal(size=(len(labels), 2))
    classes = [f"class{c:02d}" for c in range(25)]
    text = to_svg(map_figure(positions, labels=labels, classes=classes, title="t", caption="c")).decode()
    assert [name for name in classes if name in text] == classes[:19]
    assert "6 other classes" in text


def test_map_of_too_few_images_is_refused(write: Write, noise: Noise, tmp_path: Path) -> None:
    folder = write({f"in/{i}.png": noise(i) for i in range(4)}) / "in"
    with pytest.raises(UserError, match="at least 5 images, found 4"):
        embed("pixels", str(folder), tmp_path / "map.png", inference=CPU, part="all")
    assert not (tmp_path / "map.png").exists()
