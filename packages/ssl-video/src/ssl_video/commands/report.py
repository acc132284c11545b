"""`ssl-video report`: write a self-contained HTML report of a run."""

from __future__ import annotations

from pathlib import Path

import ssl_video
from contrastive_core.app.report import page
from contrastive_core.app.report.run_record import read_record, showing
from contrastive_core.app.report.sections import settings, surroundings
from contrastive_core.errors import UserError
from contrastive_core.training.files import write_atomic
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.outputs import Outputs, run_files
from ssl_video.data import open_videos
from ssl_video.data.splits import read_split, select
from ssl_video.models.model_folder import load_recognizer
from ssl_video.reports import sections
from ssl_video.reports.view_sheet import view_sheet


def report(
    run: Path,
    *,
    data: str | None = None,
    split: Path | None = None,
    out: Path | None = None,
    clips: int = 4,
    seed: int = 0,
    network: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a run: one self-contained HTML file, which loads nothing over the network.

    It shows the curves of the losses, the share of pseudo-labels above the threshold and their accuracy, and the
    agreement between views; the results of ``ssl-video evaluate`` for each view and all together, with the confusion
    matrix and the classes; some clips in all their views, weakly and strongly augmented; and settings and environment.
    A run that is unfinished, was not evaluated, or whose data have moved also gets a report, which states what is
    missing.

    Args:
        run: Run folder to report on.
        data: Folder, CSV file or list of the videos, if they have moved; by default as in training.
        split: Split file, if it has moved.
        out: HTML file to write; by default ``report.html`` in the run's folder.
        clips: Number of clips shown in all views.
        seed: Seed of all random draws: of the clips shown.
        network: Custom network, ``package.module:function``, for a model that was trained with it; its code is run.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The HTML file.
    """
    if clips < 1:
        raise UserError(f"report needs clips >= 1, got {clips}")
    target = run / "report.html" if out is None else out
    outputs = Outputs([target], command="ssl-video report", inputs=run_files(run), overwrite=overwrite)
    with showing(Path(run)):
        text = _document(Path(run), data=data, split=split, clips=clips, seed=seed, network=network)
    with outputs:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text.encode())
    return target


def _document(run: Path, *, data: str | None, split: Path | None, clips: int, seed: int, network: str | None) -> str:
    record = read_record(run, made_by="`ssl-video train`")
    config = record.config
    if "inputs" not in config or "network" not in config:
        raise UserError(f"{run}: is not a run folder of `ssl-video train`")
    recognizer = load_recognizer(run, device="cpu", network=network) if (run / "model/model.json").is_file() else None
    evaluations, notes = sections.read_evaluations(
        run, model_hash=None if recognizer is None else module_hash(recognizer.network)
    )
    parts = [
        sections.header(record, card=None if recognizer is None else recognizer.card, evaluations=evaluations),
        page.warnings(notes),
        sections.training(record),
        *(sections.evaluation(entry) for entry in evaluations),
    ]
    if not evaluations:
        parts.append(
            sections.missing(
                "Evaluation", "Not evaluated yet: run `ssl-video evaluate` to test it on the held-out videos."
            )
        )
    if recognizer is None:
        parts.append(sections.missing("What the network sees", "Available once training has ended."))
    else:
        try:
            videos = open_videos(data or str(config["data"]))
            file = split or Path(str(config["split"]))
            train_videos = videos.subset(select(videos, read_split(file).train, file=file))
            sheet = view_sheet(train_videos, recognizer.recipe, config, clips=clips, seed=seed)
            text = (
                "Top rows: weak augmentation, from which pseudo-labels are made. Bottom rows: strong augmentation, for "
                "which the network learns them."
            )
            picture = page.figure(page.picture(sheet, label="Clips in all views"))
            parts.append(page.section("What the network sees", page.paragraph(text), picture))
        except UserError as error:
            if data is not None or split is not None:
                raise
            parts.append(sections.missing("What the network sees", f"The videos could not be opened: {error}"))
    parts += [
        settings(config, ssl_video.train, name="general", again=sections.again(config), sessions=record.sessions),
        surroundings(config, record.sessions, packages=["ssl-video", "torchvision", "av"]),
    ]
    return page.document(sections.title(config), parts)
