"""Replace unreadable images, up to a given share, instead of aborting a long run; each is counted and listed."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.config import allowed_bad
from contrastive_core.training.documents import read_json_lines, reading
from contrastive_core.training.files import append_line
from ssl_vision.data.dataset import ArrayImages, ImageSet

_NAMED = 3


def skip_bad(images: ImageSet, *, max_bad: float, log: Path) -> ImageSet:
    """Return the images without labels, with as many unreadable ones replaced as `allowed_bad` allows.

    An unreadable file is reported on standard error, recorded in `log`, and replaced by the next readable image of the
    set (after the last one, the first). The number of images, their order and every image's identity do not change, and
    the result is a function of the files alone: runs resume exactly, with any number of workers or processes, which all
    use the same log. Unreadable images beyond the share raise an error.

    Args:
        images: Images.
        max_bad: Share of the images that may be unreadable, ``0 <= max_bad < 1``. With 0, any unreadable file is an
            error and the set itself is returned, as are images in memory.
        log: File in the run folder for JSON lines with index, path and reason, created at the first unreadable file.

    Raises:
        UserError: `max_bad` is out of range. Later, from `read`: too many files are unreadable.
    """
    allowed = allowed_bad(max_bad, len(images))
    if allowed == 0 or isinstance(images, ArrayImages):
        return images
    return _Skipping(images, allowed=allowed, log=log)


def read_log(log: Path) -> dict[int, str]:
    """Read the unreadable files recorded so far by any process, image number -> message, sorted by number."""
    if not log.is_file():
        return {}
    records = read_json_lines(log)
    with reading(log, "is damaged", "remove it"):
        return dict(sorted((int(record["index"]), str(record["reason"])) for record in records))


class _Skipping(ImageSet):
    """See `skip_bad`; without labels, because replacements have other labels."""

    def __init__(self, images: ImageSet, *, allowed: int, log: Path) -> None:
        super().__init__(
            images.name,
            labels=None,
            classes=(),
            unlabelled="bad files are skipped only if no labels are needed",
            split=images.split,
            notes=images.notes,
            channels=images.channels,
            options=images.options,
        )
        self._images, self._allowed, self._log = images, allowed, log
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Tensor:
        for stand_in in itertools.chain(range(index, len(self)), range(index)):
            if stand_in not in self._bad:
                try:
                    return self._images.read(stand_in)
                except UserError as error:
                    self._count(stand_in, str(error))
        raise UserError(f"{self.name}: none of the {len(self)} images can be read")

    def size(self, index: int) -> tuple[int, int]:
        try:
            return self._images.size(index)
        except UserError:
            height, width = self.read(index).shape[1:]
            return height, width

    def path(self, index: int) -> str:
        return self._images.path(index)

    def key(self, index: int) -> str:
        return self._images.key(index)

    def _count(self, index: int, reason: str) -> None:
        """Record an unreadable file, unless there are too many."""
        record = json.dumps({"index": index, "path": self.path(index), "reason": reason})
        if index not in read_log(self._log):
            append_line(self._log, record)
            print(f"skipped: {reason}", file=sys.stderr, flush=True)  # noqa: T201
        bad = read_log(self._log)
        if len(bad) > self._allowed:  # those repaired since an earlier start do not count
            bad = {number: reason for number, reason in bad.items() if not self._is_mended(number)}
        if len(bad) > self._allowed:
            reasons = "".join(f"\n  {reason}" for reason in list(bad.values())[:_NAMED])
            raise UserError(
                f"{self.name}: found {several(len(bad), 'unreadable file')}, but only {self._allowed} of {len(self)} "
                f"may be skipped:{reasons}\n`ssl-vision check` lists all of them; repair or remove them, or raise "
                "--max-bad"
            )
        self._bad.add(index)

    def _is_mended(self, index: int) -> bool:
        try:
            self._images.read(index)
        except UserError:
            return False
        return True
