"""Damaged and unfinished checkpoints: the previous one is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import checkpoint, files


def three(folder: Path) -> list[Path]:
    return [checkpoint.save(folder, step, {"x": torch.full((50,), float(step)), "n": step}) for step in (10, 20, 30)]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncated tensors": (
        lambda p: (p / "tensors.safetensors").write_bytes(b"x" * 20),
        "tensors.safetensors has 20 bytes",
    ),
    "flipped bit in tensors": (
        lambda p: flip(p / "tensors.safetensors", -5),
        "tensors.safetensors does not have the hash",
    ),
    "flipped bit in the header": (
        lambda p: flip(p / "tensors.safetensors", 9),
        "tensors.safetensors does not have the hash",
    ),
    "flipped bit in state": (
        lambda p: flip(p / "state.json", 30),
        "state.json does not have the hash in manifest.json",
    ),
    "missing tensors": (lambda p: (p / "tensors.safetensors").unlink(), "tensors.safetensors cannot be read: No such"),
    "missing state": (lambda p: (p / "state.json").unlink(), "state.json cannot be read: No such"),
    "missing manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
    "empty manifest": (lambda p: (p / "manifest.json").write_text(""), "manifest.json cannot be read"),
    "other manifest": (
        lambda p: shutil.copy(p.parent / "step-000020" / "manifest.json", p),
        "manifest.json states step 20",
    ),
    "a list as manifest": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "empty folder": (lambda p: [file.unlink() for file in list(p.iterdir())], "manifest.json cannot be read"),
    "all zeros": (
        lambda p: (p / "state.json").write_bytes(bytes((p / "state.json").stat().st_size)),
        "state.json does not",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    *_, before, last = three(tmp_path)
    act, expected = DAMAGE[damage]
    act(last)
    said: list[str] = []
    assert checkpoint.newest_good(tmp_path, say=said.append) == before
    assert checkpoint.load(before)["n"] == 20
    assert len(said) == 1
    assert expected in said[0]
    assert "step-000030.damaged" in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000020", "step-000030.damaged"]
    said.clear()
    assert checkpoint.newest_good(tmp_path, say=said.append) == before
    assert said == []


def test_every_bit_of_the_manifest_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 10, {"n": 1, "x": torch.ones(3)})
    size = (path / "manifest.json").stat().st_size
    for position in range(size):
        flip(path / "manifest.json", position)
        try:
            checkpoint.verify(path)
            assert checkpoint.load(path)["n"] == 1
        except (checkpoint.Damaged, UserError):
            pass
        flip(path / "manifest.json", position)
    checkpoint.verify(path)


def test_all_damaged(tmp_path: Path) -> None:
    for path in three(tmp_path):
        flip(path / "state.json", 30)
    with pytest.raises(UserError, match=r"(?s)all checkpoints.*step-000030: .*step-000010: .*--out"):
        checkpoint.newest_good(tmp_path, say=pytest.fail)
    assert len(checkpoint.listing(tmp_path)) == 3


def test_a_newer_format_is_not_called_damage(tmp_path: Path) -> None:
    manifest = three(tmp_path)[-1] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(UserError, match=r"format 2; this version reads format 1\. Update"):
        checkpoint.newest_good(tmp_path, say=pytest.fail)


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.newest_good(tmp_path / "none", say=pytest.fail) is None
    (tmp_path / ".step-000010.tmp").mkdir()
    assert checkpoint.newest_good(tmp_path, say=pytest.fail) is None


def test_prune_keeps_the_newest_and_clears_leftovers(tmp_path: Path) -> None:
    three(tmp_path)
    checkpoint.save(tmp_path, 1000000, {})
    for leftover in (".step-000040.tmp", ".step-000010.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "tensors.safetensors").write_bytes(b"x")
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000030", "step-1000000"]
    assert checkpoint.newest_good(tmp_path, say=pytest.fail) == tmp_path / "step-1000000"


def test_a_checkpoint_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at every call that touches the disk, as a kill would, and look at the result."""
    good = checkpoint.save(tmp_path, 10, {"n": 1})

    class Killed(BaseException):
        pass

    calls = 0
    for limit in range(100):
        calls = 0

        def count(real: Any, limit: int = limit) -> Any:
            def wrapped(*args: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > limit:
                    raise Killed
                return real(*args, **keywords)

            return wrapped

        with monkeypatch.context() as patch:
            for owner, name in (
                (files.os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text"),
                (checkpoint.safetensors.torch, "save_file"),
            ):  # fmt: skip
                patch.setattr(owner, name, count(getattr(owner, name)))
            try:
                checkpoint.save(tmp_path, 20, {"n": 2, "x": torch.ones(3)})
                break
            except Killed:
                pass
        newest = checkpoint.newest_good(tmp_path, say=pytest.fail)
        assert newest is not None
        assert checkpoint.load(newest)["n"] == (1 if newest == good else 2)
        checkpoint.prune(tmp_path, keep=2)
        assert not list(tmp_path.glob(".*"))
        shutil.rmtree(tmp_path / "step-000020", ignore_errors=True)
    assert calls >= 9  # three files, two folders, renames: the loop above saw them all
