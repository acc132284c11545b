"""`ssl-vision check`: every planted problem of a data set is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision import check
from ssl_vision.checks import Report, examine
from ssl_vision.cli import main


def found(report: Report) -> dict[str, list[tuple[list[str], str]]]:
    """Return kind -> its cases."""
    return {item.kind: [(list(case.files), case.detail) for case in item.items] for item in report.findings}


@pytest.fixture
def clean(noise) -> dict[str, Image.Image]:
    """Two classes with ten images for training and two for testing."""
    numbers = iter(range(1000))
    return {
        f"{split}/{name}/{i}.png": noise(next(numbers))
        for split, count in (("train", 10), ("test", 2))
        for name in ("cat", "dog")
        for i in range(count)
    }


def test_nothing_is_wrong_with_a_clean_folder(write, clean) -> None:
    report = examine(write(clean))
    assert list(report.findings) == []
    assert report.images == {"train": 20, "test": 4}
    assert report.classes == {"train": {"cat": 10, "dog": 10}, "test": {"cat": 2, "dog": 2}}
    assert report.sizes == {(12, 10): 24}
    assert report.formats == {"PNG": 24}
    assert report.text().splitlines()[2:5] == ["class  train  test", "cat       10     2", "dog       10     2"]
    assert report.text().endswith("0 errors, 0 warnings, 0 notes")


def test_unreadable_files(write, clean) -> None:
    whole = write(clean) / "train/cat/0.png"
    root = write(
        {"train/cat/cut.png": whole.read_bytes()[:-60], "train/dog/empty.jpg": b"", "test/cat/text.JPG": "hello"}
    )
    (root / "test/dog/link.png").symlink_to("gone.png")
    Image.new("F", (4, 4)).save(root / "train/dog/float.tif")
    cases = {files[0]: detail for files, detail in found(examine(root))["unreadable"]}
    assert list(cases) == [
        "train/cat/cut.png", "train/dog/empty.jpg", "train/dog/float.tif", "test/cat/text.JPG", "test/dog/link.png",
    ]  # fmt: skip
    assert "truncated" in cases["train/cat/cut.png"]
    assert cases["train/dog/empty.jpg"].startswith("found an empty file")
    assert "32-bit" in cases["train/dog/float.tif"]
    assert "text starting with 'hello'" in cases["test/cat/text.JPG"]
    assert "a broken link" in cases["test/dog/link.png"]


def test_the_same_picture_twice(write, clean, noise) -> None:
    files = {
        "train/cat/copy of 1.png": clean["train/cat/1.png"],  # in its class: a warning
        "train/dog/2.bmp": clean["train/cat/2.png"],  # in another class, with other bytes
        "test/cat/3.png": clean["train/cat/3.png"],  # in another split
        "test/dog/4.tif": clean["train/cat/4.png"],  # both
    }
    report = examine(write(clean | files))
    cases = found(report)
    assert cases["duplicate"] == [(["train/cat/1.png", "train/cat/copy of 1.png"], "identical files")]
    assert cases["contradictory"] == [
        (["train/cat/2.png", "train/dog/2.bmp"], "identical pixels"),
        (["train/cat/4.png", "test/dog/4.tif"], "identical pixels"),
    ]
    assert cases["leaked"] == [
        (["train/cat/3.png", "test/cat/3.png"], "identical files"),
        (["train/cat/4.png", "test/dog/4.tif"], "identical pixels"),
    ]
    assert [item.kind for item in report.errors] == ["contradictory", "leaked"]
    assert [item.kind for item in report.warnings] == ["duplicate"]


def test_equal_pixels_in_another_shape_are_another_picture(write) -> None:
    gray = Image.frombytes("L", (4, 2), bytes(range(8))), Image.frombytes("L", (2, 4), bytes(range(8)))
    assert "duplicate" not in found(examine(write({"a.png": gray[0], "b.png": gray[1]})))


def test_one_split_alone_has_no_leak(write, clean) -> None:
    root = write(clean | {"test/cat/3.png": clean["train/cat/3.png"]})
    report = examine(root, split="test")
    assert report.images == {"test": 5}
    assert list(report.findings) == []


def test_classes_that_lack_images(write, clean, noise) -> None:
    root = write(clean | {"train/owl/1.png": noise(500), "test/fox/1.png": noise(501)})
    (root / "train/bee").mkdir()
    (root / "train/bee/.DS_Store").touch()
    (root / "train/cat/nothing yet").mkdir()
    report = examine(root)
    cases = found(report)
    assert cases["empty_class"] == [(["train/bee"], "")]
    assert cases["unseen_class"] == [(["fox"], "")]
    assert cases["untested_class"] == [(["owl"], "")]
    assert [item.kind for item in report.errors] == ["empty_class", "unseen_class"]
    assert report.classes["test"] == {"cat": 2, "dog": 2, "owl": 0, "fox": 1}


def test_folders_with_other_files_alone_are_no_missing_classes(write, clean) -> None:
    """Label files of make-splits among the class folders, for example."""
    root = write(clean | {"train/labels/10percent-draw0.json": "{}", "train/run/model/model.json": "{}"})
    report = examine(root)
    assert found(report)["no_class"] == [(["train/labels", "train/run"], "")]
    assert not report.errors


def test_a_split_without_images(write, clean, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    report = examine(write(clean))
    assert [item.kind for item in report.errors] == ["empty_split"]
    assert f"{tmp_path}/val: found no images among 0 files" in report.errors[0].title


def test_pictures_unlike_the_rest(write, clean, noise) -> None:
    files = {
        "train/cat/blank.png": Image.new("RGB", (12, 10), (9, 8, 7)),
        "train/cat/tiny.png": noise(500, size=(7, 30)),
        "train/cat/long.png": noise(501, size=(51, 10)),
        "train/cat/odd.png": noise(502, size=(13, 10)),
    }
    more = {f"train/dog/more{i}.png": noise(600 + i) for i in range(20)}
    report = examine(write(clean | more | files))
    assert found(report) == {
        "blank": [(["train/cat/blank.png"], "")],
        "tiny": [(["train/cat/tiny.png"], "7x30 px")],
        "long": [(["train/cat/long.png"], "51x10 px")],
        "odd_size": [(["train/cat/odd.png"], "13x10 px")],
    }
    assert all(item.level == "warning" for item in report.findings)
    assert "sizes    4, 12x10 to 51x10 px; 93.8 % are 12x10" in report.text()  # 45 of 48


def test_much_smaller_than_usual_is_tiny_too(write, noise) -> None:
    files = {f"{i}.png": noise(i, size=(90 + i, 100)) for i in range(5)}
    assert found(examine(write(files | {"thumb.png": noise(9, size=(11, 11))})))["tiny"] == [
        (["thumb.png"], "11x11 px")
    ]


def test_what_is_converted_is_noted(write, clean, noise, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    write(clean)
    noise(500).convert("L").save(tmp_path / "train/cat/gray.png")
    noise(501).convert("CMYK").save(tmp_path / "train/cat/print.jpg")
    noise(502).convert("RGBA").save(tmp_path / "train/dog/alpha.png")
    noise(503).save(tmp_path / "train/dog/turned.jpg", exif=exif)
    noise(504).convert("P").save(
        tmp_path / "train/dog/film.gif", save_all=True, append_images=[noise(505).convert("P")]
    )
    noise(506).save(tmp_path / "train/dog/wrong.jpg", format="PNG")
    report = examine(tmp_path)
    cases = found(report)
    assert cases["mode"] == [
        (["train/cat/gray.png"], "L (gray)"),
        (["train/cat/print.jpg"], "CMYK (CMYK, converted without colour profile)"),
        (["train/dog/alpha.png"], "RGBA (RGB and alpha, composited over white)"),
        (["train/dog/film.gif"], "P (palette)"),
    ]
    assert cases["turned"] == [(["train/dog/turned.jpg"], "")]
    assert cases["frames"] == [(["train/dog/film.gif"], "")]
    assert cases["misnamed"] == [(["train/dog/wrong.jpg"], "")]
    assert report.modes == {"RGB": 26, "CMYK": 1, "L": 1, "P": 1, "RGBA": 1}
    assert not report.errors
    assert not report.warnings


def test_what_is_left_out_is_said(write, clean) -> None:
    files = {
        "train/cat/IMG_1.HEIC": b"x", "train/cat/notes.txt": "x", "train/.cache/1.png": b"x", "train/cat/._0.png": b"x",
        "README.md": "x", "extra/1.png": clean["train/cat/0.png"],
    }  # fmt: skip
    report = examine(write(clean | files))
    assert found(report) == {
        "unread_kind": [(["train/cat/IMG_1.HEIC"], "")],
        "no_image": [(["train/cat/notes.txt"], "")],
        "hidden": [(["train/.cache", "train/cat/._0.png"], "")],
        "beside_splits": [(["README.md", "extra"], "")],
        "layout": [],
    }
    assert [item.kind for item in report.warnings] == ["layout", "unread_kind"]
    assert report.warnings[0].title == "1 image beside the split folders left out: in extra (1)"


def test_images_beside_the_class_folders(write, clean, noise) -> None:
    report = examine(write(clean | {"train/stray.png": noise(500)}))
    assert found(report) == {"beside_classes": [(["train/stray.png"], "")]}
    assert list(report.classes) == ["test"]


def test_images_without_classes(write, noise) -> None:
    report = examine(write({"a.png": noise(0), "b.png": noise(1), "c.png": noise(1)}))
    assert report.images == {"train": 3}
    assert found(report) == {"duplicate": [(["b.png", "c.png"], "identical files")]}
    assert "no classes: the data can be used for pre-training, but not for evaluation" in report.text()


@pytest.mark.parametrize("names", [("Training", "Testing"), ("archive/train", "archive/val"), ("TRAIN", "Test")])
def test_folders_of_splits_in_any_spelling(write, noise, names: tuple[str, str]) -> None:
    root = write({f"{name}/{c}/1.png": noise(10 * i + k) for i, name in enumerate(names) for k, c in enumerate("ab")})
    assert list(examine(root).images) == ["train", "test" if names[1].lower().startswith("test") else "val"]
    assert next(finding.kind for finding in examine(root).warnings) == "layout"


def test_a_single_class_is_a_warning(write, noise) -> None:
    assert [finding.kind for finding in examine(write({"cat/1.png": noise(1)})).warnings] == ["one_class"]


def test_manifests(write, noise) -> None:
    rows = "a.png,x,train\nb.png,,train\nsub/c.png,y,test\na.png,x,test\ngone.png,x,test\nb.png,x,\n"
    root = write(
        {"a.png": noise(0), "b.png": noise(1), "sub/c.png": noise(2), "images.csv": f"path,label,split\n{rows}"}
    )
    report = examine(root / "images.csv")
    cases = found(report)
    assert cases["no_split"] == [(["line 7"], "")]
    assert cases["no_label"] == [(["line 3"], "")]
    assert cases["leaked"] == [(["a.png", "a.png"], "identical files")]
    assert cases["unreadable"][0][0] == ["gone.png"]


def test_unlabelled_images_to_learn_from_are_no_leak(write, noise) -> None:
    rows = "a.png,x,train\nc.png,y,train\na.png,,unlabelled\nb.png,x,test\nd.png,y,test\n"
    files = {f"{name}.png": noise(number) for number, name in enumerate("abcd")}
    report = examine(write(files | {"images.csv": f"path,label,split\n{rows}"}) / "images.csv")
    assert [item.kind for item in report.findings] == ["duplicate"]


def test_data_sets_by_name() -> None:
    report = examine("digits")
    assert report.images == {"train": 1433, "test": 364}
    assert list(report.findings) == []


def test_real_files(write, cifar_files: dict[str, bytes]) -> None:
    root = write(cifar_files)
    (folder,) = {(root / name).parents[1] for name in cifar_files}
    report = examine(folder.parent if folder.name in ("train", "test") else folder)
    assert sum(report.images.values()) == 40
    assert report.sizes == {(32, 32): 40}
    assert report.formats == {"JPEG": 40}
    assert [finding.kind for finding in report.warnings] == ["one_class"]


def test_long_lists_are_shortened_in_the_text_only(write, noise) -> None:
    report = examine(write({f"{i:02d}.png": b"" for i in range(25)} | {f"x{i}.png": noise(1) for i in range(9)}))
    text = report.text()
    assert "25 files cannot be read" in text
    assert text.count("an empty file") == 10
    assert "... and 15 more; --out FILE writes all of them" in text
    assert "x0.png, x1.png, x2.png and 6 more: identical files" in text
    content = json.loads(report.to_json())
    assert len(content["errors"][0]["items"]) == 25
    assert len(content["warnings"][0]["items"][0]["files"]) == 9


def test_many_classes_are_summed_up(write, noise) -> None:
    files = {f"c{i:02d}/{j}.png": noise(10 * i + j, size=(8, 8)) for i in range(41) for j in range(1 + (i == 7))}
    text = examine(write(files)).text()
    assert "train: 41 classes of 1 (c00) to 2 (c07) images, median 1" in text
    assert "c08" not in text


def test_the_report_is_the_same_each_time(write, clean, noise) -> None:
    root = write(clean | {f"train/cat/d{i}.png": noise(3) for i in range(100)})
    assert examine(root).to_json() == examine(root).to_json()


def test_command_line(write, clean, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write(clean)
    assert main(["check", str(root)]) == 0
    assert capsys.readouterr().out.startswith(f"{root}: 20 images in train, 4 images in test\n")
    write({"train/cat/bad.jpg": b""})
    out = tmp_path / "reports" / "check.json"
    assert main(["check", str(root), "--json", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(out.read_text())
    content = json.loads(printed)
    assert content["images"] == {"train": 21, "test": 4}
    (error,) = content["errors"]
    assert error["kind"] == "unreadable"
    assert error["items"][0]["files"] == ["train/cat/bad.jpg"]
    assert main(["check", str(root), "--part", "test"]) == 0
    assert main(["check", str(root / "nothing")]) == 1
    assert "there is no such folder or file" in capsys.readouterr().err
    assert check(str(root)) == 1


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no images"):
        examine(tmp_path)


def test_a_reader_who_leaves_is_no_error(tmp_path: Path) -> None:
    """As in `ssl-vision check digits --json --out FILE | head -1`, where head may end before anything is written."""
    file = tmp_path / "check.json"
    words = [sys.executable, "-m", "ssl_vision", "check", "digits", "--json", "--out", str(file)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141
    assert json.loads(file.read_text())["images"] == {"train": 1433, "test": 364}
