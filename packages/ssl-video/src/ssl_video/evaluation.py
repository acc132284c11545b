"""Classify whole videos from several clips and crops, by view and fused, and score the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.metrics import confusion_matrix, per_class_accuracy, top_k_accuracy
from contrastive_core.pseudo_label import fuse
from contrastive_core.text import several, some_of
from contrastive_core.training.ahead import compute_ahead
from contrastive_core.training.config import allowed_bad
from contrastive_core.training.documents import to_json_lines
from ssl_video.augment import join_clips, spread_crops
from ssl_video.data.clip import Clips, clip_starts
from ssl_video.data.reader import StoredFlow, read_clip
from ssl_video.data.torchcodec_reader import ReaderName
from ssl_video.data.video_index import index_video
from ssl_video.data.videos import Video
from ssl_video.models.model_folder import Recipe, Recognizer
from ssl_video.views import make_views, needs_following

FUSED = "fused"


@dataclass(frozen=True)
class SamplingOptions:
    """Views, clips and crops by which a video is classified.

    Attributes:
        views: Views of a clip that the network was trained on; by default all in `evaluate`, frames in `predict`.
        clips: Number of clips per video, evenly spaced in time.
        crops: Number of crops per clip, along its long side.
        to_the_end: Spread the clips up to the end of the video.
    """

    views: tuple[str, ...] | None = None
    clips: int = 10
    crops: int = 3
    to_the_end: bool = False

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise UserError(f"sampling.clips is {self.clips} and sampling.crops {self.crops}; expected at least 1")

    def views_of(self, learned: Sequence[str], *, default: Sequence[str]) -> tuple[str, ...]:
        """Return the views to classify by.

        Raises:
            UserError: The network was not trained on one of them, or there is none.
        """
        views = tuple(default) if self.views is None else self.views
        if not views or not set(views) <= set(learned):
            raise UserError(f"views are {', '.join(views) or 'none'}; the network was trained on {', '.join(learned)}")
        return views


def classify_all(
    recognizer: Recognizer,
    videos: Sequence[Video],
    *,
    views: Sequence[str],
    sampling: SamplingOptions = SamplingOptions(),
    flow: StoredFlow | None = None,
    reader: ReaderName = "pyav",
) -> Iterator[Tensor | UserError]:
    """Yield the probabilities of every video, averaged over clips and crops, or the error; read further ones meanwhile.

    Args:
        recognizer: Trained network.
        videos: Videos to classify.
        views: Names of views that it was trained on; those of `sampling` are not used.
        sampling: Clips and crops.
        flow: See `read_clip`; None: computed where a view needs it.
        reader: See `read_clip`.

    Yields:
        Probabilities, float32 ``[M, K]``, with NaN for a view that the video lacks; or the reason why it has none.
    """
    flow_cache, stop = flow if "flow" in views else None, Event()

    def read(video: Video) -> _Crops | UserError:
        try:
            return _read(recognizer.recipe, video, views, sampling, flow=flow_cache, reader=reader, stop=stop)
        except UserError as error:
            return error

    with closing(compute_ahead(read, videos, threads=_READERS, ended=stop)) as results:
        for video, crops in zip(videos, results, strict=True):
            try:
                yield crops if isinstance(crops, UserError) else _probabilities(recognizer, crops, views)
            except UserError as error:
                yield UserError(f"{video.path}: {error}")


_READERS = 2
"""Number of videos that are read at a time. Each takes the memory of a clip at full size."""


class _Crops(NamedTuple):
    """Cropped clips of a video, a batch for each place of the crop; and whether it lacks sound that a view needs."""

    batches: list[Clips]
    silent: bool


def _read(
    recipe: Recipe, video: Video, views: Sequence[str], sampling: SamplingOptions, *, flow: StoredFlow | None,
    reader: ReaderName, stop: Event,
) -> _Crops:  # fmt: skip
    following, needs_audio = needs_following(views, flow), "audio" in views
    duration = index_video(video.path).duration
    crops: list[list[Clips]] = [[] for _ in range(sampling.crops)]
    silent = needs_audio
    for start in clip_starts(duration, recipe.clip, sampling.clips, to_the_end=sampling.to_the_end):
        if stop.is_set():  # Ctrl-C: nobody takes the result.
            raise UserError(f"{video.path} was not read to the end")
        clip = read_clip(
            video.path, start, recipe.clip, following=following, audio=needs_audio, flow=flow, reader=reader
        )
        silent = silent and not (clip.has_audio is not None and bool(clip.has_audio.all()))
        for place, crop in zip(crops, spread_crops([clip], size=recipe.size, crops=sampling.crops), strict=True):
            place.append(crop)
    return _Crops([join_clips(place) for place in crops], silent)


def _probabilities(recognizer: Recognizer, crops: _Crops, views: Sequence[str]) -> Tensor:
    recipe, by_view = recognizer.recipe, []
    for view in views:
        if view == "audio" and crops.silent:
            by_view.append(torch.full((len(recipe.classes),), torch.nan))
            continue
        pictures = torch.cat(
            [make_views(crop, (view,), flow=recipe.flow, tg_gain=recipe.tg_gain)[view] for crop in crops.batches]
        )
        by_view.append(recognizer.probabilities(pictures, view).mean(dim=0))
    return torch.stack(by_view)


class Classified(NamedTuple):
    """Probabilities of the videos that can be read.

    Attributes:
        probabilities: Those of each readable video, float32 ``[N, M, K]``.
        places: Positions of these videos in the data.
        skipped: Reason for each video that cannot be read, by its key.
    """

    probabilities: Tensor
    places: list[int]
    skipped: dict[str, str]


def keep_readable(
    videos: Iterable[Video], results: Iterable[Tensor | UserError], *, total: int, max_bad: float
) -> Classified:
    """Collect the probabilities of all videos that can be read.

    Args:
        videos: Videos.
        results: Result of each, from `classify_all`.
        total: Number of videos.
        max_bad: Largest fraction of unreadable videos to skip.

    Raises:
        UserError: More videos than `max_bad` allows cannot be read, or none can be read.
    """
    limit = allowed_bad(max_bad, total)
    probabilities, places, skipped = [], [], {}
    for place, (video, result) in enumerate(zip(videos, results, strict=True)):
        if not isinstance(result, UserError):
            probabilities.append(result)
            places.append(place)
            continue
        skipped[video.key] = str(result)
        if len(skipped) > limit or len(skipped) == total:
            raise UserError(
                f"{result}\n{len(skipped)} of {total} videos cannot be read or classified; see --max-bad"
            ) from result
    return Classified(torch.stack(probabilities), places, skipped)


def fused(by_view: Tensor) -> Tensor:
    """Average over the views that a video has: ``[N, M, K]`` -> ``[N, K]``."""
    present = ~by_view.isnan().any(dim=2)
    return fuse(by_view.nan_to_num(0).transpose(0, 1), present=present.T)


FORMAT = "ssl-video evaluation 1"


@dataclass(frozen=True)
class ViewScore:
    """Accuracy of one view in percent; NaN, and null in files, if no video has the view.

    Attributes:
        videos: Number of videos with this view.
        top1: Share of videos whose class has the largest probability.
        top5: Share of videos whose class is among the five largest; None with up to five classes.
        mean_per_class: Mean accuracy over the classes that have videos.
    """

    videos: int
    top1: float
    top5: float | None
    mean_per_class: float


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; `str` gives the lines that the command prints.

    Attributes:
        model: Model that was tested.
        model_hash: Hash of its weights.
        data: Data set.
        part: Part of the split.
        split: Hash of the split.
        headline: Name of the view whose accuracy is the main result.
        clips: Number of clips per video.
        crops: Number of crops per clip.
        views: Accuracy of each view, and of all together under ``fused``.
        classes: Names of the classes.
        per_class: Accuracy of the headline view in each class, in percent; None for a class without videos.
        confusion: Confusion matrix of the headline view: counts with one row per true class.
        skipped: Reason for each video that could not be read.
    """

    model: str
    model_hash: str
    data: str
    part: str
    split: str
    headline: str
    clips: int
    crops: int
    views: dict[str, ViewScore]
    classes: list[str]
    per_class: list[float | None]
    confusion: list[list[int]]
    skipped: dict[str, str]

    def __str__(self) -> str:
        head = self.views[self.headline]
        lines = [
            f"top-1 {head.top1:.2f} %, mean per class {head.mean_per_class:.2f} % on {head.videos} videos of "
            f"{len(self.classes)} classes ({self.part}; {self.headline}, {self.clips} clips x {self.crops} crops)"
        ]
        for name, score in self.views.items():
            if not score.videos:
                lines.append(f"  {name:6} no video has this view")
                continue
            top5 = "" if score.top5 is None else f"  top-5 {score.top5:6.2f}"
            lines.append(f"  {name:6} top-1 {score.top1:6.2f}{top5}  ({score.videos} videos)")
        accuracies = [
            (share, name) for share, name in zip(self.per_class, self.classes, strict=True) if share is not None
        ]
        lines.append("weakest classes: " + ", ".join(f"{name} {share:.1f} %" for share, name in sorted(accuracies)[:3]))
        if self.skipped:
            lines.append(f"{several(len(self.skipped), 'video')} could not be read: {some_of(self.skipped, 3)}")
        return "\n".join(lines)

    def to_json(self) -> bytes:
        """Return all numbers as JSON, with one line per view and row of the confusion matrix."""
        fields = dataclasses.asdict(self)
        lists = {name: fields.pop(name) for name in ("views", "confusion")}
        for score in lists["views"].values():
            score |= {name: None for name, value in score.items() if value is not None and math.isnan(value)}
        return to_json_lines({"format": FORMAT, **fields}, lists)


