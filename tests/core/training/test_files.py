"""Files that several processes write at the same time."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from contrastive_core.training.checkpoint import save
from contrastive_core.training.documents import read_json_lines
from contrastive_core.training.files import append_line, name_in_errors, open_atomic, write_atomic
from contrastive_core.training.model_file import save_model


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


def test_what_fails_half_way_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(OSError, match="disk"), open_atomic(path) as file:  # noqa: PT012 - what stands before the error
        file.write(b"new" * 100_000)
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_a_full_disk_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space") as caught, open_atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as from a write, which knows no name
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
    # safetensors raises an exception of its own.
    with pytest.raises(OSError, match="No such file") as caught, name_in_errors(path):
        save_file({"x": torch.zeros(9)}, tmp_path / "missing" / "file")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


def test_a_line_that_fits_in_part_does_not_damage_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, '{"index": 1}')
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, content, write=os.write: write(file, content[:5]))
        with pytest.raises(OSError, match="No space") as caught:
            append_line(log, '{"index": 2}')
    assert caught.value.filename == str(log)
    append_line(log, '{"index": 3}')
    assert [record["index"] for record in read_json_lines(log)] == [1, 3]


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_folders_that_do_not_fit_leave_nothing_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def write(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", write)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 1, {"x": torch.zeros(9)}) if kind == "checkpoint" else save_model(tmp_path / "m", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_equal_process_numbers_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers that share a folder
    path = tmp_path / "file"
    with open_atomic(path) as first:
        with open_atomic(path) as second:
            first.write(b"first")
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
