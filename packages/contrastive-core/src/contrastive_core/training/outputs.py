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
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training import files
from contrastive_core.training.documents import read_json, read_json_lines

#: Name of the index, which lists the files of a folder by command: path and SHA-256, or null while being written.
INDEX = ".outputs.json"
#: Name of the journal, a JSON line with the hash of every file that a running command is about to put in place. After
#: a kill, it distinguishes what the command has written from what somebody put there afterwards.
JOURNAL = ".outputs.journal"

_SHOWN = 3


class Outputs:
    """Files that a command writes, which are checked on construction, and locked and recorded in a ``with`` block.

    Args:
        targets: All files that the command may write.
        command: Program and verb, such as "ssl-medseg predict".
        inputs: All files that the command reads; they are compared with existing targets. A folder represents all files
            in it except those that this command has written.
        folder: Folder whose index records the files; the folder of the first target if None.
        overwrite: Whether to replace files that this command has not written, which are then named on standard error.
            Inputs are never replaced.

    Raises:
        UserError: A target is an input, a folder, or a file that this command did not write here; or two targets are
            one file. On entry of the block: another process is writing a target.
    """

    def __init__(
        self, targets: Iterable[Path], *, command: str, inputs: Iterable[Path | str] = (), folder: Path | None = None,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self._targets = [Path(target) for target in targets]
        self._command = command
        self._hashes: dict[Path, str] = {}
        refuse_twins(self._targets, command)
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
                f"{_path_list(foreign)} {verb}, and `{command}` did not write {it} to this folder or {has} been "
                f"changed since; choose another output, move {it} away, or replace {it} with --overwrite"
            )
        self._replaced = foreign
        for parent in {path.parent for path in self._targets}:
            _check_writable(parent)

    def __enter__(self) -> Self:
        # Record the files before they are written, so that a killed command recognises them later.
        if self._targets:
            self._is_new = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._locks = files.FileLocks(self._folder)
            try:
                self._begin()
            except BaseException:
                self._locks.release()
                raise
            self._target_set = frozenset(self._targets)
            files.on_replacement.append(self._note)
        return self

    def _begin(self) -> None:
        names = [_name(path, self._folder) for path in self._targets]
        if (locked_name := self._locks.acquire(names)) is not None:
            raise UserError(
                f"{self._folder / locked_name} is being written by another process; wait for it to end, or choose "
                "another output"
            )
        self._before = {path: _version(path) for path in self._targets}
        for path in (*self._targets, self._folder / INDEX):
            files.remove_stale(path)
        _tell_replaced(self._replaced)
        with self._locks.index():
            self._index = _absorb_journal(self._folder, self._command)
            new = {path: None for path, name in zip(self._targets, names, strict=True) if name not in self._index}
            _record(self._folder, self._command, new)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Files that the command has written before an error are also recorded as its own.
        if not self._targets:
            return
        files.on_replacement.remove(self._note)
        try:
            self._record_written()
        except OSError:  # on a full disk the index still lists the planned files
            if kind is None:
                raise
        finally:
            self._locks.release()

    def _note(self, path: Path, temporary: Path) -> None:
        """Record the hash of a target before it is put in place, in case the command is killed afterwards."""
        if path in self._target_set:
            self._hashes[path] = files.sha256(temporary)
            line = {"command": self._command, "file": _name(path, self._folder), "sha256": self._hashes[path]}
            with self._locks.index():
                files.append_line(self._folder / JOURNAL, json.dumps(line))

    def _record_written(self) -> None:
        hashes = {}
        for path in self._targets:
            name = _name(path, self._folder)
            if path.is_file() and _version(path) != self._before[path]:
                hashes[path] = self._hashes.get(path) or files.sha256(path)
            elif path.is_file() and self._index.get(name):
                hashes[path] = self._index[name]
        deletions = [path for path in self._targets if path not in hashes]
        with self._locks.index():
            _record(self._folder, self._command, hashes, deletions=deletions)
            _forget_journal(self._folder, self._command, {_name(path, self._folder) for path in self._targets})
        self._locks.release()
        if self._is_new and not hashes:
            with contextlib.suppress(OSError):  # the folder contains other files
                self._folder.rmdir()

    def _refuse_inputs(self, existing: list[Path], foreign: list[Path], inputs: Iterable[Path | str]) -> None:
        targets: dict[Any, Path] = {identity: path for path in existing if (identity := _identity(path)) is not None}
        parents = {parent: path for path in foreign for parent in path.resolve().parents}
        replaced_inputs: dict[Path, None] = {}
        for item in inputs:
            input_path = Path(item)
            if (identity := _identity(input_path)) is not None and identity in targets:
                replaced_inputs[targets[identity]] = None
            if input_path.is_dir() and (above := input_path.resolve()) in parents:
                replaced_inputs.update(dict.fromkeys(path for path in foreign if above in path.resolve().parents))
        if own := list(replaced_inputs):
            raise UserError(
                f"{_path_list(own)} is an input of `{self._command}` and would be replaced by its output; choose "
                "another output"
            )

    def _refuse_folders(self, existing: list[Path]) -> None:
        if conflicts := [path for path in existing if path.is_dir() and not path.is_symlink()]:
            raise UserError(
                f"{_path_list(conflicts)} is a folder, but `{self._command}` writes a file of this name; choose "
                "another output"
            )

    def _foreign(self, existing: list[Path]) -> list[Path]:
        hashes = _known_hashes(self._folder, self._command) if existing else {}
        return [path for path in existing if not _is_own(path, hashes.get(_name(path, self._folder), ()))]


