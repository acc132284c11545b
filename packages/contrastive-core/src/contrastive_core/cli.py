"""Command lines made of typed functions: `prog verb --flag value --config file.yaml`.

Importing this module, `prog --help` and `prog --version` load nothing heavy; the code of a verb, and with it torch, is
imported when the verb is named.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.train.interrupt import Interrupted

_OWN = ("config", "print_config", "help")


@dataclass(frozen=True)
class Verb:
    """A subcommand.

    Args:
        target: Where its function is: "package.module:function".
        help: One line for the list of verbs.
    """

    target: str
    help: str


class _UsageError(Exception):
    """A command line that does not say what to do."""


def run(  # noqa: PLR0911 - one return per outcome
    prog: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None, *, version: str, configs: str | None = None
) -> int:
    """Run one command line and return its exit status.

    The keyword arguments of the verb's function are the flags, with the fields of its dataclasses behind a dot
    (`--optimizer.lr 0.1`). A nested flag may be given by its last name where that is unambiguous (`--lr 0.1`); required
    arguments may be given in order without their flag; `--resume` and `--no-resume` set a bool. Values come from
    `--config FILE` first, then from the flags; `--print_config` shows what results.

    The function's result is printed, unless it is None, or an int, which is the exit status. Otherwise the status is 0;
    1 after a UserError, of which only the message is shown; 2 after a wrong command line; 128 + signal if a run was
    stopped.

    Args:
        prog: Name of the program.
        verbs: The subcommands by name.
        argv: Arguments after the program's name; None takes the process's own.
        version: What `--version` says after the name.
        configs: Package whose YAML files can be named without path and ending: `--config simclr-cifar10`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview(prog, verbs), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"{prog} {version}")
        return 0
    name = words[0]
    try:
        if name not in verbs:
            raise _UsageError(f"unknown command {name!r}{_nearest(name, verbs)}; expected one of {', '.join(verbs)}")
        return _run_verb(f"{prog} {name}", verbs[name], words[1:], configs=configs)
    except _UsageError as problem:
        command = f"{prog} {name}" if name in verbs else prog
        print(f"{command}: {problem}\nSee `{command} --help`.", file=sys.stderr)
        return 2
    except UserError as problem:
        print(f"{prog} {name}: {problem}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"{prog} {name}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print(f"{prog} {name}: stopped", file=sys.stderr)
        return 130


def _overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"usage: {prog} COMMAND ...", "", "commands:"]
    lines += [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    lines += ["", f"`{prog} COMMAND --help` lists the arguments of a command; `{prog} --version` the version."]
    return "\n".join(lines)


def _run_verb(prog: str, verb: Verb, words: Sequence[str], *, configs: str | None) -> int:
    import jsonargparse  # noqa: PLC0415 - only when a verb is run

    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    options = _Options(function)
    usage = " ".join([prog, *(f"{name.upper()}" for name in options.required), "[options]"])
    parser = jsonargparse.ArgumentParser(
        prog=prog, usage=usage, description=_description(function), epilog=_EPILOG, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with values for the arguments below.")
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    try:
        parsed = parser.parse_args(options.canonical(words, configs=configs))
        arguments = parser.instantiate(parsed) if hasattr(parser, "instantiate") else parser.instantiate_classes(parsed)
    except SystemExit as exit_:  # --help and --print_config
        return int(exit_.code or 0)
    except jsonargparse.ArgumentError as error:
        raise _UsageError(_readable(str(error))) from error
    result = function(**{name: arguments[name] for name in inspect.signature(function).parameters})
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0


_EPILOG = (
    "Required arguments may be given in order, without their flag. A nested flag may be given by its last name where "
    "that is unambiguous: --seed for --run.seed. A flag of true or false may stand alone: --resume, --no-resume. Flags "
    "win over --config. --print_config shows the values that result, as a file for --config."
)


class _Options:
    """The flags of a function: what is allowed, and how the short forms are written out."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        self.required = [name for name, p in parameters.items() if p.default is p.empty]
        self.types: dict[str, Any] = {}
        for name in parameters:
            self.types.update(_flatten(name, hints[name]))

    def canonical(self, words: Sequence[str], *, configs: str | None) -> list[str]:
        """The command line with full names and explicit values, configuration files first."""
        files: list[str] = []
        flags: list[tuple[str, str | None]] = []
        bare: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                bare += rest
                break
            if word in ("-h", "--help") or re.match(r"--print_config(=|$)", word):
                flags.append((word, None))
            elif not word.startswith("-") or re.match(r"-\.?\d", word):
                bare.append(word)
            elif word.partition("=")[0] == "--config":
                path = _find_config(_value(word, rest), configs)
                self.check_keys(path)
                files.append(path)
            else:
                flags.append(self._flag(word, rest))
        given = {name.lstrip("-").rstrip("+") for name, _ in flags}
        places = [name for name in self.required if name not in given]
        if len(bare) > len(places):
            raise _UsageError(
                f"unexpected argument {bare[len(places)]!r}; expected "
                + (f"{len(places)} without a flag ({', '.join(places)})" if places else "flags only")
            )
        flags += [(f"--{name}", value) for name, value in zip(places, bare, strict=False)]
        written = [name if value is None else f"{name}={value}" for name, value in flags]
        return [f"--config={path}" for path in files] + written

    def _flag(self, word: str, rest: list[str]) -> tuple[str, str]:
        name, _, _ = word.partition("=")
        written = name.removeprefix("--").removesuffix("+").replace("-", "_")
        plus = "+" if name.endswith("+") else ""
        key = self._full_name(written)
        if key is None and written.startswith("no_") and "=" not in word:
            positive = self._full_name(written.removeprefix("no_"))
            if positive is not None and self.types[positive] is bool:
                return f"--{positive}", "false"
        if key is None or not name.startswith("--"):
            raise _UsageError(f"unknown flag {name}{_nearest(written, self._names(), dashes=True)}")
        if self.types[key] is bool and "=" not in word:
            explicit = bool(rest) and rest[0].lower() in ("true", "false")
            return f"--{key}", rest.pop(0).lower() if explicit else "true"
        return f"--{key}{plus}", _value(word, rest)

    def _full_name(self, name: str) -> str | None:
        if name in self.types or self._inside_open(name):
            return name
        matches = [key for key in self.types if key.endswith(f".{name}")]
        if len(matches) > 1:
            raise _UsageError(f"--{name} is ambiguous; expected one of {', '.join(f'--{key}' for key in matches)}")
        return matches[0] if matches else None

    def _inside_open(self, key: str) -> bool:
        # Types whose keys are not known beforehand (mappings, optional dataclasses) are left to the parser.
        parents = [key[:i] for i, letter in enumerate(key) if letter == "."]
        return any(parent in self.types and not _is_plain(self.types[parent]) for parent in parents)

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self.types, *(key.rpartition(".")[2] for key in self.types), *_OWN]))

    def check_keys(self, path: str) -> None:
        """Refuse a configuration file with a key that is no argument."""
        import yaml  # noqa: PLC0415

        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _UsageError(f"--config {path} cannot be read: {error}") from error
        if content is None:
            return
        if not isinstance(content, dict):
            raise _UsageError(f"--config {path} holds a {type(content).__name__}; expected lines `argument: value`")
        for key in _keys(content, self.types):
            if key not in self.types and not self._inside_open(key):
                raise _UsageError(f"--config {path}: unknown key {key!r}{_nearest(key, self.types)}")


def _flatten(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    yield name, kind
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.init:
                yield from _flatten(f"{name}.{field.name}", hints[field.name])


def _keys(content: Mapping[Any, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types.get(key)):
            yield from _keys(value, types, f"{key}.")


def _is_plain(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or kind in (bool, int, float, str, Path)


def _value(word: str, rest: list[str]) -> str:
    name, equals, value = word.partition("=")
    if equals:
        return value
    if not rest or rest[0].startswith("--"):
        raise _UsageError(f"{name} expects a value")
    return rest.pop(0)


def _find_config(name: str, configs: str | None) -> str:
    if Path(name).is_file():
        return name
    known: list[str] = []
    if configs is not None:
        from importlib import resources  # noqa: PLC0415

        folder = resources.files(configs)
        if (folder / f"{name}.yaml").is_file():
            return str(folder / f"{name}.yaml")
        known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    hint = f"; or one of the ready ones: {', '.join(known)}" if known else ""
    raise _UsageError(f"--config {name}: no such file{_nearest(name, known)}; expected a YAML file{hint}")


def _nearest(name: str, known: typing.Iterable[str], *, dashes: bool = False) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {'--' if dashes else ''}{match[0]}?" if match else ""


def _description(function: Callable[..., Any]) -> str:
    import docstring_parser  # noqa: PLC0415

    text = docstring_parser.parse(inspect.getdoc(function) or "")
    return "\n\n".join(part for part in (text.short_description, text.long_description) if part)


def _readable(message: str) -> str:
    """The message of jsonargparse with the names a user knows instead of Python's."""
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", message)
    message = re.sub(r'Parser key "([\w.]+)":\s*', r"--\1: ", message)
    return message.replace("the following arguments are required:", "missing:")
