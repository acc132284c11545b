"""What there is to know about every video of a data set, found in one pass."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av

from contrastive_core.app.checks import Finding, Item, several
from contrastive_core.errors import UserError
from contrastive_core.training.progress import track
from ssl_video.data.reader import VideoIndex, index_video
from ssl_video.data.video_set import Video, VideoSet

_SHORT = 64 / 30


@dataclass(frozen=True)
class Facts:
    """One video; of an unreadable one only `problem` is known.

    Attributes:
        video: which.
        index: its frames.
        decoded: how many of them can be decoded; None if that was not tried.
        digest: hash of the file.
        problem: why it cannot be used.
    """

    video: Video
    index: VideoIndex | None = None
    decoded: int | None = None
    digest: str = ""
    problem: str | None = None


def examine(videos: VideoSet, *, decode: bool = True) -> tuple[list[Facts], list[Finding]]:
    """Look at every video once, on all cores.

    Errors: files that cannot be opened, or lose frames when decoded; the same file in two classes. Warnings: the same
    file twice, classes of a single video. Notes: variable frame rates, silent files among others with sound, videos
    shorter than a clip of 8 x 8 frames at 30 a second.

    Args:
        videos: the data set.
        decode: decode every frame; False: only open the files and count.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        looked = pool.map(lambda video: look_at(video, decode=decode), videos.videos)
        facts = list(track(looked, total=len(videos), what=f"looking at {videos.name}"))
    findings = [*_broken(facts), *_twice(facts), *_few(videos), *_peculiar(facts)]
    order = ("error", "warning", "note")
    return facts, sorted(findings, key=lambda finding: order.index(finding.level))


def look_at(video: Video, *, decode: bool) -> Facts:
    """Open one video and count its frames."""
    try:
        index = index_video(video.path)
    except UserError as error:
        return Facts(video, problem=str(error).removeprefix(f"{video.path}: "))
    with video.path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    decoded, problem = _decoded(video) if decode else (None, None)
    if problem is None and decoded is not None and decoded < len(index):
        problem = f"{decoded} of {len(index)} frames can be decoded"
    return Facts(video, index, decoded, digest, problem)


def _decoded(video: Video) -> tuple[int, str | None]:
    count = 0
    try:
        with av.open(str(video.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                count += 1
    except av.error.FFmpegError as error:
        return count, f"breaks after {count} frames ({error.strerror})"
    return count, None


def _broken(facts: Sequence[Facts]) -> Iterator[Finding]:
    items = [Item([fact.video.key], fact.problem) for fact in facts if fact.problem is not None]
    if items:
        yield Finding("error", "unreadable", f"{several(len(items), 'video')} cannot be read whole", items)


def _twice(facts: Sequence[Facts]) -> Iterator[Finding]:
    same: dict[str, list[Video]] = defaultdict(list)
    for fact in facts:
        if fact.digest:
            same[fact.digest].append(fact.video)
    contradictory: list[Item] = []
    twice: list[Item] = []
    for group in same.values():
        if len(group) > 1:
            item = Item([video.key for video in group], "identical files")
            (contradictory if len({video.label for video in group}) > 1 else twice).append(item)
    if contradictory:
        title = f"{several(len(contradictory), 'video')} in more than one class: the labels contradict each other"
        yield Finding("error", "contradictory", title, contradictory)
    if twice:
        yield Finding("warning", "duplicate", f"{several(len(twice), 'video')} more than once", twice)


def _few(videos: VideoSet) -> Iterator[Finding]:
    counts = Counter(video.label for video in videos.videos if video.label is not None)
    alone = [Item([], f"{label}") for label, count in sorted(counts.items()) if count == 1]
    if alone:
        yield Finding("warning", "alone", f"{several(len(alone), 'class', 'classes')} of a single video", alone)
    unlabelled = [video.key for video in videos.videos if video.label is None]
    if unlabelled and counts:
        yield Finding(
            "warning", "unlabelled", f"{several(len(unlabelled), 'video')} without a class", [Item(unlabelled)]
        )


def _peculiar(facts: Sequence[Facts]) -> Iterator[Finding]:
    good = [(fact.video.key, fact.index) for fact in facts if fact.index is not None and fact.problem is None]
    silent = [key for key, index in good if not index.has_audio]
    for kind, keys, what in (
        (
            "variable",
            [key for key, index in good if index.is_variable],
            "of variable frame rate: frames are found by time",
        ),
        ("silent", silent if len(silent) < len(good) else [], "without sound, among others that have it"),
        (
            "short",
            [key for key, index in good if index.duration < _SHORT],
            "shorter than a clip of 8 x 8 frames (2.13 s)",
        ),
        ("still", [key for key, index in good if len(index) < 2], "of a single frame: nothing moves"),
    ):
        if keys:
            yield Finding("note", kind, f"{several(len(keys), 'video')} {what}", [Item(keys)])
