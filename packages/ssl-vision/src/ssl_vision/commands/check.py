"""`ssl-vision check`: find every problem of an image data set in one pass."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from ssl_vision.checks import examine
from ssl_vision.data import input_files
from ssl_vision.data.dataset import ReadOptions


def check(
    data: str,
    *,
    part: str | None = None,
    out: Path | None = None,
    json: bool = False,
    image_channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> int:
    """Read every image of a data set and report its problems.

    Errors are unreadable files, one picture under two classes or in two splits, and classes or splits without images.
    Warnings are duplicates, blank, tiny, very long or oddly sized pictures, classes without test images, images beside
    the class folders, and images of unsupported kinds. Notes are about images that are converted, rotated or left out.
    `ssl_vision.checks.examine` returns the same as an object.

    Args:
        data: Image folder, CSV manifest, or named data set such as ``cifar10:ROOT``.
        part: Part of the data to check; by default all of them and their overlap.
        out: JSON file to write, with all findings.
        json: Whether to print JSON instead of text.
        image_channels: Number of channels of the images, as for training.
        read: Options for reading image files.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Exit status: 1 if there are errors, else 0.

    Raises:
        UserError: There is no such data set or split.
    """
    report = examine(data, split=part, channels=image_channels, read=read)
    if out is not None:  # before printing: the reader of the output may close the pipe early
        with Outputs([out], command="ssl-vision check", inputs=input_files(data), overwrite=overwrite):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, f"{report.to_json()}\n".encode())
    print(report.to_json() if json else report.text())  # noqa: T201 - the output of the command
    return 1 if report.errors else 0
