"""Render the evaluation section of a report: scores per structure and case, volumes, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import to_inline_svg
from contrastive_core.text import several
from ssl_medseg.evaluation.plots import bland_altman_figure
from ssl_medseg.evaluation.results import Evaluation, StructureScore
from ssl_medseg.evaluation.summary import LEAST_PAIRS, StructureSummary, Summary, case_dice, summarise
from ssl_medseg.evaluation.text import by_phase, mean_and_sd, median_and_quartiles, number, title, warnings
from ssl_medseg.reports.overlay import choose

NBSP = "\u00a0"
_REM_PER_INCH = 5.4
_LEAST_WIDTH = 40  # rem
_SAME = 0.01  # of mean Dice
_LEAST_FOR_QUARTILES = 3  # cases
_MEANINGS = (
    ("Dice", "overlap of prediction and truth: 1 for identical masks, 0 for masks without a common voxel."),
    ("HD95", "distance within which 95 % of each surface lies from the other surface, a measure of the larger errors."),
    ("ASSD", "average distance between the two surfaces, a measure of the typical error."),
    ("surface Dice", "fraction of the two surfaces that lies within the tolerance of the other surface."),
    ("volume error", "predicted minus true volume: positive if the predicted structure is too large."),
)


def evaluation_section(evaluation: Evaluation, folder: Path, *, place: int = 0) -> str:
    """Render one evaluation as a section of the page.

    Args:
        evaluation: Evaluation to show.
        folder: Folder with the pictures of the evaluation.
        place: Index of the evaluation on the page. It makes the identifiers of figures unique, and only the first
            evaluation explains the measures.
    """
    summary = summarise(evaluation)
    cases = several(summary.cases, _part_case(evaluation.part))
    parts = [
        page.paragraph(
            f"{cases} of {several(summary.patients, 'patient')} from {evaluation.data}, measured on the original voxel "
            "grid of each image."
            + (f" Numbers cover all {cases} unless a smaller n is given." if summary.cases > 1 else "")
        ),
        page.warnings(warnings(evaluation, summary)),
        _structures(evaluation, summary),
        _paper(summary),
        _phases(evaluation),
        *([] if place else ["<h3>What the numbers mean</h3>", _meanings()]),
        *_pictures(evaluation, folder),
        *_volumes(evaluation, summary, place=place),
        "<h3>Every case</h3>",
        _cases(evaluation),
    ]
    return page.section(f"Evaluation: {evaluation.name}", *parts)


def stages_table(stages: Mapping[str, Evaluation]) -> str:
    """Tabulate the mean Dice of each stage of a run on the same cases; empty with fewer than two stages.

    Args:
        stages: Name of each stage -> its evaluation, in the order of training.
    """
    sets = [{case.case for case in evaluation.judged} for evaluation in stages.values()]
    if len(stages) < 2 or any(cases != sets[0] for cases in sets[1:]):
        return ""
    rows, means = [], {}
    for name, evaluation in stages.items():
        summary = summarise(evaluation)
        means[name] = summary.mean_dice.mean or 0.0
        each = [mean_and_sd("dice", structure.measures["dice"]) for structure in summary.structures]
        rows.append([name, *map(_unbroken, [mean_and_sd("dice", summary.mean_dice), *each])])
    head = ["Dice after", "mean", *next(iter(stages.values())).structures]
    return page.section(
        "Improvement by stage",
        page.paragraph(
            f"All stages are scored on {'the same ' if len(sets[0]) > 1 else ''}"
            f"{several(len(sets[0]), _part_case(list(stages.values())[-1].part))}."
        ),
        page.warnings(_worse(means)),
        page.table(head, rows, kind="numbers"),
    )


def _meanings() -> str:
    """Explain the measures of the tables."""
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _MEANINGS)
    return f'<dl class="terms">{terms}</dl>'


def _part_case(part: str) -> str:
    """Return ``validation case`` and the like, or ``case`` if the evaluation covers all parts of a split."""
    return "case" if part == "all" else f"{part} case"


def _worse(means: Mapping[str, float]) -> Iterator[str]:
    """Warn if a later stage scores lower than an earlier one."""
    last, best = list(means)[-1], max(means, key=lambda name: means[name])
    if means[best] - means[last] > _SAME:
        yield (
            f"The last stage, {last}, scores lower than {best} ({number('dice', means[last])} against "
            f"{number('dice', means[best])}). More steps or more labelled patients may help. Until then, use the model "
            f"in the folder {best}."
        )


def _structures(evaluation: Evaluation, summary: Summary) -> str:
    """Tabulate means and medians per structure; a cell that covers only some of the cases states its n."""
    measures = [m for m in summary.structures[0].measures if m != "error_ml" or evaluation.unit == "mm"]
    head = ["", *(title(measure, evaluation) for measure in measures)]
    tables = []
    forms = {"mean ± sd" if summary.cases > 1 else "structure": mean_and_sd}
    if summary.cases >= _LEAST_FOR_QUARTILES:
        forms["median (quartiles)"] = median_and_quartiles
    for name, write in forms.items():
        rows = []
        for structure in summary.structures:
            cells = []
            for measure in measures:
                distribution = structure.measures[measure]
                of = "" if distribution.n in (0, summary.cases) else f", n = {distribution.n}"
                cells.append(_unbroken(write(measure, distribution)) + of)
            rows.append([structure.structure, *cells])
        tables.append(page.table([name, *head[1:]], rows, kind="numbers tight"))
    return "\n".join(tables)


def _unbroken(text: str) -> str:
    """Use no-break spaces, so that the text of a cell wraps only before the bracket."""
    first, bracket, rest = text.partition(" (")
    return f"{first} ({rest.replace(' ', NBSP)}" if bracket else text.replace(" ", NBSP)


def _paper(summary: Summary) -> str:
    mean = summary.mean_dice
    return page.paragraph(
        f"Mean Dice {mean_and_sd('dice', mean)}, averaged over the structures of "
        + ("the case. " if mean.n == 1 else f"each case, then over {several(mean.n, 'case')}. ")
        + "A structure that is present in only one of truth and prediction counts as 0.",
        kind="note",
    )


def _phases(evaluation: Evaluation) -> str:
    """Render the mean Dice at end-diastole and at end-systole; empty if the phases are unknown."""
    texts = by_phase(evaluation)
    return page.paragraph(f"By phase of the heart: {'; '.join(texts)}.") if texts else ""


def _pictures(evaluation: Evaluation, folder: Path) -> list[str]:
    """Embed the sheets that were drawn during the evaluation."""
    files = {rank: folder / f"{evaluation.name}-{rank}.png" for rank in choose(evaluation)}
    parts = [
        page.figure(page.picture(file.read_bytes(), label=f"Slices of the {rank} case with masks"))
        for rank, file in files.items()
        if file.is_file()
    ]
    if not parts:
        return []
    single = len(files) == 1
    kinds = list(files)
    title = "Slices with masks" if single else f"{' and '.join([', '.join(kinds[:-1]), kinds[-1]])} case".capitalize()
    return [
        f"<h3>{title}</h3>",
        page.paragraph(
            ("" if single else "Ranked by mean Dice. ")
            + "Each column is one slice: the image, the truth, and the prediction with the truth as "
            "a white outline. The picture at the top left marks the displayed region of the slice. Letters give the "
            "patient's directions (R right, L left, A anterior, P posterior, S superior, I inferior), with the "
            "patient's right on the left. Slices without letters are shown as stored, because the file does not state "
            "the orientation. Pixels are drawn with the aspect ratio of the voxels.",
            kind="note",
        ),
        *parts,
    ]


def _volumes(evaluation: Evaluation, summary: Summary, *, place: int) -> list[str]:
    if evaluation.unit != "mm" or all(each.volumes is None for each in summary.structures):
        return []  # a Bland-Altman plot needs at least two cases
    figure = bland_altman_figure(evaluation)
    width = figure.get_figwidth() * _REM_PER_INCH
    svg = to_inline_svg(figure, name=f"volumes-{place}", label="Bland-Altman plots of volumes")
    # On a small screen the figure scrolls, because its text would be too small to read.
    style = f"max-width: {width:.0f}rem; min-width: {min(width, _LEAST_WIDTH):.0f}rem"
    parts = ["<h3>Volumes</h3>", page.figure(f'<div style="{style}">{svg}</div>')]
    rows = [_agreement(structure) for structure in summary.structures]
    head = ["structure", "bias, mL", "95 % interval", "limits of agreement, mL", "n"]
    parts += [
        page.table(head, rows, kind="numbers"),
        page.paragraph(
            "Bland-Altman plot: each point is a case, plotted at the error of its volume. With "
            f"at least {LEAST_PAIRS} cases, about 95 % of the errors of new cases are expected between the dashed "
            "limits, provided that cases are independent and errors do not grow with the volume.",
            kind="note",
        ),
    ]
    return parts


def _agreement(structure: StructureSummary) -> list[str]:
    agreement = structure.volumes
    if agreement is None:
        return [structure.structure, "–", "–", "–", "–"]
    low, high = agreement.bias_interval
    return [
        structure.structure,
        f"{agreement.bias:+.1f}",
        f"{low:+.1f} to {high:+.1f}",
        f"{agreement.lower:+.1f} to {agreement.upper:+.1f}"
        if agreement.n >= LEAST_PAIRS
        else f"– (fewer than {LEAST_PAIRS} cases)",
        str(agreement.n),
    ]


def _cases(evaluation: Evaluation) -> str:
    worst_first = sorted(evaluation.cases, key=lambda case: (not case.unseen, case_dice(case) or 0.0, case.case))
    rows = [
        [
            case.title, case.part or "–", number("dice", case_dice(case)),
            *(_one(score, evaluation.unit) for score in case.structures),
        ]
        for case in worst_first
    ]  # fmt: skip
    head = ["case, worst first", "part", "mean Dice", *(f"{name}, Dice and HD95" for name in evaluation.structures)]
    return page.table(head, rows, kind="numbers tight")


def _one(score: StructureScore, unit: str) -> str:
    if score.found == "both":
        return f"{number('dice', score.dice)}, {number('hd95', score.hd95)} {unit}"
    return {"truth only": "missed", "prediction only": "false positive", "neither": "–"}[score.found]
