"""CSV manifests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision.data import list_splits, open_images


@pytest.fixture
def manifest(tmp_path: Path):
    """`manifest("path,label\\na.png,cat\\n")` writes it beside the images a.png and "b c.png"."""
    Image.new("RGB", (2, 3), (10, 20, 30)).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (3, 2), (40, 50, 60)).save(tmp_path / "sub" / "b c.png")

    def write(text: str | bytes) -> Path:
        path = tmp_path / "images.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_paths_labels_and_order_of_rows(manifest) -> None:
    images = open_images(manifest("path,label\nsub/b c.png,dog\na.png,cat\nsub/b c.png,cat\n"))
    assert images.classes == ["cat", "dog"]
    assert images.labels().tolist() == [1, 0, 0]
    assert [images.read(i)[0, 0, 0].item() for i in range(3)] == [40, 10, 40]


def test_numbers_that_pandas_wrote_with_decimals_are_whole(manifest) -> None:
    images = open_images(manifest("path,label\na.png,10.0\na.png,2.0\nsub/b c.png,-1.0\n"))
    assert images.classes == ["-1", "2", "10"]
    assert any("the label -1 is used as a class" in note for note in images.notes)
    assert open_images(manifest("path,label\na.png,1.5\na.png,2.0\n")).classes == ["1.5", "2.0"]
    two = open_images(manifest("path,label\na.png,-1\na.png,1\n"))
    assert not any("label -1" in note for note in two.notes)


def test_row_numbers_that_the_header_does_not_name_are_skipped(manifest) -> None:
    """As `write.table(frame, sep = ",")` of R writes them, here of the rows 2 and 10 of a table."""
    images = open_images(manifest('"path","label"\n"2","a.png","cat"\n"10","sub/b c.png","dog"\n'))
    assert (images.key(0), images.classes, images.labels().tolist()) == ("a.png", ["cat", "dog"], [0, 1])
    with pytest.raises(UserError, match="more or fewer values than its 2 columns"):
        open_images(manifest("path,label\na.png,cat,1\nsub/b c.png,dog,2\n"))


def test_labels_that_join_several_classes_are_noted(manifest) -> None:
    for text, noted in (
        *(("cat|dog", True), ("cat, dog", True), ("fox|dog", False), ("cats", False)),
        *(("cat owl", True), ("cat / owl", True), ("cat fox", False), ("['fox', 'owl']", True), ("[fox]", False)),
    ):
        images = open_images(manifest(f'path,label\na.png,cat\na.png,owl\nsub/b c.png,"{text}"\n'))
        assert any(f"labels such as {text!r} join several classes" in note for note in images.notes) == noted
    images = open_images(manifest("path,label\na.png,cat;new\na.png,owl;new\nsub/b c.png,fox\n"))
    assert any("labels such as 'cat;new' join" in note for note in images.notes)


def test_a_name_without_its_ending_is_pointed_out(manifest, tmp_path: Path) -> None:
    images = open_images(manifest("path,label\na,cat\nsub/b c,dog\nmissing,dog\n"))
    with pytest.raises(UserError, match=r"a: found no such file, but a\.png; write the names with their endings"):
        images.read(0)
    with pytest.raises(UserError, match="missing: found no such file; restore the image"):
        images.read(2)


def test_paths_from_elsewhere_are_pointed_out(manifest) -> None:
    notes = open_images(manifest("path,label\nb.png,x\nc.png,y\n")).notes
    assert len(notes) == 1
    assert re.search(r"the first 2 images do not exist .*b\.png.; write paths relative to the folder of the", notes[0])
    assert not open_images(manifest("path,label\nb.png,x\na.png,y\n")).notes
    (note,) = open_images(manifest(f"path,label\n{'x' * 300}.png,x\n")).notes
    assert "the only image does not exist" in note


def test_absolute_paths_a_byte_order_mark_other_columns_and_spaces(manifest, tmp_path: Path) -> None:
    text = f'\ufeffPath, Label ,ID\r\n{tmp_path}/a.png, cat,1\r\n\r\n"sub/b c.png","dog, small",2\r\n'
    images = open_images(manifest(text))
    assert images.classes == ["cat", "dog, small"]
    assert images.path(0) == f"{tmp_path}/a.png"
    assert images.read(1).shape == (3, 2, 3)


def test_splits(manifest) -> None:
    path = manifest("path,label,split\na.png,x,train\na.png,z,train\na.png,z,val\n")
    assert list_splits(path) == ["train", "val"]
    assert [len(open_images(path, split=split)) for split in ("train", "val", "test", "all")] == [2, 1, 1, 3]
    assert open_images(path, split="test").labels().tolist() == [1]
    with pytest.raises(UserError, match="found rows of split train, val, expected some of split 'extra'"):
        open_images(path, split="extra")


def test_rows_without_a_split_column_are_for_training(manifest) -> None:
    path = manifest("path,label\na.png,x\n")
    assert list_splits(path) == ["train"]
    with pytest.raises(UserError, match="found rows of split train, expected some of split 'test'"):
        open_images(path, split="test")


def test_a_label_of_the_test_split_alone_shows(manifest) -> None:
    path = manifest("path,label,split\na.png,x,train\na.png,a,test\n")
    assert open_images(path).classes == ["x"]
    assert open_images(path, split="test").classes == ["a", "x"]


def test_whole_numbers_are_in_their_order(manifest) -> None:
    rows = "".join(f"a.png,{number}\n" for number in range(12))
    assert open_images(manifest(f"path,label\n{rows}")).labels().tolist() == list(range(12))


def test_without_labels(manifest) -> None:
    images = open_images(manifest("path\na.png\n"))
    assert images.label(0) is None
    with pytest.raises(UserError, match=r"images\.csv: found no labels, expected labels; label every row"):
        images.labels()


def test_some_labels_are_enough_to_learn_without_them(manifest) -> None:
    images = open_images(manifest("path,label\na.png,x\na.png,\na.png,\n"))
    assert len(images) == 3
    with pytest.raises(UserError, match=r"found 2 rows without a label \(lines 3, 4\), expected labels"):
        images.labels()
    path = manifest("path,label,split\na.png,x,train\na.png,,unlabelled\n")
    assert open_images(path).labels().tolist() == [0]
    assert not open_images(path, split="unlabelled").is_labelled


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,label,split\r\nsub\\a.png,x,Train\r\nb.png,y,TEST\r\n",
        b"path;class;split\rsub\\a.png;x;training\rb.png;y;test\r",
        b"sep=;\r\npath;class;split\r\nsub\\a.png;x;training\r\nb.png;y;test\r\n",
        b"file\tcategory\tsubset\nsub/a.png \tx\ttrain\n\t\t\nb.png\ty\ttesting\n",
        "Image,Class,Split\nsub/a.png,x,Train\nb.png,y,Test\n".encode("utf-16"),
        b"File Name,Class Name,Split\nsub/a.png,x,Train\nb.png,y,Test\n",
    ],
)
def test_manifests_as_spreadsheets_write_them(manifest, text: bytes) -> None:
    path = manifest(text)
    train, test = open_images(path), open_images(path, split="test")
    assert [images.key(0) for images in (train, test)] == ["sub/a.png", "b.png"]
    assert (train.classes, train.labels().tolist()) == (["x"], [0])
    assert (test.classes, test.labels().tolist()) == (["x", "y"], [1])


def test_a_missing_value_is_no_class(manifest) -> None:
    images = open_images(manifest("path,label\na.png,x\nb.png,NaN\n"))
    assert "1 row with a missing value as label (line 3), taken as unlabelled" in images.notes[0]
    with pytest.raises(UserError, match=r"1 row without a label \(line 3\)"):
        images.labels()


def test_a_backslash_in_a_name_that_exists_stays(manifest, tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").touch()
    assert open_images(manifest("path\na\\b.png\n")).key(0) == "a\\b.png"


def test_of_two_columns_of_classes_one_is_taken_and_said(manifest) -> None:
    images = open_images(manifest("path,class,label\na.png,cat,7\n"))
    assert images.classes == ["7"]
    assert "of the columns label and class, label is used as the label" in images.notes[0]


def test_columns_beside_paths_without_labels_are_said(manifest) -> None:
    images = open_images(manifest("id,path,target\n7,a.png,1\n8,b.png,2\n"))
    assert not images.is_labelled
    assert images.notes[0].endswith("so images have none; columns that are not read: id, target")
    assert open_images(manifest("path\na.png\n")).notes == ()
    assert open_images(manifest("id,path,label\n7,a.png,1\n")).notes == ()


def test_one_column_per_class_is_pointed_out(manifest) -> None:
    path = manifest("image,MEL,NV,age\na.png,1.0,0.0,1\na.png,0.0,1.0,7\n")
    assert "the columns MEL, NV contain only 0 and 1, as one column per class; write the class" in str(
        open_images(path).notes
    )
    assert "only 0 and 1" not in str(open_images(manifest("image,sick,age\na.png,1,1\na.png,0,7\n")).notes)


def test_a_split_without_labels_is_named(manifest) -> None:
    path = manifest("path,label,split\na.png,x,train\na.png,y,train\nsub/b c.png,,test\n")
    with pytest.raises(UserError, match="found no labels in split 'test', expected labels"):
        open_images(path, split="test").labels()


def test_a_missing_file_is_named_when_read(manifest, tmp_path: Path) -> None:
    images = open_images(manifest("path,label\na.png,x\ngone.png,x\n"))
    with pytest.raises(UserError, match=rf"{tmp_path}/gone\.png: found no such file"):
        images.read(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty, expected path"),
        ("where,label\na.png,x\n", r"found the columns where, label, expected path\[,label\]"),
        ("path label\na.png x\n", r"found the columns path label, expected path\[,label\]\[,split\] separated by"),
        ("path,label,label\na.png,x,y\n", "found the column label twice, expected it once"),
        ("path\nC:\\\\photos\\\\a.png\n", r"found paths on a Windows drive \(C:.*line 2\)"),
        ("path,label\na.png,x,y\na.png\n", r"found rows with more or fewer values than its 2 columns \(lines 2, 3\)"),
        ("path,label\n,x\na.png,x\n ,y\n", r"found rows without a path \(lines 2, 4\)"),
        ('path,label\n"a.png,x\n', "cannot be read as CSV"),
        ("path,label\na.png,é\n".encode("latin-1"), "cannot be read as text in UTF-8"),
        ("path,label\n", "found no rows, expected some of split 'train'"),
    ],
)
def test_what_is_wrong_is_named(manifest, text: str | bytes, message: str) -> None:
    path = manifest(text)
    with pytest.raises(UserError, match=message) as caught:
        open_images(path)
    assert str(caught.value).startswith(str(path))


def test_lines_are_counted_over_quoted_line_breaks(manifest) -> None:
    with pytest.raises(UserError, match=r"line 4\)"):
        open_images(manifest('path,label\na.png,"two\nlines"\n,x\n'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label,set\na.png,x,Training\nsub/b c.png,y,TEST\n",
            r"names of splits in the column set \(test, training\)",
        ),
        ("path,label,is_valid\na.png,x,False\nsub/b c.png,y,True\n", r"column is_valid with the values false and true"),
        ("path,label,test\na.png,x,0\nsub/b c.png,y,1\n", r"column test with the values 0 and 1"),
        ("path,label,is_training_image\na.png,x,0\nsub/b c.png,y,1\n", r"is_training_image with the values 0 and 1"),
        ("path,label,usage\na.png,x,train\nsub/b c.png,y,eval\n", r"in the column usage \(eval, train\)"),
        ("path,label,set\na.png,x,Train\na.png,x,A\nsub/b c.png,y,Test\n", r"the column set \(a, test, train\)"),
    ],
)
def test_splits_in_a_column_of_another_name_are_refused(manifest, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"found .*{message} but no column split, so that all rows would be training"):
        open_images(manifest(text))


def test_other_columns_are_no_splits(manifest) -> None:
    text = "path,label,test,centre,split\na.png,x,positive,train,train\nsub/b c.png,y,negative,test,val\n"
    assert len(open_images(manifest(text))) == 1
    everything = "path,label\ntrain/a.png,train\ntest/b.png,test\n"  # of both splits, to learn without labels
    assert len(open_images(manifest(everything))) == 2
    assert len(open_images(manifest("path,label,test,fold\na.png,x,positive,1\nsub/b c.png,y,negative,2\n"))) == 2


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (
            "a.png,x,train\n./a.png,y,train\n",
            "1 image listed again with another label (line 3); an image has one class",
        ),
        ("a.png,x,train\n./a.png,x,test\n", "1 image listed again in another split (line 3); a test would not be"),
        ("a.png,x,train\na.png,x,train\na.png,x,train\n", "1 image listed again in the same split (line 3)"),
        ("a.png,,train\na.png,x,labelled\n", ""),
    ],
)
def test_images_that_are_listed_again_are_named(manifest, rows: str, note: str) -> None:
    path = manifest(f"path,label,split\n{rows}sub/b c.png,z,train\n")
    found = [text for text in open_images(path).notes if "listed again" in text]
    assert [text.removeprefix(f"{path}: ").startswith(note) for text in found] == ([True] if note else [])


def test_a_missing_split_is_none(manifest) -> None:
    file = manifest("path,label,split\na.png,x,train\nsub/b c.png,y,train\na.png,x,nan\n")
    assert list_splits(file) == ["train"]
    assert any("1 row without a split" in note for note in open_images(file).notes)
