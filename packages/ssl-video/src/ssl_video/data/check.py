"""Check the videos of a data set in one pass."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av.logging

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError, without_path
from contrastive_core.text import several
from contrastive_core.training.progress import track
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.reader import Decoding, decode_all
from ssl_video.data.video_index import VideoIndex, index_video
from ssl_video.data.videos import Video, VideoSet

_SHORT = 64 / 30
_TILT = 1.0  # degrees
_ROUGH_RATE = 4000  # samples per second: decoding is tested, the sound is not kept


@dataclass(frozen=True)
class Facts:
    """Facts about one video; for an unreadable one, only `video` and `problem` are set.

    Attributes:
        video: The video.
        index: Its frames.
        decoding: Result of decoding the whole video; None if it was not decoded.
        digest: Hash of the file.
        problem: Reason why the video cannot be used.
        sound_problem: Reason why its sound cannot be used.
    """

    video: Video
    index: VideoIndex | None = None
    decoding: Decoding | None = None
    digest: str = ""
    problem: str | None = None
    sound_problem: str | None = None


def examine(videos: VideoSet, *, decode: bool = True) -> tuple[list[Facts], list[Finding]]:
    """Check every video once, on all cores, with the reader that training uses.

    Errors: files that cannot be opened or lose frames when decoded; one file in two classes. Warnings: sound that
    cannot be decoded, duplicate files, classes with a single video. Notes: damaged frames that the decoder concealed,
    files whose end is missing, variable frame rates, files without seekable times, cut or joined streams, changing
    picture sizes, rotations that are not multiples of 90 degrees, files without sound among files with sound, videos
    shorter than a clip of 8 x 8 frames at 30 frames per second.

    Args:
        videos: Data set.
        decode: Decode every frame; False: only open the files and count their frames.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            results = pool.map(lambda video: look_at(video, decode=decode), videos.videos)
            facts = list(track(results, total=len(videos), what=f"checking {videos.name}"))
    finally:
        av.logging.set_level(level)
    findings = [*_broken(facts), *_twice(facts), *_same_pictures(facts), *_few(videos), *_peculiar(facts)]
    order = ("error", "warning", "note")
    return facts, sorted(findings, key=lambda finding: order.index(finding.level))


def look_at(video: Video, *, decode: bool) -> Facts:
    """Open one video, count its frames, and decode them if asked to."""
    digest, decoding, sound_problem = "", None, None
    try:
        with _quietly():
            index = index_video(video.path)
        with video.path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
        if decode:
            decoding = decode_all(video.path)
            sound_problem = _sound_problem(video, index)
    except UserError as error:
        return Facts(video, problem=without_path(error, video.path))
    except OSError as error:
        return Facts(video, problem=f"cannot be read ({error.strerror})")
    problem = None
    if decoding is not None and decoding.missing:
        gaps = decoding.missing
        which = f"frame {gaps[0]}" if len(gaps) == 1 else f"{len(gaps)} frames (the first is frame {gaps[0]})"
        problem = f"{which} of {len(index)} cannot be decoded"
        if gaps == list(range(gaps[0], len(index))):
            problem = f"ends early, after {gaps[0]} of {len(index)} frames"
    return Facts(video, index, decoding, digest, problem, sound_problem)


def _sound_problem(video: Video, index: VideoIndex) -> str | None:
    if not index.has_audio:
        return None
    try:
        with _quietly():
            read_audio(video.path, 0.0, index.duration, rate=_ROUGH_RATE)
    except UserError as error:
        return without_path(error, video.path)
    return None


def _quietly() -> av.logging.Capture:
    # Hide FFmpeg's messages in this thread: an error that matters is raised, and reported once.
    return av.logging.Capture(local=True)


