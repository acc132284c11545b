"""`ssl-video flow`: the optical flow of a data set, computed once."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from contrastive_core.errors import UserError
from contrastive_core.training.files import FolderLock, check_space, write_atomic
from contrastive_core.training.launch import choose_device
from contrastive_core.training.outputs import Outputs
from contrastive_core.training.progress import track
from ssl_video.data import Video, VideoSet, open_videos
from ssl_video.optical_flow.cache import FlowCache, read_settings
from ssl_video.optical_flow.compute import Work, flow_settings, plan, store_all


@dataclass(frozen=True)
class FlowResult:
    """What came of it.

    Attributes:
        out: the folder.
        videos: how many there are.
        computed: files of flow that were computed now; identical videos share one.
        before: files that stood there already.
        missing: files that a dry run has left to compute.
        unreadable: videos that cannot be read, with the reason.
        size: of the files that are there and missing, in bytes.
    """

    out: Path
    videos: int
    computed: int
    before: int
    missing: int
    unreadable: dict[str, str]
    size: int

    def __str__(self) -> str:
        counts = f"{self.computed:,} computed now, {self.before:,} before"
        if self.missing:
            counts += f", {self.missing:,} to compute"
        text = (
            f"{self.out}: flow of {self.videos - len(self.unreadable):,} of {self.videos:,} videos, "
            f"{_bytes(self.size)} ({counts})"
        )
        if self.unreadable:
            listed = ", see videos.csv" if (self.out / "videos.csv").is_file() else ""
            first = next(iter(self.unreadable.values()))
            text += f"\n{len(self.unreadable):,} could not be read{listed}; the first: {first}"
        return text


def flow(
    data: str,
    out: Path,
    *,
    part: str | None = None,
    method: str = "dis",
    short_side: int = 128,
    precision: Literal["half", "byte"] = "half",
    workers: int | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    overwrite: bool = False,
) -> FlowResult:
    """Compute the optical flow of all videos once, for ``train --flow_cache`` and ``evaluate --flow_cache`` to read.

    Without it flow is computed for every clip after cropping and resizing, which suits the fast methods (dis); with a
    slow one (tvl1, raft), or for many epochs, compute it once. Stored is the flow of whole frames from each to the
    next; crops, resizing and mirroring are applied to the vectors when they are read.

    How much disk it takes is said before it begins. Stopped or killed, the command goes on where it was when run again;
    of new and changed videos flow is computed then. A folder with flow of other settings is refused. ``videos.csv``
    in the folder lists every video with its file, or with why it could not be read.

    Args:
        data: Folder of class folders, CSV file or list of videos, see `ssl_video.data.open_videos`.
        out: Folder of the flow; several data sets may share it.
        part: Part of the data, such as train or test; without it all of it.
        method: Flow method: dis, dis_fast, dis_ultrafast, farneback, tvl1 or raft:FILE.
        short_side: Short side in pixels to which larger frames are resized first, about what training resizes to (256 /
            224 of its crops); 0 for full size.
        precision: ``half`` for 16 bits a number, ``byte`` for 8, in steps of 0.16 pixels at a short side of 256.
        workers: Number of processes; by default one for each core, and none of their own on another device.
        device: Device of raft: cpu or cuda.
        dry_run: Only state what it would take.
        overwrite: Replace a ``videos.csv`` or ``flow.json`` that this command did not write. Stored flow is not
            replaced.

    Returns:
        The counts.
    """
    if short_side < 0 or (workers is not None and workers < 0):
        raise UserError(f"flow needs short_side >= 0 and workers >= 0; got {short_side} and {workers}")
    place = choose_device(device)
    if place.type != "cpu" and workers:
        raise UserError(f"workers is {workers}; on {place.type} all flow is computed by one process: give 0")
    videos, out = open_videos(data, part=part), Path(out)
    read: list[Path | str] = [data, *(video.path for video in videos.videos)]
    planned_files = Outputs(
        [out / "flow.json", out / "videos.csv"], command="ssl-video flow", inputs=read, overwrite=overwrite
    )
    cache = FlowCache(out, flow_settings(method, short_side=short_side, precision=precision))
    _same_settings(cache)
    with ThreadPoolExecutor() as pool:
        looked = pool.map(lambda video: _planned(cache, video), videos.videos)
        planned = list(track(looked, total=len(videos), what=f"looking at {videos.name}"))
    problems = {end.video.key: end.problem for end in planned if isinstance(end, _Closed)}
    works = [end for end in planned if isinstance(end, Work)]
    files = {work.file: work for work in works}  # identical videos share one
    todo = [work for file, work in files.items() if not file.is_file()]
    needed, free = sum(work.size for work in todo), shutil.disk_usage(_there(out)).free
    at = f"at a short side of {short_side}" if short_side else "at full size"
    _say(
        f"{data}: {len(files):,} different videos, {len(files) - len(todo):,} have their flow in {out}; that of the "
        f"other {len(todo):,}, {method} {at}, takes {_bytes(needed)} ({_bytes(free)} are free)"
    )
    total, before = sum(work.size for work in files.values()), len(files) - len(todo)
    if dry_run:
        return FlowResult(out, len(videos), 0, before, len(todo), problems, total)
    check_space(out, needed, what="the missing files", files=len(todo), advice="see --short-side and --precision byte")
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    if not lock.acquire():
        raise UserError(f"{out}: another process is computing flow into this folder; wait until it has ended")
    try:
        with planned_files:
            cache.write_settings()
            for left in out.glob("??/.*.tmp"):  # of one that was killed: the lock is ours
                left.unlink()
            if workers is None:
                workers = min(os.cpu_count() or 1, len(todo)) if place.type == "cpu" else 0
            failed: dict[Path, str] = {}
            done = store_all(cache, todo, method=method, workers=workers, device=place)
            for end in track(done, total=len(todo), what=f"flow of {videos.name}"):
                if end.fatal is not None:
                    raise UserError(f"{end.fatal}; what was computed before is kept")
                if end.problem is not None:
                    failed[todo[end.place].file] = end.problem
            problems |= {work.video.key: failed[work.file] for work in works if work.file in failed}
            write_atomic(out / "videos.csv", _listed(videos, works, problems, out).encode())
    finally:
        lock.release()
    size = sum(file.stat().st_size for file in files if file not in failed)
    return FlowResult(out, len(videos), len(todo) - len(failed), before, 0, problems, size)


class _Closed(NamedTuple):
    """A video that cannot be opened."""

    video: Video
    problem: str


def _planned(cache: FlowCache, video: Video) -> Work | _Closed:
    try:
        return plan(cache, video)
    except UserError as error:
        return _Closed(video, str(error))


def _same_settings(cache: FlowCache) -> None:
    there = read_settings(cache.folder)
    if there is None or there == cache.settings:
        return
    old, new = asdict(there), asdict(cache.settings)
    other = ", ".join(f"{name} {old[name]!r} (now {new[name]!r})" for name in old if old[name] != new[name])
    raise UserError(f"{cache.folder}: holds flow of other settings: {other}; give another folder, or the same settings")


def _there(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _listed(videos: VideoSet, works: Sequence[Work], problems: Mapping[str, str], out: Path) -> str:
    files = {work.video.key: work.file.relative_to(out).as_posix() for work in works}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "flow", "problem"])
    for video in videos.videos:
        problem = problems.get(video.key, "")
        writer.writerow([video.key, "" if problem else files[video.key], problem])
    return text.getvalue()


def _bytes(count: int) -> str:
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:,.1f} GB"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - before hours of work
