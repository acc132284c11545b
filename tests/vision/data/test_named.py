"""Data sets by name: scikit-learn's digits complete, torchvision's in miniature."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
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


class Published:
    """CIFAR with a few images per file, in the published layout and kind of pickle."""

    def __init__(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        self.folder, self.monkeypatch = root / self.kind.base_folder, monkeypatch
        self.folder.mkdir()

    def write(self, lists: dict[str, dict[str, object]], meta: dict[str, object]) -> None:
        """Write files of "train_list" and "test_list", and change torchvision's checksums to theirs."""
        for kind, files in lists.items():
            sums = [[name, self.put(name, content)] for name, content in files.items()]
            self.monkeypatch.setattr(self.kind, kind, sums)
        published = {**self.kind.meta, "md5": self.put(self.kind.meta["filename"], meta)}
        self.monkeypatch.setattr(self.kind, "meta", published)

    def put(self, name: str, content: object) -> str:
        # Protocol 2, as written by the Python of the time.
        (self.folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return md5(self.folder / name)


KINDS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """CIFAR-10 with three images per file."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 3072), dtype=np.uint8)
    names = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    files = {
        name: {"batch_label": name, "labels": [9, 0, 5], "data": batch, "filenames": ["a_s_000001.png"] * 3}
        for name, batch in zip(names, pixels, strict=True)
    }
    test = {names[-1]: files.pop(names[-1])}
    meta = {"num_cases_per_batch": 3, "label_names": KINDS, "num_vis": 3072}
    Published("cifar10", tmp_path, monkeypatch).write({"train_list": files, "test_list": test}, meta)
    return tmp_path, pixels


def test_cifar10(small_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = small_cifar
    train, test = open_images(f"cifar10:{root}"), open_images(f"cifar10:{root}", split="test")
    assert (len(train), len(test)) == (15, 3)
    assert train.labels().tolist() == [9, 0, 5] * 5
    assert test.classes == KINDS
    # A row holds the red, green and blue planes, each line by line.
    assert (train.read(4).numpy() == pixels[1, 1].reshape(3, 32, 32)).all()
    assert (test.read(2).numpy() == pixels[5, 2].reshape(3, 32, 32)).all()
    assert train.path(4) == "cifar10/train#4"
    assert list_splits(f"cifar10:{root}") == ["train", "test"]


def test_cifar10_is_what_torchvision_reads(small_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = small_cifar
    for split in ("train", "test"):
        ours, theirs = open_images(f"cifar10:{root}", split=split), datasets.CIFAR10(root, train=split == "train")
        assert (torch.stack([ours.read(i) for i in range(len(ours))]).permute(0, 2, 3, 1).numpy() == theirs.data).all()
        assert (ours.labels().tolist(), ours.classes) == (theirs.targets, theirs.classes)


def test_cifar100_has_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    batch = {"filenames": ["x", "y"], "fine_labels": [99, 3], "coarse_labels": [19, 1], "data": pixels}
    names = [f"kind {number}" for number in range(100)]
    meta = {"fine_label_names": names, "coarse_label_names": ["wrong"] * 20}
    Published("cifar100", tmp_path, monkeypatch).write({"train_list": {"train": batch}, "test_list": {}}, meta)
    train = open_images(f"cifar100:{tmp_path}")
    assert (train.labels().tolist(), train.classes) == ([99, 3], names)
    assert (train.read(1).numpy() == pixels[1].reshape(3, 32, 32)).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "differs from the published file"),
        (Path.unlink, "no file"),
    ],
)
def test_cifar_of_other_files_is_refused(
    small_cifar: tuple[Path, np.ndarray], change: Callable[[Path], object], reason: str
) -> None:
    root, _ = small_cifar
    change(root / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(UserError, match=rf"is incomplete under .*{reason}"):
        open_images(f"cifar10:{root}")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.place,)


def test_nothing_in_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"fine_labels": [1], "data": np.zeros((1, 3072), dtype=np.uint8), "trap": Trap(tmp_path / "sprung")}
    meta = {"fine_label_names": [str(number) for number in range(100)]}
    Published("cifar100", tmp_path, monkeypatch).write({"train_list": {"train": batch}, "test_list": {}}, meta)
    assert len(open_images(f"cifar100:{tmp_path}")) == 1
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "cifar-100-python" / "train").read_bytes())
    assert (tmp_path / "sprung").exists()  # it would have been


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
    assert "Nothing is downloaded automatically; unpack" in message
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
