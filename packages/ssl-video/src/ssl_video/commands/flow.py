"""`ssl-video flow`: compute the optical flow of a data set once."""

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
from contrastive_core.text import size
from contrastive_core.training.config import DeviceName
from contrastive_core.training.files import FolderLock, check_space, write_atomic
from contrastive_core.training.launch import choose_device
from contrastive_core.training.outputs import Outputs
from contrastive_core.training.progress import track
from contrastive_core.training.tables import safe_cell
from ssl_video.data import Video, VideoSet, open_videos
from ssl_video.optical_flow.cache import FlowCache, read_settings
from ssl_video.optical_flow.compute import Work, flow_settings, plan, store_all


@dataclass(frozen=True)
class FlowResult:
    """Result of `flow`; `str` gives the text that the command prints.

    Attributes:
        out: Folder of the flow.
        videos: Number of videos.
        computed: Number of flow files computed in this call; identical videos share one.
        before: Number of flow files that existed before.
        missing: Number of flow files that a dry run would compute.
        unreadable: Reason for each video that cannot be read.
        size: Size of all flow files, existing and missing, in bytes.
    """

    out: Path
    videos: int
    computed: int
    before: int
    missing: int
    unreadable: dict[str, str]
    size: int

    def __str__(self) -> str:
        counts = f"{self.computed:,} computed now, {self.before:,} already present"
        if self.missing:
            counts += f", {self.missing:,} to compute"
        text = (
            f"{self.out}: flow of {self.videos - len(self.unreadable):,} of {self.videos:,} videos, "
            f"{size(self.size)} ({counts})"
        )
        if self.unreadable:
            hint = ", see videos.csv" if (self.out / "videos.csv").is_file() else ""
            first = next(iter(self.unreadable.values()))
            text += f"\n{len(self.unreadable):,} could not be read{hint}; the first: {first}"
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
    device: DeviceName = "cpu",
    dry_run: bool = False,
    overwrite: bool = False,
) -> FlowResult:
    """Compute the optical flow of all videos once, for ``train --flow-cache`` and ``evaluate --flow-cache``.

    Without stored flow, flow is computed for every clip after cropping and resizing, which suits the fast methods
    (dis). For slow methods (tvl1, raft), or for many epochs, compute it once. The flow from each whole frame to the
    next is stored; crops, resizing and mirroring are applied to the vectors when they are read.

    The required disk space is printed first. An interrupted command continues where it stopped when it is run again,
    and then also computes the flow of new and changed videos. A folder with flow of other settings is refused.
    ``videos.csv`` in the folder lists every video with its flow file, or the reason why it could not be read.

    Args:
        data: Folder of class folders, CSV file with a column path, or list of lines ``path class``.
        out: Folder for the flow; several data sets can share it.
        part: Part of the data, such as train or test; by default all of it.
        method: Flow method: dis, dis_fast, dis_ultrafast, farneback, tvl1 or raft:FILE.
        short_side: Short side in pixels to which larger frames are resized first; a good value is 256/224 of the size
            of the training crops. 0 for full size.
        precision: ``half`` for 16 bits per number, ``byte`` for 8 bits, in steps of 0.16 pixels at a short side of 256.
        workers: Number of processes; by default one per core on the CPU, and 0 on another device.
        device: Device to run on: auto, cpu, cuda or mps. Only raft runs on another device than the CPU.
        dry_run: Only print the number of files and the disk space.
        overwrite: Whether to replace files that this command did not write. Stored flow is not replaced.

    Returns:
        Numbers of files and their size.
    """
    if short_side < 0 or (workers is not None and workers < 0):
        raise UserError(f"flow needs short_side >= 0 and workers >= 0; got {short_side} and {workers}")
    place = choose_device(device)
    if place.type != "cpu" and workers:
        raise UserError(f"workers is {workers}; on {place.type}, one process computes all flow: set workers to 0")
    videos, out = open_videos(data, part=part), Path(out)
    if any(out.resolve() in video.path.resolve().parents for video in videos.videos):
        raise UserError(
            f"{out} contains the videos; choose another folder for their flow, such as {out.resolve().name}-flow"
        )
    inputs: list[Path | str] = [data, *(video.path for video in videos.videos)]
    outputs = Outputs(
        [out / "flow.json", out / "videos.csv"], command="ssl-video flow", inputs=inputs, overwrite=overwrite
    )
    cache = FlowCache(out, flow_settings(method, short_side=short_side, precision=precision))
    _same_settings(cache)
    with ThreadPoolExecutor() as pool:
        lookups = pool.map(lambda video: _plan(cache, video), videos.videos)
        plans = list(track(lookups, total=len(videos), what=f"checking {videos.name}"))
    problems = {end.video.key: end.problem for end in plans if isinstance(end, _Unreadable)}
    works = [end for end in plans if isinstance(end, Work)]
    files = {work.file: work for work in works}  # identical videos share one
    todo = [work for file, work in files.items() if not file.is_file()]
    space, free = sum(work.size for work in todo), shutil.disk_usage(_there(out)).free
    at = f"at a short side of {short_side}" if short_side else "at full size"
    _say(
        f"{data}: {len(files):,} different videos, of which {len(files) - len(todo):,} have their flow in {out}; the "
        f"flow of the other {len(todo):,}, with {method} {at}, takes {size(space)} ({size(free)} are free)"
    )
    total, before = sum(work.size for work in files.values()), len(files) - len(todo)
    if dry_run:
        return FlowResult(out, len(videos), 0, before, len(todo), problems, total)
    check_space(
        out, space, what="the missing files", files=len(todo), advice="use a smaller --short-side or --precision byte"
    )
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    if not lock.acquire():
        raise UserError(f"{out}: another process is computing flow in this folder; wait until it has finished")
    try:
        _same_settings(cache)  # another process may have filled the folder since
        with outputs:
            cache.write_settings()
            for leftover in out.glob("??/.*.tmp"):  # left by a killed process: the lock is ours
                leftover.unlink()
            if workers is None:
                workers = min(os.cpu_count() or 1, len(todo)) if place.type == "cpu" else 0
            failures: dict[Path, str] = {}
            results = store_all(cache, todo, method=method, workers=workers, device=place)
            for end in track(results, total=len(todo), what=f"flow of {videos.name}"):
                if end.fatal is not None:
                    raise UserError(f"{end.fatal}; the flow that was already computed is kept")
                if end.problem is not None:
                    failures[todo[end.place].file] = end.problem
            problems |= {work.video.key: failures[work.file] for work in works if work.file in failures}
            write_atomic(out / "videos.csv", _table(videos, works, problems, out).encode())
    finally:
        lock.release()
    disk_size = sum(file.stat().st_size for file in files if file not in failures)
    return FlowResult(out, len(videos), len(todo) - len(failures), before, 0, problems, disk_size)


