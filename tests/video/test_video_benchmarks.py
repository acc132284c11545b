"""Benchmarks of loading and training run every program and write a results file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_video.data.synthetic import make_videos
from tools.bench import video_loader, video_train
from tools.results import validate


def rows_of(path: Path) -> list[list[object]]:
    assert validate(path) == []
    rows: list[list[object]] = json.loads(path.read_text())["table"]["rows"]
    return rows


@pytest.mark.filterwarnings("ignore")
def test_every_reader_is_measured(tmp_path: Path) -> None:
    videos, out = make_videos(tmp_path / "videos", per_class=1), tmp_path / "speed.json"
    words = ["--videos", str(videos), "--seconds", "3", "--count", "2", "--rounds", "1", "--out", str(out)]
    video_loader.main(words)
    rows = rows_of(out)
    assert [row[0] for row in rows[::4]] == ["240x320, key frames 12 apart", "240x320, key frames 250 apart", "videos"]
    for of_one in (rows[:4], rows[4:8], rows[8:]):
        peer = {str(row[1]): row for row in of_one}["PyTorchVideo"]
        assert peer[4] == 1.0
        for _, _, milliseconds, speed, ratio in of_one:
            assert isinstance(milliseconds, float)
            assert isinstance(speed, float)
            assert isinstance(peer[2], float)
            assert speed == pytest.approx(1000 / milliseconds, rel=0.02)
            assert ratio == pytest.approx(peer[2] / milliseconds, rel=0.02)


def test_training_is_measured_with_and_without_loading(tmp_path: Path) -> None:
    videos, out = make_videos(tmp_path / "videos", per_class=2), tmp_path / "train.json"
    sizes = ["--frames", "2", "--size", "24", "--width", "2", "--batch-size", "2", "--mu", "1", "--threads", "1"]
    video_train.main(["--videos", str(videos), *sizes, "--rounds", "2", "--out", str(out)])
    rows = rows_of(out)
    cases = {"frames": 3, "frames, gradient": 3, "frames, flow, gradient": 4}
    assert [row[0] for row in rows] == [views for views, count in cases.items() for _ in range(count)]
    for views in cases:
        of_one = {str(row[1]): row for row in rows if row[0] == views}
        assert list(of_one) == [video_train.FIXED, *video_train.LOADING][: cases[views]]
        for _, _, speed, ratio in of_one.values():
            assert isinstance(speed, float)
            assert ratio == pytest.approx(speed / of_one[video_train.FIXED][2], abs=0.02)
