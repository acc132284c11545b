"""Draw the middle frames of some videos with their predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contrastive_core.app.report.figures import new_figure, to_png
from contrastive_core.training.files import write_atomic
from ssl_video.data.reader import read_frames
from ssl_video.data.video_index import index_video

_COLUMNS, _SIDE, _WIDTH = 6, 1.6, 24


class Thumbnail(NamedTuple):
    """Video on a contact sheet, with the title above it and the name below."""

    path: Path
    title: str
    name: str


def contact_sheet(thumbnails: Sequence[Thumbnail], out: Path) -> None:
    """Write a PNG file of the middle frames of videos, six per row, with titles above and names below.

    Args:
        thumbnails: Videos to show.
        out: File to write.

    Raises:
        UserError: A video cannot be read.
    """
    columns = min(_COLUMNS, len(thumbnails))
    rows = math.ceil(len(thumbnails) / columns)
    figure = new_figure(columns * _SIDE, rows * _SIDE * 1.15)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, thumbnail in zip(grid.flat, thumbnails, strict=False):
        middle = len(index_video(thumbnail.path)) // 2
        axes.imshow(read_frames(thumbnail.path, [middle])[middle])
        axes.set_title(beginning(thumbnail.title), fontsize=7)
        axes.text(0.5, -0.02, end(thumbnail.name), transform=axes.transAxes, fontsize=5, ha="center", va="top")
    write_atomic(out, to_png(figure))


def beginning(text: str) -> str:
    """Shorten a title to the width of a picture."""
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def end(text: str) -> str:
    """Shorten a name to the width of a picture, at its beginning: names in a folder often differ at the end."""
    return text if len(text) <= _WIDTH else f"…{text[1 - _WIDTH :]}"
