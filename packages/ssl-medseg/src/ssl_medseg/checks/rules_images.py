"""Rules about images: readability, geometry, sizes, duplicates, and text that identifies patients."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import prod
from statistics import median

from contrastive_core.app.checks import Finding, Item
from contrastive_core.text import several
from ssl_medseg.checks.facts import Looked, about

_LEAST_SLICES = 3
_LEAST_SIDE = 32
_FAR = 2.0  # times larger or smaller than the median


def unusable(looked: Sequence[Looked], *, fill_nan: bool = False) -> Iterator[Finding]:
    """Images that training would stop at.

    Args:
        looked: all cases.
        fill_nan: training is to fill voxels that are no numbers; where all are none it cannot.
    """
    several_volumes = "holding several volumes: choose one with --frame, --frames or --channel"
    yield from about(
        looked,
        "error",
        "unreadable",
        "that cannot be read",
        lambda one: one.image.problem if one.image.kind == "unreadable" else None,
        noun="image",
    )
    yield from about(
        looked,
        "error",
        "several_volumes",
        several_volumes,
        lambda one: one.image.problem if one.image.kind == "several_volumes" else None,
        noun="image",
    )
    yield from about(
        looked,
        "error",
        "not_finite",
        "with voxels that are no finite numbers: repair them, or let training fill them (--fill_nan)",
        lambda one: _bad_voxels(one) if one.image.bad and not (fill_nan and one.image.digest) else None,
        noun="image",
    )
    yield from about(
        looked,
        "note",
        "filled",
        "with voxels that are no finite numbers: filled with the smallest value of the image when read, as you say",
        lambda one: _bad_voxels(one) if one.image.bad and fill_nan and one.image.digest else None,
        noun="image",
    )
    yield from about(
        looked,
        "error",
        "constant",
        "without contrast: percentiles 1 and 99 of the intensities are the same, so that there is nothing to scale by. "
        "Export them again, or leave the cases out",
        lambda one: f"both are {one.image.low:g}" if one.image.is_constant else None,
        noun="image",
    )


def geometry(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Images whose place in the patient is unknown, contradictory or unlike that of the others."""
    yield from about(
        looked,
        "warning",
        "geometry",
        "whose header is odd about its geometry",
        lambda one: "; ".join(one.image.warnings) or None,
        noun="image",
    )
    good = [one for one in looked if one.is_good]
    unknown = [one for one in good if not one.image.spacing_known]
    if unknown:
        title = (
            f"{several(len(unknown), 'image')} of {len(good)} with an identity matrix as affine: the size of voxels "
            "and the patient's sides are unknown, distances are in voxels"
        )
        yield Finding("warning", "unknown_spacing", title, [Item([one.case.name for one in unknown])])
    for kind, what, value in (
        ("orientation", "stored in another direction than most", lambda one: one.image.orientation),
        ("slice_axis", "with slices along another axis than most", lambda one: f"axis {one.image.axis}"),
    ):
        known = [one for one in good if one.image.spacing_known] if kind == "orientation" else good
        counts = Counter(map(value, known))
        if len(counts) > 1:
            usual, _ = counts.most_common(1)[0]
            names = defaultdict(list)
            for one in known:
                if value(one) != usual:
                    names[value(one) or "oblique by over 30°"].append(one.case.name)
            items = [Item(cases, found) for found, cases in names.items()]
            number = sum(map(len, names.values()))
            yield Finding("warning", kind, f"{several(number, 'image')} {what} ({usual or 'oblique'})", items)


