"""Where videos are found, and what happens to unreadable ones."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_video.cli import main
from ssl_video.data import ClipDataset, ClipSpec, Video, VideoSet, index_video, open_videos
from ssl_video.data.official_lists import read_list

SPEC = ClipSpec(frames=2, stride=4)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(videos: VideoSet) -> list[tuple[str, str | None, str | None]]:
    return [(video.key, video.label, video.group) for video in videos.videos]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "Diving/v_Diving_g03_c02.avi", "Diving/v_Diving_g04_c01.AVI", "Rowing/a.mp4", "Rowing/readme.txt")
    videos = open_videos(tmp_path)
    assert found(videos) == [
        ("Diving/v_Diving_g03_c02.avi", "Diving", "Diving/g03"),
        ("Diving/v_Diving_g04_c01.AVI", "Diving", "Diving/g04"),
        ("Rowing/a.mp4", "Rowing", None),
    ]
    assert videos.classes == ("Diving", "Rowing")
    assert videos.labels().tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="found classes and no parts"):
        open_videos(tmp_path, part="train")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "train/b/3.mp4", "train/4.mp4")
    assert found(open_videos(tmp_path, part="train")) == [
        ("train/4.mp4", None, None),
        ("train/a/1.mp4", "a", None),
        ("train/b/3.mp4", "b", None),
    ]
    with pytest.raises(UserError, match="found the parts train, validation"):
        open_videos(tmp_path, part="test")
    with pytest.raises(UserError, match=r"4\.mp4: its class is None"):
        open_videos(tmp_path).labels()


def test_csv_lists(tmp_path: Path) -> None:
    file = tmp_path / "clips.csv"
    file.write_text("path,class,label,split,group\nx/1.avi,dive,0,train,g1\nx/2.avi,row,1,test,\n")
    assert found(open_videos(file)) == [("x/1.avi", "dive", "g1"), ("x/2.avi", "row", None)]
    assert open_videos(file, part="test")[0].path == tmp_path / "x/2.avi"
    with pytest.raises(UserError, match="found the parts test, train; expected one of them, not part 'val'"):
        open_videos(file, part="val")
    file.write_text("path,label\n1.avi,7\n")
    assert open_videos(file)[0].label == "7"
    file.write_text("name,label\n1.avi,7\n")
    with pytest.raises(UserError, match="line 1: found 'name,label'; expected a video and its label"):
        open_videos(file)
    file.write_text("path,label\n1.avi\n")
    with pytest.raises(UserError, match="line 2"):
        open_videos(file)
    file.write_text("path,label\n1.avi,7\n1.avi,7\n")
    with pytest.raises(UserError, match=r"lists 1\.avi twice"):
        open_videos(file)


def test_kinetics_lists_leave_out_what_is_gone(tmp_path: Path) -> None:
    touch(tmp_path, "abseiling/0347ZoDXyP0_000095_000105.mp4", "air drumming/zz_000001_000011.mkv")
    file = tmp_path / "train.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\nabseiling,0347ZoDXyP0,95,105,train\n"
        "air drumming,zz,1,11,train\nzumba,gone,5,15,train\n"
    )
    assert found(open_videos(file)) == [
        ("abseiling/0347ZoDXyP0_000095_000105.mp4", "abseiling", "0347ZoDXyP0"),
        ("air drumming/zz_000001_000011.mkv", "air drumming", "zz"),
    ]


def test_lines_of_path_and_label(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("a b/1.mp4 3\nc/2.mp4 0\n\n")
    assert found(open_videos(file)) == [("a b/1.mp4", "3", None), ("c/2.mp4", "0", None)]
    file.write_text("1.mp4\n")
    assert found(open_videos(file)) == [("1.mp4", None, None)]
    file.write_text("1.mp4 0\nreadme 1\n")
    with pytest.raises(UserError, match="line 2"):
        open_videos(file)
    with pytest.raises(UserError, match="no such file or folder"):
        open_videos(tmp_path / "nowhere")


def test_parts_are_not_taken_for_classes_nor_classes_for_parts(tmp_path: Path) -> None:
    parts = touch(tmp_path / "parts", "train/a/1.mp4", "val/b/2.mp4", "annotations/train.json", ".cache/x.mp4")
    assert found(open_videos(parts)) == [("train/a/1.mp4", "a", None), ("val/b/2.mp4", "b", None)]
    touch(parts, "unlabelled/3.mp4", "train/unlabelled/4.mp4")
    assert [(video.label, video.part) for video in open_videos(parts).videos] == [
        ("a", "train"), (None, "train"), (None, None), ("b", "validation"),
    ]  # fmt: skip
    assert "1 video beside the folders train, val" in " ".join(open_videos(parts).notes)
    vehicles = touch(tmp_path / "vehicles", "car/1.mp4", "train/monday/2.mp4", "train/3.mp4")
    with pytest.raises(UserError, match=r"found the folders train and car, .* could be a part of the data or a class"):
        open_videos(vehicles)
    touch(vehicles, "bus/4.mp4")
    assert open_videos(vehicles).classes == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("Training", "VALIDATION", "Testing"), {"train", "validation", "test"}),
        (("train_set", "test_set"), {"train", "test"}),
        (("ucf_train", "ucf_val"), {"train", "validation"}),
        (("Train", "dev"), {"train", "validation"}),
        (("archive/Kinetics/train", "archive/Kinetics/val"), {"train", "validation"}),
    ],
)
def test_parts_are_known_by_many_names(tmp_path: Path, names: tuple[str, ...], parts: set[str]) -> None:
    touch(tmp_path, *(f"{name}/{label}/1.mp4" for name in names for label in "ab"))
    videos = open_videos(tmp_path)
    assert videos.classes == ("a", "b")
    assert {video.part for video in videos.videos} == parts


def test_a_folder_beside_the_parts_is_neither_a_class_nor_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "holdout/a/3.mp4", "unlabelled/4.mp4", "5.mp4")
    videos = open_videos(tmp_path)
    assert [video.key for video in videos.videos] == ["5.mp4", "train/a/1.mp4", "train/b/2.mp4", "unlabelled/4.mp4"]
    assert videos.classes == ("a", "b")
    assert "1 video in folders beside train left out: holdout 1" in " ".join(videos.notes)


def test_an_archive_s_folder_is_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "UCF-101/a/1.avi", "UCF-101/b/2.avi", "__MACOSX/._1.avi")
    videos = open_videos(tmp_path)
    assert [(video.key, video.label) for video in videos.videos] == [("UCF-101/a/1.avi", "a"), ("UCF-101/b/2.avi", "b")]
    assert videos.place("a/1.avi") == 0
    one = touch(tmp_path / "one", "a/1.avi", "a/2.avi")
    assert open_videos(one).classes == ("a",)


def test_accents_are_compared_however_they_are_stored(tmp_path: Path) -> None:
    composed, split_up = (unicodedata.normalize(form, "Fußkör") for form in ("NFC", "NFD"))
    touch(tmp_path, f"train/{composed}/1.mp4", f"val/{split_up}/2.mp4", "train/b/3.mp4")
    videos = open_videos(tmp_path)
    assert videos.classes == (composed, "b") or videos.classes == ("b", composed)
    assert all(video.path.exists() for video in videos.videos)
    assert videos.place(f"val/{composed}/2.mp4") is not None
    (tmp_path / "list.csv").write_text(f"path,class\nval/{composed}/2.mp4,{split_up}\n", encoding="utf-8")
    (video,) = open_videos(tmp_path / "list.csv").videos
    assert video.path.exists()
    assert video.label == composed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"path,class\nc\\1.mp4,x\nc\\2.mp4,y\n", ("x", "y")),
        ("path\tclass\rc/1.mp4\tx\rc/2.mp4\ty\r".encode("utf-16"), ("x", "y")),
        ("c\\1.mp4 x\r\nc\\2.mp4 y\r\n".encode("utf-8-sig"), ("x", "y")),
        (b"path,class\nc/1.mp4,x\nc/2.mp4,nan\n", ("x",)),
        (b"path,label\nc/1.mp4,x\nc/2.mp4,<NA>\n", ("x",)),
    ],
    ids=["backslashes", "UTF-16, tabs and CR", "lines of Windows", "nan", "NA"],
)
def test_lists_of_other_programs(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    touch(tmp_path, "c/1.mp4", "c/2.mp4")
    (tmp_path / "list.csv").write_bytes(content)
    videos = open_videos(tmp_path / "list.csv")
    assert videos.classes == expected
    assert all(video.path.exists() for video in videos.videos)
    assert len(videos) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,class,class\n1.mp4,a,b\n", "found the column class twice"),
        ("path,class\n,a\n", "rows without a path"),
        ("path,class\nC:\\videos\\1.mp4,a\n", "Windows drive"),
        ("frames/1.mp4 163 4\n", "line 1: found the numbers 163 4 after a video; expected one label"),
    ],
)
def test_lists_that_cannot_be_understood_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        open_videos(tmp_path / "list.csv")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.mp4", "data/red/2.mp4")
    (tmp_path / "data/blue").symlink_to(tmp_path / "store")
    (tmp_path / "data/red/again").symlink_to(tmp_path / "data")
    (tmp_path / "data/red/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "data/red/folder.mp4").mkdir()
    videos = open_videos(tmp_path / "data")
    assert [video.key for video in videos.videos] == ["blue/1.mp4", "red/2.mp4", "red/folder.mp4", "red/gone.mp4"]
    for broken in videos.videos[2:]:
        with pytest.raises(UserError, match=broken.path.name):
            index_video(broken.path)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a/1.MTS", "a/2.m2ts", "a/3.gif", "a/notes.txt", "a/more.txt", "a/README")
    videos = open_videos(tmp_path)
    assert len(videos) == 3
    assert videos.notes == ("3 files with other suffixes left out: .txt 2, no suffix 1",)
    main(["check", str(tmp_path)])
    assert "3 files with other suffixes left out: .txt 2, no suffix 1" in capsys.readouterr().out
    touch(tmp_path / "none", "a.txt")
    with pytest.raises(UserError, match=r"found no videos \(1 file with other suffixes left out: \.txt 1\)"):
        open_videos(tmp_path / "none")


LISTS = {
    "SlowFast, blanks": "x/1.mp4 0\nx y/2.mp4 10\nx/3.mp4 9\n",
    "VideoMAE, commas": "x/1.mp4,0\nx y/2.mp4,10\nx/3.mp4,9\n",
    "tabs": "x/1.mp4\t0\nx y/2.mp4\t10\nx/3.mp4\t9\n",
    "header": "path,class\nx/1.mp4,0\nx y/2.mp4,10\nx/3.mp4,9\n",
    "header with blanks": "path, class\nx/1.mp4, 0\nx y/2.mp4, 10\nx/3.mp4, 9\n",
    "semicolons": "path;class\nx/1.mp4;0\nx y/2.mp4;10\nx/3.mp4;9\n",
    "upper case": "Path,Label\nx/1.mp4,0\nx y/2.mp4,10\nx/3.mp4,9\n",
    "quotes after blanks": '"path", "class"\n"x/1.mp4", "0"\n"x y/2.mp4", "10"\n"x/3.mp4", "9"\n',
    "other names of columns": "video_path,label_name\nx/1.mp4,0\nx y/2.mp4,10\nx/3.mp4,9\n",
    "joined lists": "path,class\nx/1.mp4,0\npath,class\nx y/2.mp4,10\nx/3.mp4,9\n",
    "quotes": 'path,class\n"x/1.mp4","0"\n"x y/2.mp4","10"\n"x/3.mp4","9"\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\x85", "\u2028"], ids=ascii)
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_kind(kind: str, ends: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(LISTS[kind].replace("\n", ends).encode(encoding))
    videos = open_videos(file)
    assert found(videos) == [("x y/2.mp4", "10", None), ("x/1.mp4", "0", None), ("x/3.mp4", "9", None)]
    assert videos.classes == ("0", "9", "10")


def test_a_column_that_is_not_used_as_the_class_is_noted_and_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,kind\nx/1.mp4,a\npath,kind\n")
    videos = open_videos(tmp_path / "a.csv")
    assert videos.classes == ()
    assert videos.notes[:2] == (
        "no column is used as the class (kind found; expected class or label)",
        "line 3 repeats the header and is left out",
    )
    (tmp_path / "a.json").write_text('[{"path": "x/1.mp4", "class": "a"}]')
    with pytest.raises(UserError, match=r"a\.json: found JSON, expected a CSV file or a list"):
        open_videos(tmp_path / "a.json")


def test_names_with_separators_in_them(tmp_path: Path) -> None:
    names = [
        "two words.mp4",
        "comma, in.mp4",
        'quote".mp4',
        "a.mp4 copy.mp4",
        "-dash.mp4",
        "1;2.avi",
    ]
    with (tmp_path / "names.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["path", "class"], *([name, "a b"] for name in names)])
    assert {video.key for video in open_videos(tmp_path / "names.csv").videos} == set(names)
    (tmp_path / "names.txt").write_text("".join(f"{name} a b\n" for name in names), encoding="utf-8")
    assert {video.key for video in open_videos(tmp_path / "names.txt").videos} == set(names)
    assert open_videos(tmp_path / "names.txt").classes == ("a b",)
    (tmp_path / "lines.csv").write_text("path,class\nline\u2028sep.mp4,a b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lines.csv: the video 'line\\u2028sep.mp4' contains control characters"):
        open_videos(tmp_path / "lines.csv")


def test_kinetics_lists_in_a_folder_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "train/--a_b_000010_000020.mp4", "val/zumba/-zz_000001_000011.mp4")
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/all.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\nabseiling,--a_b,10,20,train\nzumba,-zz,1,11,validate\nx,q,,,train\n"
    )
    videos = open_videos(file)
    assert [(video.label, video.part) for video in videos.videos] == [("abseiling", "train"), ("zumba", "validation")]
    assert videos.notes == ("1 of the 3 videos in the list are missing",)


def test_one_video_is_a_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "film.MKV")
    assert found(open_videos(tmp_path / "film.MKV")) == [("film.MKV", None, None)]


def test_lists_match_flat_folders(tmp_path: Path) -> None:
    touch(tmp_path, "flat/v_Dive_g01_c01.avi", "flat/v_Row_g01_c01.avi")
    (tmp_path / "trainlist01.txt").write_text("Dive/v_Dive_g01_c01.avi 1\r\nRow/v_Row_g01_c01.avi 2\r\n")
    listed = read_list(tmp_path / "trainlist01.txt", open_videos(tmp_path / "flat"))
    assert (listed.places, listed.classes) == ([0, 1], {0: "Dive", 1: "Row"})
    touch(tmp_path, "deep/Dive/1.avi", "deep/Row/1.avi")
    (tmp_path / "wrong.txt").write_text("Swim/1.avi 1\n")
    with pytest.raises(UserError, match="1 of its 1 videos are missing or ambiguous in"):
        read_list(tmp_path / "wrong.txt", open_videos(tmp_path / "deep"))


def test_official_lists(tmp_path: Path) -> None:
    touch(tmp_path / "ucf", "Diving/v_Diving_g01_c01.avi", "Diving/v_Diving_g08_c01.avi", "Row/v_Row_g01_c01.avi")
    videos = open_videos(tmp_path / "ucf")
    (tmp_path / "trainlist01.txt").write_text("Diving/v_Diving_g08_c01.avi 1\nRow/v_Row_g01_c01.avi 2\n")
    (tmp_path / "testlist01.txt").write_text("Diving/v_Diving_g01_c01.avi\n")
    assert read_list(tmp_path / "trainlist01.txt", videos).places == [1, 2]
    assert read_list(tmp_path / "testlist01.txt", videos).places == [0]
    touch(tmp_path / "hmdb", "brush_hair/a b.avi", "brush_hair/c.avi", "cart/d.avi", "cart/e.avi")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "brush_hair_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \n")
    (lists / "cart_test_split1.txt").write_text("d.avi 0 \ne.avi 1 \n")
    (lists / "cart_test_split2.txt").write_text("d.avi 1 \n")
    hmdb = read_list(lists, open_videos(tmp_path / "hmdb"))
    assert hmdb.places == [0, 3]
    assert hmdb.test == [1]
    (tmp_path / "trainlist01.txt").write_text("Diving/other.avi 1\n")
    with pytest.raises(UserError, match="1 of its 1 videos are missing or ambiguous in"):
        read_list(tmp_path / "trainlist01.txt", videos)


def test_a_data_set_has_a_length_and_clips_by_seed(
    write_video: Callable[..., Path], numbered: Callable[..., np.ndarray]
) -> None:
    made = [Video(f"{n}.mkv", write_video(f"{n}.mkv", numbered(40, seed=i)), "x") for i, n in enumerate("ab")]
    videos = VideoSet("two", made)
    data = ClipDataset(videos, SPEC, following=True, audio=True)
    assert len(data) == 2
    first = data.clip(0, seed=5)
    assert torch.equal(first.clip.frames, data.clip(0, seed=5).clip.frames)
    assert any(not torch.equal(first.clip.frames, data.clip(0, seed=s).clip.frames) for s in range(6, 9))
    assert first.clip.has_audio.tolist() == [False]
    assert torch.equal(data[1].clip.frames, data.clip(1, seed=0).clip.frames)


def test_bad_files_are_stood_in_for_up_to_a_share(
    write_video: Callable[..., Path],
    numbered: Callable[..., np.ndarray],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.mkv").write_text("no video")
    made = {name: write_video(f"{name}.mkv", numbered(12)) for name in ("cat", "dog")}
    videos = VideoSet(
        "three",
        [Video("0", tmp_path / "bad.mkv", "dog"), Video("1", made["cat"], "cat"), Video("2", made["dog"], "dog")],
    )
    log = tmp_path / "bad.jsonl"
    assert ClipDataset(videos, SPEC, max_bad=0.4, log=log)[0].video == 1
    for _ in range(2):  # a second start counts it once
        by_class = ClipDataset(videos, SPEC, max_bad=0.4, log=log, by_class=True)
        assert by_class[0].video == 2
        assert by_class[0].video == 2
    assert "skipped:" in capfd.readouterr().err
    assert [json.loads(line)["index"] for line in log.read_text().splitlines()] == [0]
    with pytest.raises(
        UserError, match=r"(?s)bad\.mkv: cannot be read as a video.*1 of 3 videos cannot be read, and 0 may"
    ):
        ClipDataset(videos, SPEC)[0]
    with pytest.raises(UserError, match="max_bad is 1"):
        ClipDataset(videos, SPEC, max_bad=1)


def test_check_finds_what_is_wrong(
    write_video: Callable[..., Path],
    numbered: Callable[..., np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_video("set/cat/a.mkv", numbered(30), tone=300.0)
    write_video("set/cat/b.mkv", numbered(5, seed=1), ticks=[0, 20, 300, 320, 340])
    (tmp_path / "set/dog").mkdir()
    (tmp_path / "set/dog/c.mkv").write_bytes((tmp_path / "set/cat/a.mkv").read_bytes())
    (tmp_path / "set/dog/d.avi").write_text("no video")
    manifest = tmp_path / "out/manifest.csv"
    assert main(["check", str(tmp_path / "set"), "--out", str(manifest)]) == 1
    text = capsys.readouterr().out
    for line in ("dog/d.avi: cannot be read as a video", "under more than one class", "with a variable frame rate"):
        assert line in text
    again = open_videos(manifest)
    assert [video.label for video in again.videos] == ["cat", "cat", "dog", "dog"]
    assert again[0].path.samefile(tmp_path / "set/cat/a.mkv")
    assert main(["check", str(tmp_path / "set/cat"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 35
    assert {finding["kind"] for finding in told["notes"]} == {"variable", "silent", "short"}


def test_frames_lost_in_the_middle_are_found(
    write_video: Callable[..., Path], numbered: Callable[..., np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video("x/a.mp4", numbered(60, height=64, width=64))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 3)
    path.write_bytes(data)
    assert main(["check", str(path.parent.parent)]) == 1
    assert "x/a.mp4: " in capsys.readouterr().out
    assert main(["check", str(path.parent.parent), "--no-decode"]) == 0
