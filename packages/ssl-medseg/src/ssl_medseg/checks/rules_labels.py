"""Rules about labels, and about a split of the data set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from ssl_medseg.checks.facts import CaseFacts, LabelFacts, about
from ssl_medseg.datasets import DataSet, Split, read_split
from ssl_medseg.datasets.splits import fingerprint, read_fingerprints
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing.prepare import SKIPPED

_FAR = 5.0  # factor by which an unusual volume differs from the median
_FEWEST = 5  # labels needed for a meaningful median
_SHOWN = 8


def unusable(facts: Sequence[CaseFacts], labels: LabelMap | None) -> Iterator[Finding]:
    """Find labels that training would refuse, and labels that are accepted only after rounding."""

    def say(detail: object) -> str | None:
        return str(detail) if detail else None

    def of(one: CaseFacts) -> LabelFacts:
        return one.label or LabelFacts()

    yield from about(
        facts, "error", "unreadable_label", "that cannot be read", lambda one: say(of(one).problem), noun="label"
    )
    yield from about(
        facts,
        "error",
        "grid",
        "on a different grid from the image: the mask would be displaced from the anatomy. Export the label on the "
        "grid of the image, or see --repair",
        lambda one: say(of(one).difference),
        noun="label",
    )
    yield from about(
        facts,
        "error",
        "fraction",
        "with values that are not integers, which suggests interpolation: export again with nearest-neighbour "
        "interpolation, or see --repair",
        lambda one: _fractions(of(one)),
        noun="label",
    )
    if labels is not None:
        yield from about(
            facts,
            "error",
            "unknown_value",
            f"with values that are not in the label map ({labels}): correct the labels or the map",
            lambda one: say(_values(of(one).unknown(labels))),
            noun="label",
        )
    yield from about(
        facts,
        "note",
        "grid_rounding",
        "whose header differs from that of the image by rounding only: accepted",
        lambda one: say(of(one).rounding),
        noun="label",
    )
    yield from about(
        facts,
        "note",
        "rounded",
        "with values such as 0.9999: rounded to integers when read",
        lambda one: f"{of(one).rounded:,} voxels" if of(one).rounded else None,
        noun="label",
    )


def no_map(facts: Sequence[CaseFacts], labels: LabelMap | None) -> Iterator[Finding]:
    """Report a missing label map, with the label values that occur."""
    values: Counter[int] = Counter()
    for one in facts:
        values.update(dict.fromkeys(one.label.values, 1) if one.label is not None else {})
    if labels is None and values:
        tally = ", ".join(f"{value} in {several(count, 'label')}" for value, count in sorted(values.items()))
        title = (
            f"no label map: the meaning of the label values is unknown ({tally}). --propose-map FILE writes a map "
            "in which to fill in the names"
        )
        yield Finding("error", "no_label_map", title)


def contents(facts: Sequence[CaseFacts], labels: LabelMap | None) -> Iterator[Finding]:
    """Find labels that lack structures, or contain unusual amounts of them."""
    cases = [one for one in facts if one.label is not None and one.label.problem is None]
    if labels is None or not cases:
        return
    label_facts = [one.label for one in cases if one.label is not None]
    totals = [sum(fact.voxels[i] for fact in label_facts) for i in range(len(labels.structures))]
    missing_structures = [name for name, total in zip(labels.structures, totals, strict=True) if not total]
    if missing_structures:
        title = (
            f"{', '.join(missing_structures)}: in no label, so it cannot be learnt. Remove it from the label map, or "
            "label it"
        )
        yield Finding("error", "never_labelled", title)
    empty = [one.case.name for one in cases if one.label is not None and not any(one.label.voxels)]
    if empty:
        title = f"{several(len(empty), 'label')} without any structure: check whether this is intended"
        yield Finding("warning", "empty_label", title, [Item(empty)])
    skipping = [one.case.name for one in cases if one.label is not None and one.label.skips_slices(one.image.axis)]
    if skipping:
        yield Finding("warning", "skipped_slices", f"{several(len(skipping), 'label')} of {SKIPPED}", [Item(skipping)])
    for i, name in enumerate(labels.structures):
        if name in missing_structures:
            continue
        cases_without = [
            one.case.name
            for one in cases
            if one.label is not None and not one.label.voxels[i] and any(one.label.voxels)
        ]
        if cases_without:
            title = f"{several(len(cases_without), 'label')} without {name}, but with other structures"
            yield Finding("note", "absent", title, [Item(cases_without)])
        yield from _odd_volumes(cases, i, name)
        edge = [one.case.name for one in cases if one.label is not None and one.label.at_edge(i, one.image.axis)]
        if edge:
            title = f"{name} reaches the edge of the image in {several(len(edge), 'case')}, where it may be cut off"
            yield Finding("note", "cut_off", title, [Item(edge)])


def duplicates(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find labels with identical voxels."""
    groups: dict[str, list[str]] = defaultdict(list)
    for one in facts:
        if one.label is not None and one.label.digest:
            groups[one.label.digest].append(one.case.name)
    items = [Item(names) for names in groups.values() if len(names) > 1]
    if items:
        title = (
            f"{several(len(items), 'label')} with identical voxels in more than one case: check whether a file was "
            "copied by mistake"
        )
        yield Finding("warning", "same_label_voxels", title, items)


