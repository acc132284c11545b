"""Check and record the files that a command writes, so that it replaces only files that it has written itself.

All targets are checked before the first one is written. It is an error if a target is also an input, or if it exists,
unless the same command has written it to this folder, according to the index in the output folder, and it has not been
changed since.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training import files
from contrastive_core.training.documents import read_json

#: Name of the index, which lists the files of a folder by command: path and SHA-256, or null while being written.
INDEX = ".outputs.json"

_SHOWN = 3


class Outputs:
    """Files that a command writes, which are checked on construction and recorded inside a ``with`` block.

    Args:
        targets: All files that the command may write.
        command: Program and verb, such as "ssl-medseg predict".
        inputs: All files that the command reads; they are compared with existing targets. A folder represents all files
            in it except those that this command has written.
        folder: Folder whose index records the files; the folder of the first target if None.
        overwrite: Whether to replace files that this command has not written, which are then named on standard error.
            Inputs are never replaced.

    Raises:
        UserError: A target is an input, a folder, or a file that this command has not written to this folder.
    """

    def __init__(
        self, targets: Iterable[Path], *, command: str, inputs: Iterable[Path | str] = (), folder: Path | None = None,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self._targets = list(dict.fromkeys(Path(target) for target in targets))
        self._command = command
        self._folder = Path(folder) if folder is not None else self._targets[0].parent if self._targets else Path()
        existing = [path for path in self._targets if os.path.lexists(path)]
        foreign = self._foreign(existing)
        if existing:
            self._refuse_inputs(existing, foreign, inputs)
            self._refuse_folders(existing)
        if foreign and not overwrite:
            verb, it, has = (
                ("already exists", "it", "it has") if len(foreign) == 1 else ("already exist", "them", "they have")
            )
            raise UserError(
                f"{_listed(foreign)} {verb}, and `{command}` did not write {it} to this folder or {has} been changed "
                f"since; choose another output, move {it} away, or replace {it} with --overwrite"
            )
        self._replaced = foreign
        for place in {path.parent for path in self._targets}:
            _check_writable(place)

    def __enter__(self) -> Self:
        # Record the files before they are written, so that a killed command recognises them later.
        if self._targets:
            self._before = {path: _version(path) for path in self._targets}
            for path in (*self._targets, self._folder / INDEX):
                files.remove_stale(path)
            self._recorded = _read(self._folder).get(self._command, {})
            self._is_new = not self._folder.exists()
            _tell_replaced(self._replaced)
            _record(self._folder, self._command, dict.fromkeys(self._targets))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Files that the command has written before an error are also recorded as its own.
        if not self._targets:
            return
        try:
            self._record_written()
        except OSError:  # on a full disk the index still lists the planned files
            if kind is None:
                raise

    def _record_written(self) -> None:
        written = {}
        for path in self._targets:
            name = _name(path, self._folder)
            if path.is_file() and _version(path) != self._before[path]:
                written[path] = files.sha256(path)
            elif path.is_file() and name in self._recorded:
                written[path] = self._recorded[name]
        gone = [path for path in self._targets if path not in written]
        _record(self._folder, self._command, written, gone=gone)
        if self._is_new and not written:
            with contextlib.suppress(OSError):  # the folder contains other files
                self._folder.rmdir()

    def _refuse_inputs(self, existing: list[Path], foreign: list[Path], inputs: Iterable[Path | str]) -> None:
        targets = {_identity(path): path for path in existing} | {path.resolve(): path for path in foreign}
        parents = {parent: path for path in foreign for parent in path.resolve().parents}
        read: dict[Path, None] = {}
        for given in inputs:
            named = Path(given)
            if (found := targets.get(_identity(named))) is not None:
                read[found] = None
            if named.is_dir() and (above := named.resolve()) in parents:
                read.update(dict.fromkeys(path for path in foreign if above in path.resolve().parents))
        if own := list(read):
            raise UserError(
                f"{_listed(own)} is an input of `{self._command}` and would be replaced by its output; choose another "
                "output"
            )

    def _refuse_folders(self, existing: list[Path]) -> None:
        if blocked := [path for path in existing if path.is_dir() and not path.is_symlink()]:
            raise UserError(
                f"{_listed(blocked)} is a folder, but `{self._command}` writes a file of this name; choose another "
                "output"
            )

    def _foreign(self, existing: list[Path]) -> list[Path]:
        recorded = _read(self._folder).get(self._command, {}) if existing else {}
        return [path for path in existing if not _is_own(path, self._folder, recorded)]


def write_once(
    contents: Mapping[Path, bytes], *, command: str, inputs: Iterable[Path | str] = (), overwrite: bool = False
) -> None:
    """Write files that runs depend on, such as splits; a file that already exists must have the same content.

    Unlike `Outputs`, this function does not replace files that the command itself has written, because runs may have
    used them.

    Args:
        contents: Content of each file. All files are checked before the first one is written.
        command: Program and verb.
        inputs: Files that the command reads; a folder represents the files in it.
        overwrite: Whether to replace files with another content, which are then named on standard error. Inputs are
            never replaced.

    Raises:
        UserError: A file exists with another content, is an input, or cannot be written.
    """
    changed = {path: content for path, content in contents.items() if not _holds(path, content)}
    other = [path for path in changed if os.path.lexists(path)]
    if other and not overwrite:
        raise UserError(
            f"{_listed(other)} already exists with another content, and runs may have used it; choose another folder, "
            "move the file, or replace it with --overwrite"
        )
    Outputs(changed, command=command, inputs=inputs, overwrite=True)  # still refuses inputs and folders
    _tell_replaced(other)
    for path, content in changed.items():
        files.remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content)


def claim_folder(folder: Path, *, command: str) -> None:
    """Claim a folder for all outputs of a command; it must be new, empty, or claimed by the same command before.

    Hidden files are ignored, because commands write no hidden files except their records.

    Raises:
        UserError: The path is a file, the folder cannot be written to, or it contains files of another origin.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file, but `{command}` writes a folder of this name; choose another output")
    _check_writable(folder)
    if _FOLDER in _read(folder).get(command, {}):
        files.remove_stale_files(folder)
        return
    if folder.is_dir() and (found := sorted(e.name for e in folder.iterdir() if not e.name.startswith("."))):
        raise UserError(
            f"{folder} is not empty (it contains {found[0]}{', ...' if len(found) > 1 else ''}), and `{command}` did "
            "not create it; expected a new or empty folder. Choose another output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder, command, {folder: None})


#: Name of the folder itself in the index, for commands that have claimed it.
_FOLDER = "."


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a path is a regular file with exactly this content."""
    try:
        return not path.is_symlink() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _tell_replaced(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"--overwrite replaces {path}", file=sys.stderr, flush=True)  # noqa: T201 - before the file is replaced


def _check_writable(folder: Path) -> None:
    """Check, before the work begins, that the folder or its nearest existing parent can be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}); choose another output") from error


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
    except OSError:  # a broken link
        return None
    return found.st_dev, found.st_ino


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    # A damaged index counts as empty, so that nothing is replaced without --overwrite.
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
