"""Run options of all training commands and the resolved configuration of a run.

The configuration is written to the run folder when the run starts and compared when it is resumed.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.documents import read_yaml

T = TypeVar("T")

#: Settings of the execution of a run that do not affect its result; a resumed run may change them.
FREE_ON_RESUME = frozenset(
    {
        "device",
        "workers",
        "threads",
        "checkpoint_every",
        "keep_checkpoints",
        "resume",
        "tensorboard",
        "wandb",
        "progress",
    }
)


DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""Device to run on; auto selects CUDA, else MPS, else the CPU."""

FixedPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Number format of the model: float32, or automatic mixed precision."""

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""Number format of the model, or auto, which selects bfloat16 where it is fast."""


@dataclass(frozen=True)
class RunOptions:
    """Options for executing, logging and saving a run.

    Args:
        seed: Seed of all random draws.
        device: Device to run on: auto, cpu, cuda or mps. auto takes CUDA, then MPS, then the CPU. Results differ by
            rounding between devices.
        precision: Number format of the model: 32-true is float32; bf16-mixed and 16-mixed are automatic mixed
            precision; auto selects bf16-mixed on devices with bfloat16 arithmetic, and 32-true elsewhere, where
            bf16-mixed is emulated and can take ten times as long.
        compile: Whether to compile the model with torch.compile.
        workers: Number of data loading processes; 0 loads in a thread of the training process. The result does not
            depend on it. No effect in ssl-medseg, whose slices are in memory.
        threads: Number of CPU threads; 0 keeps torch's default. Results differ by rounding between numbers of threads.
        log_every: Number of steps between two lines of metrics.
        checkpoint_every: Number of steps between two checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep on disk.
        resume: Whether to continue from the newest checkpoint of the run folder.
        tensorboard: Whether to also write metrics for TensorBoard (extra "tensorboard").
        wandb: Whether to also send metrics to Weights & Biases (extra "wandb").
        progress: Whether to show a progress bar in a terminal, or a line every few seconds elsewhere.
    """

    seed: int = 0
    device: DeviceName = "auto"
    precision: Precision = "32-true"
    compile: bool = False
    workers: int = 0
    threads: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    resume: bool = False
    tensorboard: bool = False
    wandb: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_counts(self, seed=0, workers=0, threads=0, log_every=1, checkpoint_every=1, keep_checkpoints=1)
        check_choices(self, device=DeviceName, precision=Precision)


@dataclass(frozen=True)
class InferenceOptions:
    """Batch size and device of a command that applies a model without training it.

    Args:
        batch_size: Number of samples per forward pass. The result does not depend on it, except by rounding.
        device: Device to run on: auto, cpu, cuda or mps.
    """

    batch_size: int = 256
    device: DeviceName = "auto"

    def __post_init__(self) -> None:
        check_counts(self, batch_size=1)
        check_choices(self, device=DeviceName)


@dataclass(frozen=True)
class SkipOptions:
    """Limit for unreadable samples.

    Args:
        max_bad: Largest fraction of unreadable samples that does not stop the command; above 0, at least one sample.
            They are listed.
    """

    max_bad: float = 0.0

    def __post_init__(self) -> None:
        allowed_bad(self.max_bad, 0)


@dataclass(frozen=True)
class DrawOptions:
    """Numbers of samples to label and to hold out, and draws of the labelled ones. Each package has its own defaults.

    Args:
        fractions: Fractions of the samples to label.
        per_class: Numbers of samples of each class to label.
        draws: Number of independent draws of labelled samples.
        validation_fraction: Fraction of the samples to hold out for choosing settings; 0 for none.
        seed: Seed of all random draws.
    """

    fractions: tuple[float, ...]
    per_class: tuple[int, ...] = ()
    draws: int = 3
    validation_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, seed=0)
        invalid = [f"{fraction:g}" for fraction in self.fractions if not 0 < fraction <= 1]
        if invalid:
            raise UserError(f"fractions contains {', '.join(invalid)}; expected shares above 0 and up to 1")
        few = [str(count) for count in self.per_class if count < 1]
        if few:
            raise UserError(f"per_class contains {', '.join(few)}; expected numbers of at least 1")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"validation_fraction is {self.validation_fraction:g}; expected at least 0 and less than 1")
        if self.draws < 1 or not (self.fractions or self.per_class):
            raise UserError("nothing to label: expected draws >= 1, and fractions or numbers per class")


