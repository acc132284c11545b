"""`ssl-video check`: find all problems of a set of videos in one pass, and write a manifest."""

from __future__ import annotations

import csv
import io
import json as json_
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.app.checks import counted_levels, finding_lines, findings_to_json, most_first, of_level
from contrastive_core.text import several
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from contrastive_core.training.tables import safe_cell
from ssl_video.data import open_videos
from ssl_video.data.check import Facts, examine

_COLUMNS = (
    "path",
    "class",
    "split",
    "group",
    "frames",
    "seconds",
    "fps",
    "width",
    "height",
    "codec",
    "variable",
    "audio",
    "problem",
)


def check(
    data: str,
    *,
    part: str | None = None,
    out: Path | None = None,
    decode: bool = True,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Open every video of a data set, count its frames, and list the problems.

    Errors: files that cannot be opened or lose frames when decoded; one file in two classes. Warnings: sound that
    cannot be decoded, duplicate files, classes with a single video. Notes: videos without a class, files left out,
    damaged frames that the decoder concealed, variable frame rates, cut and joined streams, videos without sound among
    others with sound, very short videos.

    Args:
        data: Folder of class folders, CSV file with a column path, or list of lines ``path class``.
        part: Part of the data, such as train or test; by default all of it.
        out: CSV file to write, with one row per video and its problem; it can be given as `data` later.
        decode: Decode every frame, which finds damage within files; ``--no-decode`` only opens the files.
        json: Whether to print JSON instead of text.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Exit status: 1 if there are errors, else 0.

    Raises:
        UserError: There is no such data set or part.
    """
    videos = open_videos(data, part=part)
    outputs = Outputs(
        [] if out is None else [out],
        command="ssl-video check",
        inputs=[data, *(video.path for video in videos.videos)],
        overwrite=overwrite,
    )
    facts, findings = examine(videos, decode=decode)
    if out is not None:  # before printing: the reader of the output may close the pipe early
        with outputs:
            write_atomic(out, _manifest(facts, out.parent).encode())
    good = [fact.index for fact in facts if fact.index is not None]
    sizes = most_first(Counter(f"{index.width}x{index.height}" for index in good))
    codecs = most_first(Counter(index.codec for index in good))
    if json:
        content = {
            "data": data,
            "videos": len(videos),
            "classes": dict(Counter(video.label for video in videos.videos if video.label is not None)),
            "frames": sum(map(len, good)),
            "seconds": round(sum(index.duration for index in good), 3),
            "sizes": sizes,
            "codecs": codecs,
            **findings_to_json(findings),
        }
        print(json_.dumps(content, indent=2))  # noqa: T201 - the output of the command
    else:
        hours = sum(index.duration for index in good) / 3600
        lines = [
            f"{data}: {several(len(videos), 'video')} in {several(len(videos.classes), 'class', 'classes')}, "
            f"{several(sum(map(len, good)), 'frame')}, "
            f"{hours:.2f} hours",
            *finding_lines(findings),
            "",
            f"sizes   {', '.join(f'{size} {count}' for size, count in list(sizes.items())[:5])}",
            f"codecs  {', '.join(f'{codec} {count}' for codec, count in codecs.items())}",
            f"sound   {sum(index.has_audio for index in good)} of {len(good)}",
            "",
            counted_levels(findings),
        ]
        print("\n".join(lines))  # noqa: T201
    return 1 if of_level(findings, "error") else 0


def _manifest(facts: Sequence[Facts], folder: Path) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for fact in facts:
        video, index = fact.video, fact.index
        row: dict[str, object] = {
            "path": safe_cell(Path(os.path.relpath(video.path.absolute(), folder.absolute())).as_posix(), path=True),
            "class": safe_cell(video.label or ""),
            "split": safe_cell(video.part or ""),
            "group": safe_cell(video.group or ""),
            "problem": safe_cell(fact.problem or ""),
        }
        if index is not None:
            row |= {
                "frames": len(index),
                "seconds": f"{index.duration:.3f}",
                "fps": f"{len(index) / index.duration:.3f}",
                "width": index.width,
                "height": index.height,
                "codec": index.codec,
                "variable": int(index.is_variable),
                "audio": int(index.has_audio),
            }
        writer.writerow(row)
    return text.getvalue()
