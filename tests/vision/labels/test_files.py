"""Label files identify images of a set on any machine, and mismatches are reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision.data import open_images
from ssl_vision.labels.files import LabelFile, read_label_file, read_labelled, write_label_file

Write = Callable[[dict[str, Image.Image | str]], Path]


@pytest.fixture
def photos(write: Write, noise: Callable[[int], Image.Image]) -> Path:
    """Two classes with a file name in common."""
    names = ["cat/1.png", "cat/2.png", "dog/2.png", "dog/3.png"]
    return write({f"photos/train/{name}": noise(number) for number, name in enumerate(names)}) / "photos"


def ours(*images: tuple[str, str]) -> LabelFile:
    return LabelFile("photos", "train", images, {"seed": 0})


def test_a_file_of_ours_gives_sorted_indices_wherever_the_data_lie(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels" / "few.json"
    write_label_file(file, ours(("dog/3.png", "dog"), ("cat/1.png", "cat")))
    assert read_labelled(file, open_images(photos)).tolist() == [0, 3]
    moved = tmp_path / "elsewhere"
    shutil.move(photos, moved)
    assert read_labelled(file, open_images(moved)).tolist() == [0, 3]
    assert read_label_file(file) == ours(("dog/3.png", "dog"), ("cat/1.png", "cat"))
    content = json.loads(file.read_text())
    assert content["format"] == "ssl-vision labels 1"
    assert content["images"] == [["dog/3.png", "dog"], ["cat/1.png", "cat"]]


def test_a_text_list_may_give_file_names_alone(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("3.png\n\ncat/2.png\n./cat/1.png\r\n")
    assert read_labelled(file, open_images(photos)).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfcat\\1.png\r\ndog\\3.png\r\n",
        b"cat/1.png\rdog/3.png\r",
        "cat/1.png\ndog/3.png\n".encode("utf-16"),
        b"path,label\ncat/1.png,cat\ndog/3.png,dog\n",
        b"file;class\r\ncat\\1.png;cat\r\ndog\\3.png;dog\r\n",
        b"\xef\xbb\xbfsep=;\r\nfile;class\r\ncat\\1.png;cat\r\ndog\\3.png;dog\r\n",
        b"File Name,Class-Name\ncat/1.png,cat\ndog/3.png,dog\n",
        b"File Name\ncat/1.png\ndog/3.png\n",
        b"cat/1.png,\ndog/3.png,\n",
        b"path,label,split\ncat/1.png,cat,Train\ndog/3.png,dog,train\n",
        b"cat/1.png\tcat\ndog/3.png\tdog\n",
        b"cat/1.png,0\ndog/3.png,1\n",
        b"cat/1.png 0\ndog/3.png 1\n",
        b"cat/1.png cat\ndog/3.png  dog\n",
        b"train/cat/1.png\nphotos/train/dog/3.png\n",
        b"train\\cat\\1.png\n.\\dog\\3.png\n",
        b"ROOT/photos/train/cat/1.png\nROOT/photos/train/dog/3.png\n",
    ],
)
def test_lists_as_other_programs_and_systems_write_them(photos: Path, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(text.replace(b"ROOT", str(photos.parent).encode()))
    assert read_labelled(file, open_images(photos)).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test/cat/1.png\n", r"not in .*train \(test/cat/1\.png\); images here have names such as cat/1\.png"),
        ("/data/photos/train/cat/1.png\n", "the file gives absolute paths of another location"),
        ("D:\\photos\\train\\cat\\1.png\n", "the file gives absolute paths of another location"),
        ("path,label\ncat/1.png,dog\n", r"cat/1\.png in class dog, but in .* it has class cat"),
    ],
)
def test_lists_of_other_images_are_refused(photos: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labelled(file, open_images(photos))


def test_names_are_compared_in_composed_form(write: Write, noise: Callable[[int], Image.Image], tmp_path: Path) -> None:
    root = write({"data/caf\u00e9/1.png": noise(1), "data/dog/1.png": noise(2)}) / "data"
    file = tmp_path / "few.json"
    write_label_file(file, ours(("cafe\u0301/1.png", "cafe\u0301")))
    assert read_labelled(file, open_images(root)).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,cat,dog\ncat/1.png,1,0\ndog/3.png,0.0,1.0\n", ""),
        ("path,cat,dog\ncat/1.png,0,1\n", "lists cat/1.png in class dog"),
        ("path,cat,dog\ncat/1.png,1,1\n", "does not mark one class with 1 for cat/1.png"),
        ("path,set\ncat/1.png,train\ndog/3.png,test\n", r"names of splits in the column set \(test, train\)"),
    ],
)
def test_other_columns_of_a_table(photos: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    if message:
        with pytest.raises(UserError, match=message):
            read_labelled(file, open_images(photos))
    else:
        assert len(read_labelled(file, open_images(photos))) == 2


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_class_numbers_must_correspond_to_the_classes(photos: Path, tmp_path: Path, separator: str) -> None:
    file = tmp_path / "list.txt"
    for numbers in ([0, 1, 1], [0, 0, 0]):
        rows = zip(("cat/1.png", "cat/2.png", "dog/3.png"), numbers, strict=True)
        file.write_text("".join(f"{path}{separator}{number}\n" for path, number in rows))
        with pytest.raises(UserError, match="expected one number per class"):
            read_labelled(file, open_images(photos))
    for text in ("path,label\ncat/1.png,0.0\ndog/3.png,1.0\n", "cat/1.png 0.0\ndog/3.png 1.0\n"):
        file.write_text(text)
        assert len(read_labelled(file, open_images(photos))) == 2
    file.write_text("path,label\ncat/1.png,1\ndog/3.png,1\n")
    with pytest.raises(UserError, match="expected one number per class"):
        read_labelled(file, open_images(photos))
    file.write_text("cat/1.png,640,480\ncat/2.png,800,600\n")  # not class numbers
    assert read_labelled(file, open_images(photos)).tolist() == [0, 1]


def test_official_imagenet_names(write: Write, noise: Callable[[int], Image.Image], tmp_path: Path) -> None:
    names = ["n01440764_10026.JPEG", "n01440764_9981.JPEG", "n01443537_16.JPEG"]
    root = write({f"imagenet/train/{name[:9]}/{name}": noise(number) for number, name in enumerate(names)})
    file = tmp_path / "1percent.txt"
    file.write_text(f"{names[2]}\n{names[0]}\n")
    images = open_images(f"imagenet:{root / 'imagenet'}")
    assert read_labelled(file, images).tolist() == [0, 2]


def test_images_in_memory_have_names_too(tmp_path: Path) -> None:
    digits = open_images("digits")
    file = tmp_path / "few.json"
    write_label_file(file, ours(*((digits.key(i), digits.classes[digits.label(i)]) for i in (5, 700))))
    assert read_labelled(file, digits).tolist() == [5, 700]
    with pytest.raises(UserError, match="2 images not in digits/test"):
        read_labelled(file, open_images("digits", split="test"))


def test_a_manifest_is_named_by_its_own_paths(photos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "images.csv"
    manifest.write_text("path,label\nphotos/train/dog/3.png,b\nphotos/train/cat/1.png,a\n")
    file = tmp_path / "list.txt"
    file.write_text("photos/train/cat/1.png\n")
    assert read_labelled(file, open_images(manifest)).tolist() == [1]


@pytest.mark.parametrize(
    "text",
    [
        *('"cat/1.png"\n', "# chosen by hand\ncat/1.png\n", "path\ncat/1.png\n", 'File\n"cat/1.png"\n'),
        *("\tpath\tlabel\n0\tcat/1.png\tcat\n", '"path","label"\n"4","cat/1.png","cat"\n'),  # row numbers
    ],
)
def test_quotes_comments_and_headers_are_understood(photos: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "plain").write_text("cat/1.png\n")
    (tmp_path / "list").write_text(text)
    images = open_images(photos)
    assert read_labelled(tmp_path / "list", images).tolist() == read_labelled(tmp_path / "plain", images).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.png\n", "lists 2.png, but several images of .* have this name"),
        ("cat/1.png\n1.png\n", "lists cat/1.png twice, as 1.png too; remove one of the lines"),
        ("4.png\ncat/1.png\n", r"lists 1 image not in .* \(4.png\); .* names such as cat/1.png"),
        ("\n", "lists no images"),
        ("{", "not a label file"),
        ('["cat/1.png"]', "found a JSON list, expected a label file of `make-splits`, or text with one path"),
        ('[\n {"path": "cat/1.png"}]', "found a JSON list"),
        ('{"cat/1.png": "cat"}', "found JSON of another kind, expected a label file of `make-splits`, or text"),
        ("cat/1.png dog\n", "lists cat/1.png in class dog, but in .* it has class cat"),
        ('{"format": "other"}', "found format 'other', expected 'ssl-vision labels 1'"),
        ('{"format": "ssl-vision labels 1", "images": [1]}', "not a label file"),
    ],
)
def test_files_that_do_not_fit_are_refused(photos: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labelled(file, open_images(photos))


def test_a_missing_or_binary_file_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "none.json", open_images(photos))
    with pytest.raises(UserError, match="cannot be read as text"):
        read_labelled(photos / "train" / "cat" / "1.png", open_images(photos))


def test_a_changed_file_is_refused(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    write_label_file(file, ours(("dog/3.png", "dog")))
    file.write_text(file.read_text().replace("dog/3.png", "dog/2.png"))
    with pytest.raises(UserError, match="changed after it was written"):
        read_labelled(file, open_images(photos))


def test_another_class_than_the_data_say_is_refused(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    write_label_file(file, ours(("dog/3.png", "cat")))
    with pytest.raises(UserError, match=r"dog/3.png in class cat, but in .* it has class dog"):
        read_labelled(file, open_images(photos))


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    write_label_file(file, ours(("a.png", "cat")))
    write_label_file(file, ours(("a.png", "cat")))
    with pytest.raises(UserError, match="already exists"):
        write_label_file(file, ours(("b.png", "cat")))
    assert read_label_file(file) == ours(("a.png", "cat"))


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (
            "path,label,split\ncat/1.png,cat,train\ndog/3.png,dog,test\n",
            r"another split than train \(dog/3.png: test\)",
        ),
        ("path,label\ncat/1.png,cat\ndog/3.png,\n", r"gives no class for 1 image \(dog/3.png\)"),
    ],
)
def test_rows_of_other_splits_and_without_a_class_are_refused(
    photos: Path, tmp_path: Path, rows: str, found: str
) -> None:
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(UserError, match=found):
        read_labelled(tmp_path / "list.csv", open_images(photos))