def write_once(
    contents: Mapping[Path, bytes], *, command: str, inputs: Iterable[Path | str] = (), overwrite: bool | None = False
) -> None:
    """Write files that runs depend on, such as splits; a file that already exists must have the same content.

    Unlike `Outputs`, this function does not replace files that the command itself has written, because runs may have
    used them.

    Args:
        contents: Content of each file. All files are checked before the first one is written.
        command: Program and verb.
        inputs: Files that the command reads; a folder represents the files in it.
        overwrite: Whether to replace files with another content, which are then named on standard error. Inputs are
            never replaced. None: the command has no such flag.

    Raises:
        UserError: A file exists with another content, is an input, or cannot be written.
    """
    changes = {path: content for path, content in contents.items() if not _holds(path, content)}
    other = [path for path in changes if os.path.lexists(path)]
    if other and not overwrite:
        raise UserError(
            f"{_path_list(other)} already exists with another content, and runs may have used it; choose another folder"
            + (" or move the file" if overwrite is None else ", move the file, or replace it with --overwrite")
        )
    Outputs(changes, command=command, inputs=inputs, overwrite=True)  # still refuses inputs and folders
    _tell_replaced(other)
    for path, content in changes.items():
        files.remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, content)


def run_files(folder: Path | str) -> Iterator[Path]:
    """Yield the files of a run or model folder, which a command that reads the folder never replaces.

    Files that other commands have written to the folder, such as evaluations and exports, are not among them. If
    `folder` is not a folder, it is yielded itself.
    """
    path = Path(folder)
    if not path.is_dir():
        yield path
        return
    output_names = {name for names in _read(path).values() for name in names} - _MODEL
    for file in path.iterdir():
        if (
            file.is_file()
            and file.suffix != ".html"
            and file.name not in {INDEX, JOURNAL, files.OUTPUTS_LOCK, *output_names}
        ):
            yield file
    for inner in ("model", "models", "checkpoints"):
        yield from (path / inner).rglob("*")


