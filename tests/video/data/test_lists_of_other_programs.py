"""Lists of videos as spreadsheets, data sets and other programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from ssl_video.commands.make_splits import make_splits
from ssl_video.data import VideoSet, open_videos
from ssl_video.data.check import examine

NAMES = {"Diving/a.mp4": "Diving", "Rowing/b.mp4": "Rowing", "Rowing/c.mp4": "Rowing"}


def files(root: Path) -> Path:
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")
    return root


def labels(videos: VideoSet) -> dict[str, str | None]:
    return {video.path.name: video.label for video in videos.videos}


EXPECTED = {Path(name).name: label for name, label in NAMES.items()}
ROWS = "".join(f"{name},{label}\n" for name, label in NAMES.items())


@pytest.mark.parametrize(
    "text",
    [
        f"sep=,\npath,class\n{ROWS}",
        f"sep=;\r\npath;class\r\n{ROWS}".replace(",", ";"),
        f"# made in March\n\n# by hand\npath,class\n{ROWS}",
        f"#path,class\n{ROWS}",
        f"# path and class\n{ROWS}".replace(",", " "),
        f"clip_path,label\n{ROWS}",
        f"video_name,tag\n{ROWS}",
        f"File Name,Class Name\n{ROWS}File-Name,class_name\n",
        "path,class\n" + "".join(f"{number},{row}\n" for number, row in enumerate(ROWS.splitlines(), 1)),
    ],
    ids=["spreadsheet", "with semicolons", "comments", "header after #", "lines", "clip_path", "tag", "spaces", "R"],
)
def test_lines_before_the_header_and_other_names_of_columns(text: str, tmp_path: Path) -> None:
    (files(tmp_path) / "list.csv").write_bytes(text.encode())
    videos = open_videos(tmp_path / "list.csv")
    assert labels(videos) == EXPECTED
    assert all(video.path.is_file() for video in videos.videos)
    assert videos.notes == (("line 5 repeats the header and is left out",) if "File-Name" in text else ())


def test_errors_count_the_lines_before_the_header(tmp_path: Path) -> None:
    (files(tmp_path) / "list.csv").write_text(f"# one\nsep=,\npath,class\n{ROWS}Diving/d.mp4,Diving,more\n")
    with pytest.raises(UserError, match=r"list\.csv, line 7: found 3 columns; expected 2"):
        open_videos(tmp_path / "list.csv")


def test_a_list_whose_videos_lie_elsewhere_finds_them_and_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    files(tmp_path / "videos")
    lines = "".join(f"videos/{name} {label}\n" for name, label in NAMES.items())
    for place, text, said in (
        ("slash.txt", "".join(f"/videos/{name} {label}\n" for name, label in NAMES.items()), "start with a slash"),
        ("lists/working.txt", lines, "relative to the working directory"),
        ("names.csv", "file,label\n" + "".join(f"{Path(n).name},{label}\n" for n, label in NAMES.items()), "unique"),
        ("stems.csv", "file,label\n" + "".join(f"{Path(n).stem},{label}\n" for n, label in NAMES.items()), "unique"),
    ):
        (tmp_path / place).write_text(text)
        monkeypatch.chdir(tmp_path)
        videos = open_videos(tmp_path / place)
        assert labels(videos) == EXPECTED
        assert all(video.path.is_file() for video in videos.videos)
        assert said in videos.notes[-1]


def test_a_list_of_missing_videos_keeps_their_paths(tmp_path: Path) -> None:
    files(tmp_path / "one")
    files(tmp_path / "two")  # every name twice
    (tmp_path / "list.csv").write_text("file,label\na.mp4,Diving\nb.mp4,Rowing\n")
    videos = open_videos(tmp_path / "list.csv")
    assert [video.path for video in videos.videos] == [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    (note,) = videos.notes
    assert note.startswith(f"none of the videos of the list was found relative to {tmp_path}")
    assert note.endswith("move the list to the folder of the videos")
    with pytest.raises(
        UserError, match=r"none of its 2 videos can be read.*; move the list to the folder of the videos"
    ):
        make_splits(str(tmp_path / "list.csv"), tmp_path / "splits")


def test_labels_that_join_several_classes_are_noted(tmp_path: Path) -> None:
    (files(tmp_path) / "list.csv").write_text("path,class\nDiving/a.mp4,Diving;indoor\nRowing/b.mp4,Rowing;indoor\n")
    (note,) = open_videos(tmp_path / "list.csv").notes
    assert note.startswith("labels such as 'Diving;indoor' join several classes")


def test_segments_and_nearly_equal_classes_are_noted(tmp_path: Path) -> None:
    (files(tmp_path) / "list.csv").write_text(
        "path,class,start,end\nDiving/a.mp4,Long Jump,1,2\nRowing/b.mp4,long_jump,0,1\nRowing/c.mp4,Rowing,0,1\n"
    )
    notes = " ".join(open_videos(tmp_path / "list.csv").notes)
    assert "the columns start, end are not used: the class of a row applies to its whole video" in notes
    assert "nearly the same name: Long Jump and long_jump" in notes


def test_columns_that_may_state_parts_are_noted(tmp_path: Path) -> None:
    (files(tmp_path) / "list.csv").write_text("path,class,is_train\nDiving/a.mp4,Diving,1\nRowing/b.mp4,Rowing,0\n")
    assert open_videos(tmp_path / "list.csv").notes == (
        "not used as parts: is_train; parts are read from a column named split",
    )


@pytest.mark.parametrize("text", ["", "path,class\n", "# nothing\n"])
def test_an_empty_list_is_named_as_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"list\.csv: lists no videos; expected a video and its label per line"):
        open_videos(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["frames", "frames/Diving/v1/img_00001.jpg", "videos.zip", "split.json"])
def test_frames_archives_and_splits_are_no_videos(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "Diving" / "v1"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"img_{number:05d}.jpg").write_bytes(b"picture")
    (tmp_path / "videos.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "split.json").write_text("{}")
    said = {
        "frames": r"frames: found 3 pictures and no videos; extracted frames are not read.*ffmpeg -framerate",
        "videos.zip": r"found an archive, expected a folder or a list of videos; unpack it first",
        "split.json": r"found JSON.*; split files are given with --split",
    }
    with pytest.raises(UserError, match=said.get(name, "found a picture, expected videos; extracted frames")):
        open_videos(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "head", "row"),
    [("a.csv", "path,label\n", "{}.mp4,{}\n"), ("a.txt", "", "{}.mp4 {}\n")],
    ids=["table", "lines"],
)
def test_numbers_that_pandas_wrote_with_decimals_are_whole(name: str, head: str, row: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(head + "".join(row.format(i, float(i - 1)) for i in range(12)))
    videos = open_videos(tmp_path / name)
    assert videos.classes == tuple(map(str, range(11)))
    assert [video.key for video in videos.videos if video.label is None] == ["0.mp4"]  # -1.0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("list.csv", "Diving/a.mp4,0.5,2.0,Diving\n", r"found several columns after a video \(0\.5,2\.0,Diving\)"),
        ("list.txt", "Diving/a.mp4\t30\tDiving\n", "line 1: found several columns after a video"),
        # Moments in Time: class, votes for and against it
        ("list.csv", "Diving/a.mp4,Diving,3,0\nRowing/b.mp4,Rowing,4,1\n", r"several columns .* \(Diving,3,0\)"),
        ("list.csv", "Diving/a.mp4;Diving;train\n", "found several columns after a video"),
        ("list.txt", "Diving/a.mp4 2.5 0\n", "found the numbers 2.5 0 after a video"),
        ("Diving_test_split1.txt", "a.mp4 1 \nb.mp4 2 \nc.mp4 0 \n", "a list of HMDB51, whose numbers are parts"),
        (
            "kinetics.csv",
            "label,youtube_id,time_start,time_end,split\nDiving,abc,1,11,train\n",
            r"found none of the 1 video in the list below .*; expected files such as abc_000001_000011\.mp4",
        ),
    ],
)
def test_columns_without_names_and_parts_of_hmdb51_are_no_classes(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    (files(tmp_path) / name).write_text(text)
    with pytest.raises(UserError, match=words):
        open_videos(tmp_path / name)


def test_a_class_may_begin_with_a_number(tmp_path: Path) -> None:
    (files(tmp_path) / "list.txt").write_text("Diving/a.mp4 3 point shot\nRowing/b.mp4 100 m\n")
    assert open_videos(tmp_path / "list.txt").classes == ("100 m", "3 point shot")


def test_a_class_may_contain_a_comma(tmp_path: Path) -> None:
    (files(tmp_path) / "list.txt").write_text('Diving/a.mp4 Dive, high\nRowing/b.mp4,"Row, far"\nRowing/c.mp4,Row,\n')
    assert open_videos(tmp_path / "list.txt").classes == ("Dive, high", "Row", "Row, far")


def test_numbered_classes_with_a_single_video_are_named_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = files(tmp_path)
    (folder / "list.csv").write_text(
        "".join(f"{name} {number}\n" for name, number in zip(NAMES, (10, 2, 0), strict=True))
    )
    _, findings = examine(open_videos(folder / "list.csv"), decode=False)
    (alone,) = (finding for finding in findings if finding.kind == "alone")
    assert [item.detail for item in alone.items] == ["0", "2", "10"]