def _broken(facts: Sequence[Facts]) -> Iterator[Finding]:
    items = [Item([fact.video.key], fact.problem) for fact in facts if fact.problem is not None]
    if items:
        yield Finding("error", "unreadable", f"{several(len(items), 'video')} cannot be read completely", items)
    silent = [Item([fact.video.key], fact.sound_problem) for fact in facts if fact.sound_problem is not None]
    if silent:
        yield Finding("warning", "sound", f"{several(len(silent), 'video')} with sound that cannot be read", silent)
    damage = [
        Item(
            [fact.video.key],
            _damage(fact.decoding),
        )
        for fact in facts
        if fact.problem is None and fact.decoding and (fact.decoding.concealed or fact.decoding.complaint)
    ]
    if damage:
        yield Finding("note", "damaged", f"{several(len(damage), 'video')} damaged but decoded", damage)


def _damage(decoding: Decoding) -> str:
    text = f"{several(decoding.concealed, 'damaged frame')} concealed" if decoding.concealed else ""
    return f"{text} ({decoding.complaint})" if text and decoding.complaint else text or decoding.complaint


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
        title = f"{several(len(contradictory), 'video')} under more than one class: the labels contradict each other"
        yield Finding("error", "contradictory", title, contradictory)
    if twice:
        yield Finding("warning", "duplicate", f"{several(len(twice), 'video')} stored more than once", twice)


def _same_pictures(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Find videos that were copied to another container, or have another sound."""
    same: dict[str, dict[str, str]] = defaultdict(dict)  # pictures -> file -> name
    for fact in facts:
        if fact.decoding is not None and fact.decoding.pictures:
            same[fact.decoding.pictures].setdefault(fact.digest, fact.video.key)
    items = [Item(list(group.values()), "same pictures") for group in same.values() if len(group) > 1]
    if items:
        title = f"{several(len(items), 'video')} with the same pictures in different files: keep them in one part"
        yield Finding("warning", "same_pictures", title, items)


def _few(videos: VideoSet) -> Iterator[Finding]:
    counts = Counter(video.label for video in videos.videos if video.label is not None)
    alone = [Item([], label) for label in videos.classes if counts[label] == 1]
    if alone:
        yield Finding("warning", "alone", f"{several(len(alone), 'class', 'classes')} with a single video", alone)
    unlabelled = [video.key for video in videos.videos if video.label is None]
    if unlabelled and counts:
        title = f"{several(len(unlabelled), 'video')} without a class: used for training as unlabelled"
        yield Finding("note", "unlabelled", title, [Item(unlabelled)])
    for note in videos.notes:
        yield Finding("note", "left_out", note)


def _peculiar(facts: Sequence[Facts]) -> Iterator[Finding]:
    good = [(fact, fact.index) for fact in facts if fact.index is not None and fact.problem is None]
    silent = [fact for fact, index in good if not index.has_audio]

    def those(holds: Callable[[VideoIndex], object]) -> list[Facts]:
        return [fact for fact, index in good if holds(index)]

    for kind, matches, detail in (
        (
            "shortened",
            those(lambda index: index.stated),
            "ending clearly before the stated duration: the rest of the file is missing",
        ),
        ("variable", those(lambda index: index.is_variable), "with a variable frame rate: frames are found by time"),
        (
            "timeless",
            those(lambda index: not len(index.ticks) and not index.jumps),
            "without usable frame times: every clip is decoded from the start; convert them to save time",
        ),
        ("cut", those(lambda index: index.skipped), "cut between key frames: the first frames cannot be decoded"),
        ("joined", those(lambda index: index.jumps), "joined from several recordings: decoded from the start"),
        (
            "resized",
            [fact for fact, _ in good if fact.decoding is not None and len(fact.decoding.sizes) > 1],
            "with a picture size that changes: all frames are scaled to the size of the first",
        ),
        (
            "tilted",
            those(lambda index: index.tilt > _TILT),
            "with a rotation that is not a multiple of 90 degrees: frames are turned to the nearest one",
        ),
        ("silent", silent if len(silent) < len(good) else [], "without sound, among others that have it"),
        ("short", those(lambda index: index.duration < _SHORT), "shorter than a clip of 8 x 8 frames (2.13 s)"),
        ("still", those(lambda index: len(index) < 2), "with a single frame: there is no motion"),
    ):
        if matches:
            keys = [fact.video.key for fact in matches]
            yield Finding("note", kind, f"{several(len(keys), 'video')} {detail}", [Item(keys)])
