"""Write and read checkpoints: folders of JSON and safetensors with a hash of every file, without pickle.

A checkpoint is a folder `step-000123`. It is written under a hidden name, flushed to disk and renamed; older
checkpoints are deleted only afterwards. Every hash is verified before any content is used.

`encode` splits a state dictionary into a JSON value and a flat mapping of tensors; `decode` inverts it. The types of
containers, integer keys, infinities and tensors of any dtype and dimension, including 0, are restored exactly. Scalars
and strings are stored as they are. Every other value is stored as an object with one key that names its type::

    {"dict": {...}}       string keys            {"tensor": name}
    {"items": [[k, v]]}   other keys             {"raw": name, "dtype": "complex128", "shape": [2]}
    {"list": [...]}       {"tuple": [...]}       {"float": "nan"}
    {"ordered": value}    an OrderedDict         {"counter": value}    a Counter
    {"module": value, "metadata": value}         the result of nn.Module.state_dict()
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import read_json, reading
from contrastive_core.training.model_file import write_tensors
from contrastive_core.training.processes import Processes

# Types that the safetensors format stores; others are stored as bytes.
_PLAIN = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip


def encode(value: object, *, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Split `value` into a JSON value and tensors on the CPU, named by their path below `name`.

    Raises:
        TypeError: The value contains objects other than tensors, numbers, strings, None, dict, list and tuple.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def tensor(x: Tensor, place: str) -> Any:
        if x.layout != torch.strided or x.is_quantized or x.is_meta or hasattr(x, "device_mesh"):
            raise TypeError(
                f"{place} is a tensor that a checkpoint cannot store (layout {x.layout}, device {x.device}, type "
                f"{type(x).__name__}); expected a dense tensor that is complete on every process"
            )
        x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # safetensors does not accept tensors that share memory, such as tied weights, and a view must not store all of
        # its memory.
        if x.untyped_storage().data_ptr() in storages or x.untyped_storage().nbytes() != x.nbytes:
            x = x.clone()
        storages.add(x.untyped_storage().data_ptr())
        key = place
        while key in tensors:  # two paths may have the same text: {"a": {"b": x}, "a.b": y}
            key += "'"
        if x.dtype in _PLAIN:
            tensors[key] = x
            return {"tensor": key}
        tensors[key] = x.reshape(-1).view(torch.uint8)
        return {"raw": key, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}

    def mapping(x: Mapping[Any, Any], place: str) -> Any:
        if all(type(key) is str for key in x):
            return {"dict": {key: walk(item, f"{place}.{key}") for key, item in x.items()}}
        return {"items": [[walk(key, f"{place} (key)"), walk(item, f"{place}.{key}")] for key, item in x.items()]}

    def walk(x: object, place: str) -> Any:  # noqa: PLR0911 - one line per kind of value
        if x is None or isinstance(x, (bool, int, str)):
            return x
        if isinstance(x, float):
            return float(x) if math.isfinite(x) else {"float": repr(float(x))}
        if isinstance(x, Tensor):
            return tensor(x, place)
        if type(x) is list:
            return {"list": [walk(item, f"{place}.{i}") for i, item in enumerate(x)]}
        if type(x) in (tuple, torch.Size):
            return {"tuple": [walk(item, f"{place}.{i}") for i, item in enumerate(x)]}  # type: ignore[var-annotated,arg-type]
        if type(x) is OrderedDict and hasattr(x, "_metadata"):
            return {"module": mapping(x, place), "metadata": walk(dict(x._metadata), f"{place} (metadata)")}
        if type(x) is OrderedDict:
            return {"ordered": mapping(x, place)}
        if type(x) is Counter:
            return {"counter": mapping(x, place)}
        if type(x) is dict:
            return mapping(x, place)
        raise TypeError(
            f"{place} is a {type(x).__name__}, which a checkpoint cannot store; expected tensors, numbers, strings, "
            "None, or a dict, list or tuple of them"
        )

    return walk(value, name), tensors


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Invert `encode`."""

    def raw(x: dict[str, Any]) -> Tensor:
        return tensors[x["raw"]].view(getattr(torch, x["dtype"])).reshape(x["shape"])

    def module(x: dict[str, Any]) -> OrderedDict[str, Any]:
        state: OrderedDict[str, Any] = OrderedDict(walk(x["module"]))
        state._metadata = OrderedDict(walk(x["metadata"]))  # type: ignore[attr-defined]
        return state

    kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "dict": lambda x: {key: walk(item) for key, item in x["dict"].items()},
        "items": lambda x: {walk(key): walk(item) for key, item in x["items"]},
        "list": lambda x: [walk(item) for item in x["list"]],
        "tuple": lambda x: tuple(walk(item) for item in x["tuple"]),
        "ordered": lambda x: OrderedDict(walk(x["ordered"])),
        "counter": lambda x: Counter(walk(x["counter"])),
        "module": module,
        "tensor": lambda x: tensors[x["tensor"]],
        "raw": raw,
        "float": lambda x: float(x["float"]),
    }

    def walk(x: Any) -> Any:
        return kinds[next(iter(x))](x) if isinstance(x, dict) else x

    return walk(value)


