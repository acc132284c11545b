"""The sections of a run's report, each as HTML."""

from __future__ import annotations

import datetime
import importlib
import inspect
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from html import escape
from typing import Any

from ssl_vision.reporting import environment, html
from ssl_vision.reporting.curves import pretraining_panels, training_figure
from ssl_vision.reporting.run_folder import RunFolder, RunSettings, data_name
from ssl_vision.reporting.sheets import Picture, Sheets
from ssl_vision.reporting.style import to_inline_svg


def title(settings: RunSettings) -> str:
    """What was run, in a few words."""
    return f"{method(settings)} pre-training of {settings.encoder} on {data_name(settings.data)}"


def method(settings: RunSettings) -> str:
    """The method of pre-training: SimCLR, SuNCEt or both."""
    suncet = (settings.config.get("suncet") or {}).get("classes_per_batch", 0)
    simclr = "SimCLR with a memory" if settings.memory else "SimCLR"
    return " + ".join([*([simclr] if settings.batch_size else []), *(["SuNCEt"] if suncet else [])])


def header(run: RunFolder, *, images: int | None, accuracies: Mapping[str, float]) -> str:
    """The title, what was done in two sentences, and the numbers a reader wants first."""
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
            f"shall have like features. {s.epochs:,} epochs, seed {s.seed}."
        )
    numbers = {f"accuracy, {name}": f"{value:.1f} %" for name, value in accuracies.items()}
    if run.records and "contrastive_accuracy" in run.records[-1]:
        numbers["contrastive accuracy"] = f"{100 * run.records[-1]['contrastive_accuracy']:.1f} %"
    return opening(run, title(s), text, numbers)


def opening(run: RunFolder, title: str, text: str, numbers: Mapping[str, str]) -> str:
    """A title, a text that also says whether the run has ended, and numbers, to which those of any run are added."""
    if not run.has_model:
        text += f" Training has not ended: {run.epoch:.4g} epochs are done."
    numbers = dict(numbers)
    if run.records:
        last = run.records[-1]
        if "loss" in last:
            numbers["loss at the end"] = f"{last['loss']:.3f}"
        if run.seconds:
            numbers["training time"] = _duration(run.seconds)
            if run.settings.batch_size:
                rate = (last["step"] + 1) * run.settings.batch_size / run.seconds
                numbers["images per second"] = f"{rate:,.0f}"
    return f"<header>\n<h1>{escape(title)}</h1>\n{html.paragraph(text, kind='lead')}\n{html.facts(numbers)}\n</header>"


def training(run: RunFolder) -> str:
    """Curves of what was logged."""
    if not run.records:
        return nothing_logged()
    panels = pretraining_panels(run.settings.batch_size, memory=run.settings.memory)
    figure = training_figure(run.records, panels)
    return html.section(
        "Training",
        html.figure(
            to_inline_svg(figure, name="training", label="Loss, contrastive accuracy and learning rate by epoch")
        ),
        html.paragraph(
            "Loss is that of each method by itself. Contrastive accuracy is the share of first views whose most "
            "similar second view, among those of their batch, is their own. Dashed: SimCLR by a network that cannot "
            "tell images apart. Where a line is faint, it is what was logged, and the strong one its running mean.",
            kind="note",
        ),
        *_bad_files(run.bad_files),
    )


def nothing_logged() -> str:
    """The section of curves of a run that has only just begun."""
    return html.section("Training", html.paragraph("Nothing has been logged yet."))


