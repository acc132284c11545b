"""A map-style data set of clips that replaces unreadable videos, up to a limit."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

from torch.utils.data import Dataset

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_json_lines, reading
from contrastive_core.training.files import append_line
from ssl_video.data.clip import ClipSpec, Sample, clip_start
from ssl_video.data.reader import StoredFlow, read_clip
from ssl_video.data.torchcodec_reader import ReaderName, check_reader
from ssl_video.data.video_index import index_video
from ssl_video.data.videos import VideoSet

_NAMED = 3


class ClipDataset(Dataset[Sample]):
    """A random clip of every video: map-style, with a length; what an index gives is a function of (seed, index).

    A file that cannot be read is said on standard error, written to `log`, and stood in for by the next readable video
    of the same class (of any, if classes do not matter), up to ``floor(max_bad * N)`` files; then it is an error. So an
    epoch never shrinks, and the order does not depend on the number of workers.

    Args:
        videos: the videos.
        spec: of a clip.
        following: see `read_clip`.
        audio: see `read_clip`.
        flow: see `read_clip`.
        reader: see `read_clip`.
        max_bad: share of the files that may be unreadable, ``0 <= max_bad < 1``.
        log: JSON lines with index, path and reason; None: nowhere.
        by_class: a bad file is stood in for by one of its own class.

    Raises:
        UserError: `max_bad` is no such share, or there is no such reader here.
    """

    def __init__(
        self,
        videos: VideoSet,
        spec: ClipSpec,
        *,
        following: bool = False,
        audio: bool = False,
        flow: StoredFlow | None = None,
        reader: ReaderName = "pyav",
        max_bad: float = 0.0,
        log: Path | None = None,
        by_class: bool = False,
    ) -> None:
        if not 0 <= max_bad < 1:
            raise UserError(f"max_bad is {max_bad}; expected a share of the videos, at least 0 and less than 1")
        check_reader(reader)
        self.videos, self.spec, self.following, self.audio, self.flow = videos, spec, following, audio, flow
        self.reader: ReaderName = reader
        self._allowed, self._log, self._by_class = math.floor(max_bad * len(videos)), log, by_class
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Sample:
        return self.clip(index, seed=0)

    def clip(self, index: int, *, seed: int) -> Sample:
        """The clip of a video that the seed chooses.

        Raises:
            UserError: more files cannot be read than may be.
        """
        for place in self._candidates(index):
            if place in self._bad:
                continue
            try:
                path = self.videos[place].path
                start = clip_start(index_video(path).duration, self.spec, seed=seed, id=index)
                clip = read_clip(
                    path,
                    start,
                    self.spec,
                    following=self.following,
                    audio=self.audio,
                    flow=self.flow,
                    reader=self.reader,
                )
                return Sample(clip, place)
            except UserError as error:
                self._note(place, str(error))
        raise UserError(f"{self.videos.name}: none of the videos that could stand in for {index} can be read")

    def _candidates(self, index: int) -> itertools.filterfalse[int]:
        label = self.videos[index].label
        places = itertools.chain(range(index, len(self)), range(index))
        return itertools.filterfalse(lambda place: self._by_class and self.videos[place].label != label, places)

    def _note(self, index: int, reason: str) -> None:
        bad = self._listed() | self._bad | {index}
        if len(bad) > self._allowed:
            raise UserError(
                f"{reason}\n{len(bad)} of {len(self)} videos cannot be read, {self._allowed} may be skipped; "
                "`ssl-video check` lists all of them. Mend or remove them, or allow more (--max_bad)"
            )
        if self._log is not None and index not in self._listed():
            record = {"index": index, "path": str(self.videos[index].path), "reason": reason}
            append_line(self._log, json.dumps(record))
        print(f"skipped: {reason}", file=sys.stderr, flush=True)  # noqa: T201
        self._bad.add(index)

    def _listed(self) -> set[int]:
        if self._log is None or not self._log.is_file():
            return set()
        records = read_json_lines(self._log)
        with reading(self._log, "is damaged", "remove it"):
            return {int(record["index"]) for record in records}