_OTHER_VERSION = "resume with the version of the program that wrote it"
# Key of the Position in a checkpoint, in addition to the tracked objects.
_POSITION = "_run"


class Stateful(Protocol):
    """Object whose state can be stored in a checkpoint."""

    def state_dict(self) -> Any:
        """Return the state: everything that changes during training."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore the state."""


class Unchanged:
    """Checkpoint entry with a hash of something that must be the same when a run is resumed, such as its data.

    Args:
        digest: Hash.
        message: Error if the hash differs: what has changed, and what to do.

    Raises:
        UserError: On loading, the hash differs.
    """

    def __init__(self, digest: str, message: str) -> None:
        self._digest, self._message = digest, message

    def state_dict(self) -> dict[str, str]:
        """Return the hash."""
        return {"sha256": self._digest}

    def load_state_dict(self, state_dict: Mapping[str, str], /) -> None:
        """Compare the stored hash with the present one."""
        if state_dict["sha256"] != self._digest:
            raise UserError(self._message)


@dataclass(frozen=True)
class Position:
    """Position from which a run resumes.

    Attributes:
        step: Next step.
        metrics_bytes: Size in bytes of the metrics file up to that step.
        world_size: Number of processes.
        precision: State of mixed precision, which is the loss scale.
    """

    step: int = 0
    metrics_bytes: int = 0
    world_size: int = 1
    precision: dict[str, Any] = field(default_factory=dict)


class Snapshots:
    """Checkpoints of one run.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self._keep = folder, keep
        self._objects: dict[str, Stateful] = {}

    def track(self, name: str, stateful: Stateful) -> None:
        """Add an object whose state is stored in the checkpoints.

        Raises:
            TypeError: The object has no state_dict and load_state_dict.
            ValueError: The name is already in use.
        """
        if not (hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")):
            raise TypeError(
                f"{name} is a {type(stateful).__name__}; expected an object with state_dict and load_state_dict"
            )
        if name in self._objects or name == _POSITION:
            raise ValueError(f"the name {name!r} is already in use; track every object once, under a unique name")
        self._objects[name] = stateful

    def restore(self, processes: Processes, *, say: Callable[[str], None]) -> Position:
        """Restore the tracked objects on every process from the newest undamaged checkpoint.

        Damaged checkpoints are renamed and reported to `say`.

        Returns:
            Position of the checkpoint, or the start of the run if there is no checkpoint.

        Raises:
            UserError: All existing checkpoints are damaged, or the newest one does not contain the tracked objects.
        """
        path = processes.on_main(lambda: self._newest(say))
        if path is None:
            return Position()
        position = self._load(path)
        say(f"resumed from {path}")
        if position.world_size != processes.world_size:
            say(
                f"note: the checkpoint was written by a run on {position.world_size} process(es); this run has "
                f"{processes.world_size}"
            )
        return position

    def bytes_of_one(self) -> int:
        """Estimate the size of a checkpoint in bytes; an optimiser that has no state yet is counted as Adam."""
        tensors: dict[str, Tensor] = {}
        fresh = 0
        for name, stateful in self._objects.items():
            state = stateful.state_dict()
            tensors.update(encode(state, name=name)[1])
            if isinstance(stateful, Optimizer) and not state.get("state"):
                fresh += 2 * sum(p.numel() * 4 for group in stateful.param_groups for p in group["params"])
        return fresh + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def save(self, position: Position) -> None:
        """Write the state of the tracked objects and delete old checkpoints.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        state = {name: stateful.state_dict() for name, stateful in self._objects.items()}
        with files.name_in_errors(self.folder):
            save(self.folder, position.step, {**state, _POSITION: dict(vars(position))})
        prune(self.folder, keep=self._keep)

    def _newest(self, say: Callable[[str], None]) -> Path | None:
        path = newest_good(self.folder, say=say)
        prune(self.folder, keep=self._keep)
        return path

    def _load(self, path: Path) -> Position:
        state = load(path)
        with reading(path, "contains no valid position", _OTHER_VERSION):
            position = from_plain(Position, state.pop(_POSITION), "position")
        self._check_names(path, state)
        for name, stateful in self._objects.items():
            with reading(path, f"does not match this program: the state of {name} cannot be loaded", _OTHER_VERSION):
                stateful.load_state_dict(state[name])
                if isinstance(stateful, Optimizer):
                    _lay_out_as_parameters(stateful)
        return position

    def _check_names(self, path: Path, state: Mapping[str, Any]) -> None:
        if {*state} != {*self._objects}:
            raise UserError(
                f"{path} contains {', '.join(sorted(state)) or 'nothing'}, but this program tracks "
                f"{', '.join(sorted(self._objects)) or 'nothing'} (call track before restore, batches and steps). "
                "Resume with the version of the program that wrote it"
            )


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give the tensors of an optimiser's state the memory layout of their parameters, as the optimiser creates them.

    Tensors from a checkpoint are contiguous. torch's fused CPU optimisers traverse parameter and state in memory order,
    so that with parameters in channels_last every element would silently be combined with the state of another one.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


