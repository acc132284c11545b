"""Rules about images: readability, geometry, channels, sizes, duplicates, and text that may identify patients."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from math import prod
from statistics import median

from contrastive_core.app.checks import Finding, Item, most_first
from contrastive_core.text import several
from ssl_medseg.checks.facts import CaseFacts, ImageFacts, about
from ssl_medseg.preprocessing.prepare import nothing_to_scale

_LEAST_SLICES = 3
_LEAST_SIDE = 32
_FAR = 2.0  # factor by which an unusual value differs from the median
_COVERED = 0.995  # fraction of the first channel's grid above which a further channel counts as covering it
_MIXED = 1.5  # ratio of the largest to the smallest spacing above which it is reported


def unusable(
    facts: Sequence[CaseFacts], *, fill_nan: bool = False, low: float = 1.0, high: float = 99.0
) -> Iterator[Finding]:
    """Find images that training would refuse.

    Args:
        facts: All cases.
        low: Percentile of the intensities that training scales to 0.
        high: Percentile of the intensities that training scales to 1.
        fill_nan: Whether training fills voxels that are not finite; this is possible if some voxels are finite.
    """
    several_volumes = "containing several volumes: choose one with --frame, --frame-table or --channels"
    yield from about(
        facts,
        "error",
        "unreadable",
        "that cannot be read",
        lambda one: one.image.problem if one.image.kind == "unreadable" else None,
        noun="image",
    )
    yield from about(
        facts,
        "error",
        "several_volumes",
        several_volumes,
        lambda one: one.image.problem if one.image.kind == "several_volumes" else None,
        noun="image",
    )
    yield from about(
        facts,
        "error",
        "not_finite",
        "with voxels that are not finite numbers: repair the image, or let training fill the voxels with --fill-nan",
        lambda one: _each(
            one, lambda image: _bad_voxels(image) if image.bad and not (fill_nan and image.digest) else ""
        ),
        noun="image",
    )
    yield from about(
        facts,
        "note",
        "filled",
        "with voxels that are not finite numbers: --fill-nan fills them with the smallest value of the image",
        lambda one: _each(one, lambda image: _bad_voxels(image) if image.bad and fill_nan and image.digest else ""),
        noun="image",
    )
    yield from about(
        facts,
        "error",
        "constant",
        "without contrast: the percentiles of the intensities that would be scaled to 0 and 1 are equal",
        lambda one: _each(
            one, lambda image: nothing_to_scale(image.low, image.most) if _is_flat(image, low, high) else ""
        ),
        noun="image",
    )


def geometry(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find images whose position in the patient is unknown or contradictory, or whose orientation differs."""
    yield from about(
        facts,
        "warning",
        "geometry",
        "with a questionable geometry in the header",
        lambda one: _each(one, lambda image: "; ".join(image.warnings)),
        noun="image",
    )
    good = [one for one in facts if one.image.grid is not None]
    for kind, what, names in (
        ("unknown_spacing", "the voxel size and the patient's left and right are unknown, and distances are in voxels. "
         "State the size with --voxel-size X,Y,Z, or use --trust-pixdim if pixdim is right",
         [one.case.name for one in good if one.image.grid and not one.image.size_known]),
        ("unknown_sides", "the patient's left and right are unknown",
         [one.case.name for one in good if one.image.grid and one.image.size_known and not one.image.grid.place_known]),
    ):  # fmt: skip
        if names:
            title = (
                f"{several(len(names), 'image')} of {len(good)} without a position in the header (form codes of 0, or "
                f"an identity affine without a unit): {what}"
            )
            yield Finding("warning", kind, title, [Item(names)])
    counts = Counter(one.image.orientation for one in good if one.image.orientation)
    if len(counts) > 1:
        tally = ", ".join(f"{letters} {count}" for letters, count in most_first(counts).items())
        title = f"images stored in several orientations ({tally}): all are converted to the same orientation"
        yield Finding("note", "orientation", title)


