"""Frames read by torchcodec are those of PyAV; without it, the error names what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_video.data import ClipDataset, ClipSpec, Video, VideoSet, read_clip

LIBRARIES = ("avutil", "avcodec", "avformat", "avdevice", "avfilter", "swscale", "swresample")
PROGRAM = """
import json, sys
import torch
from ssl_video.data import ClipSpec, index_video, read_clip, reader, torchcodec_reader

real, alone = reader.read_frames, []
answers = {}
for path in sys.argv[1:]:
    index = index_video(path)
    same = True
    by_pyav = []
    for start in (0.0, index.duration / 3, index.duration):
        clips = []
        for name in ("pyav", "torchcodec"):
            asked = []
            reader.read_frames = lambda *a: (asked.append(a), real(*a))[1]
            clips.append(read_clip(path, start, ClipSpec(frames=4, stride=3), following=True, reader=name))
            by_pyav.append(bool(asked))
        same &= torch.equal(clips[0].frames, clips[1].frames) and torch.equal(clips[0].following, clips[1].following)
    assert by_pyav[::2] == [True] * 3
    answers[path] = [same, any(by_pyav[1::2])]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def with_ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torchcodec finds FFmpeg: that of the system, or the one inside PyAV."""
    pytest.importorskip("torchcodec.version")
    folder = tmp_path_factory.mktemp("ffmpeg")
    inside = Path(av.__file__).parent.parent / "av.libs"
    for name in LIBRARIES:
        for file in inside.glob(f"lib{name}-*.so.*"):
            (folder / f"lib{name}.so.{file.name.split('.so.')[1].split('.')[0]}").symlink_to(file)
    found = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = {**os.environ, "LD_LIBRARY_PATH": found.strip(":"), "PYTHONPATH": ":".join(sys.path)}
    ask = [sys.executable, "-c", "import torchcodec.decoders"]
    done = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"torchcodec finds no FFmpeg here: {done.stderr[-300:]}")
    return environment


def test_frames_are_equal(
    with_ffmpeg: dict[str, str],
    write_video: Callable[..., Path],
    numbered: Callable[..., np.ndarray],
    shared_data: Path,
) -> None:
    uneven = [0, 20, 50, 300, 320, 340, 460, 500, 520, 560, 600, 700]
    ours = [
        write_video("short.mp4", numbered(40, height=32, width=32)),
        write_video("long.mp4", numbered(40, height=32, width=32), gop=250),
        write_video("uneven.mp4", numbered(12), ticks=uneven),
        write_video("lossless.mkv", numbered(20)),
        write_video("one.mp4", numbered(1)),
    ]
    deep = [shared_data / f"video_samples/{name}_10bits.mp4" for name in ("h264", "h265")]
    theirs = [path for path in sorted((shared_data / "video_samples").glob("*.m*")) if path not in deep]
    theirs.append(shared_data / "ucf101_10/train/Diving/v_Diving_train_003.avi")
    files = [str(path) for path in (*ours, *theirs, *deep)]
    command = [sys.executable, "-c", PROGRAM, *files]
    done = subprocess.run(command, env=with_ffmpeg, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [file for file in files if not answers[file][0]] == []
    left_to_pyav = {Path(file).name for file in files if answers[file][1]}
    # Ten bits, and a codec (MPEG-4) whose decoding is not specified to the bit.
    assert left_to_pyav == {path.name for path in deep} | {"v_Diving_train_003.avi"}


def test_without_it_the_error_says_what_to_install(
    write_video: Callable[..., Path], numbered: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    path = write_video("a.mkv", numbered(5))
    with pytest.raises(UserError, match=r"ssl-video\[torchcodec\].*FFmpeg"):
        read_clip(path, 0.0, ClipSpec(frames=2, stride=2), reader="torchcodec")
    videos = VideoSet("one", [Video("a", path)])
    with pytest.raises(UserError, match="torchcodec"):  # at once, and not as a file that cannot be read
        ClipDataset(videos, ClipSpec(), max_bad=0.9, reader="torchcodec")