_NAME = re.compile(r"step-(\d{6,})")
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_FILES = (_TENSORS, _STATE)
_FORMAT = 1


class Damaged(Exception):  # noqa: N818
    """The files of a checkpoint do not match its manifest."""


def listing(folder: Path) -> list[tuple[int, Path]]:
    """List the checkpoints in `folder` as (step, path), oldest first."""
    if not folder.is_dir():
        return []
    checkpoints = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(checkpoints)


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after `step` steps and return the folder, which gets its final name once it is on the disk."""
    target = folder / f"step-{step:06d}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        files.sync(folder.parent)
    tree: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tree[name], own = encode(value, name=name)
        tensors.update(own)
    with files.atomic_folder(target) as new:
        write_tensors(new / _TENSORS, tensors)
        (new / _STATE).write_text(json.dumps(tree, indent=1, allow_nan=False), encoding="utf-8")
        manifest = {
            "format": _FORMAT,
            "step": step,
            "files": {
                name: {"bytes": (new / name).stat().st_size, "sha256": files.sha256(new / name)} for name in _FILES
            },
        }
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        Damaged: A file is missing, shortened or changed.
        UserError: The checkpoint has the format of a newer version of this library.
    """
    try:
        with reading(path / _MANIFEST, "cannot be read", "restore it from a copy"):
            manifest = read_json(path / _MANIFEST)
            version, step = manifest["format"], manifest["step"]
            expected = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in _FILES}
    except UserError as error:
        raise Damaged(f"{_MANIFEST} cannot be read: {error}") from error
    if not isinstance(step, int) or path.name != f"step-{step:06d}":
        raise Damaged(f"{_MANIFEST} states step {step}")
    for name, (size, digest) in expected.items():
        try:
            found_size, found_digest = (path / name).stat().st_size, files.sha256(path / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
        if found_size != size:
            raise Damaged(f"{name} has {found_size} bytes instead of {size}")
        if found_digest != digest:
            raise Damaged(f"{name} does not have the hash in {_MANIFEST}")
    if version != _FORMAT:
        raise UserError(f"{path} has format {version}; this version reads format {_FORMAT}. Update contrastive-core")


def load(path: Path) -> dict[str, Any]:
    """Load the state of a verified checkpoint, with tensors on the CPU.

    Raises:
        UserError: The files are intact but do not contain the state of a run, because another program wrote them.
    """
    tree = read_json(path / _STATE)
    with reading(path, "does not contain the state of a run", _OTHER_VERSION):
        tensors = safetensors.torch.load_file(path / _TENSORS)
        return {name: decode(value, tensors) for name, value in tree.items()}


def newest_good(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there is no checkpoint at all.

    Newer damaged checkpoints are renamed to `<name>.damaged` and reported to `say`.

    Raises:
        UserError: All existing checkpoints are damaged.
    """
    problems: dict[Path, str] = {}
    for _, path in reversed(listing(folder)):
        try:
            verify(path)
        except Damaged as problem:
            problems[path] = str(problem)
            continue
        for damaged, text in problems.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
            say(
                f"warning: checkpoint {damaged} is damaged ({text}); it was renamed to {aside.name}, and the previous "
                "checkpoint is used"
            )
        return path
    if problems:
        lines = "\n".join(f"  {path}: {text}" for path, text in problems.items())
        raise UserError(
            f"all checkpoints of this run are damaged:\n{lines}\nexpected at least one undamaged checkpoint. Restore "
            "the folder from a copy, or start again with another --out"
        )
    return None


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and the remains of interrupted writes and deletions."""
    _delete_hidden(folder)
    for _, path in listing(folder)[:-keep]:
        # Rename first, so that a kill during the deletion leaves no incomplete checkpoint under its name.
        path.rename(path.with_name(f".{path.name}.old"))
    _delete_hidden(folder)


def _delete_hidden(folder: Path) -> None:
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
