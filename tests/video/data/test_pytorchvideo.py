"""PyTorchVideo's samplers and data sets through the adapter, against PyTorchVideo itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_video.data import ClipSpec, read_clip
from ssl_video.data.clip import clip_starts
from ssl_video.data.pytorchvideo import from_labelled_paths, labelled_clips, sampled_starts

data = pytest.importorskip("pytorchvideo.data")

SPEC = ClipSpec(frames=4, stride=4, fps=30)


def test_samplers_decide_when_clips_begin() -> None:
    constant = data.make_clip_sampler("constant_clips_per_video", 64 / 30, 10)
    assert np.allclose(sampled_starts(constant, 10.0), clip_starts(10.0, ClipSpec(), 10), atol=1e-6)
    uniform = data.make_clip_sampler("uniform", 2.0)
    assert sampled_starts(uniform, 7.0) == pytest.approx([0.0, 2.0, 4.0])
    chance = data.make_clip_sampler("random", 2.0)
    random.seed(5)
    before = random.getstate()
    first = [sampled_starts(chance, 10.0, seed=seed)[0] for seed in range(20)]
    assert random.getstate() == before
    assert first == [sampled_starts(chance, 10.0, seed=seed)[0] for seed in range(20)]
    assert 0 <= min(first) < 3
    assert 5 < max(first) <= 8
    assert len(sampled_starts(data.make_clip_sampler("random_multi", 2.0, 3), 10.0)) == 3


def test_labelled_paths_become_videos(tmp_path: Path) -> None:
    paths = data.labeled_video_paths.LabeledVideoPaths([("a/1.mp4", 1), ("b/2.mp4", 0)], path_prefix=str(tmp_path))
    videos = from_labelled_paths((paths[i] for i in range(len(paths))), classes=("dive", "row"))
    assert [video.label for video in videos.videos] == ["row", "dive"]
    assert videos[0].path == tmp_path / "a/1.mp4"
    assert videos.labels().tolist() == [1, 0]
    with pytest.raises(UserError, match="expected a number below 2"):
        from_labelled_paths([("a.mp4", {"label": 2})], classes=("dive", "row"))
    with pytest.raises(UserError, match="has no label"):
        from_labelled_paths([("a.mp4", {})])


def test_labelled_data_sets_give_the_frames_we_read(
    write_video: Callable[..., Path], numbered: Callable[..., np.ndarray]
) -> None:
    path = write_video("a.mp4", numbered(40, height=32, width=32))
    dataset = data.LabeledVideoDataset(
        [(str(path), {"label": 3})],
        data.make_clip_sampler("constant_clips_per_video", SPEC.duration, 1),
        video_sampler=torch.utils.data.SequentialSampler,
        decode_audio=False,
    )
    ((clip, label),) = list(labelled_clips(dataset, SPEC, following=True))
    ours = read_clip(path, 0.0, SPEC, following=True)
    assert label == 3
    assert torch.equal(clip.frames, ours.frames)
    assert torch.equal(clip.following, ours.following)


def test_other_scales_are_refused() -> None:
    with pytest.raises(UserError, match="scale 0 to 1"):
        next(labelled_clips([{"video": torch.rand(3, 4, 8, 8), "label": 0}], SPEC))
    with pytest.raises(UserError, match="found no frames"):
        next(labelled_clips([{"video": None, "label": 0, "video_name": "x"}], SPEC))