def channels(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find channels that lie on a different grid from the first, do not cover it, or contain the same voxels."""
    yield from about(
        facts,
        "note",
        "resampled",
        "with channels on a different grid from the first: they are resampled to it",
        lambda one: _each(one, lambda image: image.difference if image.covered else ""),
        noun="image",
    )
    yield from about(
        facts,
        "warning",
        "covered",
        "with channels that do not cover the first: the remainder is filled with their smallest value",
        lambda one: _each(one, lambda image: f"{image.covered:.0%} covered" if 0 < image.covered < _COVERED else ""),
        noun="image",
    )
    yield from about(
        facts,
        "warning",
        "same_channel",
        "whose channels contain the same voxels: check whether a file was copied by mistake",
        lambda one: " and ".join(_alike(one)) or None,
        noun="image",
    )


def _alike(one: CaseFacts) -> list[str]:
    counts = Counter(image.digest for image in one.image.channels if image.digest)
    return [image.name for image in one.image.channels if counts.get(image.digest, 0) > 1]


def sizes(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find images that are very small, or whose spacing or field of view is unusual for the data set."""
    good = [one for one in facts if one.image.grid is not None]
    yield from about(
        good,
        "warning",
        "small",
        f"with fewer than {_LEAST_SLICES} slices, or with slices less than {_LEAST_SIDE} voxels wide or high",
        _small,
        noun="image",
    )
    steps = median(_step(one) for one in good) if good else 1.0
    pixels = median(_pixel(one) for one in good) if good else 1.0
    fields = median(_field(one) for one in good) if good else 1.0

    def far(one: CaseFacts) -> str | None:
        differences = [
            f"{name} {value:.3g} mm, the median is {usual:.3g}"
            for name, value, usual in (
                ("distance between slices", _step(one), steps),
                ("pixels of", _pixel(one), pixels),
                ("field of view of", _field(one), fields),
            )
            if one.image.size_known and max(value / usual, usual / value) > _FAR
        ]
        return ", ".join(differences) or None

    title = f"whose spacing or field of view differs from the median by a factor of more than {_FAR:g}"
    yield from about(good, "warning", "odd_spacing", title, far, noun="image")
    yield from _mixed([one for one in good if one.image.size_known and far(one) is None])


def _mixed(good: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find spacings that vary within the data set."""
    ranges = [
        f"{name} {min(values):.3g} to {max(values):.3g} mm"
        for name, values in (
            ("distance between slices", list(map(_step, good))),
            ("pixels of", list(map(_pixel, good))),
        )
        if values and max(values) > _MIXED * min(values)
    ]
    if ranges:
        title = (
            f"the spacing varies between volumes ({', '.join(ranges)}): slices are resampled to one pixel size, but "
            "the distance between slices is left unchanged"
        )
        yield Finding("warning", "mixed_spacing", title)


def duplicates(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find images with identical voxels, under one patient or under several."""
    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for one in facts:
        if one.image.digest and not one.image.is_constant:
            groups[one.image.digest].append(one)
    leaked: list[Item] = []
    copies: list[Item] = []
    for group in groups.values():
        if len(group) > 1:
            patients = sorted({one.case.patient for one in group})
            item = Item(
                [one.case.name for one in group], f"patients {', '.join(patients)}" if len(patients) > 1 else ""
            )
            (leaked if len(patients) > 1 else copies).append(item)
    if leaked:
        title = (
            f"{several(len(leaked), 'image')} with identical voxels under more than one patient: test images may be "
            "among the training images. Remove the copies, or declare them as one patient with --patients"
        )
        yield Finding("error", "same_voxels", title, leaked)
    if copies:
        title = f"{several(len(copies), 'image')} with identical voxels in more than one case of the same patient"
        yield Finding("warning", "duplicate", title, copies)


def _is_flat(image: ImageFacts, low: float, high: float) -> bool:
    """Return whether two percentiles are equal, judged by the fraction of voxels with the lowest value."""
    if (low, high) == (1.0, 99.0) or not image.is_constant:
        return image.is_constant and (low, high) == (1.0, 99.0)
    return image.most * 100 >= high


def _bad_voxels(image: ImageFacts) -> str:
    voxels = prod(image.grid.shape) if image.grid is not None else 0
    return f"{image.bad:,} of {voxels:,} voxels"


def _each(one: CaseFacts, detail: Callable[[ImageFacts], str]) -> str | None:
    """Combine the details of all channels of a case, with channel names if there are several; None if all are empty."""
    texts = [
        f"{image.name}: {text}" if one.image.others else text for image in one.image.channels if (text := detail(image))
    ]
    return "; ".join(texts) or None


def _small(one: CaseFacts) -> str | None:
    if one.image.grid is None:
        return None
    shape = one.image.grid.shape
    slices = shape[one.image.axis]
    plane = [n for axis, n in enumerate(shape) if axis != one.image.axis]
    return " x ".join(map(str, shape)) if slices < _LEAST_SLICES or min(plane) < _LEAST_SIDE else None


def _step(one: CaseFacts) -> float:
    return one.image.grid.spacing[one.image.axis] if one.image.grid is not None else 1.0


def _plane(one: CaseFacts) -> list[tuple[int, float]]:
    if one.image.grid is None:
        return [(1, 1.0)]
    pairs = zip(one.image.grid.shape, one.image.grid.spacing, strict=True)
    return [pair for axis, pair in enumerate(pairs) if axis != one.image.axis]


def _pixel(one: CaseFacts) -> float:
    return max(spacing for _, spacing in _plane(one))


def _field(one: CaseFacts) -> float:
    return max(voxels * spacing for voxels, spacing in _plane(one))


_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")


def identifying(facts: Sequence[CaseFacts], *, show: bool) -> Iterator[Finding]:
    """Find headers with text that may identify a patient, and names of cases that contain a date.

    Args:
        facts: All cases.
        show: Whether to list the text.
    """
    having = [one for one in facts if one.image.texts]
    if having:
        fields = Counter(field for one in having for field, _ in one.image.texts)
        tally = ", ".join(f"{field} {count}" for field, count in fields.items())
        title = f"{several(len(having), 'image')} with text in the header ({tally}) that may identify the patient" + (
            "" if show else "; list it with --show-headers"
        )
        items = [
            Item([one.case.name], ", ".join(f"{field} {text!r}" for field, text in one.image.texts)) for one in having
        ]
        yield Finding("note", "header_text", title, items if show else ())
    dated = [one.case.name for one in facts if _DATE.search(one.case.name)]
    if dated:
        title = (
            f"{several(len(dated), 'case')} with what looks like a date in the name: reports contain the names of cases"
        )
        yield Finding("note", "date_in_name", title, [Item(dated)])
