"""Plan what a command writes, so that it replaces nothing but its own files.

All targets are checked before the first one is written. A target that is one of the inputs is refused. A target that
exists is refused unless this command wrote it here, according to the index in the output folder, and nobody changed it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training import files

#: Files that commands wrote to this folder, by command: path and SHA-256, or null while they are being written.
INDEX = ".outputs.json"

_SHOWN = 3


@contextmanager
def writing(
    targets: Iterable[Path], *, command: str, inputs: Iterable[Path | str] = (), folder: Path | None = None,
    overwrite: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Check all targets, then let the block write them, and record them as files of this command.

    Args:
        targets: Every file that the block may write.
        command: Program and verb: "ssl-medseg predict".
        inputs: Every file that the command reads; a folder stands for the files directly in it.
        folder: Folder whose index records the files; None: that of the first target.
        overwrite: Replace files that this command did not write. Inputs are never replaced.

    Raises:
        UserError: A target is an input, a folder, or a file that this command did not write here.
    """
    wanted = list(dict.fromkeys(Path(target) for target in targets))
    if not wanted:
        yield
        return
    folder = wanted[0].parent if folder is None else Path(folder)
    check_targets(wanted, command=command, inputs=inputs, folder=folder, overwrite=overwrite)
    # Recorded before they are written: a command that is killed finds its files again.
    _record(folder, command, dict.fromkeys(wanted))
    try:
        yield
    finally:  # what a command wrote before it failed is its own, too
        written = {path: files.sha256(path) for path in wanted if path.is_file()}
        _record(folder, command, written, gone=[path for path in wanted if path not in written])


def check_targets(
    targets: Iterable[Path], *, command: str, inputs: Iterable[Path | str] = (), folder: Path, overwrite: bool = False
) -> None:
    """Refuse targets that would replace something else, see :func:`writing`.

    Raises:
        UserError: A target is an input, a folder, or a file that this command did not write here.
    """
    existing = [path for path in targets if os.path.lexists(path)]
    if not existing:
        return
    read = _identities(inputs)
    if own := [path for path in existing if _identity(path) in read]:
        raise UserError(
            f"{_listed(own)} would be replaced by the output of `{command}`, which reads it; choose another place for "
            "the output"
        )
    if blocked := [path for path in existing if path.is_dir() and not path.is_symlink()]:
        raise UserError(f"{_listed(blocked)}: is a folder where `{command}` writes a file; choose another place")
    if overwrite:
        return
    recorded = _read(folder).get(command, {})
    if foreign := [path for path in existing if not _is_own(path, folder, recorded)]:
        raise UserError(
            f"{_listed(foreign)} exists, and `{command}` did not write it here or it has been changed since; choose "
            "another place for the output, move the file away, or replace it with --overwrite"
        )


def _is_own(path: Path, folder: Path, recorded: dict[str, Any]) -> bool:
    name = _name(path, folder)
    if name not in recorded or path.is_symlink():
        return False
    return recorded[name] is None or recorded[name] == files.sha256(path)


def _name(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


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
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
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
