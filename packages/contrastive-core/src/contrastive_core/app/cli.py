"""Command lines made of typed functions: `prog verb --flag value --config file.yaml`.

`prog verb --help` and the refusal of a wrong command line import neither the verb's module nor torch: names, types,
defaults and texts of the flags are read from the source (`declarations`). Two rules follow for a verb's module:

1. Every type in the function's signature is a builtin, a Path, a Literal, or a list, tuple, mapping, union or dataclass
   of these, declared by a statement at the top of some module; a default is a constant or such a dataclass.
2. The package's `cli.py` names what `--help` shows: `Verb(..., common=("steps", "lr", "run.seed"))`.

Under torchrun, messages are printed by one process only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import os
import select
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

from contrastive_core.app.declarations import UndeclaredError, declared_function
from contrastive_core.app.failures import advice, resume_line
from contrastive_core.app.flags import Flags, UsageError, nearest
from contrastive_core.app.help import help_text
from contrastive_core.errors import UserError
from contrastive_core.training.crashes import open_notes, supervise
from contrastive_core.training.model_code import trust_model_code
from contrastive_core.training.signals import Interrupted

#: As a shell reports a program that wrote to a pipe nobody reads: 128 + SIGPIPE.
BROKEN_PIPE_STATUS = 141

_PATIENCE = timedelta(seconds=5)


def is_first() -> bool:
    """Return whether this process prints for all: rank 0 under torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def first_only() -> Iterator[None]:
    """Print standard output of process 0 only, inside the block."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - no path
        yield


def complain(text: str) -> None:
    """Print an error to standard error, unless another process of the run has printed the same.

    Most errors occur in all processes alike; one that occurs in a single process (a file that only it reads) must be
    shown too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _first_to_say(text):
        print(text, file=sys.stderr, flush=True)


def _first_to_say(text: str) -> bool:
    # The store that torchrun keeps for its processes counts how many have come with this text.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - heavy

    key = f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        count: int = TCPStore(address, port, timeout=_PATIENCE, wait_for_workers=False).add(key, 1)
    except (KeyError, ValueError, RuntimeError):  # there is none: rather twice than not at all
        return True
    return count == 1


def drop_unread() -> bool:
    """Return whether the reader of standard output or error has closed it; further output is then discarded."""
    left = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in left:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(left)


def _is_unread(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # no file behind the stream; no poll on this system
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@dataclass(frozen=True)
class Verb:
    """A subcommand.

    Args:
        target: Its function, "package.module:function".
        help: One line for the list of verbs.
        alone: Whether only process 0 works under torchrun, because the work cannot be shared among processes.
        common: Flags that `--help` shows beside the required arguments, by full or short name; ten to fifteen that most
            people need. None: the flags of the function's own signature. `--help-all` shows every flag.
        restart: Whether it can be started again from the beginning: where a native reader crashes on a file, it is,
            without that file.
    """

    target: str
    help: str
    alone: bool = False
    common: tuple[str, ...] = ()
    restart: bool = False


def run(
    prog: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None, *, version: str, configs: str | None = None
) -> int:
    """Run one command line and return its exit status.

    The keyword arguments of the verb's function are the flags, with the fields of its dataclasses behind a dot
    (`--optimizer.lr 0.1`). A nested flag may be given by its last name where that is unambiguous (`--lr 0.1`); required
    arguments that are positional in Python may be given in order without their flag; `--resume` and `--no-resume` set a
    bool. Values come from `--config FILE` first, then from the flags; `--print-config` shows what results.

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
        with first_only():
            status = _answer(prog, verbs, words, version=version, configs=configs)
            sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread():
            raise  # another pipe
        return BROKEN_PIPE_STATUS
    return status


def _answer(  # noqa: PLR0911 - one return per outcome
    prog: str, verbs: Mapping[str, Verb], words: list[str], *, version: str, configs: str | None
) -> int:
    if not words or words[0] in ("-h", "--help"):
        if words:
            print(_overview(prog, verbs))
            return 0
        complain(_overview(prog, verbs))
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
        complain(f"{command}: {problem}\nSee `{command} --help`.")
        return 2
    except UserError as problem:
        complain(f"{prog} {name}: {problem}")
        return 1
    except Interrupted as stop:
        if is_first():  # all have stopped in the same step
            print(f"{prog} {name}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        complain(f"{prog} {name}: stopped")
        return 130


def _overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"usage: {prog} COMMAND ...", "", "commands:"]
    lines += [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    lines += ["", f"`{prog} COMMAND --help` lists the arguments of a command; `{prog} --version` the version."]
    return "\n".join(lines)


def _run_verb(prog: str, verb: Verb, words: Sequence[str], *, configs: str | None) -> int:
    # The command line is checked against the declarations of the verb first: help and refusals come without torch.
    try:
        declared = declared_function(verb.target)
    except UndeclaredError:
        declared = _imported(verb)
    flags = Flags(declared)
    asked = [word for word in words[: words.index("--") if "--" in words else None] if word.replace("_", "-") in _HELP]
    if asked:
        everything = any("all" in word for word in asked)
        print(help_text(prog, declared, flags, common=verb.common, everything=everything))
        return 0
    trusted = [word for word in words if word.replace("-", "_") == _TRUST]
    canonical = flags.canonical([word for word in words if word not in trusted], configs=configs)
    if any(map(_holds_dataclass, flags.types.values())):
        declared = _imported(verb)  # jsonargparse imports the module of such a dataclass, which a declaration has not
    if _parse(prog, declared, flags, canonical) is None or (verb.alone and not is_first()):
        return 0
    if verb.restart and "torch" not in sys.modules and (status := supervise(prog)) is not None:
        return status
    open_notes()
    function = _imported(verb)
    parsed = _parse(prog, function, flags, canonical)
    if parsed is None:
        return 0
    parser, values = parsed
    # The name of the method changed between versions of jsonargparse.
    arguments = parser.instantiate(values) if hasattr(parser, "instantiate") else parser.instantiate_classes(values)
    try:
        with trust_model_code() if trusted else contextlib.nullcontext():
            result = function(**{name: arguments[name] for name in inspect.signature(function).parameters})
    except BrokenPipeError:
        raise
    except Exception as error:
        problem = advice(error)
        if problem is None:
            raise
        again = f", then resume with\n  {resume_line(prog, words)}" if "run.resume" in flags.types else ""
        raise UserError(f"{problem}{again}") from error
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0


#: For every verb: opening a model may run code of other packages that the model names.
_TRUST = "__trust_model_code"
_HELP = ("-h", "--help", "--help-all")


def _holds_dataclass(kind: Any) -> bool:
    """Return whether a type is an optional dataclass, or a list or mapping of dataclasses."""
    return any(dataclasses.is_dataclass(part) or _holds_dataclass(part) for part in typing.get_args(kind))


def _imported(verb: Verb) -> Callable[..., Any]:
    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _parse(prog: str, function: Callable[..., Any], flags: Flags, words: list[str]) -> tuple[Any, Any] | None:
    """Parse the command line; return None if --print-config printed the values instead.

    Raises:
        UsageError: A value does not fit its flag, or a required argument is missing.
    """
    import jsonargparse  # noqa: PLC0415 - `prog --help` must not wait for it

    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values for the arguments below.")
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    try:
        return parser, parser.parse_args(words)
    except SystemExit:  # --print_config
        return None
    except jsonargparse.ArgumentError as error:
        raise UsageError(flags.explain(str(error))) from error
