"""Data sets by name: scikit-learn's digits whole, torchvision's in miniature."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from contrastive_core.errors import UserError
from ssl_vision.data import list_splits, open_images

datasets = pytest.importorskip("torchvision.datasets")


def test_digits_are_split_evenly_and_completely() -> None:
    train, test, everything = (open_images("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1433, 364, 1797)
    assert list_splits("digits") == ["train", "test"]
    counts = torch.stack([images.labels().bincount() for images in (train, test)])
    assert (counts.sum(dim=0) == everything.labels().bincount()).all()
    share = counts[1] / counts.sum(dim=0)
    assert (share - 0.2).abs().max() < 0.005

    def rows(images: object) -> list[tuple[int, ...]]:
        return sorted((int(images.label(i)), *images.read(i).flatten().tolist()) for i in range(len(images)))

    assert sorted(rows(train) + rows(test)) == rows(everything)


def test_digits_are_scikit_learns_in_gray() -> None:
    bunch = load_digits()
    images = open_images("digits", split="all")
    picture = images.read(5)
    assert picture.shape == (3, 8, 8)
    assert (picture == picture[:1]).all()
    expected = torch.tensor(bunch.images[5]).double() * 255 / 16
    assert (picture[0].double() - expected).abs().max() <= 0.5
    assert images.labels().tolist() == bunch.target.tolist()
    assert images.classes == [str(number) for number in range(10)]


def test_digits_test_images_are_the_first_and_every_fifth_of_a_class() -> None:
    bunch = load_digits()
    sevens = np.flatnonzero(bunch.target == 7)[::5]
    test = open_images("digits", split="test")
    found = [i for i in range(len(test)) if test.label(i) == 7]
    assert len(found) == len(sevens)
    for i, source in zip(found, sevens, strict=True):
        assert test.read(i)[0].flatten().tolist() == np.rint(bunch.images[source] * 255 / 16).flatten().tolist()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """CIFAR-10 of three images per file, in the layout that torchvision downloads, with checksums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 3072), dtype=np.uint8)
    files = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    for name, batch in zip(files, pixels, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": batch, "labels": [9, 0, 5]}))
    kinds = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": kinds}))
    sums = [[name, md5(folder / name)] for name in files]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    return tmp_path, pixels


def test_cifar(small_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = small_cifar
    train, test = open_images(f"cifar10:{root}"), open_images(f"cifar10:{root}", split="test")
    assert (len(train), len(test)) == (15, 3)
    assert test.labels().tolist() == [9, 0, 5]
    assert (test.classes[9], test.classes[0]) == ("truck", "airplane")
    # A row holds the red, green and blue planes, each line by line.
    assert (train.read(4).numpy() == pixels[1, 1].reshape(3, 32, 32)).all()
    assert train.path(4) == "cifar10/train#4"
    assert list_splits(f"cifar10:{root}") == ["train", "test"]


def test_a_changed_file_is_refused(small_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = small_cifar
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not complete under"):
        open_images(f"cifar10:{root}")


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    # Its planes are stored column by column.
    picture = np.arange(3 * 96 * 96, dtype=np.int64).reshape(1, 3, 96, 96).astype(np.uint8)
    stored = picture.transpose(0, 1, 3, 2).tobytes()
    content = {
        "train_X.bin": stored * 2, "train_y.bin": bytes([10, 1]), "unlabeled_X.bin": stored * 4,
        "test_X.bin": stored, "test_y.bin": bytes([3]),
        "class_names.txt": b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n",
    }  # fmt: skip
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for kind in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(datasets.STL10, kind)]
        monkeypatch.setattr(datasets.STL10, kind, sums)
    train, unlabelled = (open_images(f"stl10:{tmp_path}", split=split) for split in ("train", "unlabeled"))
    assert train.labels().tolist() == [9, 0]
    assert train.classes[0] == "airplane"
    assert (train.read(1).numpy() == picture[0]).all()
    assert (len(unlabelled), unlabelled.label(0), unlabelled.is_labelled) == (4, None, False)
    assert len(open_images(f"stl10:{tmp_path}", split="train+unlabeled")) == 6
    assert list_splits(f"stl10:{tmp_path}") == ["train", "test", "unlabeled"]


def test_imagenet_is_the_layout_that_torchvision_unpacks(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01443537", "n01440764"):
            (tmp_path / split / wnid).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / wnid / f"{wnid}_1.JPEG")
    train, test = open_images(f"imagenet:{tmp_path}"), open_images(f"imagenet:{tmp_path}", split="test")
    assert train.classes == test.classes == ["n01440764", "n01443537"]
    assert test.path(0).endswith("val/n01440764/n01440764_1.JPEG")


def test_imagenet_in_archives_or_unsorted_says_how_to_unpack(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(
        UserError, match=r"there is no folder .*train.*run once in Python.*torchvision\.datasets\.ImageNet"
    ):
        open_images(f"imagenet:{tmp_path}")
    (tmp_path / "val").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="is not sorted into folders of classes such as n01440764"):
        open_images(f"imagenet:{tmp_path}", split="val")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_nothing_is_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}[name]

    def download(self: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(getattr(datasets, kind), "download", download)
    with pytest.raises(UserError) as caught:
        open_images(f"{name}:{tmp_path}")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "Nothing is downloaded unasked; unpack" in message
    assert f"torchvision.datasets.{kind}('{tmp_path}', download=True)" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("cifar10", "train", "found no folder after the name, expected cifar10:ROOT"),
        ("CIFAR10:/somewhere", "train", r"no data set of that name .*did you mean cifar10\?"),
        ("cifar10:/somewhere", "val", "found split 'val', expected one of train, test"),
        ("digits", "val", "found split 'val', expected one of train, test, all"),
        ("digit", "train", r"did you mean digits\?"),
    ],
)
def test_wrong_names_and_splits(spec: str, split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_images(spec, split=split)
