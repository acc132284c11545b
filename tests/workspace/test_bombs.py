"""Files that unpack to far more than their size, in every verb that opens images or videos: named, not unpacked."""

from __future__ import annotations

import pkgutil
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import ssl_video.commands
import ssl_vision.commands
from tests.workspace.test_outputs_of_commands import CASES, filled
from tools.forked import Forked

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux alone")
#: Verbs that open no image and no video: they read models, runs and checkpoints alone.
OPEN_NONE = {"export", "import-checkpoint", "demo"}
_ROOM = 2 << 30
"""Bytes that a verb may take beyond what it has before it begins; the bombs take 10 GB."""
SERVER = Forked(
    [
        f"{package.__name__}.{module.name}"
        for package in (ssl_vision.commands, ssl_video.commands)
        for module in pkgutil.iter_modules(package.__path__)
    ]
)


def write_bomb(path: Path, *, side: int = 60_000) -> None:
    """Write a PNG of 3.6 gigapixels in 11 kB, with right checksums."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    row = bytes(1 + side * 3)
    data = b"".join(packed.compress(row) for _ in range(200)) + packed.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def write_wide_video(path: Path) -> None:
    """Write a Y4M video whose header states frames of a gigapixel."""
    path.write_bytes(b"YUV4MPEG2 W40000 H30000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(4096))


def limited(domain: str, line: list[str], log: Path) -> int:
    """Return the exit status of a command line in its own process, with a limit on additional memory.

    The process is forked from one that has only imported: after a fork, the threads of torch are missing, and what this
    process has computed before decides whether the child notices.
    """
    status = SERVER.run("tests.workspace.limited", [str(_ROOM), domain, *line], log, seconds=400)
    assert status is not None, "hangs"
    return status


IMAGES = [
    "check DATA",
    "make-splits DATA OUT --per-class 1 --draws 1",
    "pretrain DATA OUT --epochs 1 --batch-size 4 --image-size 16 --encoder.width-multiplier 0.125 --device cpu",
    "finetune MODEL DATA OUT --epochs 1 --batch-size 2 --device cpu",
    "distill MODEL DATA OUT --epochs 1 --batch-size 2 --device cpu",
    "linear pixels DATA --out OUT/score.json --test-part train --device cpu --epochs 1",
    "knn pixels DATA --out OUT/score.json --test-part train --device cpu",
    "transfer pixels DATA --out OUT/score.json --test-part train --device cpu",
    "few-labels MODEL DATA OUT",
    "evaluate MODEL DATA --out OUT --part train --device cpu",
    "predict MODEL DATA OUT/table.csv --device cpu",
    "embed pixels DATA OUT/features.npz --device cpu",
    "report RUN --data DATA --out OUT/page.html --device cpu",
]
VIDEOS = [
    "check DATA",
    "make-splits DATA OUT --per-class 1 --draws 1 --validation-fraction 0 --test-fraction 0.3",
    "flow DATA OUT --workers 0 --method dis_ultrafast --short-side 32",
    "train DATA OUT --split SPLIT --views rgb --steps 1 --batch-size 4 --mu 1 --image-size 16 --clip.frames 4 "
    "--clip.stride 2 --recalibrate 0 --network.name small_slow --network.width 4 --workers 0 --device cpu",
    "evaluate MODEL DATA --split SPLIT --out OUT --clips 1 --crops 1 --device cpu",
    "predict MODEL DATA OUT/table.csv --clips 1 --crops 1 --device cpu",
    "report RUN --data DATA --out OUT/page.html",
]
EVERY = [("ssl_vision", words) for words in IMAGES] + [("ssl_video", words) for words in VIDEOS]


@pytest.mark.parametrize("domain", ["ssl_vision", "ssl_video"])
def test_every_verb_that_opens_files_is_here(domain: str) -> None:
    verbs = {case.verb for case in CASES[domain]} - OPEN_NONE
    assert {words.split()[0] for name, words in EVERY if name == domain} == verbs


@pytest.mark.parametrize(
    ("domain", "words"), [pytest.param(*each, id=f"{each[0]}-{each[1].split()[0]}") for each in EVERY]
)
def test_a_bomb_is_not_unpacked(
    domain: str,
    words: str,
    places: Callable[[str], dict[str, Path]],
    tmp_path: Path,
) -> None:
    """It is refused, or left out and named; nothing uses the memory that it states."""
    place = places(domain)
    data = tmp_path / "data"
    shutil.copytree(place["DATA"], data)
    for name, known in (("a", "0"), ("b", "1")) if domain == "ssl_vision" else ():  # classes of the model
        (data / name).rename(data / known)
    first = sorted(path for path in data.rglob("*") if path.is_file())[0]
    bomb = first.with_name(f"aaa{first.suffix}")
    (write_bomb if domain == "ssl_vision" else write_wide_video)(bomb)
    log = tmp_path / "log.txt"
    status = limited(domain, filled(words, {**place, "DATA": data}, tmp_path / "out"), log)
    said = log.read_text()
    assert status in (0, 1), said
    assert "Traceback" not in said
    assert "allocate" not in said
    assert "Cannot allocate" not in said
    if status:
        assert bomb.name in said, said
        assert "is too large" in said or domain == "ssl_video", said
