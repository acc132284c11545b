"""Stored frames equal decoded ones in every bit, are never read when incomplete or outdated, and stay within limits."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_video import TrainingReadOptions
from ssl_video.data import ClipDataset, ClipSpec, VideoSet, index_video, read_clip
from ssl_video.data.frame_cache import FrameCache
from ssl_video.data.videos import Video
from tests.video.conftest import Write

SPEC = ClipSpec(frames=4, stride=3)


def noise(frames: int, height: int = 18, width: int = 24, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (frames, height // 2, width // 2, 3), dtype=np.uint8)
    return small.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
@pytest.mark.parametrize("following", [False, True])
def test_clips_from_the_cache_are_those_of_the_video(
    write_video: Write, tmp_path: Path, name: str, following: bool
) -> None:
    path = write_video(name, noise(40))
    cache = FrameCache(tmp_path / "cache")
    for start in (0.0, 0.31, 0.9, 2.0):
        expected = read_clip(path, start, SPEC, following=following)
        for _ in range(2):  # stored by the first call
            found = read_clip(path, start, SPEC, following=following, frames=cache)
            assert torch.equal(found.frames, expected.frames)
            assert found.frames.is_contiguous()
            assert (found.following is None) == (expected.following is None)
            if following and found.following is not None and expected.following is not None:
                assert torch.equal(found.following, expected.following)
    stored = np.load(cache.file(path), allow_pickle=False)
    assert stored.shape == (40, 3, 18, 24)
    assert stored.dtype == np.uint8


def test_videos_are_not_decoded_again(write_video: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video("a.mp4", noise(20))
    data = ClipDataset(VideoSet("v", [Video("a.mp4", path)]), SPEC, frames=FrameCache(tmp_path / "cache"))
    first = data.clip(0, seed=1).clip.frames

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("ssl_video.data.reader._walk", refuse)
    monkeypatch.setattr("ssl_video.data.reader._from_key_frame", refuse)
    assert torch.equal(data.clip(0, seed=1).clip.frames, first)


def test_frames_of_a_changed_video_are_not_used(write_video: Write, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    path = write_video("a.mkv", noise(20))
    old = cache.file(path)
    read_clip(path, 0.0, SPEC, frames=cache)
    write_video("a.mkv", noise(20, seed=1))
    os.utime(path, ns=(1, 1))  # also with an older time
    found = read_clip(path, 0.0, SPEC, frames=cache)
    assert torch.equal(found.frames, read_clip(path, 0.0, SPEC).frames)
    assert cache.file(path) != old
    copy = tmp_path / "copy.mkv"
    copy.write_bytes(path.read_bytes())
    assert cache.file(copy) == cache.file(path)  # known by content


@pytest.mark.parametrize("damage", ["cut", "longer", "other header", "empty"])
def test_incomplete_files_are_replaced(write_video: Write, tmp_path: Path, damage: str) -> None:
    path, cache = write_video("a.mp4", noise(20)), FrameCache(tmp_path / "cache")
    expected = read_clip(path, 0.2, SPEC, frames=cache)
    file = cache.file(path)
    whole = file.read_bytes()
    broken = {"cut": whole[:-1], "longer": whole + b"x", "other header": b"x" + whole[1:], "empty": b""}[damage]
    file.write_bytes(broken)
    assert torch.equal(read_clip(path, 0.2, SPEC, frames=cache).frames, expected.frames)
    assert file.read_bytes() == whole


def test_unfinished_files_of_a_killed_process_are_not_read_and_removed(write_video: Write, tmp_path: Path) -> None:
    path, cache = write_video("a.mp4", noise(20)), FrameCache(tmp_path / "cache")
    unfinished = cache.folder / f".{cache.file(path).name}.0123abcd.tmp"
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (1, 1))
    assert torch.equal(read_clip(path, 0.2, SPEC, frames=cache).frames, read_clip(path, 0.2, SPEC).frames)
    FrameCache(cache.folder)
    assert [file.name for file in cache.folder.iterdir()] == [cache.file(path).name]


def test_the_size_is_limited(write_video: Write, tmp_path: Path) -> None:
    paths = [write_video(f"{n}.mkv", noise(20, seed=n)) for n in range(30)]
    each = 20 * 18 * 24 * 3
    cache = FrameCache(tmp_path / "cache", limit=21 * each)
    for path in paths:
        assert torch.equal(read_clip(path, 0.2, SPEC, frames=cache).frames, read_clip(path, 0.2, SPEC).frames)
    assert 15 <= len(list(cache.folder.iterdir())) <= 21
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= cache.limit
    videos = VideoSet("v", [Video(path.name, path) for path in paths])
    assert f"{30 - len(list(cache.folder.iterdir()))} of 30 videos not stored" in cache.summary([videos])
    too_long = write_video("long.mkv", noise(30))
    assert FrameCache(tmp_path / "other", limit=21 * each).read(too_long, index_video(too_long), [0]) is None
    assert not list((tmp_path / "other").iterdir())


def test_damaged_videos_are_read_as_without_a_cache(write_video: Write, tmp_path: Path) -> None:
    path = write_video("a.mp4", noise(40))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 600] = bytes(600)
    path.write_bytes(content)
    cache = FrameCache(tmp_path / "cache")
    for start in (0.0, 0.2):
        assert torch.equal(read_clip(path, start, SPEC, frames=cache).frames, read_clip(path, start, SPEC).frames)
    assert not list(cache.folder.iterdir())


def test_a_full_disk_ends_storing_but_not_reading(
    write_video: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write_video("a.mp4", noise(20)), FrameCache(tmp_path / "cache")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_video.data.frame_cache.open_atomic", full)
    assert torch.equal(read_clip(path, 0.2, SPEC, frames=cache).frames, read_clip(path, 0.2, SPEC).frames)
    monkeypatch.undo()
    monkeypatch.setattr("ssl_video.data.frame_cache._RESERVE", 1 << 60)
    assert FrameCache(tmp_path / "b").read(path, index_video(path), [0]) is None


def _read_all(paths: list[Path], folder: Path, out: Path) -> None:
    cache = FrameCache(folder)
    np.save(out, np.stack([read_clip(path, 0.2, SPEC, frames=cache).frames.numpy() for path in paths]))


def test_processes_can_fill_one_cache_together(write_video: Write, tmp_path: Path) -> None:
    paths = [write_video(f"{n}.mp4", noise(20, seed=n)) for n in range(6)]
    context = multiprocessing.get_context("spawn")
    outs = [tmp_path / f"{n}.npy" for n in range(2)]
    processes = [context.Process(target=_read_all, args=(paths, tmp_path / "cache", out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(50)
        assert process.exitcode == 0
    expected = np.stack([read_clip(path, 0.2, SPEC).frames.numpy() for path in paths])
    assert all(np.array_equal(np.load(out), expected) for out in outs)
    assert len(list((tmp_path / "cache").iterdir())) == len(paths)


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be used as a cache .*expected a folder that can be written"):
        FrameCache(tmp_path / "file")
    for size in (0.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="cache_size"):
            TrainingReadOptions(cache_size=size)
