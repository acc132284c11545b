"""Checkpoints: folders `step-000123` that are complete, with a hash of every file, or not there.

A checkpoint is written to a hidden folder, forced to the disk, and renamed; the older ones go only after that. Reading
checks every hash before anything is used.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.train import files
from contrastive_core.train.state import decode, encode

_NAME = re.compile(r"step-(\d{6,})")
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_FILES = (_TENSORS, _STATE)
_FORMAT = 1


class Damaged(Exception):  # noqa: N818
    """A checkpoint whose files are not what its manifest says."""


def listing(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found)


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after `step` steps; on return it is on the disk, and before that not under its name."""
    target = folder / f"step-{step:06d}"
    new = folder / f".{target.name}.tmp"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        files.sync(folder.parent)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    tree: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tree[name], own = encode(value, name=name)
        tensors.update(own)
    safetensors.torch.save_file(tensors, new / _TENSORS)
    (new / _STATE).write_text(json.dumps(tree, indent=1, allow_nan=False), encoding="utf-8")
    manifest = {
        "format": _FORMAT,
        "step": step,
        "files": {name: {"bytes": (new / name).stat().st_size, "sha256": files.sha256(new / name)} for name in _FILES},
    }
    (new / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    files.replace_folder(new, target)
    return target


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with the manifest.

    Raises:
        Damaged: A file is missing, shortened or changed.
        UserError: A newer version of this library wrote it.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version, step = manifest["format"], manifest["step"]
        expected = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in _FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{_MANIFEST} cannot be read: {error!r}") from error
    if path.name != f"step-{step:06d}":
        raise Damaged(f"{_MANIFEST} says step {step}")
    for name, (size, digest) in expected.items():
        try:
            found_size, found_digest = (path / name).stat().st_size, files.sha256(path / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
        if found_size != size:
            raise Damaged(f"{name} has {found_size} bytes, {size} were written")
        if found_digest != digest:
            raise Damaged(f"{name} is not what was written")
    if version != _FORMAT:
        raise UserError(f"{path} has format {version}; this version reads format {_FORMAT}. Update contrastive-core")


def load(path: Path) -> dict[str, Any]:
    """The state in a verified checkpoint, tensors on the CPU."""
    tensors = safetensors.torch.load_file(path / _TENSORS)
    tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
    return {name: decode(value, tensors) for name, value in tree.items()}


def newest_good(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are what was written; None if there is no checkpoint at all.

    Damaged ones that are newer are renamed to `<name>.damaged`, which `say` is told.

    Raises:
        UserError: There are checkpoints, and every one is damaged.
    """
    problems: dict[Path, str] = {}
    for _, path in reversed(listing(folder)):
        try:
            verify(path)
        except Damaged as problem:
            problems[path] = str(problem)
            continue
        for damaged, text in problems.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
            say(f"warning: checkpoint {damaged} is damaged ({text}); renamed to {aside.name}, using the one before")
        return path
    if problems:
        lines = "\n".join(f"  {path}: {text}" for path, text in problems.items())
        raise UserError(
            f"every checkpoint of this run is damaged:\n{lines}\nexpected at least one as it was written. Restore the "
            "folder from a copy, or start again with another --out"
        )
    return None


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what an interrupted write or deletion has left."""
    _delete_hidden(folder)
    for _, path in listing(folder)[:-keep]:
        # Renamed first: a kill in the middle of the deletion leaves no half of a checkpoint under its name.
        path.rename(path.with_name(f".{path.name}.old"))
    _delete_hidden(folder)


def _delete_hidden(folder: Path) -> None:
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
