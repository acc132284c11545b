"""Command lines made of typed functions: `prog verb --flag value --config file.yaml`.

Importing this module, `prog --help` and `prog --version` load nothing heavy; the code of a verb, and with it torch, is
imported when the verb is named.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrastive_core import _voice
from contrastive_core._flags import Flags, UsageError, nearest
from contrastive_core.errors import UserError
from contrastive_core.train.interrupt import Interrupted

_EPILOG = (
    "Required arguments may be given in order, without their flag. A nested flag may be given by its last name where "
    "that is unambiguous: --seed for --run.seed. A flag of true or false may stand alone: --resume, --no-resume. Flags "
    "win over --config. --print_config shows the values that result, as a file for --config."
)


@dataclass(frozen=True)
class Verb:
    """A subcommand.

    Args:
        target: Where its function is: "package.module:function".
        help: One line for the list of verbs.
        alone: Its work is not shared among processes: under torchrun process 0 does all of it, and the others, given
            the same command line, have nothing to do.
    """

    target: str
    help: str
    alone: bool = False


def run(
    prog: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None, *, version: str, configs: str | None = None
) -> int:
    """Run one command line and return its exit status.

    The keyword arguments of the verb's function are the flags, with the fields of its dataclasses behind a dot
    (`--optimizer.lr 0.1`). A nested flag may be given by its last name where that is unambiguous (`--lr 0.1`); required
    arguments may be given in order without their flag; `--resume` and `--no-resume` set a bool. Values come from
    `--config FILE` first, then from the flags; `--print_config` shows what results.

    The function's result is printed, unless it is None, or an int, which is the exit status. Otherwise the status is 0;
    1 after a UserError, of which only the message is shown; 2 after a wrong command line; 128 + signal if a run was
    stopped, and if nobody reads the output any more (`prog verb | head`).

    Under torchrun standard output is that of process 0 alone, and an error that meets several processes is shown once.

    Args:
        prog: Name of the program.
        verbs: The subcommands by name.
        argv: Arguments after the program's name; None takes the process's own.
        version: What `--version` says after the name.
        configs: Package whose YAML files can be named without path and ending: `--config simclr-cifar10`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _voice.first_only():
            status = _answer(prog, verbs, words, version=version, configs=configs)
            sys.stdout.flush()
    except BrokenPipeError:
        if not _voice.drop_unread():
            raise  # another pipe
        return _voice.BROKEN_PIPE_STATUS
    return status


def _answer(  # noqa: PLR0911 - one return per outcome
    prog: str, verbs: Mapping[str, Verb], words: list[str], *, version: str, configs: str | None
) -> int:
    if not words or words[0] in ("-h", "--help"):
        if words:
            print(_overview(prog, verbs))
            return 0
        _voice.complain(_overview(prog, verbs))
        return 2
    if words[0] == "--version":
        print(f"{prog} {version}")
        return 0
    name = words[0]
    try:
        if name not in verbs:
            raise UsageError(f"unknown command {name!r}; expected one of {', '.join(verbs)}{nearest(name, verbs)}")
        return _run_verb(f"{prog} {name}", verbs[name], words[1:], configs=configs)
    except UsageError as problem:
        command = f"{prog} {name}" if name in verbs else prog
        _voice.complain(f"{command}: {problem}\nSee `{command} --help`.")
        return 2
    except UserError as problem:
        _voice.complain(f"{prog} {name}: {problem}")
        return 1
    except Interrupted as stop:
        if _voice.is_first():  # all have stopped in the same step
            print(f"{prog} {name}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        _voice.complain(f"{prog} {name}: stopped")
        return 130


def _overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"usage: {prog} COMMAND ...", "", "commands:"]
    lines += [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    lines += ["", f"`{prog} COMMAND --help` lists the arguments of a command; `{prog} --version` the version."]
    return "\n".join(lines)


def _run_verb(prog: str, verb: Verb, words: Sequence[str], *, configs: str | None) -> int:
    # Here, not above: `prog --help` must not wait for them.
    import jsonargparse  # noqa: PLC0415
    from docstring_parser import parse  # noqa: PLC0415

    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    flags = Flags(function)
    docs = parse(inspect.getdoc(function) or "")
    description = "\n\n".join(part for part in (docs.short_description, docs.long_description) if part)
    usage = " ".join([prog, *(f"{name.upper()}" for name in flags.required), "[options]"])
    parser = jsonargparse.ArgumentParser(
        prog=prog, usage=usage, description=description, epilog=_EPILOG, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with values for the arguments below.")
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    try:
        parsed = parser.parse_args(flags.canonical(words, configs=configs))
        arguments = parser.instantiate(parsed) if hasattr(parser, "instantiate") else parser.instantiate_classes(parsed)
    except SystemExit as exit_:  # --help and --print_config
        return int(exit_.code or 0)
    except jsonargparse.ArgumentError as error:
        raise UsageError(flags.explain(str(error))) from error
    if verb.alone and not _voice.is_first():
        return 0
    result = function(**{name: arguments[name] for name in inspect.signature(function).parameters})
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0
