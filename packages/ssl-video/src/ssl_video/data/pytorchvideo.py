"""PyTorchVideo's clip samplers and labelled data sets, for what is built on them already.

Its samplers decide when clips begin, and lists of labelled paths become a `VideoSet`; reading stays ours, which
converts only the frames of the clip. What its labelled data sets yield can be used too.
`pytorchvideo.transforms` is not needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from ssl_video.data.clip import Clips, ClipSpec
from ssl_video.data.videos import Video, VideoSet


class ClipSampler(Protocol):
    """What `pytorchvideo.data.make_clip_sampler` gives."""

    def __call__(self, last_clip_end: Any, duration: Any, annotation: Mapping[str, Any], /) -> Any:
        """The next clip: `clip_start_sec`, `is_last_clip`."""

    def reset(self) -> None:
        """Begin with another video."""


def sampled_starts(sampler: ClipSampler, duration: float, *, seed: int = 0) -> list[float]:
    """When all clips begin that a PyTorchVideo sampler takes from a video: one of ``random``, all of ``uniform``.

    Its draws come from Python's global generator, which is seeded for them and then put back.

    Args:
        sampler: ``random``, ``uniform``, ``constant_clips_per_video`` or ``random_multi``.
        duration: of the video in seconds.
        seed: of random ones.
    """
    before = random.getstate()
    random.seed(derive(seed, "pytorchvideo"))
    try:
        starts: list[float] = []
        end: Any = 0.0
        sampler.reset()
        while True:
            clip = sampler(end, duration, {})
            several = isinstance(clip.clip_start_sec, list)
            starts += [float(start) for start in (clip.clip_start_sec if several else [clip.clip_start_sec])]
            end = clip.clip_end_sec
            if clip.is_last_clip if not several else all(clip.is_last_clip):
                return starts
    finally:
        sampler.reset()
        random.setstate(before)


def from_labelled_paths(
    paths: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    classes: Sequence[str] | None = None,
    name: str = "labelled paths",
) -> VideoSet:
    """A `VideoSet` of PyTorchVideo's `LabeledVideoPaths`, or of pairs ``(path, {"label": ...})``.

    Args:
        paths: the pairs.
        classes: names of the classes that labels number; None: labels are taken as names.
        name: what messages call the set.

    Raises:
        UserError: no label, or a number beyond the classes.
    """
    videos = []
    for path, info in paths:
        label = info.get("label")
        if label is None:
            raise UserError(f"{path}: has no label among {', '.join(info) or 'nothing'}; expected pairs (path, label)")
        if classes is not None:
            if not (isinstance(label, int) and 0 <= label < len(classes)):
                raise UserError(f"{path}: has the label {label!r}; expected a number below {len(classes)}")
            label = classes[label]
        videos.append(Video(Path(path).as_posix(), Path(path), str(label)))
    return VideoSet(name, videos, classes=classes)


def labelled_clips(
    dataset: Iterable[Mapping[str, Any]], spec: ClipSpec, *, following: bool = False
) -> Iterator[tuple[Clips, int]]:
    """What a PyTorchVideo `LabeledVideoDataset` yields, as our clips with their labels.

    It gives all frames of a clip's time, of which `spec` says how many are taken and how far apart; its sound is left
    out, whose rate is unknown. One data set of its own goes through once, without a length.

    Args:
        dataset: without transform, or one that keeps ``video`` ``[3, F, H, W]`` on the scale 0 to 255.
        spec: of the clips; the times of the frames are taken as evenly spread.
        following: give the frame after each too.

    Raises:
        UserError: a clip without frames, or on another scale.
    """
    for sample in dataset:
        video = sample["video"]
        if video is None or video.ndim != 4 or video.shape[0] != 3 or video.shape[1] < 1:
            raise UserError(f"{sample.get('video_name', 'a clip')}: holds no frames [3, F, H, W] of a video")
        if video.is_floating_point() and float(video.max()) <= 1.0:
            raise UserError(
                f"{sample.get('video_name', 'a clip')}: its frames are on the scale 0 to 1; expected 0 to 255, as "
                "PyTorchVideo gives them without a transform"
            )
        frames = video.transpose(0, 1).round().clamp(0, 255).to(torch.uint8)
        last = len(frames) - 1
        places = torch.tensor([round(time / spec.duration * len(frames)) for time in spec.times()])
        first = places.clamp(max=max(0, last - 1) if following else last)
        after = frames[(first + 1).clamp(max=last)][None] if following else None
        yield Clips(frames[first][None], after), int(sample["label"])