def views(sheets: Sheets, *, pairs: bool = True) -> str:
    """Images beside the pairs of views that training draws from them, or without pairs (SuNCEt alone) beside others."""
    head = '<th scope="col" class="first">image</th>' + "".join(
        f'<th scope="colgroup" colspan="2" class="pair">epoch {epoch + 1}</th>' for epoch in sheets.epochs
    )
    body = ""
    for number, row in enumerate(sheets.views, 1):
        body += f'<tr><td class="first">{_captioned(row.original)}</td>'
        for epoch, pair in zip(sheets.epochs, row.pairs, strict=True):
            for which, view in zip("ab", pair, strict=True):
                label = f"view {which} of image {number} in epoch {epoch + 1}"
                body += f"<td{' class=pair' if which == 'a' else ''}>{html.image(view, label=label)}</td>"
        body += "</tr>"
    return html.section(
        "What training sees",
        html.paragraph(
            "Each image and the two views that training draws from it in the epochs named: the very pixels the network "
            "gets. The two views of a pair should still show the same thing."
            if pairs
            else "Images and views drawn from them as training draws its own, which are of labelled images and others "
            "in every step. A view should still show what its image shows."
        ),
        html.figure(f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'),
    )


def neighbours(sheets: Sheets, *, data: str, split: str) -> str:
    """Queries beside the images most similar to them."""
    rows = sheets.neighbours
    if rows is None:
        return missing("Nearest neighbours", "There is no trained model yet.")
    most = max((len(row.nearest) for row in rows), default=0)
    head = '<th scope="col" class="first">query</th>' + "".join(f'<th scope="col">{i + 1}</th>' for i in range(most))
    body = ""
    for row in rows:
        body += f'<tr><td class="first">{_captioned(row.query)}</td>'
        for picture, similarity in row.nearest:
            body += f"<td>{_captioned(picture, like=row.query.label, more=f'{similarity:.3f}')}</td>"
        body += "</tr>"
    labelled = any(row.query.label is not None for row in rows)
    marks = " ✓ marks an image of the query's class, ✗ one of another; training did not know the classes."
    return html.section(
        "Nearest neighbours",
        html.paragraph(
            "Random images and those most similar to them under the trained encoder, with the cosine similarity of "
            f"their features, among {sheets.bank:,} images of {data_name(data)}, split {split}."
            + (marks if labelled else "")
        ),
        html.figure(f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'),
    )


def missing(name: str, reason: str) -> str:
    """A section that could not be made, and why."""
    return html.section(name, html.paragraph(reason))


def settings(run: RunFolder) -> str:
    """The resolved configuration, those that differ from the defaults in bold, and the command that repeats the run."""
    kind = run.settings.kind
    config, defaults = dict(_leaves(run.settings.config)), dict(_leaves(_defaults(kind)))
    groups: dict[str, dict[str, str]] = {}
    for key, value in config.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = _readable(value)
    tables = ""
    for group, values in groups.items():
        prefix = f"{group}." if group else ""
        changed = [n for n in values if prefix + n in defaults and config[prefix + n] != defaults[prefix + n]]
        tables += f"<section><h3>{escape(group or kind)}</h3>{html.settings_table(values, changed=changed)}</section>"
    again = f"ssl-vision {kind} --config {shlex.quote(str(run.path / 'config.yaml'))} --out runs/again"
    return html.section(
        "Settings",
        html.paragraph("Bold: not the default.", kind="note"),
        f'<div class="columns">{tables}</div>',
        html.paragraph("To repeat the run:"),
        html.command(again),
    )


def surroundings(run: RunFolder) -> str:
    """On what the run was trained, and by what the report was written."""
    trained: dict[str, str] = {}
    for session in run.sessions[-1:]:
        trained = {
            "device": str(session.get("device")),
            "processes": str(session.get("processes")),
            "threads": str(session.get("threads")),
            "torch": str(session.get("torch")),
            "precision": str(run.settings.config.get("run", {}).get("precision")),
            "seed": str(run.settings.seed),
            "starts": str(len(run.sessions)),
        }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit = environment.source_commit()
    written = {"date": today, **environment.hardware(), **environment.versions()}
    if commit:
        written["commit"] = commit
    parts = [f"<section><h3>The run</h3>{html.settings_table(trained)}</section>"] if trained else []
    parts.append(f"<section><h3>This report</h3>{html.settings_table(written)}</section>")
    return html.section("Environment", f'<div class="columns">{"".join(parts)}</div>')


def _bad_files(found: Mapping[int, str]) -> list[str]:
    if not found:
        return []
    named = "; ".join(list(found.values())[:3])
    return [
        html.paragraph(f"{len(found):,} images could not be read; others stood in for them ({named}).", kind="note")
    ]


def _captioned(picture: Picture, *, like: str | None = None, more: str = "") -> str:
    """An image with its class and a number beneath; with `like`, whether the classes agree."""
    label = html.image(picture.pixels, label=picture.label or picture.path)
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


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _defaults(kind: str) -> dict[str, Any]:
    command = getattr(importlib.import_module(f"ssl_vision.commands.{kind}"), kind)
    parameters = inspect.signature(command).parameters
    values = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in values.items()}


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