def equal_selections(selections: Mapping[str, Sequence[Hashable]]) -> list[str]:
    """Describe the selections that are equal, as 5 % and 10 % of a small class, which both are one sample.

    Args:
        selections: Name of each selection, and its samples.

    >>> equal_selections({"5percent-draw0": [3, 8], "10percent-draw0": [3, 8], "20percent-draw0": [3, 4, 8, 9]})
    ['5percent-draw0 and 10percent-draw0 label the same samples, because they take equal numbers of each class']
    """
    names: dict[tuple[Hashable, ...], list[str]] = {}
    for name, samples in selections.items():
        names.setdefault(tuple(samples), []).append(name)
    return [
        f"{' and '.join(same)} label the same samples, because they take equal numbers of each class"
        for same in names.values()
        if len(same) > 1
    ]


def check_counts(options: object, **least: int) -> None:
    """Check that fields of a dataclass are whole numbers and not too small.

    Args:
        options: Dataclass.
        least: Smallest value of each field, by name.

    Raises:
        UserError: A field is not a whole number, or is too small.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise UserError(f"{name} is {value!r}; expected a whole number of at least {smallest}")


def check_fields(options: object, group: str, **rules: tuple[bool, str]) -> None:
    """Check conditions on fields of a dataclass.

    Args:
        options: Dataclass.
        group: Name of the group in messages, such as ``optimizer``.
        rules: For each field, whether its value is allowed, and a description of the allowed values.

    Raises:
        UserError: A value is not allowed.
    """
    for name, (holds, expected) in rules.items():
        if not holds:
            raise UserError(f"{group}.{name} is {getattr(options, name)}; expected {expected}")


def check_choices(options: object, **kinds: object) -> None:
    """Check that fields of a dataclass have one of the values of a Literal.

    Raises:
        UserError: A value is not allowed.
    """
    for name, kind in kinds.items():
        value = getattr(options, name)
        if value not in get_args(kind):
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(get_args(kind))}")


def allowed_bad(max_bad: float, total: int) -> int:
    """Return the number of unreadable samples that the fraction `max_bad` allows among `total` samples.

    A fraction above 0 allows at least one sample. Otherwise, a single damaged file would end a run on a small data set,
    for example with 1 % of 73 images, although the user allowed unreadable files.

    Raises:
        UserError: The fraction is not in [0, 1).
    """
    if not 0 <= max_bad < 1:
        raise UserError(f"max_bad is {max_bad}; expected a fraction, at least 0 and less than 1")
    return max(1, math.floor(max_bad * total)) if max_bad else 0


#: Name of the run options in a configuration, unless a command uses another one.
OPTIONS_KEY = "run"


@dataclasses.dataclass(frozen=True)
class Config:
    """Resolved configuration of a run as plain values, in the form that `--config` reads.

    Attributes:
        values: Settings by name.
        options_key: Name of the run options in `values`.
        free: Names of settings that a resumed run may change, because they do not affect the result.
        resolved: Names of the settings that the command chose itself, such as ``encoder.name``.
    """

    values: dict[str, Any]
    options_key: str
    free: frozenset[str] = frozenset()
    resolved: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write the values as YAML in one atomic step."""
        import yaml  # noqa: PLC0415 - command lines import this module to parse their flags

        files.write_atomic(path, yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True).encode())

    def rewrite(self, path: Path) -> None:
        """Replace the configuration of a resumed run by this one, which contains the present paths of data and folder.

        The run options keep their values from the start of the run.
        """
        before = read(path)
        now = {**self.values, self.options_key: before.get(self.options_key, self.values[self.options_key])}
        if now != before:
            Config(now, self.options_key, self.free).write(path)

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return a line `key: before -> now` for every changed setting that affects the result.

        The location of the run folder is not compared, because the folder may have been moved.
        """
        free = {"out", *self.free, *(f"{self.options_key}.{name}" for name in FREE_ON_RESUME)}
        old, new = dict(_leaves(before)), dict(_leaves(self.values))
        return [
            f"{key}: {old.get(key, '(not set)')} -> {new.get(key, '(not set)')}"
            for key in {**old, **new}
            if key not in free and old.get(key) != new.get(key)
        ]


def resolve(
    config: Mapping[str, object],
    options: RunOptions,
    *,
    free: Collection[str] = (),
    resolved: Mapping[str, object] | None = None,
) -> Config:
    """Convert settings and the run options to plain values, that is, paths to strings and dataclasses to mappings.

    Args:
        config: Settings as they were given.
        options: Options of the run.
        free: See `Config`.
        resolved: Settings that replace those in `config`, because the command chose the values that were not given.

    Raises:
        TypeError: A value cannot be converted.
    """
    key = next((name for name, value in config.items() if isinstance(value, RunOptions)), OPTIONS_KEY)
    values = {name: plain(value, f"the setting {name}") for name, value in {**config, **(resolved or {})}.items()}
    initial = dict(_leaves({name: plain(config[name], name) for name in resolved or {} if name in config}))
    resolved_names = [
        name for name, value in _leaves({name: values[name] for name in resolved or {}}) if initial.get(name) != value
    ]
    # `resume` is not a setting of the run: a new run with the same configuration should not resume.
    return Config(
        {**values, key: {**dataclasses.asdict(options), "resume": False}}, key, frozenset(free), tuple(resolved_names)
    )


def read(path: Path) -> dict[str, Any]:
    """Read the configuration of a run folder.

    Raises:
        UserError: The file is not a YAML mapping.
    """
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(
            f"{path} contains a {type(config).__name__}, expected a mapping of settings; restore the file from a copy"
        )
    return config


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, default=str)


def from_plain(kind: type[T], value: Any, place: str) -> T:
    """Convert a plain value, as returned by `plain`, back to an object of the given type.

    Args:
        kind: Type of the result: a dataclass, bool, int, float, str, None, Path, Literal, or a union, tuple, list or
            mapping of these types.
        value: Plain value.
        place: Name of the value in error messages.

    Raises:
        TypeError: The value has another type, lacks a field or has an unknown field.
        ValueError: The value is not one of the allowed values.
    """
    result: T = _from_plain(kind, value, place)
    return result


def _from_plain(kind: Any, value: Any, place: str) -> Any:  # noqa: PLR0911 - one return per kind of type
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        # Try None first, then the other types in order.
        for option in sorted(inside, key=lambda option: option is not NoneType):
            with suppress(TypeError, ValueError):
                return _from_plain(option, value, place)
    elif origin is Literal:
        if value in inside:
            return value
        raise ValueError(f"{place} is {value!r}; expected one of {', '.join(map(str, inside))}")
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        unknown = sorted({*map(str, value)}.difference(field.name for field in dataclasses.fields(kind)))
        if unknown:
            raise TypeError(f"{place} has the unknown entry {unknown[0]!r}")
        return kind(**{name: _from_plain(hints[name], item, f"{place}.{name}") for name, item in value.items()})
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        kinds = inside if origin is tuple and inside[-1] is not Ellipsis else (inside[0],) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{place} has {len(value)} entries; expected {len(kinds)}")
        items = [_from_plain(k, item, f"{place}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))]
        return items if origin is list else tuple(items)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(key): _from_plain(inside[1], item, f"{place}.{key}") for key, item in value.items()}
    elif kind in (Any, object) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise TypeError(f"{place} is {value!r}; expected {getattr(kind, '__name__', kind)}")


def plain(value: object, place: str) -> Any:
    """Convert `value` for YAML and JSON: paths to strings, dataclasses to mappings, tuples to lists.

    Args:
        value: Object to convert.
        place: Name of the value in error messages.

    Raises:
        TypeError: The value cannot be converted.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, place)
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{place}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{place}.{i}") for i, item in enumerate(value)]
    raise TypeError(
        f"{place} is a {type(value).__name__}, which cannot be written as text; expected numbers, strings, paths, "
        "None, dataclasses, and lists or mappings of them"
    )
