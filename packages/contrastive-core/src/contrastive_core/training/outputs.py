"""Plan what a command writes, so that it replaces nothing but its own files.

All targets are checked before the first one is written. A target that is one of the inputs is refused. A target that
exists is refused unless this command wrote it here, according to the index in the output folder, and nobody changed it.
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

#: Files that commands wrote to this folder, by command: path and SHA-256, or null while they are being written.
INDEX = ".outputs.json"

_SHOWN = 3


class Outputs:
    """The files that a command writes: checked when they are planned, recorded inside a ``with`` block.

    Args:
        targets: Every file that the command may write.
        command: Program and verb: "ssl-medseg predict".
        inputs: Every file that the command reads, looked at if a target exists; a folder stands for all files in it but
            those that this command wrote there.
        folder: Folder whose index records the files; None: that of the first target.
        overwrite: Replace files that this command did not write, and name them on standard error. Inputs are never
            replaced.

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
        foreign = self._foreign(existing)
        if existing:
            self._refuse_inputs(existing, foreign, inputs)
            self._refuse_folders(existing)
        if foreign and not overwrite:
            verb, it, has = ("exists", "it", "it has") if len(foreign) == 1 else ("exist", "them", "they have")
            raise UserError(
                f"{_listed(foreign)} {verb}, and `{command}` did not write {it} here or {has} been changed since; "
                f"choose another place for the output, move {it} away, or replace {it} with --overwrite"
            )
        self._replaced = foreign
        for place in {path.parent for path in self._targets}:
            _check_writable(place)

    def __enter__(self) -> Self:
        # Recorded before they are written: a command that is killed finds its files again.
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
        # Also after an error: what a command wrote before it failed is its own, too.
        if not self._targets:
            return
        try:
            self._record_written()
        except OSError:  # the disk is full: then the index says still what was planned
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
            with contextlib.suppress(OSError):  # something else lies there
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
                f"{_listed(own)} would be replaced by the output of `{self._command}`, which reads it; choose another "
                "place for the output"
            )

    def _refuse_folders(self, existing: list[Path]) -> None:
        if blocked := [path for path in existing if path.is_dir() and not path.is_symlink()]:
            raise UserError(
                f"{_listed(blocked)}: is a folder where `{self._command}` writes a file; choose another place"
            )

    def _foreign(self, existing: list[Path]) -> list[Path]:
        recorded = _read(self._folder).get(self._command, {}) if existing else {}
        return [path for path in existing if not _is_own(path, self._folder, recorded)]


def write_once(
    contents: Mapping[Path, bytes], *, command: str, inputs: Iterable[Path | str] = (), overwrite: bool = False
) -> None:
    """Write files that others come to rely on, such as splits: one that exists must say the same already.

    Unlike with `Outputs`, a file that the command itself wrote is not replaced either: runs may have used it.

    Args:
        contents: Every file with its content. All are checked before the first is written.
        command: Program and verb.
        inputs: Files that the command reads; a folder stands for the files directly in it.
        overwrite: Replace files that say something else, and name them on standard error. Inputs are never replaced.

    Raises:
        UserError: A file exists and says something else, is an input, or cannot be written.
    """
    changed = {path: content for path, content in contents.items() if not _holds(path, content)}
    other = [path for path in changed if os.path.lexists(path)]
    if other and not overwrite:
        raise UserError(
            f"{_listed(other)}: is there already and says something else; runs may have used it. Choose another "
            "folder, move the file away, or replace it with --overwrite"
        )
    Outputs(changed, command=command, inputs=inputs, overwrite=True)  # inputs and folders are refused still
    _tell_replaced(other)
    for path, content in changed.items():
        files.remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content)


def claim_folder(folder: Path, *, command: str) -> None:
    """Take a folder in which a command writes whatever it likes: a new or empty one, or one that it took before.

    Hidden files do not count: no command writes any beside its own records.

    Raises:
        UserError: It is a file, cannot be written to, or holds something that this command did not begin.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: is a file where `{command}` writes a folder; choose another place")
    _check_writable(folder)
    if _FOLDER in _read(folder).get(command, {}):
        files.remove_stale_files(folder)
        return
    if folder.is_dir() and (found := sorted(e.name for e in folder.iterdir() if not e.name.startswith("."))):
        raise UserError(
            f"{folder}: is not empty (it holds {found[0]}{', ...' if len(found) > 1 else ''}), and `{command}` did not "
            "make it; expected a new or empty folder. Choose another place"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder, command, {folder: None})


#: How the index names the folder itself, for commands that have claimed it.
_FOLDER = "."


def _holds(path: Path, content: bytes) -> bool:
    """Whether a regular file says exactly this."""
    try:
        return not path.is_symlink() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _tell_replaced(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"--overwrite replaces {path}", file=sys.stderr, flush=True)  # noqa: T201 - before it is gone


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