def _odd_volumes(cases: Sequence[CaseFacts], structure: int, name: str) -> Iterator[Finding]:
    amounts = {}
    for one in cases:
        if one.label is not None and one.label.voxels[structure]:
            amounts[one.case.name] = one.label.voxels[structure] * (one.label.millilitres or 1.0)
    if len(amounts) < _FEWEST:
        return
    usual = median(amounts.values())
    unit = "mL" if all(one.label.millilitres for one in cases if one.label is not None) else "voxels"
    items = [
        Item([case], f"{_amount(amount)} {unit}, the median is {_amount(usual)}")
        for case, amount in amounts.items()
        if max(amount / usual, usual / amount) > _FAR
    ]
    if items:
        title = (
            f"{several(len(items), 'label')} in which the volume of {name} differs from the median by a factor of more "
            f"than {_FAR:g}"
        )
        yield Finding("warning", "odd_volume", title, items)


def _fractions(label: LabelFacts) -> str | None:
    examples = ", ".join(f"{value:.4g}" for value in label.examples)
    return f"{several(label.fractions, 'voxel')}, such as {examples}" if label.fractions else None


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _values(unknown: dict[int, int]) -> str:
    counts = [f"{value} in {several(count, 'voxel')}" for value, count in list(unknown.items())[:_SHOWN]]
    return ", ".join(counts) + (f" and {len(unknown) - _SHOWN} further values" if len(unknown) > _SHOWN else "")


def fits(file: Path, dataset: DataSet, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Check a split file against the data set."""
    try:
        split, prints = read_split(file, dataset), read_fingerprints(file)
    except UserError as error:
        yield Finding("error", "split", str(error).replace(str(file), file.name))
        return
    changed = []
    for name, hashes in prints.items():
        now = fingerprint(dataset.case(name), label="label" in hashes)
        items = [what for what in hashes if now.get(what) != hashes[what]]
        changed += [Item([name], " and ".join(items))] if items else []
    if changed:
        title = f"{several(len(changed), 'case')} whose files have changed since {file.name} was written"
        yield Finding("error", "changed", title, changed)
    yield from _coverage(split, dataset, facts)


def _coverage(split: Split, dataset: DataSet, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    voxels = {one.case.name: one.label.voxels for one in facts if one.label is not None and one.label.voxels}
    for part, level in (("labelled", "error"), ("validation", "warning"), ("test", "warning")):
        names = [name for name in split.parts[part] if name in voxels]
        lacking = [
            structure
            for number, structure in enumerate(dataset.labels.structures)
            if names and not any(voxels[name][number] for name in names)
        ]
        if lacking:
            what = "so it cannot be learnt" if part == "labelled" else "so it cannot be evaluated"
            title = f"{', '.join(lacking)}: in no label of the split's {part} cases, {what}"
            yield Finding("error" if level == "error" else "warning", f"never_in_{part}", title)
