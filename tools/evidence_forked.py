"""Commands of ssl-video as forks of a process that has imported everything and decoded every video of a small data set.

A run of seconds on a small data set spends half of its time on importing and decoding; its numbers are those of the
plain command, for what is kept are decoded frames.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ssl_video.data import reader
from tools.evidence_runs import Job

_IMPORTED = ("ssl_video.commands.train", "ssl_video.commands.evaluate", "ssl_video.views.methods", "cv2")


def forking(videos: Path, pattern: str) -> Callable[[Job, Path], int]:
    """A way to run jobs for `run_all`.

    Args:
        videos: folder of the videos.
        pattern: of their names below it. All their frames are kept: 64 pixels, not more than some hundred files.

    Returns:
        From a job and the path of its log to the exit status.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    plain, kept = reader.read_frames, {}
    for path in sorted(videos.glob(pattern)):
        kept[str(path)] = plain(path, list(range(len(reader.index_video(path)))))

    def read_frames(path: str | Path, frames: list[int]) -> dict[int, reader.Picture]:
        found = kept.get(str(path))
        return plain(path, frames) if found is None else {frame: found[frame] for frame in frames}

    reader.read_frames = read_frames  # `read_clip` looks it up there
    context = multiprocessing.get_context("fork")

    def call(job: Job, log: Path) -> int:
        process = context.Process(target=_command, args=(job, log))
        process.start()
        process.join()
        return process.exitcode or 0

    return call


def _command(job: Job, log: Path) -> None:
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        program = importlib.import_module(f"{job.program.replace('-', '_')}.cli")
        status = program.main(list(job.resuming))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # at an ordinary end it would wait for threads that stayed behind in the parent
