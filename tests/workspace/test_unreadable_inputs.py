"""A damaged image, volume or video in the data of every verb that opens some: it is named, without a traceback."""

from __future__ import annotations

import json
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
    if domain == "ssl_video":  # one to train on and one to test
        split = json.loads(place["SPLIT"].read_text())
        bad = [data / split["labelled"][0][0], data / split["test"][0][0]]
    elif domain == "ssl_vision":
        first = min(data.glob("0/*"))
        bad = [first.rename(first.with_name("damaged.png"))]
    else:
        bad = [min(data.glob("imagesTr/*"))]
    for file in bad:  # of a video, what is there is read: nothing is left of these
        file.write_bytes(file.read_bytes()[: 100 if domain == "ssl_video" else file.stat().st_size // 2])
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status = call(domain, filled(words, {**place, "DATA": data}, tmp_path / "out"))
    said = "".join(capfd.readouterr())
    told = said + "".join(file.read_text() for file in tmp_path.rglob("out/*.csv"))
    if status or (domain, words.partition(" ")[0]) not in ONLY_LIST | SHOW_OTHERS:
        names = [file.name.removesuffix(".nii.gz") for file in bad]  # the case of a volume
        assert any(name in told for name in names), said
