"""Read and write the model folder of a run: `model/model.safetensors` and `model/model.json`."""

from __future__ import annotations

import hashlib
import json
import shutil
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
    """Write the model folder `target` in one step, replacing an older one. Other files in it stay.

    Raises:
        TypeError: A value is not a tensor, or the metadata cannot be written as JSON.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} is a {type(tensor).__name__}; a model file holds tensors (see metadata for the rest)"
            )
    new = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    safetensors.torch.save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, new / _WEIGHTS
    )
    card = {"format": 2, "sha256": files.sha256(new / _WEIGHTS), "metadata": plain(metadata, "metadata")}
    write_card(new / _CARD, card)
    files.keep_others(target, new)
    files.replace_folder(new, target)
    return target


def model_files(folder: Path) -> tuple[Path, Path]:
    """The files that `save_model` writes to a folder."""
    return folder / _WEIGHTS, folder / _CARD


def load_model(
    folder: str | Path, *, formats: Collection[str] = (), remedy: str | Callable[[object], str] = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model that `Run.save_model` wrote.

    Args:
        folder: A run folder or its `model` folder.
        formats: Accepted values of ``format`` in the metadata; empty: any.
        remedy: What to do about another format, or a function of that format.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        UserError: There is no model, it is damaged, it has another format, or a newer version wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected a run folder, or the folder 'model' inside one")
    if (folder / "model" / _CARD).is_file():
        folder = folder / "model"
    card_path, weights_path = folder / _CARD, folder / _WEIGHTS
    if not card_path.is_file():
        if (folder / "config.yaml").is_file():
            raise UserError(
                f"{folder} holds a run that has not written its model yet (no model/{_CARD}); "
                "let it finish, or resume it with --resume"
            )
        raise UserError(
            f"{folder} holds no model: expected {_CARD} and {_WEIGHTS} in it, or in a folder 'model' inside it"
        )
    if not weights_path.is_file():
        raise UserError(f"{weights_path} is missing beside {_CARD}; restore it from a copy, or write the model again")
    card = read_json(card_path)
    with reading(card_path, "is damaged", "restore it from a copy, or write the model again"):
        version, digest, metadata, stated = (card[key] for key in ("format", "sha256", "metadata", "card_sha256"))
    if version != 2:
        raise UserError(f"{card_path} has format {version}; this version reads format 2. Update contrastive-core")
    if stated != _card_hash(card) or not isinstance(metadata, dict):
        raise UserError(
            f"{card_path} was changed after it was written: its content does not have the hash that it states. Restore "
            "it from a copy, or write the model again"
        )
    if files.sha256(weights_path) != digest:
        raise UserError(
            f"{weights_path} is damaged: its content is not what {_CARD} says was written. "
            "Restore it from a copy, or write the model again"
        )
    found = metadata.get("format")
    if formats and found not in formats:
        expected = " or ".join(map(repr, formats))
        todo = remedy if isinstance(remedy, str) else remedy(found)
        raise UserError(f"{folder}: found a model of format {found!r}, expected {expected}; {todo}")
    with reading(weights_path, "cannot be read", "restore it from a copy"):
        return safetensors.torch.load_file(weights_path), metadata


def build_from(build: Callable[[], M], tensors: Mapping[str, Tensor], *, source: object) -> M:
    """Build the network that a model.json describes and load its weights.

    The shapes are compared before memory is taken, because a changed model.json may state any size.

    Args:
        build: Function that builds the network, randomly initialised.
        tensors: Its weights.
        source: Model folder, for errors.

    Raises:
        UserError: The network cannot be built, or has other weights.
    """
    remedy = "the file was changed by hand, or a newer version wrote it"
    with reading(str(source), "model.json does not describe the network that is in the folder", remedy):
        try:
            with torch.device("meta"):
                described = build().state_dict()
        except (NotImplementedError, RuntimeError):
            # A network whose course depends on values, which these tensors do not have. If something else is wrong with
            # it, that shows here again.
            described = build().state_dict()
        for name in sorted({*described, *tensors}):
            shapes = [list(each[name].shape) if name in each else "missing" for each in (described, tensors)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name} is {shapes[0]} by model.json and {shapes[1]} in the weights")
        network = build()
        network.load_state_dict(tensors)
    return network


def write_card(file: Path, card: Mapping[str, Any]) -> None:
    """Write model.json with a hash of its own content."""
    signed = {**card, "card_sha256": _card_hash(card)}
    files.write_atomic(file, (json.dumps(signed, indent=1) + "\n").encode())


def _card_hash(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 hash of model.json without this hash."""
    content = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def module_hash(module: nn.Module) -> str:
    """Return the SHA-256 hash of names and bytes of all parameters and buffers, for comparing two states."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
