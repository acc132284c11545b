"""Parse the flags of a typed function: short names, lists with commas, and messages about wrong flags.

A flag is declared as a parameter of the function that the command runs, or as a field of a dataclass of options that
this function takes, and described in its docstring. `cli.py` of each package names these functions.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_yaml

_OWN = ("config", "print_config", "help", "help_all", "trust_model_code")

#: Flags of other programs and our flags with the same meaning, in order of preference.
_SYNONYMS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("cpu", "cuda", "gpu", "gpus", "num_gpus", "devices", "accelerator", "no_cuda"): ("device",),
    ("pretrained", "weights", "checkpoint", "ckpt", "ckpt_path", "load", "load_from"): ("init", "model"),
    ("model", "arch", "architecture", "backbone", "net", "network"): (
        "model", "encoder.name", "network.architecture", "network.name", "backbone",
    ),
    ("num_workers", "n_workers", "nproc", "jobs", "j"): ("workers",),
    ("batch", "bs", "b", "batchsize", "train_batch_size", "per_device_train_batch_size"): ("batch_size",),
    ("learning_rate", "base_lr", "lr0", "max_lr"): ("lr",),
    ("epoch", "num_epochs", "n_epochs", "max_epochs", "e"): ("epochs", "steps"),
    ("epochs", "iterations", "iters", "max_steps", "num_steps", "max_iters"): ("steps", "epochs"),
    ("wd", "l2"): ("weight_decay",),
    ("o", "output", "output_dir", "out_dir", "outdir", "save_dir", "log_dir", "logdir", "project"): ("out",),
    ("i", "input", "data_dir", "data_path", "dataset", "root", "images", "videos", "d"): ("data",),
    ("imgsz", "img_size", "size", "resolution", "input_size"): ("image_size",),
    ("amp", "fp16", "bf16", "half", "mixed_precision"): ("precision",),
    ("random_state", "random_seed", "manual_seed"): ("seed",),
    ("continue", "restart", "resume_from"): ("resume",),
    ("force", "f", "overwrite_output_dir", "exist_ok", "y"): ("overwrite",),
    ("quiet", "q", "verbose", "v", "silent"): ("progress",),
    ("tau", "temp"): ("temperature",),
    ("ema_decay", "momentum_ema"): ("ema",),
    ("cfg", "c", "yaml"): ("config",),
}  # fmt: skip

_SEVERAL_GPUS = "Start the command with `torchrun --nproc-per-node N --no-python` to use several GPUs."


class UsageError(Exception):
    """The command line is wrong; the message names the alternatives."""


class Flags:
    """Names and types of the arguments of a function, with dots in nested names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        self.required = [name for name, p in parameters.items() if p.default is p.empty]
        self.positional = [
            name for name in self.required if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        self._docs = inspect.getdoc(function) or ""
        self.types: dict[str, Any] = {}
        for name in parameters:
            self.types.update(_flatten(name, hints[name]))
        self._optional = {  # flags of dataclasses that may be None, which have no short names
            f"{key}.{name}": field for key, kind in self.types.items() for name, field in _optional_fields(kind).items()
        }

    def canonical(self, arguments: Sequence[str], *, configs: str | None) -> list[str]:
        """Return the command line with full names and explicit values, and with configuration files first.

        Raises:
            UsageError: A flag is unknown, ambiguous or without its value, or there are too many arguments.
        """
        files: list[str] = []
        flags: list[tuple[str, str | None]] = []
        bare: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                bare += rest
                break
            if re.match(r"--print[-_]config(=|$)", word):
                flags.append((word.replace("print-", "print_"), None))
            elif not word.startswith("-") or re.match(r"-(\.?\d|$)", word):
                bare.append(word)
            elif word.partition("=")[0] == "--config":
                files += self._check_config(_find_config(_value(word, rest), configs))
            else:
                flags.append(self._flag(word, rest))
        flag_names = {name.lstrip("-").rstrip("+") for name, _ in flags}
        places = [name for name in self.positional if name not in flag_names]
        if len(bare) > len(places):
            required_flags = [dashed(name) for name in self.required if name not in (*self.positional, *flag_names)]
            raise UsageError(
                f"unexpected argument {bare[len(places)]!r}, expected "
                + (f"{len(places)} without a flag ({', '.join(places)})" if places else "only flags")
                + (f", and {', '.join(required_flags)}" if required_flags else "")
            )
        flags += [(f"--{name}", value) for name, value in zip(places, bare, strict=False)]
        for name, value in flags:
            if value is not None and not value.strip() and self._is_path(name[2:]):
                # An unset variable of the shell; as a path it would mean the working directory.
                key = self.short_name(name[2:])
                raise UsageError(f"{key.upper() if key in self.positional else dashed(key)} is empty, expected a path")
        full_arguments = [name if value is None else f"{name}={self._as_list(name, value)}" for name, value in flags]
        return [f"--config={path}" for path in files] + full_arguments

    def explain(self, message: str) -> str:
        """Rephrase the parser's message about an invalid value, and return other messages unchanged."""
        key = re.search(r'Parser key "([\w.]+)"', message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if key and value and key[1] in self.types:
            field = re.search(r'Parser key "(\w+)":\n.*Got value: (.*)', message[key.end() :])
            if field and (flag := f"{key[1]}.{field[1]}") in self._optional:
                return f"{dashed(flag)}: expected {in_words(self._optional[flag])}, got {field[2]}"
            return f"{dashed(self.short_name(key[1]))}: expected {in_words(self.types[key[1]])}, got {value[1]}"
        missing = re.search(r"the following arguments are required: ([\w, ]+)", message)
        return message if missing is None else f"missing: {', '.join(map(self._description, missing[1].split(', ')))}"

    def text(self, key: str) -> str:
        """Return the description of a flag from the docstring of the function or dataclass."""
        group, _, name = key.rpartition(".")
        return (field_texts(self.types[group]) if group else described_arguments(self._docs)).get(name, "")

    def _description(self, name: str) -> str:
        """Return the name of a required argument with its description from the documentation."""
        text = first_sentence(plain_text(self.text(name))).rstrip(".")
        label = name.upper() if name in self.positional else dashed(name)
        return f"{label} ({text[0].lower()}{text[1:]})" if text else label

    def _flag(self, word: str, rest: list[str]) -> tuple[str, str]:
        name, _, _ = word.partition("=")
        spelling = name.removeprefix("--").removesuffix("+")
        if not self._inside_mapping(spelling):
            spelling = spelling.replace("-", "_")
        plus = "+" if name.endswith("+") else ""
        key = self.full_name(spelling)
        if key is None and spelling.startswith("no_") and "=" not in word:
            positive = self.full_name(spelling.removeprefix("no_"))
            if positive is not None and is_switch(self._type(positive)):
                return f"--{positive}", "false"
        if key is None or not name.startswith("--"):
            raise UsageError(f"unknown flag {name}{self._instead(spelling.lstrip('-_'))}")
        if is_switch(self._type(key)) and "=" not in word:
            explicit = bool(rest) and rest[0].lower() in ("true", "false", "null", "none")
            return f"--{key}", rest.pop(0).lower() if explicit else "true"
        return f"--{key}{plus}", _value(word, rest)

    def full_name(self, name: str) -> str | None:
        """Return the full name of a flag given by a full or short name, or None if there is no such flag.

        Raises:
            UsageError: The short name is ambiguous.
        """
        if name in self.types or self._inside_open(name):
            return name
        matches = [key for key in self.types if key.endswith(f".{name}")]
        if len(matches) > 1:
            raise UsageError(f"--{name} is ambiguous, expected one of {', '.join(map(dashed, matches))}")
        return matches[0] if matches else None

    def short_name(self, key: str) -> str:
        """Return the shortest unambiguous end of a nested name, such as ``lr`` of ``optimizer.lr``."""
        parts = key.split(".")
        for first in reversed(range(len(parts))):
            last = ".".join(parts[first:])
            if [other for other in self.types if other == last or other.endswith(f".{last}")] == [key]:
                return last
        return key

    def _is_path(self, key: str) -> bool:
        kind = self._type(key)  # data and models are text, because they may be addresses
        return key in self.positional or Path in (kind, *typing.get_args(kind))

    def _type(self, key: str) -> Any:
        return self.types.get(key, self._optional.get(key))

    def _as_list(self, flag: str, value: str) -> str:
        kind = self._type(flag.removeprefix("--"))
        return value if kind is None else _yaml_list(flag, kind, value)

    def _instead(self, name: str) -> str:
        """Return the end of a message about an unknown flag, which suggests the flag that was probably meant."""
        suggestions = [flag for spellings, flags in _SYNONYMS.items() if name in spellings for flag in flags]
        for flag in suggestions:
            keys = [key for key in (*self.types, *_OWN) if key == flag or key.endswith(f".{flag}")]
            if keys:
                several = f" {_SEVERAL_GPUS}" if flag == "device" and name not in ("cpu", "no_cuda") else ""
                return f"; did you mean {dashed(flag)}?{several}"
        return nearest(name, self._names(), dashes=True)

    def _inside_open(self, key: str) -> bool:
        # The parser checks the keys of types whose keys are not known here, such as mappings.
        for parent in (key[:i] for i, letter in enumerate(key) if letter == "."):
            if parent in self.types and not _is_plain(self.types[parent]):
                return key in self._optional or not _optional_fields(self.types[parent])
        return False

    def _inside_mapping(self, key: str) -> bool:
        """Return whether a name is a key of a mapping, in which dashes are not replaced by underscores."""
        parents = [key[:i].replace("-", "_") for i, letter in enumerate(key) if letter == "."]
        return any(_holds_mapping(self.types[parent]) for parent in parents if parent in self.types)

    def _names(self) -> list[str]:
        last = (key.rpartition(".")[2] for key in self.types)
        return list(dict.fromkeys([*self.types, *last, *self._optional, *_OWN]))

    def _check_config(self, path: str) -> list[str]:
        """Check that a configuration file has only known keys, and return [path], or [] if the file is empty."""
        try:
            content = read_yaml(Path(path))
        except UserError as error:
            raise UsageError(f"--config {path} cannot be read: {error}") from error
        if content is None:
            return []
        if not isinstance(content, dict):
            raise UsageError(f"--config {path} contains a {type(content).__name__}, expected lines `argument: value`")
        for key in _keys(content, self.types):
            if key not in self.types and not self._inside_open(key):
                raise UsageError(f"--config {path}: unknown key {key!r}{nearest(key, [*self.types, *self._optional])}")
        return [path]


def _flatten(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    yield name, kind
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.init:
                yield from _flatten(f"{name}.{field.name}", hints[field.name])


def described_arguments(docstring: str) -> dict[str, str]:
    """Return the description of every argument that a docstring documents, by name."""
    from docstring_parser import parse  # noqa: PLC0415 - needed only for help and where an argument is missing

    return {param.arg_name: param.description or "" for param in parse(docstring).params}


def field_texts(kind: type) -> dict[str, str]:
    """Return the description of every field of a dataclass, by name, from its docstring and those of its bases."""
    return {
        name: text
        for base in reversed(kind.__mro__)
        for name, text in described_arguments(inspect.cleandoc(base.__dict__.get("__doc__") or "")).items()
    }


def _keys(content: Mapping[Any, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        yield key
        kind = types.get(key)
        if isinstance(value, Mapping) and (dataclasses.is_dataclass(kind) or _optional_fields(kind)):
            yield from _keys(value, types, f"{key}.")


def dashed(name: str) -> str:
    """Return a flag in the spelling of the help text, with dashes."""
    return f"--{name.replace('_', '-')}"


def is_switch(kind: Any) -> bool:
    """Return whether a flag can be given without a value, because its type is bool or optional bool."""
    return kind is bool or set(typing.get_args(kind)) == {bool, type(None)}


def _holds_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return (isinstance(origin, type) and issubclass(origin, Mapping)) or any(map(_holds_mapping, typing.get_args(kind)))


def _is_plain(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or kind in (bool, int, float, str, Path)


def _optional_fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of an optional dataclass by name, and none for other types."""
    options = [choice for choice in typing.get_args(kind) if dataclasses.is_dataclass(choice)]
    return {
        field.name: typing.get_type_hints(option)[field.name]
        for option in options
        for field in dataclasses.fields(option)
        if field.init
    }


def _value(word: str, rest: list[str]) -> str:
    name, equals, value = word.partition("=")
    if equals:
        return value
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"{name} expects a value")
    return rest.pop(0)


def _yaml_list(flag: str, kind: Any, text: str) -> str:
    """Convert a list written with commas to the YAML that the parser reads, and return other values unchanged."""
    choices = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    lists = [choice for choice in choices if typing.get_origin(choice) in (list, tuple) and typing.get_args(choice)]
    text = text.strip()
    bracketed = text.startswith("[") and text.endswith("]")
    inside = text[1:-1] if bracketed else text
    if len(lists) != 1 or any(letter in inside for letter in "[]{}\"'"):
        return text
    if not bracketed and any(_fits(choice, text) for choice in choices if choice is not lists[0]):
        return text
    inner = [part for part in typing.get_args(lists[0]) if part is not Ellipsis]
    items = [item.strip() for item in inside.split(",")]
    if items[-1] == "":  # "a," and "[]"
        items.pop()
    if "" in items:
        raise UsageError(f"{dashed(flag[2:])}: {text!r} has an empty item, expected values separated by commas")
    kinds = inner if len(inner) > 1 else inner * len(items)
    literals = [
        json.dumps(item) if _is_text(item_kind) else item for item, item_kind in zip(items, kinds, strict=False)
    ]
    return f"[{', '.join([*literals, *items[len(literals) :]])}]"


def _fits(kind: Any, text: str) -> bool:
    """Return whether text that could be a list with one element is a value of another type of the flag."""
    if kind is type(None):
        return text in ("null", "None")
    if typing.get_origin(kind) is Literal:
        return text in map(str, typing.get_args(kind))
    if kind in (int, float):
        return "," not in text
    return kind in (str, Path) and "," not in text


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(kind))
    return kind in (str, Path)


def _find_config(name: str, configs: str | None) -> str:
    if Path(name).is_file():
        return name
    names: list[str] = []
    if configs is not None:
        from importlib import resources  # noqa: PLC0415

        folder = resources.files(configs)
        if (folder / f"{name}.yaml").is_file():
            return str(folder / f"{name}.yaml")
        names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    ready = f" or one of the included configurations: {', '.join(names)}" if names else ""
    raise UsageError(f"--config {name}: there is no such file, expected a YAML file{ready}{nearest(name, names)}")


def nearest(name: str, choices: Iterable[str], *, dashes: bool = False) -> str:
    """Return the end of a message about a wrong name, which suggests the closest valid name if one is close."""
    names = list(choices)
    match = [other for other in names if len(name) > 2 and other.startswith((f"{name}_", f"{name}-"))]
    if not match:
        match = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not match:
        return ""
    return f"; did you mean {dashed(match[0])}?" if dashes else f"; did you mean {match[0]}?"


def plain_text(text: str) -> str:
    """Return the text of a docstring without its code markup."""
    return re.sub(r"``|(?<!\w)`(?=\S)|(?<=\S)`(?!\w)", "", text)


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, on one line."""
    return re.split(
        r"(?<=[.!?])(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=[A-Z0-9-])", " ".join(text.split()), maxsplit=1
    )[0]


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def in_words(kind: Any) -> str:
    """Describe a type in words, such as "a whole number" or "one of sgd, lars"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in inner)
    if origin in (list, tuple) and (len(inner) == 1 or inner[-1] is Ellipsis):
        return f"a list (each {in_words(inner[0])})"
    if origin is tuple:
        return f"a list of {len(inner)} ({', '.join(in_words(part) for part in inner)})"
    if origin is dict:
        return f"a mapping (each {in_words(inner[1])})"
    return _WORDS[kind] if kind in _WORDS else str(getattr(kind, "__name__", kind))
