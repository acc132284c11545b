"""`ssl-vision report`: one HTML file that shows a run to somebody who did not run it."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.train.files import write_atomic
from ssl_vision.data import ImageSet, open_images
from ssl_vision.evaluation import module_hash
from ssl_vision.model_folder import load_encoder
from ssl_vision.reporting import html, scores, sections
from ssl_vision.reporting.run_folder import open_run, read_scores
from ssl_vision.reporting.sheets import make_sheets


def report(
    run: Path,
    *,
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
    rows: int = 6,
    bank: int = 2000,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Write a run's report: curves, accuracies, views, nearest neighbours, settings and environment in one HTML file.

    The file holds everything it shows and asks nothing of the network. A run that has not ended, was never evaluated,
    or whose data lie elsewhere by now still gets its report, which says what is missing.

    Args:
        run: the out folder of ``ssl-vision pretrain``.
        data: images for the sheets; by default those the run was trained on.
        split: which part of them; by default the one trained on.
        out: the HTML file; by default ``report.html`` in the run's folder.
        rows: images on either sheet.
        bank: how many images, drawn at random, the nearest neighbours are looked for in.
        seed: of the choice of images.
        device: auto, cpu, cuda or mps.

    Returns:
        The HTML file.
    """
    if rows < 1 or bank < 2:
        raise UserError(f"report needs rows >= 1 and bank >= 2, got rows={rows} and bank={bank}")
    found = open_run(Path(run))
    protocols = scores.by_protocol(read_scores(found))
    spec, part = data or found.settings.data, split or found.settings.split
    images = _open(spec, part, required=data is not None or split is not None)
    model = load_encoder(str(run), device=device) if found.has_model else None
    if isinstance(images, str):
        shown = [sections.missing("What training sees", images)]
    else:
        bad = found.bad_files if (spec, part) == (found.settings.data, found.settings.split) else {}
        sheets = make_sheets(found.settings, images, model, rows=rows, bank=bank, seed=seed, without=bad)
        shown = [sections.views(sheets), sections.neighbours(sheets, data=spec, split=part)]
    page = html.document(
        sections.title(found.settings),
        [
            sections.header(
                found,
                images=len(images) if isinstance(images, ImageSet) and data is None else None,
                accuracies=scores.final_accuracies(found, protocols),
            ),
            sections.training(found),
            scores.evaluation(found, protocols, encoder_hash=module_hash(model.encoder) if model else None),
            *shown,
            sections.settings(found),
            sections.surroundings(found),
        ],
    )
    target = Path(out) if out is not None else Path(run) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page.encode())
    return target


def _open(data: str, split: str, *, required: bool) -> ImageSet | str:
    """The images, or why there are none: data that was moved since need not keep anyone from seeing the curves."""
    try:
        return open_images(data, split=split)
    except UserError as error:
        if required:
            raise
        return f"The images could not be opened ({error}). `ssl-vision report --data DATA` takes them from elsewhere."
