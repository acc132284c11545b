"""Image folders: which files, in which order, of which class."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from ssl_vision.checks import examine
from ssl_vision.data import list_splits, open_images


def names(images: object, root: Path) -> list[str]:
    return [images.path(i).removeprefix(f"{root}/") for i in range(len(images))]


@pytest.fixture
def dot() -> Image.Image:
    return Image.new("RGB", (2, 2))


def test_splits_and_classes(write, noise) -> None:
    files = {
        f"{split}/{name}/{i}.png": noise(i) for split in ("train", "test") for name in ("dog", "cat") for i in (2, 1)
    }
    root = write(files)
    train, test = open_images(str(root)), open_images(root, split="test")
    assert list_splits(root) == ["train", "test"]
    assert names(train, root) == ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "train/dog/2.png"]
    assert train.classes == test.classes == ["cat", "dog"]
    assert train.labels().tolist() == [0, 0, 1, 1]
    assert [train.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert train.ids.tolist() == [0, 1, 2, 3]
    assert train.ids.dtype == torch.int64
    assert (train.read(3) == torch.tensor(np.array(noise(2))).permute(2, 0, 1)).all()
    assert train.size(3) == (10, 12)


def test_val_stands_for_test_but_not_for_train(write, dot) -> None:
    root = write({"val/a/1.png": dot})
    assert len(open_images(root, split="test")) == len(open_images(root, split="val")) == 1
    with pytest.raises(UserError, match=r"found the folder val, expected .*train; name another split"):
        open_images(root)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Training", "Testing"), ["train", "test"]),
        (("TRAIN", "VAL"), ["train", "val"]),
        (("train", "validation"), ["train", "val"]),
        (("training_set", "test_set"), ["train", "test"]),
        (("TrainData", "TestData"), ["train", "test"]),
        (("seg_train", "seg_test"), ["train", "test"]),
        (("archive/train", "archive/test"), ["train", "test"]),
        (("a/b/Train", "a/b/Valid"), ["train", "val"]),
        (("seg_train/seg_train", "seg_test/seg_test"), ["train", "test"]),
        (("train2017", "val2017"), ["train", "val"]),
        (("train1", "test1"), ["train", "test"]),
        (("BirdsTrain", "BirdsTest"), ["train", "test"]),
        (("Trainingsdaten", "Validierung", "Testdaten"), ["train", "val", "test"]),
        (("entrenamiento", "validacio\u0301n", "prueba"), ["train", "val", "test"]),
        (("训练集", "测试集"), ["train", "test"]),
        (("学習データ", "テスト"), ["train", "test"]),
        (("훈련", "검증"), ["train", "val"]),
    ],
)
def test_folders_of_splits_in_any_spelling(write, dot, folders: tuple[str, str], splits: list[str]) -> None:
    root = write({f"{folder}/{name}/1.png": dot for folder in folders for name in ("cat", "dog")})
    assert list_splits(root) == splits
    for split, folder in zip(splits, folders, strict=True):
        images = open_images(root, split=split)
        assert names(images, root) == [f"{folder}/cat/1.png", f"{folder}/dog/1.png"]
        assert (images.classes, images.split) == (["cat", "dog"], split)
    assert images.notes or folders == ("train", "test")


def test_what_was_inferred_is_said_once(write, dot, capsys: pytest.CaptureFixture[str]) -> None:
    root = write({"Training/a/1.png": dot, "Testing/a/1.png": dot, "extra/1.png": dot, "2.png": dot, "3.HEIC": b""})
    for split in ("train", "test"):
        open_images(root, split=split)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {root}: folders used as splits: Training as train, Testing as test",
        f"warning: {root}: 2 images beside the split folders left out: in extra (1), no folder (1)",
    ]


def test_an_extra_level_of_folders_is_entered(write, dot) -> None:
    root = write({"photos/archive/cat/1.png": dot, "photos/archive/dog/1.png": dot, "readme.txt": ""})
    images = open_images(root)
    assert (images.classes, images.key(0)) == (["cat", "dog"], "cat/1.png")
    assert images.notes == (f"{root}: the images are in photos/archive, which is opened instead of {root.name}",)


def test_a_single_class_is_no_extra_level(write, dot) -> None:
    assert open_images(write({"cat/may/1.png": dot})).classes == ["cat"]


def test_a_class_called_train(write, dot) -> None:
    root = write({f"{name}/1.png": dot for name in ("car", "plane", "train")})
    images = open_images(root)
    assert images.classes == ["car", "plane", "train"]
    assert "train is used as a class" in images.notes[0]
    classes = write({f"x/{split}/{name}/1.png": dot for split in ("train", "test") for name in ("car", "train")})
    assert open_images(classes / "x", split="test").classes == ["car", "train"]


def test_what_may_be_a_split_or_a_class_is_refused(write, dot) -> None:
    with pytest.raises(UserError, match=r"the folders train and masks, .* train could be a split or a class"):
        open_images(write({"train/1.png": dot, "masks/1.png": dot}))


def test_two_folders_of_one_split_are_refused(write, dot) -> None:
    root = write({f"{folder}/cat/1.png": dot for folder in ("train", "training", "test")})
    with pytest.raises(UserError, match="found the folders train and training, all of split train"):
        open_images(root)


@pytest.mark.parametrize(
    "folders", [("trainA", "trainB", "testA", "testB"), ("cat_train", "cat_test", "dog-train", "dog-test")]
)
def test_splits_of_several_data_sets_are_no_classes(write, dot, folders: tuple[str, ...]) -> None:
    root = write({f"{folder}/1.png": dot for folder in folders})
    with pytest.raises(UserError, match="the splits of several data sets"):
        open_images(root)


def test_splits_inside_classes_are_refused(write, dot) -> None:
    root = write({f"{name}/{split}/1.png": dot for name in ("cat", "dog") for split in ("train", "test")})
    with pytest.raises(UserError, match=r"split folders inside class folders \(cat/test\)"):
        open_images(root)


def test_classes_are_compared_in_composed_form(write, dot) -> None:
    root = write({"train/caf\u00e9/1.png": dot, "train/dog/1.png": dot, "test/cafe\u0301/1.png": dot})
    assert open_images(root, split="test").classes == open_images(root).classes == ["caf\u00e9", "dog"]
    assert "empty_class" not in {finding.kind for finding in examine(root).findings}


def test_images_of_kinds_that_are_not_read_are_counted(write, dot) -> None:
    root = write(
        {
            "cat/1.png": dot,
            "cat/2.JPE": dot,
            "dog/1.mpo": dot,
            "dog/IMG_2.HEIC": b"",
            "cat/3.cr2": b"",
            "dog/4.czi": b"",
            "cat/note.txt": "",
        }
    )
    assert open_images(root).notes == (
        f"{root}: 3 images of an unsupported kind (.cr2, .czi, .heic) left out; convert to JPEG or PNG",
    )


def test_classes_alone_are_training_data(write, dot) -> None:
    root = write({"b/1.png": dot, "a/1.png": dot})
    for split in ("train", "all"):
        images = open_images(root, split=split)
        assert (images.classes, images.labels().tolist()) == (["a", "b"], [0, 1])
    with pytest.raises(UserError, match=r"found no folder of a split .*all images here belong to split train"):
        open_images(root, split="test")


def test_images_without_classes(write, dot) -> None:
    root = write({"b.png": dot, "a.png": dot})
    images = open_images(root)
    assert names(images, root) == ["a.png", "b.png"]
    assert (images.classes, images.label(0), images.is_labelled) == ([], None, False)
    with pytest.raises(
        UserError, match=r"found images without a class folder, expected labels; put the images of each"
    ):
        images.labels()


def test_one_image_beside_the_classes_takes_the_labels_and_is_named(write, dot) -> None:
    images = open_images(write({"cat/1.png": dot, "stray.png": dot}))
    assert len(images) == 2
    with pytest.raises(UserError, match=r"found stray\.png beside classes, expected labels"):
        images.labels()


def test_nested_folders_belong_to_the_class_at_the_top(write, dot) -> None:
    root = write({"cat/2020/may/1.png": dot, "cat/0.png": dot, "dog/x/1.png": dot})
    images = open_images(root)
    assert names(images, root) == ["cat/0.png", "cat/2020/may/1.png", "dog/x/1.png"]
    assert images.labels().tolist() == [0, 0, 1]


def test_class_folders_that_hold_the_same_folders_are_warned_of(write, dot) -> None:
    """Folds, centres or splits above the classes: nothing tells which level the classes are."""
    for above in (("fold1", "fold2"), ("labeled", "unlabeled")):
        root = (
            write({f"{above[0]}-root/{a}/{c}/1.png": dot for a in above for c in ("cat", "dog")}) / f"{above[0]}-root"
        )
        images = open_images(root)
        assert images.classes == list(above)
        expected = f"{above[0]}, {above[1]} are used as the classes, and each contains the same folders, cat, dog"
        assert expected in images.notes[-1]
        assert next(f.kind for f in examine(root).findings if f.level == "warning") == "nested_classes"
    most = open_images(write({f"most/{a}/{c}/1.png": dot for a in "ab" for c in "vwxyz"[: 5 - (a == "b")]}) / "most")
    assert "each contains the same folders, v, w, x, y; if" in most.notes[0]
    for files in (["a/x/1.png", "a/y/1.png", "b/x/1.png"], ["a/x/1.png", "b/x/1.png"], ["a/1.png", "b/1.png"]):
        root = write({f"{len(files)}{files[0][2]}/{file}": dot for file in files}) / f"{len(files)}{files[0][2]}"
        assert open_images(root).notes == ()


def test_a_folder_of_unlabelled_images_among_the_classes_is_warned_of(write, dot) -> None:
    root = write({f"{name}/1.png": dot for name in ("cat", "dog", "Unlabeled")})
    assert open_images(root).notes[0].startswith(f"{root}: the folder Unlabeled is used as a class")
    assert "unlabelled_class" in {finding.kind for finding in examine(root).findings}


def test_a_class_keeps_its_number_in_every_split(write, dot) -> None:
    root = write({"train/a/1.png": dot, "train/b/1.png": dot, "train/c/1.png": dot, "test/c/1.png": dot})
    test = open_images(root, split="test")
    assert test.classes == ["a", "b", "c"]
    assert test.labels().tolist() == [2]


def test_a_class_of_the_test_split_alone_shows(write, dot) -> None:
    root = write({"train/a/1.png": dot, "train/c/1.png": dot, "test/b/1.png": dot, "test/.h/1.png": dot})
    assert open_images(root).classes == ["a", "c"]
    assert open_images(root, split="test").classes == ["a", "b", "c"]


def test_one_folder_of_all_images_beside_classes_for_training_is_no_class(write, dot) -> None:
    """Tiny ImageNet has its validation images in val/images."""
    root = write({"train/n1/images/1.png": dot, "train/n2/images/1.png": dot, "val/images/2.png": dot})
    val = open_images(root, split="val")
    assert (val.is_labelled, len(val)) == (False, 1)
    with pytest.raises(UserError, match="all images in the folder images, which is not a class of the training images"):
        val.labels()
    # A class of this name is one.
    classes = write({"x/train/images/1.png": dot, "x/train/drawings/1.png": dot, "x/val/images/2.png": dot}) / "x"
    assert open_images(classes, split="val").classes == ["drawings", "images"]


def test_other_folders_beside_the_splits_are_opened_by_name(write, dot) -> None:
    root = write({"train/a/1.png": dot, "train/b/1.png": dot, "test/a/1.png": dot, "unlabeled/7.png": dot})
    unlabelled = open_images(root, split="unlabeled")
    assert (len(unlabelled), unlabelled.split, unlabelled.is_labelled) == (1, "unlabeled", False)
    for name in ("nowhere", "..", "train/a", ""):
        with pytest.raises(UserError, match="found the folders train, test, expected"):
            open_images(root, split=name)


def test_order_is_of_names_not_of_the_file_system(write, dot, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({f"{name}.png": dot for name in ("b", "a10", "a9", "B", "é", "a b", "日本")} | {"a/z.png": dot})
    expected = ["B.png", "a b.png", "a/z.png", "a10.png", "a9.png", "b.png", "é.png", "日本.png"]
    assert names(open_images(root), root) == expected
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(scan(path))))
    assert names(open_images(root), root) == expected


def test_all_endings_in_any_case_and_nothing_else(write, dot) -> None:
    good = ["1.JPG", "2.jpeg", "3.Png", "4.bmp", "5.webp", "6.tif", "7.TIFF", "8.ppm", "9.gif"]
    hidden = {".hidden.png": dot, ".cache/x.png": dot, "._1.jpg": b"resource fork"}
    root = write(dict.fromkeys(good, dot) | hidden | {"notes.txt": "", "Thumbs.db": "", "x.png.tmp": ""})
    images = open_images(root)
    assert names(images, root) == good
    assert all(images.read(i).shape == (3, 2, 2) for i in range(len(good)))


def test_folders_that_systems_add_are_hidden(write, dot) -> None:
    names = ["cat/1.png", "dog/2.png", "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg"]
    root = write(dict.fromkeys([*names, "__MACOSX/cat/x.png", "$RECYCLE.BIN/S-1/x.png"], dot))
    images = open_images(root)
    assert images.classes == ["cat", "dog"]
    assert [images.key(place) for place in range(len(images))] == ["cat/1.png", "dog/2.png"]


def test_links_are_followed_once(write, dot) -> None:
    root = write({"photos/cat/1.png": dot, "elsewhere/2.png": dot})
    (root / "photos/dog").symlink_to(root / "elsewhere")
    (root / "photos/cat/up").symlink_to(root / "photos")
    (root / "photos/cat/9.png").symlink_to(root / "elsewhere/2.png")
    (root / "photos/dog/gone.png").symlink_to("nowhere")
    images = open_images(root / "photos")
    assert names(images, root / "photos") == ["cat/1.png", "cat/9.png", "dog/2.png", "dog/gone.png"]
    assert images.read(2).shape == (3, 2, 2)
    with pytest.raises(UserError, match="found a broken link"):
        images.read(3)


def test_a_link_to_another_class_is_refused_and_one_within_a_class_named(write, dot) -> None:
    root = write({"cat/old/1.png": dot, "dog/2.png": dot})
    (root / "cat/new").symlink_to(root / "cat/old")
    images = open_images(root)
    assert len(images) == 3
    assert images.notes == (
        f"{root}: cat/new and cat/old are the same folder, because of a link; its images are counted 2 times",
    )
    (root / "nested").mkdir()
    (root / "nested/too").symlink_to(root / "dog")
    with pytest.raises(UserError, match=r"dog and nested/too are the same folder, .* classes dog and nested at once"):
        open_images(root)
    (root / "nested/too").unlink()
    (root / "tabby").symlink_to(root / "cat")
    with pytest.raises(
        UserError, match=r"cat and tabby are the same folder, because of a link, and its images would be"
    ):
        open_images(root)
    # Without classes there is no contradiction.
    (root / "3.png").symlink_to(root / "dog/2.png")
    assert not open_images(root).is_labelled


@pytest.mark.parametrize("link", ["test", "test/cat", "validation/tabby"])
def test_training_images_linked_into_another_split_are_refused(write, dot, link: str) -> None:
    root = write({"train/cat/1.png": dot, "train/dog/2.png": dot, "validation/cat/3.png": dot})
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(root / "train" if "/" not in link else root / "train/cat")
    with pytest.raises(
        UserError, match=rf"train.* and {link} are the same folder, .* training images would be in split"
    ):
        open_images(root)


def test_one_folder_for_validation_and_test_is_named(write, dot) -> None:
    root = write({"train/cat/1.png": dot, "val/cat/3.png": dot})
    (root / "test").symlink_to("val")
    images = open_images(root, split="test")
    assert (len(images), images.split) == (1, "test")
    assert "val and test are the same folder, because of a link; a model that is validated on val" in images.notes[0]


def test_a_folder_called_like_a_split_without_images_is_none(write, dot) -> None:
    """Results written to a folder called val beside the classes hide none of them."""
    root = write({"cat/1.png": dot, "dog/2.png": dot, "val/10percent-draw0.json": "{}"})
    images = open_images(root)
    assert (images.classes, images.notes) == (
        ["cat", "dog"],
        (f"{root}: val is not used as a split, because it holds no images",),
    )


def test_names_that_are_no_text(write, dot) -> None:
    root = write({"a.png": dot})
    try:
        (root / os.fsdecode(b"\xff.png")).write_bytes((root / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = open_images(root)
    assert images.path(1).endswith("\\udcff.png")
    images.path(1).encode()
    assert (images.read(1) == images.read(0)).all()


def test_nothing_to_open_is_said(write, tmp_path: Path) -> None:
    root = write({"notes.txt": "hello"})
    with pytest.raises(
        UserError, match=r"found no images among 1 file, expected files with the suffix \.apng, \.(avif, \.)?bmp"
    ):
        open_images(root)
    with pytest.raises(UserError, match=r"notes\.txt: found a file, expected a folder of images or a manifest"):
        open_images(root / "notes.txt")
    for nothing in ("", " "):
        with pytest.raises(UserError, match="the name of the data is empty"):
            open_images(nothing)
    with pytest.raises(UserError, match="there is no such folder or file, and no data set of that name"):
        open_images(tmp_path / "missing")


def test_index_out_of_range(write, dot) -> None:
    images = open_images(write({"a.png": dot}))
    for index in (1, -2):
        with pytest.raises(IndexError):
            images.read(index)


class _Sums(Dataset[int]):
    def __init__(self, images: object) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return int(self.images.read(index).sum())


def test_workers_read_the_same(write, noise) -> None:
    images = open_images(write({f"{i:02d}.png": noise(i) for i in range(9)}))
    expected = [int(images.read(i).sum()) for i in range(9)]
    assert len(set(expected)) == 9
    loaded = [int(value) for value in DataLoader(_Sums(images), batch_size=None, num_workers=2)]
    assert loaded == expected


def test_a_set_travels_as_little_more_than_its_names(write, dot) -> None:
    files = {f"cat/{'x' * 20}{i:04d}.jpg": b"" for i in range(3000)}
    root = write(files)
    images = open_images(root)
    sent = pickle.dumps(images)
    assert len(sent) < 3000 * (len("cat/") + 20 + 4 + len(".jpg") + 16 + 2) + 2000  # name, offset, label
    again = pickle.loads(sent)
    assert names(again, root) == sorted(files)
    assert again.labels().tolist() == [0] * 3000


def test_nearly_the_same_class_names_are_reported(write, dot) -> None:
    root = write({"cat/1.png": dot, "Cat/1.png": dot, "dog/1.png": dot, "d\u200bog/1.png": dot})
    found = "classes with nearly the same name: Cat and cat, dog and d\\u200bog; they are different classes"
    assert open_images(root).notes == (f"{root}: {found}",)
    rows = "path,label,split\ncat/1.png,Cat,train\nCat/1.png,cat,train\ndog/1.png,dog,\n"
    (root / "list.csv").write_text(rows)
    notes = open_images(root / "list.csv").notes
    assert [note.rpartition("list.csv: ")[2] for note in notes] == [
        "classes with nearly the same name: Cat and cat; they are different classes",
        "1 row without a split, left out (line 4)",
    ]
