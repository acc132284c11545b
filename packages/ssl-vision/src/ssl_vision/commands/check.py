"""`ssl-vision check`: find every problem of an image data set in one pass."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.training.files import write_atomic
from ssl_vision.checks import examine


def check(data: str, *, split: str | None = None, out: Path | None = None, json: bool = False) -> int:
    """Look at every image of a data set and print what is wrong with it.

    Errors: unreadable files, the same picture under two classes or in two splits, classes or splits without images.
    Warnings: duplicates, blank, tiny, very long or oddly sized pictures, untested classes, images beside class folders,
    images of kinds that are not read. Notes: what is converted, turned or left out. `ssl_vision.checks.examine` gives
    the same as an object.

    Args:
        data: an image folder, a CSV manifest, or a named data set such as ``cifar10:ROOT``.
        split: only this one; otherwise all, and what they have in common.
        out: also write everything found to this file, as JSON.
        json: print JSON instead of text.

    Returns:
        1 if there are errors, else 0: the exit status.

    Raises:
        UserError: there is no such data set or split.
    """
    report = examine(data, split=split)
    if out is not None:  # first: who reads what is printed may leave in the middle
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, f"{report.to_json()}\n".encode())
    print(report.to_json() if json else report.text())  # noqa: T201 - what the command is for
    return 1 if report.errors else 0
