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
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    tree: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tree[name], own = encode(value, name=name)
        tensors.update(own)
    safetensors.torch.save_file(tensors, new / _TENSORS)
    (new / _STATE).write_text(json.dumps(tree, indent=1, allow_nan=False))
    manifest = {
        "format": 1,
        "step": step,
        "files": {
            name: {"bytes": (new / name).stat().st_size, "sha256": files.sha256(new / name)}
            for name in (_TENSORS, _STATE)
        },
    }
    (new / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    files.replace_folder(new, target)
    return target


def load(path: Path) -> dict[str, Any]:
    """The state a checkpoint holds, tensors on the CPU.

    Raises:
        Damaged: A file is missing, shortened or changed.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        step, hashes = manifest["step"], manifest["files"]
        expected = {name: (hashes[name]["bytes"], hashes[name]["sha256"]) for name in (_TENSORS, _STATE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{_MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
    if path.name != f"step-{step:06d}":
        raise Damaged(f"{_MANIFEST} says step {step}")
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != size:
            raise Damaged(f"{name} has {file.stat().st_size} bytes, {size} were written")
        if files.sha256(file) != digest:
            raise Damaged(f"the content of {name} has changed since it was written")
    tensors = safetensors.torch.load_file(path / _TENSORS)
    tree = json.loads((path / _STATE).read_text())
    return {name: decode(value, tensors) for name, value in tree.items()}


def load_newest(folder: Path, *, say: Callable[[str], None]) -> tuple[Path, int, dict[str, Any]] | None:
    """(path, step, state) of the newest good checkpoint; None if there is no checkpoint at all.

    A damaged one is renamed to `<name>.damaged`, reported through `say`, and the one before is tried.

    Raises:
        UserError: There are checkpoints, and every one is damaged.
    """
    problems = []
    for step, path in reversed(listing(folder)):
        try:
            state = load(path)
        except Damaged as problem:
            problems.append(f"{path}: {problem}")
            continue
        for problem_text in problems:
            say(f"damaged checkpoint left out: {problem_text}")
        for newer, damaged in listing(folder):
            if newer > step:
                files.replace_folder(damaged, damaged.with_name(f"{damaged.name}.damaged"))
        return path, step, state
    if problems:
        raise UserError(
            "no checkpoint of this run can be used:\n  " + "\n  ".join(problems) + "\nexpected the files as they were "
            "written; restore the folder from a copy, or start again with another output folder"
        )
    return None


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what an interrupted write or deletion has left."""
    for _, path in listing(folder)[:-keep]:
        # Renamed first: a kill in the middle of the deletion leaves no half of a checkpoint under its name.
        path.rename(path.with_name(f".{path.name}.old"))
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
