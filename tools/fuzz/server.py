"""Try the formats of one package, by importing its readers once and forking a process for each case."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from contrastive_core.errors import UserError
from tools.fuzz.damage import damage
from tools.fuzz.format import Format

SECONDS = 10
"""Processor time after which a case counts as a hang."""
MEMORY = 2 << 30
"""Bytes beyond those that a process starts with, above which a case counts as too large."""
_CEILING = 6 << 30
_LONGEST = 4000
_PATIENCE = 12  # seconds on the clock for each second of processor time
_TOGETHER = 25
_MODULES = {"core": "core", "vision": "vision", "medseg": "medseg", "video": "video"}

SAME, OTHER, REFUSED = "same", "other content", "refused"
HARMLESS = (SAME, OTHER, REFUSED)
"""Outcomes that are not failures."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one case.

    Attributes:
        verdict: One of `HARMLESS`, or the kind of failure.
        detail: Message or traceback.
        seconds: Time of the case.
        megabytes: Largest resident memory.
    """

    verdict: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


def load_formats(package: str) -> dict[str, Format]:
    """Return the formats of a package by name."""
    module = importlib.import_module(f"tools.fuzz.{_MODULES[package]}")
    return {each.name: each for each in module.FORMATS}


def isolate(calls: Mapping[int, Callable[[], str]], *, seconds: int = SECONDS) -> dict[int, Outcome]:
    """Call functions one after another in a forked process, with limits of time and memory for each.

    If the process ends during a function, this is the outcome of the function, and the following ones are not called.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _run_child(calls, write, seconds)
    os.close(write)
    outcomes: dict[int, Outcome] = {}
    begun: int | None = None
    with os.fdopen(read, "rb") as pipe:
        for line in pipe:
            record = json.loads(line)
            number = record.pop("number")
            begun = None if record else number
            if record:
                outcomes[number] = Outcome(**record)
    _, status, _ = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # processes that it has started
    if begun is not None:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        verdict = f"crash ({signal.Signals(number).name if number else f'exit status {os.WEXITSTATUS(status)}'})"
        is_late = number in (signal.SIGALRM, signal.SIGXCPU)
        outcomes[begun] = Outcome(f"over {SECONDS} s" if is_late else verdict, "", float(seconds) if is_late else 0.0)
    return outcomes


def _run_child(calls: Mapping[int, Callable[[], str]], write: int, seconds: int) -> NoReturn:
    os.setsid()
    for late in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(late, signal.SIG_DFL)
    faulthandler.disable()
    # What the process has at its start comes from its parent, which may be large, and is not counted.
    address_space, resident = (
        int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()[:2]
    )
    resource.setrlimit(resource.RLIMIT_AS, (address_space + _CEILING, address_space + _CEILING))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    with os.fdopen(write, "w", encoding="ascii") as pipe:
        for number, call in calls.items():
            print(json.dumps({"number": number}), file=pipe, flush=True)
            signal.alarm(_PATIENCE * seconds)
            start = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start) + seconds, resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory is counted from here on
            verdict, detail = _call(call)
            largest = _largest_memory()
            megabytes = largest / (1 << 20)
            if largest - resident > MEMORY:
                verdict = "over 2 GB"
            took = time.process_time() - start
            record = {"number": number, "verdict": verdict, "detail": detail[:200_000], "seconds": took}
            print(json.dumps({**record, "megabytes": megabytes}), file=pipe, flush=True)
    os._exit(0)


def _call(call: Callable[[], str]) -> tuple[str, str]:
    try:
        return "read", call()
    except UserError as error:
        return "over 2 GB" if _is_memory_error(error) else REFUSED, str(error)
    except MemoryError:
        return "over 2 GB", traceback.format_exc()
    except BaseException:  # noqa: BLE001 - what is counted
        return "traceback", traceback.format_exc()


