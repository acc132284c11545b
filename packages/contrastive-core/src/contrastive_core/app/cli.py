"""Build command lines from typed functions: `prog verb --flag value --config file.yaml`.

`prog verb --help` and the error message for a wrong command line import neither the verb's module nor torch: names,
types, defaults and texts of the flags are read from the source (`declarations`). A verb must follow two rules:

1. Every type in the function's signature is a builtin, a Path, a Literal, or a list, tuple, mapping, union or dataclass
   of these, declared by a top-level statement of a module. A default is a constant or such a dataclass.
2. The package's `cli.py` lists the flags that `--help` shows: `Verb(..., common=("steps", "lr", "run.seed"))`.

Under torchrun, only one process prints messages.
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
from contrastive_core.training.crashes import is_child, open_notes, supervise
from contrastive_core.training.model_code import trust_model_code
from contrastive_core.training.signals import Interrupted, stoppable

#: Exit status that a shell reports for a program that wrote to a closed pipe: 128 + SIGPIPE.
BROKEN_PIPE_STATUS = 141

_PATIENCE = timedelta(seconds=5)


def is_first() -> bool:
    """Return whether this process is the one that prints: rank 0 under torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def first_only() -> Iterator[None]:
    """Discard the standard output of all processes except process 0 inside the block."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):  # noqa: PTH123 - no path
        yield


def complain(text: str) -> None:
    """Print an error to standard error, unless another process of the run has already printed it.

    Most errors occur in all processes; an error that occurs in only one of them (for a file that only it reads) must
    also be shown.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _first_to_say(text):
        print(text, file=sys.stderr, flush=True)


def _first_to_say(text: str) -> bool:
    # The store that torchrun provides for its processes counts how many of them have this text.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - heavy

    key = f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        count: int = TCPStore(address, port, timeout=_PATIENCE, wait_for_workers=False).add(key, 1)
    except (KeyError, ValueError, RuntimeError):  # without a store, print the text twice rather than never
        return True
    return count == 1


def drop_unread() -> bool:
    """Return whether the reader of standard output or standard error has closed it, and discard further output."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in streams:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
    return bool(streams)


def _is_unread(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # the stream has no file, or the system has no poll
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@dataclass(frozen=True)
class Verb:
    """Subcommand of a program.

    Args:
        target: Function of the subcommand, in the form "package.module:function".
        help: One-line description for the list of subcommands.
        alone: Whether only process 0 works under torchrun, because the work cannot be distributed.
        common: Full or short names of the flags that `--help` shows in addition to the required arguments, usually ten
            to fifteen. If empty, `--help` shows the flags of the function's signature. `--help-all` shows all flags.
        restart: Whether the command can start again from the beginning. If a native reader then crashes on a file, the
            command starts again without this file; other commands report the file and end.
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

    The flags are the arguments of the verb's function; fields of its dataclasses follow a dot (`--optimizer.lr 0.1`). A
    nested flag can be shortened to its last name if that is unambiguous (`--lr 0.1`). Required arguments that are
    positional in Python can be given in order without their flag. `--resume` and `--no-resume` set a bool. Flags
    override the values of `--config FILE`; `--print-config` prints the resulting values.

    The function's result is printed unless it is None or an int. An int is the exit status. Otherwise the status is 0
    after success; 1 after a UserError, of which only the message is shown; 2 for a wrong command line; and 128 + signal
    if the run was stopped or the reader of the output has closed it (`prog verb | head`).

    Under torchrun, only process 0 writes to standard output, and an error of several processes is shown once.

    On Linux, the function runs in a child process (see `supervise`), which ends instead of returning from here.

    Args:
        prog: Name of the program.
        verbs: Subcommands by name.
        argv: Arguments after the name of the program; those of the process if None.
        version: Version that `--version` prints.
        configs: Package whose YAML files can be named without path and ending: `--config simclr-cifar10`.

    Returns:
        Exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    try:
        with first_only():
            status = _answer(prog, verbs, arguments, version=version, configs=configs)
            sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread():
            raise  # the error belongs to another pipe
        status = BROKEN_PIPE_STATUS
    if is_child():  # the parent returns the status; what follows in a script is for the parent
        sys.exit(status)
    return status


