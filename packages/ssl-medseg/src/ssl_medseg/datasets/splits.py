"""Read and write splits, which define the cases that training uses with labels, without labels, or not at all.

A split is a JSON file that lists cases with their patients and a hash over them. Each patient is in exactly one part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.documents import read_object, reading, to_json_lines
from contrastive_core.training.files import sha256
from contrastive_core.training.outputs import write_once
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.io.file_types import parts_of

Fingerprint = dict[str, str]


def fingerprint(case: Case, *, label: bool) -> Fingerprint:
    """Hash the image files of a case with SHA-256, and optionally the label: ``{"image": ..., "label": ...}``."""
    hashes = {"image": _joined(_hash(path) for path in case.image.paths)}
    if label and case.label is not None:
        hashes["label"] = _hash(case.label)
    return hashes


def identify(dataset: DataSet, split: Split) -> dict[str, dict[str, str]]:
    """Return case -> part, file hashes and frame for all cases that training may use.

    Only the labels of labelled and validation cases are hashed, because training must not open the others.
    """
    return {
        case.name: {"part": part, **fingerprint(case, label=part != "unlabelled"), **_frame(case)}
        for part in ("labelled", "validation", "unlabelled")
        for case in dataset.select(split.parts[part])
    }


def data_file(model: Path) -> Path | None:
    """Return the file that lists the training data of a run folder or model folder; for two stages, of the last one."""
    folders = [model, model.parent, *([model.parent.parent] if model.parent.name == "models" else [])]
    places = [folder / stage for folder in folders for stage in ("", "selftrain")]
    return next((file for place in places if (file := place / "data.json").is_file()), None)


def _frame(case: Case) -> dict[str, str]:
    return {} if case.image.frame is None else {"frame": str(case.image.frame)}


def _hash(path: Path) -> str:
    if not path.is_dir():
        return _joined(map(sha256, parts_of(path)))
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _joined(hashes: Iterable[str]) -> str:
    """Return one hash for several, and the hash itself if there is only one."""
    first, *others = hashes
    return hashlib.sha256("\n".join([first, *others]).encode()).hexdigest() if others else first


FORMAT = "ssl-medseg split 1"
PARTS = ("labelled", "validation", "test", "unlabelled")
_NAMED = 5


@dataclass(frozen=True)
class Split:
    """Names of cases in four disjoint parts.

    Attributes:
        labelled: Cases used for training with their labels.
        validation: Cases used with their labels to choose settings and the best step, but not for training.
        test: Cases that are not opened before `evaluate`.
        unlabelled: Cases whose images are used for training; their labels, if any, are ignored.
        settings: Record of how the split was made; informational only.
    """

    labelled: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        part_of: dict[str, str] = {}
        for part, names in self.parts.items():
            for name in names:
                if name in part_of:
                    clash = "twice in" if part_of[name] == part else f"in {part_of[name]} and in"
                    raise UserError(f"split: the case {name} is {clash} {part}; expected each case once, in one part")
                part_of[name] = part

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of the cases of each part."""
        return {part: getattr(self, part) for part in PARTS}

    def check(self, dataset: DataSet) -> None:
        """Check that the split matches a data set.

        Raises:
            UserError: A case does not exist, a labelled or validation case has no label, or a patient has volumes in
                two parts.
        """
        part_of: dict[str, str] = {}
        for part, names in self.parts.items():
            for case in dataset.select(names):
                if part in ("labelled", "validation") and case.label is None:
                    raise UserError(
                        f"split: {case.name} is in the part {part}, but {dataset.name} has no label for it; add the "
                        "label, or make the split again"
                    )
                other = part_of.setdefault(case.patient, part)
                if other != part:
                    raise UserError(
                        f"split: the patient {case.patient} is in both {other} and {part} (for example {case.name}); "
                        "all volumes of a patient must be in the same part"
                    )


def write_split(path: Path, split: Split, dataset: DataSet) -> None:
    """Write a split of a data set as JSON; an existing file must have the same content.

    Raises:
        UserError: The split does not match the data set, or the file exists with other content.
    """
    write_once({path: split_content(split, dataset)}, command="ssl-medseg make-splits", overwrite=None)


def split_content(split: Split, dataset: DataSet, files: Mapping[str, Fingerprint] | None = None) -> bytes:
    """Return the content of a split file.

    Args:
        split: Split.
        dataset: Data set that it divides.
        files: File hashes of the cases, which `ssl-medseg check` compares; training does not read them.

    Raises:
        UserError: The split does not match the data set.
    """
    split.check(dataset)
    return _bytes(split, dataset, files or {})


def read_fingerprints(path: Path) -> dict[str, Fingerprint]:
    """Read the file hashes in a split, by case; cases without hashes are absent.

    Raises:
        UserError: The file does not exist or is not a split.
    """
    files = read_object(path).get("files", {})
    if not isinstance(files, dict) or not all(isinstance(hashes, dict) for hashes in files.values()):
        raise UserError(f"{path}: 'files' is not a map from cases to hashes; make the split again")
    return files


def read_split(path: str | Path, dataset: DataSet) -> Split:
    """Read a split of a data set.

    Raises:
        UserError: The file does not exist or was modified, a case is not in the data set or belongs to another patient
            there, or the split does not match the data set (see `Split.check`).
    """
    path = Path(path)
    content = read_object(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: found format {content.get('format')!r}, expected {FORMAT!r}; make one with `make-splits`"
        )
    with reading(path, "is not a split", "make it again with `ssl-medseg make-splits`"):
        parts = {part: [[str(name), str(patient)] for name, patient in content[part]] for part in PARTS}
        digest, settings = content["sha256"], content.get("settings", {})
    if digest != _digest(parts):
        raise UserError(
            f"{path} was modified after it was written: its cases do not match its hash. Make it again with "
            "`ssl-medseg make-splits`"
        )
    try:
        split = Split(**{part: tuple(name for name, _ in pairs) for part, pairs in parts.items()}, settings=settings)
        split.check(dataset)
    except UserError as error:
        raise UserError(f"{path}: {error}. The split was made for {content.get('data')}") from error
    conflicts = [
        f"{name} ({patient} there, {dataset.case(name).patient} here)"
        for pairs in parts.values()
        for name, patient in pairs
        if dataset.case(name).patient != patient
    ]
    if conflicts:
        raise UserError(
            f"{path} and {dataset.name} disagree about the patients of {some_of(conflicts, _NAMED)}; "
            "open the data set with the options the split was made with"
        )
    return split


def _bytes(split: Split, dataset: DataSet, files: Mapping[str, Fingerprint]) -> bytes:
    """Format the file, with one case per line."""
    parts = {part: [[c.name, c.patient] for c in dataset.select(names)] for part, names in split.parts.items()}
    head = {"format": FORMAT, "data": dataset.name, "settings": dict(split.settings), "sha256": _digest(parts)}
    hashes = {name: files[name] for pairs in parts.values() for name, _ in pairs if name in files}
    return to_json_lines(head, {**parts, "files": hashes} if hashes else parts)


def _digest(parts: Mapping[str, list[list[str]]]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