#: Files of a model, which are inputs also where a command such as `import-checkpoint` has written them.
_MODEL = {"model.json", "model.safetensors"}


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
    if folder.is_dir() and (entries := sorted(e.name for e in folder.iterdir() if not e.name.startswith("."))):
        raise UserError(
            f"{folder} is not empty (it contains {entries[0]}{', ...' if len(entries) > 1 else ''}), and `{command}` "
            "did not create it; expected a new or empty folder. Choose another output"
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


def _is_own(path: Path, hashes: Iterable[str]) -> bool:
    return bool(hashes) and path.is_file() and not path.is_symlink() and files.sha256(path) in hashes


def _known_hashes(folder: Path, command: str) -> dict[str, set[str]]:
    """Return the hashes of the versions of each file that a command has written or was about to write."""
    hashes: dict[str, set[str]] = {}
    for name, digest in [*_read(folder).get(command, {}).items(), *_read_journal(folder).get(command, [])]:
        if isinstance(digest, str):
            hashes.setdefault(name, set()).add(digest)
    return hashes


def _read_journal(folder: Path) -> dict[str, list[tuple[str, str]]]:
    # A damaged journal records nothing, see `_read`.
    entries: dict[str, list[tuple[str, str]]] = {}
    try:
        records = read_json_lines(folder / JOURNAL)
    except UserError:
        return {}
    for record in records:
        command, name, digest = (record.get(key) for key in ("command", "file", "sha256"))
        if isinstance(command, str) and isinstance(name, str) and isinstance(digest, str):
            entries.setdefault(command, []).append((name, digest))
    return entries


def _absorb_journal(folder: Path, command: str) -> dict[str, Any]:
    """Record what a command had written before it was killed, and return all that it has recorded."""
    entries = _read_journal(folder).get(command, [])
    hashes = {}
    for name, digest in entries:
        path = folder / name
        if path.is_file() and files.sha256(path) == digest:
            hashes[path] = digest
    if entries:
        _record(folder, command, hashes)
        _forget_journal(folder, command, {name for name, _ in entries})
    return _read(folder).get(command, {})


def _forget_journal(folder: Path, command: str, names: set[str]) -> None:
    """Remove a command's lines about these files from the journal, and the journal if no lines are left."""
    journal = folder / JOURNAL
    if not journal.is_file():
        return
    lines = [
        json.dumps({"command": other, "file": name, "sha256": digest})
        for other, entries in _read_journal(folder).items()
        for name, digest in entries
        if other != command or name not in names
    ]
    if lines:
        files.write_atomic(journal, "".join(f"{line}\n" for line in lines).encode())
    else:
        journal.unlink(missing_ok=True)


def refuse_twins(targets: list[Path], command: str) -> None:
    """Raise an error if one target would replace another one, possibly because the file system treats names as equal.

    On macOS and Windows, ``A`` and ``a`` name the same file, and so do the two Unicode forms of ``é``.
    """
    first_targets: dict[Path, Path] = {}
    for target in targets:
        other = first_targets.setdefault(target.parent / unicodedata.normalize("NFC", target.name).casefold(), target)
        if other is target:
            continue
        if other == target or not _tells_apart(target.parent, other.name, target.name):
            duplicate = (
                f"{target} twice" if other == target else f"{other} and {target.name}, which are the same file there"
            )
            raise UserError(
                f"`{command}` would write {duplicate}, and one result would be lost; rename the image or case that "
                "the file is named after, or choose another output"
            )


def _tells_apart(folder: Path, first: str, second: str) -> bool:
    """Return whether two names are two files in a folder, or in its nearest existing parent."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    tag = secrets.token_hex(4)
    probe, twin = (folder / f".{name}.{tag}.tmp" for name in (first, second))
    try:
        probe.touch()
    except OSError:  # the folder cannot be written to, which is reported later
        return True
    try:
        return not os.path.lexists(twin)
    finally:
        probe.unlink()


def _name(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # a broken link
        return None
    return status.st_dev, status.st_ino


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    # A damaged index counts as empty, so that nothing is replaced without --overwrite.
    try:
        content = read_json(folder / INDEX)
    except UserError:
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {command: names for command, names in items if isinstance(names, dict)}


def _record(folder: Path, command: str, hashes: dict[Path, Any], *, deletions: Iterable[Path] = ()) -> None:
    index = _read(folder)
    names = {**index.get(command, {}), **{_name(path, folder): digest for path, digest in hashes.items()}}
    for path in deletions:
        names.pop(_name(path, folder), None)
    index = {**index, command: names}
    if not any(index.values()):
        (folder / INDEX).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _path_list(paths: list[Path]) -> str:
    text = ", ".join(map(str, paths[:_SHOWN]))
    return text if len(paths) <= _SHOWN else f"{text} and {several(len(paths) - _SHOWN, 'more file')}"
