"""Hashes of a case's files, by which a split notices later that the data are no longer those it was made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from contrastive_core.training.files import sha256
from ssl_medseg.data.cases import Case

Fingerprint = dict[str, str]


def fingerprint(case: Case, *, label: bool) -> Fingerprint:
    """SHA-256 of the bytes of the image and, if wanted, of the label: ``{"image": ..., "label": ...}``."""
    found = {"image": _hash(case.image.path)}
    if label and case.label is not None:
        found["label"] = _hash(case.label)
    return found


def _hash(path: Path) -> str:
    if not path.is_dir():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()