def _largest_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _is_memory_error(error: BaseException | None) -> bool:
    """Return whether an exception is caused by a failed allocation, which could succeed on a larger machine."""
    while error is not None:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Corpus:
    """Valid examples of a format, and the result of its reader for each of them."""

    def __init__(self, kind: Format, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.files: dict[str, list[Path]] = {}
        self.good: dict[str, str] = {}
        for number, example in enumerate(kind.examples):
            place = folder / f"example{number}"
            place.mkdir()
            outcome = isolate({0: lambda: json.dumps([str(f) for f in kind.make(place, example)])}, seconds=300)[0]  # noqa: B023
            if outcome.verdict != "read":
                raise RuntimeError(f"{kind.name}, {example}: cannot be generated ({outcome.verdict})\n{outcome.detail}")
            self.files[example] = [Path(name).relative_to(place) for name in json.loads(outcome.detail)]
            reading = isolate({0: lambda: kind.read(place)}, seconds=300)[0]  # noqa: B023
            if reading.verdict != "read":
                raise RuntimeError(f"{kind.name}, {example}: cannot be read ({reading.verdict})\n{reading.detail}")
            self.good[example] = reading.detail

    @contextmanager
    def case(self, number: int, seed: int) -> Iterator[tuple[Path, str, Path]]:
        """Yield a folder with an example of which one file is damaged, the name of the example, and the file."""
        draw = random.Random(f"{seed} {self.kind.name} {number}")  # noqa: S311 - no secret
        example = draw.choice(list(self.kind.examples))
        file = draw.choice(self.files[example])
        source = self._source(example)
        another = draw.choice(list(self.kind.examples))
        donor = (self._source(another) / draw.choice(self.files[another])).read_bytes()
        content = (source / file).read_bytes()
        place = self.folder / f"case{number}"
        shutil.copytree(source, place)
        try:
            damaged_content = content
            while damaged_content == content:
                damaged_content = damage(content, self.kind.kind, draw, other=donor, header=self.kind.header)
            (place / file).write_bytes(damaged_content)
            if self.kind.sign is not None:
                self.kind.sign(place)
            yield place, example, place / file
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _source(self, example: str) -> Path:
        return self.folder / f"example{list(self.kind.examples).index(example)}"

    def attempt(self, numbers: Sequence[int], seed: int) -> Iterator[tuple[int, Outcome]]:
        """Read several damaged examples in one process, and try those that fail again in a separate process."""
        remaining = list(numbers)
        while remaining:
            outcomes = isolate({number: partial(self._judge, number, seed) for number in remaining})
            for number, outcome in outcomes.items():
                remaining.remove(number)
                judgement = self._outcome(outcome)
                if judgement.verdict not in HARMLESS:
                    shutil.rmtree(self.folder / f"case{number}", ignore_errors=True)
                    alone = self._outcome(isolate({number: partial(self._judge, number, seed)})[number])
                    if alone.verdict in HARMLESS and judgement.verdict.startswith("over"):  # the machine was busy
                        judgement = alone
                    elif alone.verdict in HARMLESS:
                        judgement = replace(judgement, detail=f"(not when read alone)\n{judgement.detail}")
                    shutil.rmtree(self.folder / f"case{number}", ignore_errors=True)
                yield number, judgement

    def _judge(self, number: int, seed: int) -> str:
        with self.case(number, seed) as (place, example, _):
            verdict, detail = _call(lambda: self.kind.read(place))
            return json.dumps(judge(verdict, detail, self.good[example], place, self.kind))

    @staticmethod
    def _outcome(outcome: Outcome) -> Outcome:
        if outcome.verdict != "read":
            return outcome
        verdict, detail = json.loads(outcome.detail)
        return replace(outcome, verdict=verdict, detail=detail)


def judge(verdict: str, detail: str, good: str, place: Path, kind: Format) -> tuple[str, str]:
    """Return the outcome of a case and its message from the behaviour of the reader."""
    if verdict == "read":
        return (SAME if detail == good else "silent difference" if kind.has_checksum else OTHER), ""
    if verdict == REFUSED:
        if str(place) not in detail:
            verdict = "error without the file"
        elif len(detail) > _LONGEST:
            verdict = "endless error"
        elif any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in detail):
            verdict = "error with control characters"
    return verdict, detail


def serve(package: str, *, seed: int, cases: int, only: str | None, start: Mapping[str, int]) -> None:
    """Try cases of each format from `start` on, and print a line of JSON for each case.

    Args:
        package: Group of formats.
        seed: Seed of the damage.
        cases: Number of cases of each format.
        only: Name of a single format; all formats of the package if None.
        start: Number of the first case of each format, if it is not 0.
    """
    formats = load_formats(package)
    gc.collect()
    gc.freeze()
    # Use a folder in memory if there is one, because writers of checkpoints wait for the disk.
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        for name, kind in formats.items():
            first = start.get(name, 0)
            if only not in (None, name) or first >= cases:
                continue
            place = Path(folder) / name.replace(" ", "-").replace("/", "-")
            place.mkdir()
            try:
                corpus = Corpus(kind, place)
            except RuntimeError as error:
                print(json.dumps(_record(name, first, Outcome("no valid example", str(error)))), flush=True)
                continue
            for begin in range(first, cases, _TOGETHER):
                for number, outcome in corpus.attempt(range(begin, min(begin + _TOGETHER, cases)), seed):
                    print(json.dumps(_record(name, number, outcome)), flush=True)
            shutil.rmtree(place, ignore_errors=True)


def _record(name: str, number: int, outcome: Outcome) -> dict[str, object]:
    record: dict[str, object] = {
        "format": name,
        "case": number,
        "word": outcome.verdict,
        "seconds": round(outcome.seconds, 3),
        "megabytes": round(outcome.megabytes),
    }
    return record if outcome.verdict in HARMLESS else {**record, "detail": outcome.detail[-6000:]}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(**json.loads(sys.argv[1]))
