"""Command lines made of typed functions: `prog verb --flag value --config file.yaml`.

Importing this module, `prog --help` and `prog --version` load nothing heavy; the code of a verb, and with it torch, is
imported when the verb is named. Under torchrun, messages are printed by one process only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

from contrastive_core.app.flags import Flags, UsageError, nearest
from contrastive_core.errors import UserError
from contrastive_core.training.signals import Interrupted

#: As a shell reports a program that wrote to a pipe nobody reads: 128 + SIGPIPE.
BROKEN_PIPE_STATUS = 141

_PATIENCE = timedelta(seconds=5)


def is_first() -> bool:
    """Whether this process speaks for all: torchrun numbers them in RANK, and without it there is one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def first_only() -> Iterator[None]:
    """Inside, what is printed to standard output appears once: process 0's."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - no path
        yield


def complain(text: str) -> None:
    """Print an error to standard error, unless another process of the run has said the same.

    Most errors meet all processes alike; one that a single process meets (a file that only it reads) must be seen too.
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
    """Whether the reader of standard output or error has left; what is still to be written goes nowhere then."""
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
    if verb.alone and not is_first():
        return 0
    result = function(**{name: arguments[name] for name in inspect.signature(function).parameters})
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0
