"""Damage valid files at random and read them, each in a process that may die.

    python -m tools.fuzz --cases 50                       # of every format; what CI runs
    python -m tools.fuzz --cases 700 --out fuzz.json

A case fails if its reader raises anything but a UserError, crashes, takes over 10 s or over 2 GB, or, in formats with
a checksum, reads something else than was written. The exit status is the number of kinds of failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from contrastive_core.errors import UserError
from tools.fuzz.formats import FORMATS, Format

_SECONDS, _BYTES = 10, 2 << 30
_TOKENS = (
    b"[" * 3000,
    b"{" * 3000,
    b"9" * 5000,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"\x00",
    b"\xff\xff\xff\x7f",
    b'"',
    b"../",
)


def damage(content: bytes, draw: random.Random) -> bytes:
    """A copy with one to four changes: bits, bytes, what was cut out, doubled or put in."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(made) + 1)
        kind = draw.randrange(6)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(made):
            made[place] = draw.choice((0, 255, 127, 128, draw.randrange(256)))
        elif kind == 2:
            del made[place:]
        elif kind == 3:
            del made[place : place + draw.randint(1, 64)]
        elif kind == 4:
            made[place:place] = made[place : place + draw.randint(1, 64)]
        else:
            made[place:place] = draw.choice(_TOKENS)
    return bytes(made)


def outcome(kind: Format, file: Path, good: str) -> tuple[str, str]:
    """What became of one case, and its traceback if there was one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        warnings.simplefilter("ignore")
        try:
            said = "same" if kind.read(file) == good else "other content"
        except UserError:
            said = "refused"
        except BaseException:  # noqa: BLE001 - what is counted
            said = "traceback\n" + traceback.format_exc()
        os.write(write, said.encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return ("over 10 s" if os.WTERMSIG(status) == signal.SIGALRM else f"signal {os.WTERMSIG(status)}"), ""
    if usage.ru_maxrss * 1024 > _BYTES:
        return "over 2 GB", ""
    word, _, trace = said.partition("\n")
    if word == "other content" and kind.has_checksum:
        return "silent difference", ""
    return word, trace


def main(argv: list[str]) -> int:
    """Try all formats and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=50, help="damaged files of each format")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", choices=sorted(FORMATS), help="a single format")
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counts: dict[str, dict[str, int]] = {}
    failed: Counter[str] = Counter()
    for name, kind in FORMATS.items():
        if options.only not in (None, name):
            continue
        draw = random.Random(f"{options.seed} {name}")  # noqa: S311 - no secret
        found: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            file = kind.make(Path(folder))
            content = file.read_bytes()
            try:
                good = kind.read(file)
            except UserError:  # a file of another kind, which its reader refuses
                good = ""
            for number in range(options.cases):
                file.write_bytes(damage(content, draw))
                word, trace = outcome(kind, file, good)
                found[word] += 1
                if word not in ("same", "refused", "other content"):
                    failed[f"{name}: {word}"] += 1
                    print(f"{name}, case {number}: {word}\n{trace}", file=sys.stderr)
        counts[name] = dict(sorted(found.items()))
        print(f"{name}: " + ", ".join(f"{count} {word}" for word, count in counts[name].items()), flush=True)
    if options.out:
        total = sum(sum(each.values()) for each in counts.values())
        report = {"cases": total, "seed": options.seed, "failed": dict(failed), "formats": counts}
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
