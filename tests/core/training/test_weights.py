"""Weights of other programs: what is read, under which names, and that no code in a file runs."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from contrastive_core.errors import UserError
from contrastive_core.training.weights import read_state_dict, read_tensors

WEIGHTS = {"conv.weight": torch.arange(4.0), "steps": torch.tensor(3)}


def test_a_state_dictionary_is_found_in_a_checkpoint(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())


def test_safetensors_give_the_same(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "a.safetensors")
    found = read_state_dict(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())


def test_nested_tensors_are_named_by_their_path_in_float32(tmp_path: Path) -> None:
    content = {"nets": [{"module.conv": torch.ones(2, dtype=torch.float16)}], "n": torch.tensor(3), "name": "x"}
    torch.save(content, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert found["nets.0.conv"].dtype == torch.float32
    assert set(found) == {"nets.0.conv", "n"}


def test_names_that_differ_in_a_wrapper_alone_must_hold_the_same(tmp_path: Path) -> None:
    torch.save({"conv": torch.ones(2), "module.conv": torch.ones(2)}, tmp_path / "same.pt")
    assert set(read_tensors(tmp_path / "same.pt")) == {"conv"}
    torch.save({"conv": torch.ones(2), "module.conv": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"contains module\.conv and another tensor of the same name without module"):
        read_tensors(tmp_path / "other.pt")


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize("read", [read_state_dict, read_tensors])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Code()}, "code.pth")
    with pytest.raises(UserError, match="could run code"):
        read(Path("code.pth"))  # type: ignore[operator]
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pth", None, "does not exist"),
        ("cut.pth", b"PK\x03\x04cut", "cannot be read as weights"),
        ("empty.pth", b"", "cannot be read as weights: the file is empty"),
        ("text.pth", b"hello", "cannot be read as weights: it is no file of torch.save"),
        ("words.pth", b"What it is", "cannot be read as weights: it is no file of torch.save"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, .* `git lfs pull`"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("empty.safetensors", b"", "the file is empty"),
        ("page.pth", b"\n<!DOCTYPE html><html>404</html>", "a web page or XML, probably an error message"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "it is JSON; expected the file of weights that it"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "a file of HDF5"),
        ("net.onnx", b"\x08\x07\x12\x07pytorch", "a model in ONNX; save only the weights"),
        ("cut.safetensors", b"\xff" * 30, "damaged or not a safetensors file"),
    ],
)
def test_missing_and_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(tmp_path / name)


def test_archives_of_other_programs_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "jax.npz", kernel=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{member}", b"")
    for name, message in (
        ("jax.npz", "arrays of NumPy"),
        ("script.pt", r"a TorchScript program, .* torch\.save\(model"),
    ):
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / name)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="contains no state dictionary"):
        read_state_dict(tmp_path / "a.pth")
    with pytest.raises(UserError, match="without tensors"):
        read_tensors(tmp_path / "a.pth")


def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 22)}, file)
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert len(read_tensors(file)) == 1
    with pytest.raises(UserError, match=r"packed\.pt has .* and unpacks to 16\.8 MB"):
        read_tensors(tmp_path / "packed.pt")


@pytest.mark.parametrize("read", [read_state_dict, read_tensors])
def test_weights_of_a_diverged_training_are_refused(
    tmp_path: Path, read: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    masked = {"mask": torch.tensor([0.0, -torch.inf]), "steps": torch.tensor(3)}
    torch.save(masked, tmp_path / "masked.pth")
    assert set(read(tmp_path / "masked.pth")) == set(masked)
    torch.save({**masked, "conv.weight": torch.tensor([1.0, torch.nan]).bfloat16()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth holds values that are not numbers \(NaN\) in conv\.weight"):
        read(tmp_path / "a.pth")