def _open_closed_streams() -> None:
    """Open standard streams that the caller has closed (``prog verb >&-``), which Python sets to None.

    In this order each gets its own number again; otherwise the first result file would be standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


def _answer(  # noqa: PLR0911 - one return per outcome
    prog: str, verbs: Mapping[str, Verb], arguments: list[str], *, version: str, configs: str | None
) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:
            print(_overview(prog, verbs))
            return 0
        complain(_overview(prog, verbs))
        return 2
    if arguments[0] == "--version":
        print(f"{prog} {version}")
        return 0
    name = arguments[0]
    try:
        if name not in verbs:
            raise UsageError(f"unknown command {name!r}, expected one of {', '.join(verbs)}{nearest(name, verbs)}")
        return _run_verb(f"{prog} {name}", verbs[name], arguments[1:], configs=configs)
    except UsageError as problem:
        command = f"{prog} {name}" if name in verbs else prog
        complain(f"{command}: {problem}\nSee `{command} --help`.")
        return 2
    except UserError as problem:
        complain(f"{prog} {name}: {problem}")
        return 1
    except Interrupted as stop:
        if is_first():  # all processes have stopped in the same step
            print(f"{prog} {name}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        complain(f"{prog} {name}: stopped")
        return 130


def _overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"usage: {prog} COMMAND ...", "", "commands:"]
    lines += [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    lines += ["", f"`{prog} COMMAND --help` lists the arguments of a command; `{prog} --version` prints the version."]
    return "\n".join(lines)


def _run_verb(prog: str, verb: Verb, arguments: Sequence[str], *, configs: str | None) -> int:
    # First check the command line against the declarations of the verb, so that help and errors do not import torch.
    try:
        declaration = declared_function(verb.target)
    except UndeclaredError:
        declaration = _imported(verb)
    flags = Flags(declaration)
    help_flags = [
        argument
        for argument in arguments[: arguments.index("--") if "--" in arguments else None]
        if argument.replace("_", "-") in _HELP
    ]
    if help_flags:
        everything = any("all" in argument for argument in help_flags)
        print(help_text(prog, declaration, flags, common=verb.common, everything=everything))
        return 0
    trust_flags = [argument for argument in arguments if argument.replace("-", "_") == _TRUST]
    canonical = flags.canonical([argument for argument in arguments if argument not in trust_flags], configs=configs)
    if any(map(_holds_dataclass, flags.types.values())):
        # jsonargparse imports the module of such a dataclass; a declaration has no module.
        declaration = _imported(verb)
    if _parse(prog, declaration, flags, canonical) is None or (verb.alone and not is_first()):
        return 0
    can_resume = "run.resume" in flags.types
    again = f", then resume the run with\n  {resume_line(prog, arguments)}" if can_resume else ""
    hint = f". Resume with\n  {resume_line(prog, arguments)}" if can_resume else ""
    if "torch" not in sys.modules and (status := supervise(prog, again=verb.restart, remedy=again)) is not None:
        return status
    open_notes()
    function = _imported(verb)
    parse_result = _parse(prog, function, flags, canonical)
    if parse_result is None:
        return 0
    parser, values = parse_result
    # The name of the method differs between versions of jsonargparse.
    settings = parser.instantiate(values) if hasattr(parser, "instantiate") else parser.instantiate_classes(values)
    try:
        with stoppable(hint), trust_model_code() if trust_flags else contextlib.nullcontext():
            result = function(**{name: settings[name] for name in inspect.signature(function).parameters})
    except BrokenPipeError:
        raise
    except Exception as error:
        problem = advice(error)
        if problem is None:
            raise
        raise UserError(f"{problem}{again}") from error
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0


#: Flag of every verb that allows a model to run code of other packages.
_TRUST = "__trust_model_code"
_HELP = ("-h", "--help", "--help-all")


def _holds_dataclass(kind: Any) -> bool:
    """Return whether a type is an optional dataclass, or a list or mapping of dataclasses."""
    return any(dataclasses.is_dataclass(part) or _holds_dataclass(part) for part in typing.get_args(kind))


def _imported(verb: Verb) -> Callable[..., Any]:
    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _parse(prog: str, function: Callable[..., Any], flags: Flags, arguments: list[str]) -> tuple[Any, Any] | None:
    """Parse the command line and return the parser and the values, or None if --print-config has printed the values.

    Raises:
        UsageError: A value does not fit its flag, or a required argument is missing.
    """
    import jsonargparse  # noqa: PLC0415 - slow to import, and not needed for `prog --help`

    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values for the arguments below.")
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    try:
        return parser, parser.parse_args(arguments)
    except SystemExit:  # --print-config
        return None
    except jsonargparse.ArgumentError as error:
        raise UsageError(flags.explain(str(error))) from error
