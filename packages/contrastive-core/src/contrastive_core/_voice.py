"""What a command line says: once for all processes of torchrun, and nothing more when nobody reads on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TextIO

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
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - what it is for


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
