"""`ssl-video predict`: classify unlabelled videos into a CSV file and a contact sheet."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.config import DeviceName
from contrastive_core.training.files import check_space, open_atomic
from contrastive_core.training.outputs import Outputs, run_files
from contrastive_core.training.progress import track
from contrastive_core.training.tables import safe_cell
from ssl_video.data import Video, open_videos
from ssl_video.data.reader import ReadOptions
from ssl_video.data.torchcodec_reader import check_reader
from ssl_video.evaluation import SamplingOptions, classify_all, fused
from ssl_video.models.model_folder import load_recognizer
from ssl_video.optical_flow.cache import open_flow
from ssl_video.reports.contact_sheet import Thumbnail, contact_sheet

_ROW, _CELL, _THUMBNAIL = 100, 12, 50_000  # bytes of a path, of a class or probability, and of a picture


@dataclass(frozen=True)
class PredictResult:
    """Path of the table, number of videos in it, number of unreadable ones, and path of the contact sheet, if any."""

    out: Path
    videos: int
    unreadable: int
    sheet: Path | None

    def __str__(self) -> str:
        text = f"{self.out}: {several(self.videos, 'video')}"
        if self.unreadable:
            text += f", of which {self.unreadable:,} could not be read (see the column error)"
        return text if self.sheet is None else f"{text}\n{self.sheet}: contact sheet"


def predict(
    model: str,
    data: str,
    out: Path,
    *,
    sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008
    top: int = 1,
    sheet: int = 24,
    device: DeviceName = "auto",
    network: str | None = None,
    overwrite: bool = False,
) -> PredictResult:
    """Classify videos and write a CSV file with one row per video: path, class, probability, error.

    A folder gives all videos in it and its subfolders; a single video file works too. Labels are not read. A video that
    cannot be read has a row with the reason under ``error``. Beside the table, a PNG file of the same name shows the
    middle frames of some videos with their predicted classes. Each file is written completely or not at all. Text that
    a spreadsheet would interpret as a formula is preceded by ``./`` (paths) or an apostrophe.

    Args:
        model: Run folder or model folder to use.
        data: Folder of videos, CSV file with a column path, list of lines ``path class``, or one video.
        out: CSV file to write.
        sampling: Views, clips and crops of each video; several views are averaged.
        read: Stored optical flow, and the decoder of the frames.
        top: Number of most probable classes to list.
        sheet: Number of videos on the contact sheet, evenly spaced over all; 0 for no sheet.
        device: Device to run on: auto, cpu, cuda or mps.
        network: Custom network, ``package.module:function``, for a model that was trained with it; its code is run.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Paths of the files and numbers of videos.
    """
    recognizer = load_recognizer(model, device=device, network=network)
    classes, model_views = recognizer.recipe.classes, recognizer.recipe.views
    views = sampling.views_of(model_views, default=model_views[:1])
    if not 1 <= top <= len(classes) or sheet < 0:
        raise UserError(f"predict can list 1 to {len(classes)} classes of this model; got top={top}, sheet={sheet}")
    check_reader(read.reader)
    picture = out.with_suffix(".png") if sheet and out.name else None  # Path(".") has no name, and is refused below
    flow_cache = open_flow(read.flow_cache, method=recognizer.recipe.flow, views=views)
    videos = open_videos(data)
    outputs = Outputs(
        [out, picture] if picture else [out], command="ssl-video predict",
        inputs=[data, *(video.path for video in videos.videos), *run_files(model)],
        overwrite=overwrite,
    )  # fmt: skip
    space = len(videos) * (_ROW + _CELL * 2 * top) + (_THUMBNAIL * min(sheet, len(videos)) if picture else 0)
    check_space(out.parent, space, what=f"the rows of {len(videos):,} videos", files=2)
    sheet_places = spread(len(videos), sheet)
    thumbnails: list[Thumbnail] = []
    unreadable = 0
    with outputs:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(out) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
            writer.writerow(
                ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability")), "error"]
            )
            results = classify_all(
                recognizer, videos.videos, views=views, sampling=sampling, flow=flow_cache, reader=read.reader
            )
            progress = track(videos.videos, total=len(videos), what=videos.name)
            for place, (video, result) in enumerate(zip(progress, results, strict=True)):
                lacks_views = not isinstance(result, UserError) and bool(result.isnan().any(dim=1).all())
                outcome = _no_sound(video) if lacks_views else result
                if isinstance(outcome, UserError):
                    unreadable += 1
                    writer.writerow([safe_cell(video.key, path=True), *[""] * (2 * top), safe_cell(str(outcome))])
                    continue
                # Not topk, which ranks equal probabilities in any order, unlike the argmax of `evaluate`.
                probabilities, order = (x[:top] for x in fused(outcome[None])[0].sort(descending=True, stable=True))
                ranking = list(zip(order.tolist(), probabilities.tolist(), strict=True))
                cells = (cell for c, p in ranking for cell in (safe_cell(classes[c]), float(f"{p:.6g}")))
                writer.writerow([safe_cell(video.key, path=True), *cells, ""])
                if place in sheet_places:
                    label, share = classes[ranking[0][0]], ranking[0][1]
                    thumbnails.append(Thumbnail(video.path, f"{label} {100 * share:.0f} %", Path(video.key).name))
            file.detach()  # flushes, and leaves the file beneath open
        if picture and thumbnails:
            contact_sheet(thumbnails, picture)
    return PredictResult(out, len(videos), unreadable, picture if thumbnails else None)


def _no_sound(video: Video) -> UserError:
    return UserError(f"{video.path}: has no sound, and the view audio alone was asked for; name other views too")


def spread(videos: int, most: int) -> set[int]:
    """Choose the positions of videos to show: all, or `most` of them evenly spaced from the first to the last."""
    count = min(videos, most)
    return {round(i * (videos - 1) / max(1, count - 1)) for i in range(count)}
