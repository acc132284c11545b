"""Files that several processes write at the same time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from contrastive_core.train.files import write_atomic


def _write(file: Path, letter: bytes) -> None:
    for _ in range(200):
        write_atomic(file, letter * 5000)


def test_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = tmp_path / "shared"
    start = multiprocessing.get_context("fork")
    writers = [start.Process(target=_write, args=(file, letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert file.read_bytes() in (b"a" * 5000, b"b" * 5000, b"c" * 5000)
    assert list(tmp_path.iterdir()) == [file]
