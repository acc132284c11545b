"""What is wrong with a split of the data set: that it does not fit, leaks, or was made of other files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from contrastive_core.app.checks import Finding, Item, several
from contrastive_core.errors import UserError
from ssl_medseg.checking.looked import Looked
from ssl_medseg.data import DataSet, Split, read_split
from ssl_medseg.data.fingerprints import fingerprint
from ssl_medseg.data.splits import read_fingerprints


def fits(file: Path, dataset: DataSet, looked: Sequence[Looked]) -> Iterator[Finding]:
    """Findings about a split file."""
    try:
        split, prints = read_split(file, dataset), read_fingerprints(file)
    except UserError as error:
        yield Finding("error", "split", str(error).replace(str(file), file.name))
        return
    changed = []
    for name, stated in prints.items():
        now = fingerprint(dataset.case(name), label="label" in stated)
        items = [what for what in stated if now.get(what) != stated[what]]
        changed += [Item([name], " and ".join(items))] if items else []
    if changed:
        title = f"{several(len(changed), 'case')} whose files are no longer those that {file.name} was made of"
        yield Finding("error", "changed", title, changed)
    yield from _coverage(split, dataset, looked)


def _coverage(split: Split, dataset: DataSet, looked: Sequence[Looked]) -> Iterator[Finding]:
    voxels = {one.case.name: one.label.voxels for one in looked if one.label is not None and one.label.voxels}
    for part, level in (("labelled", "error"), ("validation", "warning"), ("test", "warning")):
        names = [name for name in split.parts[part] if name in voxels]
        lacking = [
            structure
            for number, structure in enumerate(dataset.labels.structures)
            if names and not any(voxels[name][number] for name in names)
        ]
        if lacking:
            what = "so that it can never be predicted" if part == "labelled" else "so that nothing is said about it"
            title = f"{', '.join(lacking)}: in no label of the split's {part} cases, {what}"
            yield Finding("error" if level == "error" else "warning", f"never_in_{part}", title)
