"""Sections of the pre-training report: training curves, accuracies, views, nearest neighbours, settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ssl_vision
from contrastive_core.app.report import page, sections
from contrastive_core.app.report.figures import running_mean_note, to_inline_svg, training_curves
from contrastive_core.text import decimal, duration, several
from ssl_vision.evaluation.scores import Score
from ssl_vision.reports.figures import accuracy_figure, pretraining_panels
from ssl_vision.reports.run_folder import RunFolder, RunScore, RunSettings, data_name
from ssl_vision.reports.sheets import Picture, Sheets

_LAST = 5  # number of last records to check
_GUESSING = 2  # factor of the accuracy of guessing up to which a network has learnt nothing
_FEWEST_IMAGES = 16  # batch size below which a correct guess is too likely


def title(settings: RunSettings) -> str:
    """Return the title of the report."""
    return f"{method(settings)} pre-training of {settings.encoder} on {data_name(settings.data)}"


def method(settings: RunSettings) -> str:
    """Return the method of pre-training: SimCLR, SuNCEt or both."""
    suncet = (settings.config.get("suncet") or {}).get("classes_per_batch", 0)
    simclr = "SimCLR with a memory" if settings.memory else "SimCLR"
    return " + ".join([*([simclr] if settings.batch_size else []), *(["SuNCEt"] if suncet else [])])


def header(run: RunFolder, *, images: int | None, accuracies: Mapping[str, float]) -> str:
    """Return the title, a summary in two sentences, and the headline numbers."""
    s = run.settings
    text = (
        f"A network trained on {f'{images:,} images' if images else 'images'} without their labels: it learns to tell "
        f"which two random views of {s.image_size} × {s.image_size} pixels come from the same image. {s.epochs:,} "
        f"epochs in batches of {s.batch_size:,}, seed {s.seed}."
    )
    if "SuNCEt" in method(s):
        text = (
            f"A network that learns from images {'without labels, and ' if s.batch_size else ''}with labels: random "
            f"views of {s.image_size} × {s.image_size} pixels of {'one image or ' if s.batch_size else ''}one class "
            f"should have similar features. {s.epochs:,} epochs, seed {s.seed}."
        )
    numbers = {f"accuracy, {name}": f"{value:.1f} %" for name, value in accuracies.items()}
    if run.records and "contrastive_accuracy" in run.records[-1]:
        numbers["contrastive accuracy"] = f"{100 * run.records[-1]['contrastive_accuracy']:.1f} %"
    return opening(run, title(s), text, numbers, warning=untrained(run))


def untrained(run: RunFolder) -> str:
    """Return a warning if the contrastive accuracy stays at chance level; else nothing."""
    accuracies = [record["contrastive_accuracy"] for record in run.records if "contrastive_accuracy" in record][-_LAST:]
    images = run.settings.batch_size
    if len(accuracies) < _LAST or images < _FEWEST_IMAGES or sum(accuracies) / len(accuracies) > _GUESSING / images:
        return ""
    return (
        "Contrastive accuracy is no better than chance; the features have collapsed or learnt nothing. Lower the "
        "learning rate, or look at the views below."
    )


def opening(run: RunFolder, title: str, text: str, numbers: Mapping[str, str], *, warning: str = "") -> str:
    """Return title, summary with the state of the run, a warning if any, and headline numbers with common ones."""
    if not run.has_model:
        text += f" Training has not ended: {run.epoch:.4g} epochs are done."
    numbers = dict(numbers)
    if run.records:
        last = run.records[-1]
        if "loss" in last:
            numbers["final loss"] = decimal(last["loss"])
        if run.seconds:
            numbers["training time"] = duration(run.seconds)
            if run.settings.batch_size:
                rate = (last["step"] + 1) * run.settings.batch_size / run.seconds
                numbers["images per second"] = f"{rate:,.0f}"
    box = page.warnings([warning] if warning else [])
    lead = page.paragraph(text, kind="lead")
    return f"<header>\n<h1>{escape(title)}</h1>\n{lead}\n{box}{page.facts(numbers)}\n</header>"


def training(run: RunFolder) -> str:
    """Return the curves of the logged values."""
    if not run.records:
        return nothing_logged()
    panels = pretraining_panels(run.settings.batch_size, memory=run.settings.memory)
    return page.section(
        "Training",
        training_curves(run.records, panels, name="training"),
        page.paragraph(
            "The loss of each method is shown separately. Contrastive accuracy is the share of first views whose most "
            "similar second view in the batch is their own. Dashed: the SimCLR loss of a network that cannot tell "
            f"images apart. {running_mean_note(run.records, panels)}".rstrip(),
            kind="note",
        ),
        *_bad_files(run.bad_files),
    )


def nothing_logged() -> str:
    """Return the curves section of a run without records."""
    return page.section("Training", page.paragraph("Nothing has been logged yet."))


def views(sheets: Sheets, *, pairs: bool = True) -> str:
    """Return images beside the views that training draws from them."""
    head = '<th scope="col" class="first">image</th>' + "".join(
        f'<th scope="colgroup" colspan="2" class="pair">epoch {epoch + 1}</th>' for epoch in sheets.epochs
    )
    body = ""
    for number, row in enumerate(sheets.views, 1):
        body += f'<tr><td class="first">{_caption(row.original)}</td>'
        for epoch, pair in zip(sheets.epochs, row.pairs, strict=True):
            for which, view in zip("ab", pair, strict=True):
                label = f"view {which} of image {number} in epoch {epoch + 1}"
                body += f"<td{' class=pair' if which == 'a' else ''}>{page.image(view, label=label)}</td>"
        body += "</tr>"
    return page.section(
        "What training sees",
        page.paragraph(
            "Each image and the two views that training draws from it in the epochs shown, with exactly the pixels "
            "that the network receives. The two views of a pair should still show the same object."
            if pairs
            else "Images, and views drawn from them as in training; training itself draws labelled images at random in "
            "every step. A view should still show the object of its image."
        ),
        page.figure(f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'),
    )


def neighbours(sheets: Sheets, *, data: str, split: str) -> str:
    """Return queries beside the most similar images."""
    rows = sheets.neighbours
    if rows is None:
        return missing("Nearest neighbours", "There is no trained model yet.")
    most = max((len(row.nearest) for row in rows), default=0)
    head = '<th scope="col" class="first">query</th>' + "".join(f'<th scope="col">{i + 1}</th>' for i in range(most))
    body = ""
    for row in rows:
        body += f'<tr><td class="first">{_caption(row.query)}</td>'
        for picture, similarity in row.nearest:
            body += f"<td>{_caption(picture, like=row.query.label, more=f'{similarity:.3f}')}</td>"
        body += "</tr>"
    has_labels = any(row.query.label is not None for row in rows)
    marks = " ✓ marks an image of the query's class, ✗ an image of another class; training did not see the classes."
    return page.section(
        "Nearest neighbours",
        page.paragraph(
            "Random images and their nearest neighbours under the trained encoder, with the cosine similarity of "
            f"their features, among {sheets.bank:,} images of {data_name(data)}, split {split}."
            + (marks if has_labels else "")
        ),
        page.figure(f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'),
    )


def missing(name: str, reason: str) -> str:
    """Return a section that could not be created, with the reason."""
    return page.section(name, page.paragraph(reason))


def settings(run: RunFolder) -> str:
    """Return the resolved configuration, with changed settings in bold, and the command that repeats the run."""
    kind = run.settings.kind
    command = getattr(ssl_vision, kind)
    again = f"ssl-vision {kind} --config {shlex.quote(str(run.path / 'config.yaml'))} --out runs/again"
    return sections.settings(run.settings.config, command, name=kind, again=again, sessions=run.sessions)


def surroundings(run: RunFolder) -> str:
    """Return hardware and software of the run, and the software that wrote the report."""
    return sections.surroundings(run.settings.config, run.sessions, packages=("ssl-vision", "torchvision"))


def _bad_files(reasons: Mapping[int, str]) -> list[str]:
    if not reasons:
        return []
    examples = "; ".join(list(reasons.values())[:3])
    return [
        page.paragraph(
            f"Unreadable and replaced by others: {several(len(reasons), 'image')} ({examples}).", kind="note"
        )
    ]


def _caption(picture: Picture, *, like: str | None = None, more: str = "") -> str:
    """Return an image with class and number as caption; with `like`, marked by agreement of the classes."""
    label = page.image(picture.pixels, label=picture.label or picture.path)
    lines = []
    if picture.label is not None:
        mark = ""
        if like is not None:
            same = picture.label == like
            mark = f' <span class="{"same" if same else "other"}">{"✓" if same else "✗"}</span>'
        lines.append(escape(picture.label) + mark)
    if more:
        lines.append(escape(more))
    return label + "<br>".join(lines)


_NAMES = {"knn": "nearest neighbours", "linear": "linear classifier"}


@dataclass(frozen=True)
class Protocol:
    """Evaluation protocol with its scores: the column of a table, the curve of a figure.

    Attributes:
        name: Name for display.
        example: One of its scores, for their common settings.
        by_epoch: Epoch -> score.
        pixels: Score of raw pixels.
    """

    name: str
    example: RunScore
    by_epoch: Mapping[int, RunScore]
    pixels: RunScore | None


def by_protocol(scores: Sequence[RunScore]) -> list[Protocol]:
    """Group scores that can be compared: of one protocol, one data set and the same settings."""
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
    """Name the protocols: with the data where that distinguishes two, and a number where it does not."""
    names = [_NAMES.get(score.protocol, score.protocol) for score in scores]
    names = [
        f"{name}, {data_name(score.data)}" if names.count(name) > 1 else name
        for name, score in zip(names, scores, strict=True)
    ]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def final_accuracies(run: RunFolder, protocols: Sequence[Protocol]) -> dict[str, float]:
    """Return the top-1 accuracy of the trained model in percent, by protocol."""
    last = run.settings.epochs
    return {p.name: p.by_epoch[last].score.top1 for p in protocols if last in p.by_epoch}


def accuracy_curves(protocols: Sequence[Protocol]) -> tuple[dict[str, dict[float, float]], dict[str, float]]:
    """Return curves over epochs of the protocols with at least two, and the accuracy of raw pixels."""
    several = [p for p in protocols if len(p.by_epoch) > 1]
    curves = {p.name: {float(e): s.score.top1 for e, s in p.by_epoch.items()} for p in several}
    return curves, {p.name: p.pixels.score.top1 for p in several if p.pixels is not None}


def scores_section(
    run: RunFolder, protocols: Sequence[Protocol], *, encoder_hash: str | None, title: str = "Evaluation"
) -> str:
    """Return the section of scores; `encoder_hash` identifies the model in the folder."""
    if not protocols:
        path = shlex.quote(str(run.path))
        return page.section(
            title,
            page.paragraph(
                f"This run has not been evaluated. Run `ssl-vision knn {path} DATA` or `ssl-vision linear {path} DATA` "
                "on labelled data, then write the report again to see the accuracies."
            ),
        )
    parts = []
    curves, baselines = accuracy_curves(protocols)
    if curves:
        classes = {p.example.score.classes for p in protocols}
        chance = 100 / classes.pop() if len(classes) == 1 else None
        figure = accuracy_figure(curves, baselines, chance=chance)
        parts.append(page.figure(to_inline_svg(figure, name="accuracy", label="Top-1 accuracy by epoch")))
    parts.append(_table(run, protocols))
    notes = [f"{p.name}: {_conditions(p)}." for p in protocols]
    final = [p.by_epoch[run.settings.epochs] for p in protocols if run.settings.epochs in p.by_epoch]
    if encoder_hash and any(s.score.encoder_hash != encoder_hash for s in final):
        notes.append("Some scores in the last row belong to a model other than the one in the folder. Evaluate again.")
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