class _Unreadable(NamedTuple):
    """A video that cannot be opened, and the reason."""

    video: Video
    problem: str


def _plan(cache: FlowCache, video: Video) -> Work | _Unreadable:
    try:
        return plan(cache, video)
    except UserError as error:
        return _Unreadable(video, str(error))


def _same_settings(cache: FlowCache) -> None:
    there = read_settings(cache.folder)
    if there is None and next(cache.folder.glob("??/*.npy"), None) is not None:
        raise UserError(
            f"{cache.folder}: contains flow, but no flow.json that states its settings; expected both. Restore that "
            "file, delete the flow, or give another folder"
        )
    if there is None or there == cache.settings:
        return
    old, new = asdict(there), asdict(cache.settings)
    differences = ", ".join(f"{name} {old[name]!r} (now {new[name]!r})" for name in old if old[name] != new[name])
    raise UserError(
        f"{cache.folder}: contains flow with other settings: {differences}; give another folder or the same settings"
    )


def _there(folder: Path) -> Path:
    """Return the folder, or its closest parent that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _table(videos: VideoSet, works: Sequence[Work], problems: Mapping[str, str], out: Path) -> str:
    files = {work.video.key: work.file.relative_to(out).as_posix() for work in works}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "flow", "problem"])
    for video in videos.videos:
        problem = problems.get(video.key, "")
        writer.writerow([safe_cell(video.key, path=True), "" if problem else files[video.key], safe_cell(problem)])
    return text.getvalue()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - before hours of work
