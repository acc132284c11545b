"""Read and write the model folder of a run: `model/model.safetensors` and `model/model.json`."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.config import plain
from contrastive_core.training.documents import read_json, reading

M = TypeVar("M", bound=nn.Module)

_WEIGHTS, _CARD = "model.safetensors", "model.json"


def save_model(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> Path:
    """Write the model folder `target` in one step, replacing an older model; other files in the folder are kept.

    Args:
        target: Model folder.
        tensors: Tensors by name.
        metadata: Values that `plain` can convert, by name.

    Returns:
        The model folder.

    Raises:
        TypeError: A value is not a tensor, or the metadata cannot be written as JSON.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} is a {type(tensor).__name__}, expected a tensor; pass other values in the metadata"
            )
    # Clone the tensors, because safetensors does not accept tensors that share memory, such as tied weights.
    clones = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with files.atomic_folder(target) as new:
        write_tensors(new / _WEIGHTS, clones)
        card = {"format": 2, "sha256": files.sha256(new / _WEIGHTS), "metadata": plain(metadata, "metadata")}
        write_card(new / _CARD, card)
        files.keep_others(target, new)
    return target


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that whoever may read other new files in its folder can read.

    safetensors 0.8 makes files that only their owner can read, whatever the umask.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)  # with the umask and the access list of the folder
    safetensors.torch.save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


def model_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the files that `save_model` writes to a folder."""
    return folder / _WEIGHTS, folder / _CARD


def load_model(
    folder: str | Path, *, formats: Collection[str] = (), remedy: str | Callable[[object], str] = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model that `Run.save_model` wrote.

    Args:
        folder: Run folder, or its `model` folder.
        formats: Accepted values of ``format`` in the metadata; any value if empty.
        remedy: What the user should do about another format, or a function that returns it for a given format.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        UserError: There is no model, the model is damaged, it has another format, or a newer version has written it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected a run folder or its folder 'model'")
    if (folder / "model" / _CARD).is_file():
        folder = folder / "model"
    card_path, weights_path = folder / _CARD, folder / _WEIGHTS
    if not card_path.is_file():
        if (folder / "config.yaml").is_file():
            raise UserError(
                f"{folder} contains a run that has not written its model yet (there is no model/{_CARD}); "
                "let the run finish, or resume it with --resume"
            )
        raise UserError(
            f"{folder} contains no model; expected {_CARD} and {_WEIGHTS} in this folder or in its folder 'model'"
        )
    if not weights_path.is_file():
        raise UserError(f"{weights_path} does not exist; restore it from a copy, or write the model again")
    card = read_json(card_path)
    with reading(card_path, "is damaged", "restore it from a copy, or write the model again"):
        version, digest, metadata, card_digest = (card[key] for key in ("format", "sha256", "metadata", "card_sha256"))
    if version != 2:
        raise UserError(f"{card_path} has format {version}; this version reads format 2. Update contrastive-core")
    if card_digest != _card_hash(card) or not isinstance(metadata, dict):
        raise UserError(
            f"{card_path} was changed after it was written: its content does not match the hash stated in it. Restore "
            "it from a copy, or write the model again"
        )
    if files.sha256(weights_path) != digest:
        raise UserError(
            f"{weights_path} is damaged: its content does not match the hash stated in {_CARD}. "
            "Restore it from a copy, or write the model again"
        )
    model_format = metadata.get("format")
    if formats and model_format not in formats:
        expected = " or ".join(map(repr, formats))
        hint = remedy if isinstance(remedy, str) else remedy(model_format)
        raise UserError(f"{folder}: found a model of format {model_format!r}, expected {expected}; {hint}")
    with reading(weights_path, "cannot be read", "restore it from a copy"):
        return safetensors.torch.load_file(weights_path), metadata


def build_from(build: Callable[[], M], tensors: Mapping[str, Tensor], *, source: object) -> M:
    """Build the network that a model.json describes and load its weights.

    Shapes are compared before memory is allocated, because a changed model.json may state any size.

    Args:
        build: Function that builds the network, randomly initialised.
        tensors: Weights of the network.
        source: Model folder, for error messages.

    Raises:
        UserError: The network cannot be built, or its weights have other names or shapes.
    """
    remedy = "the file was edited, or was written by a newer version"
    # The random weights are replaced, so the generator of the program that loads a model stays as it is.
    fork = torch.random.fork_rng(devices=())
    with fork, reading(str(source), "model.json does not describe the network that is in the folder", remedy):
        try:
            with torch.device("meta"):
                expected = build().state_dict()
        except (NotImplementedError, RuntimeError) as error:
            if "overflow" in str(error):  # the stated size exceeds any memory
                raise
            # The network may depend on values, which tensors on the meta device do not have. Any other problem occurs
            # again here.
            expected = build().state_dict()
        for name in sorted({*expected, *tensors}):
            shapes = [list(each[name].shape) if name in each else "missing" for each in (expected, tensors)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name} is {shapes[0]} according to model.json and {shapes[1]} in the weights")
        network = build()
        network.load_state_dict(tensors)
    return network


def write_card(file: Path, card: Mapping[str, Any]) -> None:
    """Write model.json together with a hash of its content."""
    content = {**card, "card_sha256": _card_hash(card)}
    files.write_atomic(file, (json.dumps(content, indent=1) + "\n").encode())


def _card_hash(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 hash of model.json without this hash."""
    content = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def module_hash(module: nn.Module) -> str:
    """Return the SHA-256 hash of the names and bytes of all parameters and buffers, for comparing two states."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
