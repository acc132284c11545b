"""Find out which cases of a data set a run used in training, by the content of their images.

Names do not suffice: files are exchanged, copied, and converted from DICOM to NIfTI, and a case that training has seen
must not count as a test case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training import config
from contrastive_core.training.documents import read_object, reading
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import Split, data_file, fingerprint, read_fingerprints, read_split
from ssl_medseg.io import read_volume
from ssl_medseg.io.mask import PREDICTIONS, read_predictions
from ssl_medseg.reports.run_folder import split_places

Part = Literal["test", "validation", "labelled", "unlabelled", "all"]
_ORDER = ("test", "unlabelled", "validation", "labelled")
"""Parts of a split; the last one spoils a score most."""


@dataclass(frozen=True)
class Uses:
    """Parts of a split that images had in training.

    Attributes:
        files: Hash of the files of an image -> its part.
        voxels: Hash of the voxels of an image (`Volume.digest`) -> its part.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    voxels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: Iterable[Mapping[str, str]]) -> Uses:
        """Collect the parts of cases; of an image in several parts the one that spoils a score most."""
        entries = [entry for entry in seen if entry.get("part") in _ORDER]
        entries.sort(key=lambda entry: _ORDER.index(entry["part"]))
        files, voxels = ({f[key]: f["part"] for f in entries if f.get(key)} for key in ("image", "voxels"))
        return cls(files, voxels)

    @classmethod
    def of_split(cls, split: Split, file: Path | None, seen: Iterable[Mapping[str, str]]) -> Uses:
        """Collect the parts that a run recorded, and those of a split file for images that the run does not list."""
        prints = {} if file is None else read_fingerprints(file)
        entries = [
            {"part": part, **prints[name]} for part, names in split.parts.items() for name in names if name in prints
        ]
        first, own = cls.of(entries), cls.of(seen)
        return cls({**first.files, **own.files}, {**first.voxels, **own.voxels})

    def part(self, case: Case) -> str | None:
        """Return the part that the image of a case had; None if training did not use it, or if it cannot be read."""
        if self.files and (part := self.files.get(fingerprint(case, label=False)["image"])):
            return part
        return self.voxels.get(_voxels(case)) if self.voxels else None


def _voxels(case: Case) -> str:
    try:
        return read_volume(case.image.channels[0]).digest
    except UserError:  # scoring reports such cases
        return ""


def split_of_run(run: Path, dataset: DataSet, part: Part) -> tuple[Split | None, Part, list[str]]:
    """Return the split of a run and the requested part if it has these data, otherwise all cases; with notes.

    Data are identified by content: a data set with the same names but different images is another data set, and an
    image used in training is recognised under any name. The split is None for a model outside a run folder.
    """
    seen, file = cases_seen(run), own_split(run)
    names = [name for name in seen if name in set(dataset.names)]
    changed = [name for name in names if Uses.of([seen[name]]).part(dataset.case(name)) is None]
    if file is not None and len(names) == len(seen) and not changed:
        return read_split(file, dataset), part, []
    if not seen:
        return None, "all", []
    note = (
        f"{several(len(changed), 'case')} of {dataset.name} had another image in training ({some_of(changed)}), so all "
        "cases are evaluated, and images used in training are recognised by their content."
    )
    return split_by_use(Uses.of(seen.values()), dataset), "all", [note] if changed else []


def split_by_use(uses: Uses, dataset: DataSet) -> Split:
    """Return the parts that the images of a data set had in training; all others are in the test part."""
    part_of = {case.name: uses.part(case) or "test" for case in dataset.cases}
    labelled, validation, test, unlabelled = (
        tuple(name for name, part in part_of.items() if part == one)
        for one in ("labelled", "validation", "test", "unlabelled")
    )
    return Split(labelled, validation, test, unlabelled)


def by_content(split: Split, cases: Sequence[Case], uses: Uses) -> tuple[Split, list[str]]:
    """Move cases to the part in which training used their images, or another image of their patient; with notes.

    Files may be exchanged or copied, and further scans of a patient added after the training.

    Args:
        split: Parts by name.
        cases: Cases to evaluate.
        uses: Parts of the images in training.
    """
    in_split = {name: part for part, names in split.parts.items() for name in names}
    in_training = {case.name: uses.part(case) for case in cases}
    moves = {name: part for name, part in in_training.items() if part and part != in_split.get(name)}
    notes = [
        f"By its name, {name} belongs to the part {in_split.get(name, '(none)')}, but its image was in the part {part} "
        "in training, and counts as such: files were exchanged or copied, the split is not that of the training, or "
        "the model that this run started from was trained with it."
        for name, part in moves.items()
    ]
    now = {**in_split, **moves}
    for part in ("labelled", "validation"):
        of_patient = {case.patient: case.name for case in cases if now.get(case.name) == part}
        others = [c for c in cases if c.patient in of_patient and now.get(c.name) not in ("labelled", "validation")]
        moves |= {case.name: part for case in others}
        notes += [
            f"{case.name} counts as part {part}, because training used another image of its patient {case.patient} "
            f"({of_patient[case.patient]}) as such: scans of a patient are similar."
            for case in others
        ]
    parts = {
        part: (*(n for n in names if n not in moves), *(n for n, to in moves.items() if to == part))
        for part, names in split.parts.items()
    }
    return dataclasses.replace(split, **parts), notes  # type: ignore[arg-type]


def cases_seen(run: Path) -> dict[str, dict[str, str]]:
    """Read case -> part and hashes of the data used in training, or in the last stage of a run with stages."""
    file = data_file(run)
    if file is None:
        return {}
    with reading(file, "does not list the data of a run", "restore it from a copy"):
        content = read_object(file)
        preparation = content.get("preparation", {})
        cases = content.get("cases", {}).items()
        seen = {name: dict(entry) for name, entry in cases if isinstance(entry, dict) and "image" in entry}
        for name, entry in seen.items():
            entry["voxels"] = preparation.get(name, {}).get("voxels", "")
        return {name: {key: str(value) for key, value in entry.items()} for name, entry in seen.items()}


def split_of_masks(folder: Path, dataset: DataSet) -> tuple[Split | None, list[str]]:
    """Return the parts that cases had in training, by the predictions.json next to their masks, and notes.

    The split is None if `predict` did not write the masks.
    """
    content = read_predictions(folder)
    with reading(folder / PREDICTIONS, "is damaged", "expected a file written by `ssl-medseg predict`; predict again"):
        seen = content.get("training", [])
        uses = Uses.of({key: str(value) for key, value in entry.items()} for entry in seen)
    if not content and (folder / PREDICTIONS).is_file():
        return None, [f"{PREDICTIONS} in the folder of the masks was not written by `predict`, and is not used."]
    return split_by_use(uses, dataset) if uses != Uses() else None, []


def images_seen(run: Path) -> list[dict[str, str]]:
    """Read part and hashes of the images used in training, and of those whose labels trained the initial segmenter."""
    file = data_file(run)
    content = {} if file is None else read_object(file)
    before = [entry for entry in content.get("before", []) if isinstance(entry, dict)]
    return [*cases_seen(run).values(), *({key: str(value) for key, value in entry.items()} for entry in before)]


def own_split(run: Path) -> Path | None:
    """Return the split file that a run was trained with, if it still exists."""
    settings = run / "config.yaml"
    if not settings.is_file():
        return None
    name = config.read(settings).get("split")
    return next((file for file in split_places(run, name) if file.is_file()), None) if name else None
