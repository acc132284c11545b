"""`ssl-vision report`: write the report of a run as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contrastive_core.app.report import page
from contrastive_core.app.report.run_record import showing
from contrastive_core.errors import UserError
from contrastive_core.training.config import DeviceName
from contrastive_core.training.files import write_atomic
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.outputs import Outputs, run_files
from ssl_vision.data import ImageSet, open_images
from ssl_vision.models.model_folder import load_classifier, load_encoder
from ssl_vision.reports import classifier_sections, sections
from ssl_vision.reports.comparison import agreement, collect, comparison
from ssl_vision.reports.run_folder import RunFolder, count_labels, open_run, read_evaluations, read_scores
from ssl_vision.reports.sections import by_protocol, final_accuracies, scores_section
from ssl_vision.reports.sheets import make_sheets


def report(
    run: Path,
    *,
    data: str | None = None,
    part: str | None = None,
    out: Path | None = None,
    compare: tuple[Path, ...] | None = None,
    rows: int = 6,
    bank: int = 2000,
    seed: int = 0,
    device: DeviceName = "auto",
    overwrite: bool = False,
) -> Path:
    """Write the report of a run: one self-contained HTML file, which loads nothing over the network.

    For pre-training it shows curves, accuracies, views and nearest neighbours. For a classifier it shows curves and the
    results of ``ssl-vision evaluate``: confusion matrix, classes, calibration, the most confident mistakes, accuracy by
    number of labels beside other runs, and for a distilled classifier the agreement with its teacher. Both include
    settings and environment. A run that is unfinished, was not evaluated, or whose data have moved also gets a report,
    which states what is missing.

    Args:
        run: Run folder of ``ssl-vision pretrain``, ``finetune`` or ``distill``.
        data: Images for the sheets of pre-training, by default the training images; or the new location of the images
            that a classifier was evaluated on.
        part: Part of the data for the sheets of pre-training; by default the one used for training.
        out: HTML file to write; by default ``report.html`` in the run's folder.
        compare: Runs, or folders of runs, to compare a classifier with; by default those beside this run. Only runs
            evaluated on the same images are used.
        rows: Number of images per sheet; three times as many mistakes are shown.
        bank: Number of images, drawn at random, to search for nearest neighbours.
        seed: Seed of all random draws: of the images shown.
        device: Device to run on: auto, cpu, cuda or mps.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The HTML file.
    """
    if rows < 1 or bank < 2:
        raise UserError(f"report needs rows >= 1 and bank >= 2, got rows={rows} and bank={bank}")
    target = Path(out) if out is not None else Path(run) / "report.html"
    output_files = Outputs([target], command="ssl-vision report", inputs=run_files(run), overwrite=overwrite)
    with showing(Path(run)):
        run_folder = open_run(Path(run))
        if run_folder.settings.kind == "pretrain":
            text = _of_pretraining(run_folder, data=data, part=part, rows=rows, bank=bank, seed=seed, device=device)
        else:
            text = _of_classifier(run_folder, data=data, compare=compare, rows=rows, device=device)
    with output_files:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text.encode())
    return target


def _of_classifier(run: RunFolder, *, data: str | None, compare: Sequence[Path] | None, rows: int, device: str) -> str:
    evaluations = read_evaluations(run.path)
    model = load_classifier(str(run.path), device=device) if run.has_model else None
    num_labels = count_labels(run.settings)
    parts = [
        classifier_sections.header(run, evaluations, num_labels=num_labels),
        classifier_sections.training(run, classes=len(model.classes) if model else None),
        classifier_sections.evaluation(
            run,
            evaluations,
            model_hash=module_hash(model.model) if model else None,
            data=data,
            pictures=3 * rows,
        ),
    ]
    if run.settings.kind == "distill":
        parts.append(agreement(run, evaluations))
    if evaluations:
        parts += comparison(run, evaluations[0], collect(run, evaluations[0], compare))
    features = by_protocol(read_scores(run))
    if features:
        encoder = module_hash(model.model.encoder) if model else None
        parts.append(scores_section(run, features, encoder_hash=encoder, title="Features"))
    parts += [sections.settings(run), sections.surroundings(run)]
    return page.document(classifier_sections.title(run.settings), parts)


def _of_pretraining(
    run: RunFolder, *, data: str | None, part: str | None, rows: int, bank: int, seed: int, device: str
) -> str:
    protocols = by_protocol(read_scores(run))
    spec, split = data or run.settings.data, part or run.settings.part
    images = _open(run, spec, split, required=data is not None or part is not None)
    model = load_encoder(str(run.path), device=device) if run.has_model else None
    if isinstance(images, str):
        sheet_sections = [sections.missing("What training sees", images)]
    else:
        bad = run.bad_files if (spec, split) == (run.settings.data, run.settings.part) else {}
        sheets = make_sheets(run.settings, images, model, rows=rows, bank=bank, seed=seed, without=bad)
        sheet_sections = [
            sections.views(sheets, pairs=run.settings.batch_size > 0),
            sections.neighbours(sheets, data=spec, split=split),
        ]
    header = sections.header(
        run,
        images=len(images) if isinstance(images, ImageSet) and data is None else None,
        accuracies=final_accuracies(run, protocols),
    )
    return page.document(
        sections.title(run.settings),
        [
            header,
            sections.training(run),
            scores_section(run, protocols, encoder_hash=module_hash(model.encoder) if model else None),
            *sheet_sections,
            sections.settings(run),
            sections.surroundings(run),
        ],
    )


def _open(run: RunFolder, data: str, split: str, *, required: bool) -> ImageSet | str:
    """Open the images, or return why they cannot be opened: a report of moved data still shows the curves."""
    try:
        return open_images(data, split=split, channels=run.settings.channels, read=run.settings.read)
    except UserError as error:
        if required:
            raise
        return (
            f"The images could not be opened ({error}). Give their new location with `ssl-vision report --data DATA`."
        )