def score_view(probabilities: Tensor, labels: Tensor) -> ViewScore:
    """Score probabilities ``[N, K]`` against labels ``[N]``; rows of NaN are videos without this view."""
    there = ~probabilities.isnan().any(dim=1)
    probabilities, labels = probabilities[there], labels[there]
    classes = probabilities.shape[1]
    confusion = confusion_matrix(probabilities.argmax(dim=1), labels, classes)
    return ViewScore(
        videos=len(labels),
        top1=100 * top_k_accuracy(probabilities, labels, 1),
        top5=100 * top_k_accuracy(probabilities, labels, 5) if classes > 5 else None,
        mean_per_class=100 * per_class_accuracy(confusion).nanmean().item(),
    )


def confusion_of(probabilities: Tensor, labels: Tensor) -> tuple[list[list[int]], list[float | None]]:
    """Return the confusion matrix and the accuracy of each class in percent, None for a class without videos.

    Rows of NaN are videos without this view, which do not count.
    """
    there = ~probabilities.isnan().any(dim=1)
    probabilities, labels = probabilities[there], labels[there]
    counts = confusion_matrix(probabilities.argmax(dim=1), labels, probabilities.shape[1])
    shares: Sequence[float] = per_class_accuracy(counts).tolist()
    return counts.tolist(), [None if share != share else 100 * share for share in shares]  # noqa: PLR0124 - NaN
