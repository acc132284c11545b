"""Use PyTorchVideo's clip samplers and labelled data sets.

`sampled_starts` lets a PyTorchVideo sampler choose where clips start, `from_labelled_paths` turns lists of labelled
paths into a `VideoSet`, and `labelled_clips` converts what a labelled data set yields. Clips are still read by
`ssl_video`, which converts only the frames that a clip needs. `pytorchvideo.transforms` is not needed.
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
    """Protocol of the samplers that `pytorchvideo.data.make_clip_sampler` returns."""

    def __call__(self, last_clip_end: Any, duration: Any, annotation: Mapping[str, Any], /) -> Any:
        """Return the next clip, with `clip_start_sec` and `is_last_clip`."""

    def reset(self) -> None:
        """Prepare for another video."""


def sampled_starts(sampler: ClipSampler, duration: float, *, seed: int = 0) -> list[float]:
    """Start times of the clips that a PyTorchVideo sampler takes from one video.

    The samplers draw from Python's global random generator. It is seeded for the call, and its state is restored.

    Args:
        sampler: A sampler of the kind ``random``, ``uniform``, ``constant_clips_per_video`` or ``random_multi``.
        duration: Duration of the video in seconds.
        seed: Seed of random samplers.
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
    """Make a `VideoSet` from PyTorchVideo's `LabeledVideoPaths` or from pairs ``(path, {"label": ...})``.

    Args:
        paths: Pairs of a path and its annotation.
        classes: Class names, if labels are numbers; None: labels are class names.
        name: Name of the set in messages.

    Raises:
        UserError: A path has no label, or a number that is not that of a class.
    """
    videos = []
    for path, info in paths:
        label = info.get("label")
        if label is None:
            annotation = ", ".join(info) or "nothing"
            raise UserError(f"{path}: has no label (its annotation holds {annotation}); expected pairs (path, label)")
        if classes is not None:
            if not (isinstance(label, int) and 0 <= label < len(classes)):
                raise UserError(f"{path}: has the label {label!r}; expected a number below {len(classes)}")
            label = classes[label]
        videos.append(Video(Path(path).as_posix(), Path(path), str(label)))
    return VideoSet(name, videos, classes=classes)


def labelled_clips(
    dataset: Iterable[Mapping[str, Any]], spec: ClipSpec, *, following: bool = False
) -> Iterator[tuple[Clips, int]]:
    """Convert the samples of a PyTorchVideo `LabeledVideoDataset` to clips with their labels.

    PyTorchVideo yields all frames of a clip's duration; `spec` selects which of them are kept. The sound is dropped,
    because its sample rate is not known. The result is an iterator without a length, for one pass over the data set.

    Args:
        dataset: Data set without a transform, or with one that keeps ``video`` ``[3, F, H, W]`` on the scale 0 to 255.
        spec: Frames of a clip. The frames of a sample are assumed to be evenly spaced in time.
        following: Also return the frame after each frame.

    Raises:
        UserError: A sample has no frames, or another value scale.
    """
    for sample in dataset:
        video = sample["video"]
        if video is None or video.ndim != 4 or video.shape[0] != 3 or video.shape[1] < 1:
            raise UserError(f"{sample.get('video_name', 'a clip')}: found no frames [3, F, H, W]")
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
