"""Plan what a command writes, so that it replaces nothing but its own files.

All targets are checked before the first one is written. A target that is one of the inputs is refused. A target that
exists is refused unless this command wrote it here, according to the index in the output folder, and nobody changed it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training import files
from contrastive_core.training.documents import read_json

#: Files that commands wrote to this folder, by command: path and SHA-256, or null while they are being written.
INDEX = ".outputs.json"

_SHOWN = 3


class Outputs:
    """The files that a command writes: checked when they are planned, recorded inside a ``with`` block.

    Args:
        targets: Every file that the command may write.
        command: Program and verb: "ssl-medseg predict".
        inputs: Every file that the command reads; a folder stands for the files directly in it.
        folder: Folder whose index records the files; None: that of the first target.
        overwrite: Replace files that this command did not write. Inputs are never replaced.

    Raises:
        UserError: A target is an input, a folder, or a file that this command did not write here.
    """

    def __init__(
        self, targets: Iterable[Path], *, command: str, inputs: Iterable[Path | str] = (), folder: Path | None = None,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self._targets = list(dict.fromkeys(Path(target) for target in targets))
        self._command = command
        self._folder = Path(folder) if folder is not None else self._targets[0].parent if self._targets else Path()
        existing = [path for path in self._targets if os.path.lexists(path)]
        if existing:
            self._refuse_inputs(existing, _identities(inputs))
            self._refuse_folders(existing)
        if existing and not overwrite:
            self._refuse_foreign(existing)
        for place in {path.parent for path in self._targets}:
            _check_writable(place)

    def __enter__(self) -> Self:
        # Recorded before they are written: a command that is killed finds its files again.
        if self._targets:
            self._before = {path: _version(path) for path in self._targets}
            for path in self._targets:
                files.remove_stale(path)
            self._recorded = _read(self._folder).get(self._command, {})
            _record(self._folder, self._command, dict.fromkeys(self._targets))
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: what a command wrote before it failed is its own, too.
        if self._targets:
            written = {}
            for path in self._targets:
                name = _name(path, self._folder)
                if path.is_file() and _version(path) != self._before[path]:
                    written[path] = files.sha256(path)
                elif path.is_file() and name in self._recorded:
                    written[path] = self._recorded[name]
            gone = [path for path in self._targets if path not in written]
            _record(self._folder, self._command, written, gone=gone)

    def _refuse_inputs(self, existing: list[Path], read: set[tuple[int, int]]) -> None:
        if own := [path for path in existing if _identity(path) in read]:
            raise UserError(
                f"{_listed(own)} would be replaced by the output of `{self._command}`, which reads it; choose another "
                "place for the output"
            )

    def _refuse_folders(self, existing: list[Path]) -> None:
        if blocked := [path for path in existing if path.is_dir() and not path.is_symlink()]:
            raise UserError(
                f"{_listed(blocked)}: is a folder where `{self._command}` writes a file; choose another place"
            )

    def _refuse_foreign(self, existing: list[Path]) -> None:
        recorded = _read(self._folder).get(self._command, {})
        if foreign := [path for path in existing if not _is_own(path, self._folder, recorded)]:
            raise UserError(
                f"{_listed(foreign)} exists, and `{self._command}` did not write it here or it has been changed since; "
                "choose another place for the output, move the file away, or replace it with --overwrite"
            )


def _check_writable(folder: Path) -> None:
    """Find out before the work that nothing can be written: the folder, or its nearest parent that exists, is tried."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another place") from error


def _is_own(path: Path, folder: Path, recorded: dict[str, Any]) -> bool:
    name = _name(path, folder)
    if name not in recorded or path.is_symlink():
        return False
    return recorded[name] is None or recorded[name] == files.sha256(path)


def _name(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # a link to nothing
        return None
    return found.st_dev, found.st_ino


def _identities(inputs: Iterable[Path | str]) -> set[tuple[int, int]]:
    found = set()
    for path in map(Path, inputs):
        inside = path.iterdir() if path.is_dir() else ()
        found |= {identity for each in (path, *inside) if (identity := _identity(each))}
    return found


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    # A damaged index records nothing: then nothing is replaced without --overwrite.
    try:
        found = read_json(folder / INDEX)
    except UserError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {command: names for command, names in known if isinstance(names, dict)}


def _record(folder: Path, command: str, written: dict[Path, Any], *, gone: Iterable[Path] = ()) -> None:
    index = _read(folder)
    names = {**index.get(command, {}), **{_name(path, folder): digest for path, digest in written.items()}}
    for path in gone:
        names.pop(_name(path, folder), None)
    index = {**index, command: names}
    if not any(index.values()):
        (folder / INDEX).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _listed(paths: list[Path]) -> str:
    shown = ", ".join(map(str, paths[:_SHOWN]))
    return shown if len(paths) <= _SHOWN else f"{shown} and {several(len(paths) - _SHOWN, 'more file')}"