def sizes(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Images that are very small, or far from what is usual here."""
    good = [one for one in looked if one.image.grid is not None]
    yield from about(
        good,
        "warning",
        "small",
        f"with fewer than {_LEAST_SLICES} slices, or slices under {_LEAST_SIDE} voxels",
        _small,
        noun="image",
    )
    steps = median(_step(one) for one in good) if good else 1.0
    pixels = median(_pixel(one) for one in good) if good else 1.0
    fields = median(_field(one) for one in good) if good else 1.0

    def far(one: Looked) -> str | None:
        words = [
            f"{name} {value:.3g} {unit}, {usual:.3g} is usual"
            for name, value, usual, unit in (
                ("slices every", _step(one), steps, "mm"),
                ("pixels of", _pixel(one), pixels, "mm"),
                ("a field of", _field(one), fields, "mm"),
            )
            if one.image.spacing_known and max(value / usual, usual / value) > _FAR
        ]
        return ", ".join(words) or None

    title = "whose spacing or field of view is twice, or half, what is usual here"
    yield from about(good, "warning", "odd_spacing", title, far, noun="image")


def duplicates(looked: Sequence[Looked]) -> Iterator[Finding]:
    """The same voxels in more than one case."""
    groups: dict[str, list[Looked]] = defaultdict(list)
    for one in looked:
        if one.image.digest and not one.image.is_constant:
            groups[one.image.digest].append(one)
    leaked: list[Item] = []
    twice: list[Item] = []
    for group in groups.values():
        if len(group) > 1:
            patients = sorted({one.case.patient for one in group})
            item = Item(
                [one.case.name for one in group], f"patients {', '.join(patients)}" if len(patients) > 1 else ""
            )
            (leaked if len(patients) > 1 else twice).append(item)
    if leaked:
        title = (
            f"{several(len(leaked), 'image')} found under more than one patient, voxel by voxel: what is tested may be "
            "trained on. Remove the copies, or say by --patients that it is one patient"
        )
        yield Finding("error", "same_voxels", title, leaked)
    if twice:
        title = f"{several(len(twice), 'image')} twice among the cases of a patient"
        yield Finding("warning", "duplicate", title, twice)


def _bad_voxels(one: Looked) -> str:
    voxels = prod(one.image.grid.shape) if one.image.grid is not None else 0
    return f"{one.image.bad:,} of {voxels:,} voxels"


def _small(one: Looked) -> str | None:
    if one.image.grid is None:
        return None
    shape = one.image.grid.shape
    slices = shape[one.image.axis]
    plane = [n for axis, n in enumerate(shape) if axis != one.image.axis]
    return " x ".join(map(str, shape)) if slices < _LEAST_SLICES or min(plane) < _LEAST_SIDE else None


def _step(one: Looked) -> float:
    return one.image.grid.spacing[one.image.axis] if one.image.grid is not None else 1.0


def _plane(one: Looked) -> list[tuple[int, float]]:
    if one.image.grid is None:
        return [(1, 1.0)]
    pairs = zip(one.image.grid.shape, one.image.grid.spacing, strict=True)
    return [pair for axis, pair in enumerate(pairs) if axis != one.image.axis]


def _pixel(one: Looked) -> float:
    return max(spacing for _, spacing in _plane(one))


def _field(one: Looked) -> float:
    return max(voxels * spacing for voxels, spacing in _plane(one))


_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")


def identifying(looked: Sequence[Looked], *, show: bool) -> Iterator[Finding]:
    """Header fields with text, and names that hold a date.

    Args:
        looked: all cases.
        show: list the text itself.
    """
    having = [one for one in looked if one.image.texts]
    if having:
        fields = Counter(field for one in having for field, _ in one.image.texts)
        listed = ", ".join(f"{field} {count}" for field, count in fields.items())
        title = (
            f"{several(len(having), 'image')} with text in the header ({listed}), which may say who the patient is"
            + ("" if show else "; --show_headers lists it")
        )
        items = [
            Item([one.case.name], ", ".join(f"{field} {text!r}" for field, text in one.image.texts)) for one in having
        ]
        yield Finding("note", "header_text", title, items if show else ())
    dated = [one.case.name for one in looked if _DATE.search(one.case.name)]
    if dated:
        title = (
            f"{several(len(dated), 'case')} whose name holds what looks like a date: reports repeat the names of cases"
        )
        yield Finding("note", "date_in_name", title, [Item(dated)])
