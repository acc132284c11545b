"""A damaged image, volume or video in the data of every verb that opens some: it is named, without a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace.test_bombs import EVERY, OPEN_NONE
from tests.workspace.test_outputs_of_commands import _SMALL, CASES, call, filled

VOLUMES = [
    "check DATA",
    "make-splits DATA OUT --n-labelled 1 --draws 1 --n-validation 1",
    f"run DATA OUT --labelled patient001 --steps 1 --baseline-steps 1 {_SMALL}",
    f"train DATA OUT --split SPLIT --steps 1 {_SMALL}",
    "pretrain DATA OUT --split SPLIT --device cpu --no-progress",
    "selftrain MODEL DATA OUT --split SPLIT --steps 1 --device cpu --no-progress",
    "predict MODEL DATA OUT --device cpu",
    "evaluate MODEL DATA --out OUT --name scores --part all --device cpu",
    "next MODEL DATA OUT --split SPLIT --device cpu",
]
#: Verbs that need no pixels of the damaged file: they list the files of a data set.
ONLY_LIST = {("ssl_medseg", "make-splits"), ("ssl_medseg", "next"), ("ssl_video", "make-splits")}
#: Verbs whose report shows other files where one cannot be read.
SHOW_OTHERS = {
    ("ssl_vision", "report"),
    ("ssl_video", "report"),
    ("ssl_vision", "make-splits"),
    ("ssl_vision", "finetune"),
}
COMMANDS = [*EVERY, *(("ssl_medseg", words) for words in VOLUMES)]


def test_every_verb_that_opens_volumes_is_here() -> None:
    verbs = {case.verb for case in CASES["ssl_medseg"]} - OPEN_NONE - {"report"}
    assert {words.split()[0] for words in VOLUMES} == verbs


@pytest.mark.parametrize(
    ("domain", "words"), [pytest.param(*each, id=f"{each[0]}-{each[1].split()[0]}") for each in COMMANDS]
)
def test_a_damaged_file_is_named(
    domain: str,
    words: str,
    places: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = places(domain)
    data = Path(shutil.copytree(place["DATA"], tmp_path / "data"))
    for name, known in (("a", "0"), ("b", "1")) if domain == "ssl_vision" else ():  # classes of the model
        (data / name).rename(data / known)
    names = {"ssl_medseg": "imagesTr/*", "ssl_vision": "0/*", "ssl_video": "red/*"}
    bad = min(data.glob(names[domain]))
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status = call(domain, filled(words, {**place, "DATA": data}, tmp_path / "out"))
    said = "".join(capfd.readouterr())
    verb = (domain, words.split(maxsplit=1)[0])
    assert status == 1 or verb in ONLY_LIST | SHOW_OTHERS or bad.name in said, said
    if status:
        assert bad.name in said, said
