"""The section on accuracies: a table over models and protocols, and a curve over epochs where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contrastive_core.app.report import page
from contrastive_core.app.report.figures import to_inline_svg
from ssl_vision.reporting.curves import accuracy_figure
from ssl_vision.reporting.run_folder import RunFolder, RunScore, data_name
from ssl_vision.scores import Score

_NAMES = {"knn": "nearest neighbours", "linear": "linear classifier"}


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate, and what it found: the column of a table, the curve of a figure.

    Attributes:
        name: in words.
        example: one of its scores, for what they have in common.
        by_epoch: epoch -> score.
        pixels: the score of raw pixels.
    """

    name: str
    example: RunScore
    by_epoch: Mapping[int, RunScore]
    pixels: RunScore | None


def by_protocol(scores: Sequence[RunScore]) -> list[Protocol]:
    """Scores that may be compared with each other: of one protocol, one data set, the same settings."""
    groups: dict[str, list[RunScore]] = {}
    for score in scores:
        groups.setdefault(score.protocol, []).append(score)
    return [
        Protocol(
            name=name,
            example=group[0],
            by_epoch={s.epoch: s for s in group if s.epoch is not None},
            pixels=next((s for s in group if s.epoch is None), None),
        )
        for name, group in zip(_names([group[0].score for group in groups.values()]), groups.values(), strict=True)
    ]


def _names(scores: Sequence[Score]) -> list[str]:
    """Protocols in words: with the data where that tells two apart, and a number where it does not."""
    names = [_NAMES.get(score.protocol, score.protocol) for score in scores]
    names = [
        f"{name}, {data_name(score.data)}" if names.count(name) > 1 else name
        for name, score in zip(names, scores, strict=True)
    ]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def final_accuracies(run: RunFolder, protocols: Sequence[Protocol]) -> dict[str, float]:
    """Top-1 of the trained model, in percent, by protocol."""
    last = run.settings.epochs
    return {p.name: p.by_epoch[last].score.top1 for p in protocols if last in p.by_epoch}


def accuracy_curves(protocols: Sequence[Protocol]) -> tuple[dict[str, dict[float, float]], dict[str, float]]:
    """Curves over epochs of the protocols with at least two, and the accuracy of raw pixels under them."""
    several = [p for p in protocols if len(p.by_epoch) > 1]
    curves = {p.name: {float(e): s.score.top1 for e, s in p.by_epoch.items()} for p in several}
    return curves, {p.name: p.pixels.score.top1 for p in several if p.pixels is not None}


def scores_section(
    run: RunFolder, protocols: Sequence[Protocol], *, encoder_hash: str | None, title: str = "Evaluation"
) -> str:
    """The section; `encoder_hash` is of the model that is in the folder now."""
    if not protocols:
        return page.section(
            title,
            page.paragraph(
                f"This run has not been evaluated. `ssl-vision knn {run.path} DATA` and `ssl-vision linear {run.path} "
                "DATA` do it on labelled data; a report written after them shows the accuracies."
            ),
        )
    parts = []
    curves, baselines = accuracy_curves(protocols)
    if curves:
        figure = accuracy_figure(curves, baselines)
        parts.append(page.figure(to_inline_svg(figure, name="accuracy", label="Top-1 accuracy by epoch")))
    parts.append(page.figure(_table(run, protocols)))
    notes = [f"{p.name}: {_conditions(p)}." for p in protocols]
    final = [p.by_epoch[run.settings.epochs] for p in protocols if run.settings.epochs in p.by_epoch]
    if encoder_hash and any(s.score.encoder_hash != encoder_hash for s in final):
        notes.append("Some scores of the last row are of another model than the one in the folder now. Evaluate again.")
    parts += [page.paragraph(note, kind="note") for note in notes]
    return page.section(title, *parts)


def _table(run: RunFolder, protocols: Sequence[Protocol]) -> str:
    epochs = sorted({epoch for p in protocols for epoch in p.by_epoch})
    rows = []
    if any(p.pixels for p in protocols):
        rows.append(["raw pixels", *(_cell(p.pixels) for p in protocols)])
    rows += [[_model(epoch, run), *(_cell(p.by_epoch.get(epoch)) for p in protocols)] for epoch in epochs]
    return page.table(["features", *(p.name for p in protocols)], rows, kind="scores")


def _model(epoch: int, run: RunFolder) -> str:
    return "untrained network" if epoch == 0 else f"after {epoch} of {run.settings.epochs} epochs"


def _cell(score: RunScore | None) -> str:
    if score is None:
        return "–"
    top5 = "" if score.score.top5 is None else f" (top-5 {score.score.top5:.1f} %)"
    return f"{score.score.top1:.1f} %{top5}"


def _conditions(protocol: Protocol) -> str:
    score = protocol.example.score
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in score.settings.items()]
    return ", ".join([f"{score.images:,} test images of {score.classes} classes of {score.data}", *settings])
