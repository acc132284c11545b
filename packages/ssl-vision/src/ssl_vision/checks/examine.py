"""Examine a data set in one pass: open every split, read every image, apply the rules."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import Progress

from contrastive_core.app.checks import LEVELS, Finding, most_first
from contrastive_core.errors import UserError
from ssl_vision.checks import rules
from ssl_vision.checks.facts import Facts, look_at
from ssl_vision.checks.report import Report
from ssl_vision.checks.rules import misplaced
from ssl_vision.data import ImageSet, list_splits, open_images
from ssl_vision.data.dataset import ReadOptions, map_images
from ssl_vision.data.open import locate


def examine(
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> Report:
    """Examine every image of a data set, and the arrangement of the files.

    Errors stop training or make its evaluation wrong: unreadable files, one picture under two classes or in two splits,
    classes or splits without images. Warnings are probably mistakes: duplicates, blank, tiny, very long or oddly sized
    pictures, classes without test images, images beside class folders, images of unsupported kinds. Notes need no
    action: colour modes, EXIF rotation, further frames, files that are not images.

    Pictures are compared by their decoded pixels, so that files with the same bytes are found too. The time is that of
    decoding everything once, on all cores; the memory about 700 bytes per image.

    Args:
        data: Data set, as for `ssl_vision.data.open_images`.
        split: Split to examine; None: all splits and their overlap.
        channels: Number of channels of the images.
        read: Options for reading image files.

    Raises:
        UserError: There is no such data set or split, or the manifest is unreadable.
    """
    sets, findings = _open(data, [split] if split else list_splits(data), channels=channels, read=read)
    with warnings.catch_warnings():
        # PIL's warnings name no file; their causes are found by the rules, or do not matter.
        warnings.simplefilter("ignore", UserWarning)
        facts = list(_look_at_all(sets))
    _, root = locate(data)
    prefix = f"{root if root.is_dir() else root.parent}{os.sep}"  # omitted, as it would be repeated in every line

    def name(fact: Facts) -> str:
        return sets[fact.split].path(fact.index).removeprefix(prefix)

    classes = {
        split: _class_counts(images, [fact for fact in facts if fact.split == split])
        for split, images in sets.items()
        if images.is_labelled
    }
    findings += misplaced(data, list(sets))
    for rule in (rules.unreadable, rules.duplicates, rules.unlike_the_rest, rules.converted):
        findings += rule(facts, name)
    findings += rules.uneven_classes(classes)
    good = [fact for fact in facts if fact.problem is None]
    return Report(
        data=os.fspath(data),
        images={split: len(images) for split, images in sets.items()},
        classes=classes,
        sizes=most_first(Counter(fact.size for fact in good)),
        modes=most_first(Counter(fact.mode for fact in good)),
        formats=most_first(Counter(fact.format for fact in good if fact.format)),
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
    )


def _open(
    data: str | os.PathLike[str], splits: list[str], *, channels: int, read: ReadOptions
) -> tuple[dict[str, ImageSet], list[Finding]]:
    """Open all splits; one that fails becomes a finding, unless it is the only one."""
    sets: dict[str, ImageSet] = {}
    findings = []
    for split in splits:
        try:
            sets[split] = open_images(data, split=split, channels=channels, read=read)
        except UserError as error:
            if len(splits) == 1:
                raise
            findings.append(Finding("error", "empty_split", str(error)))
    return sets, findings


def _look_at_all(sets: Mapping[str, ImageSet]) -> Iterator[Facts]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        for split, images in sets.items():
            task = progress.add_task(f"checking {split}", total=len(images))

            def look(index: int, images: ImageSet = images, split: str = split) -> Facts:
                return look_at(images, index, split=split)

            for fact in map_images(look, len(images)):
                yield fact
                progress.advance(task)


def _class_counts(images: ImageSet, facts: list[Facts]) -> dict[str, int]:
    counts = Counter(fact.class_name for fact in facts)
    return {name: counts[name] for name in images.classes}
