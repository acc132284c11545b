"""Every field of every document that the packages read, set to values of the wrong kind: read, or refused by name.

The fuzzer (`tools.fuzz`) draws its damage at random; here each value of each document is replaced once by each of the
values that raise other exceptions: another type, null, empty and nested lists, integers beyond 64 bits, fractions, NaN,
long text.
"""

from __future__ import annotations

import copy
import csv
import importlib
import io
import json
import math
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from contrastive_core.errors import UserError
from tools.fuzz import core, medseg, video, vision
from tools.fuzz.damage import _places
from tools.fuzz.format import Format


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 0.5, 3.0, 10**40, math.nan, math.inf, "", "x", "1", "../../x", "\x00", "\u202ex", "a" * 5000),
    *([], {}, [None], [[]], ["x", 1], {"": None}, {"x": {"x": []}}, _nested(60)),
)
#: For models, which are built where a value is accepted, and checkpoints, of which two are restored.
WRONG_OF_MODELS: tuple[Any, ...] = (10**40, "trap:make", {"x": []}, None)
_GONE = object()
CELLS = ("", "x", "-1", "0.5", "1e400", "nan", "9" * 5000, "../../x", "\x00", "\u202ex", '"', "a" * 5000)
DOCUMENTS = [
    pytest.param(each, example, id=f"{module.__name__.rpartition('.')[2]}-{each.name}-{example}".replace(" ", "_"))
    for module in (core, vision, medseg, video)
    for each in module.FORMATS
    if each.kind in ("json", "yaml", "csv") and not each.has_checksum
    for example in each.examples
    if example != "unet"  # the segmenter with the other two kinds of networks
]


def altered_values(document: Any, wrong_values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The document with one value replaced or removed, and how."""
    for number in range(len(_places([document]))):
        for wrong in (*wrong_values, _GONE):
            copied = copy.deepcopy([document])
            holder, key = _places(copied)[number]
            if wrong is not _GONE:
                holder[key] = copy.deepcopy(wrong)
            elif holder is copied:
                continue
            else:
                del holder[key]
            yield f"{key!r} {'is gone' if wrong is _GONE else f'is {wrong!r:.40}'}", copied[0]


def altered_json(text: str, wrong_values: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    lines = text.splitlines()
    if len(lines) > 1 and all(line[:1] == "{" and line[-1:] == "}" for line in lines):
        for at, line in enumerate(lines):
            for how, content in altered_values(json.loads(line), wrong_values):
                yield f"line {at + 1}: {how}", "\n".join([*lines[:at], json.dumps(content), *lines[at + 1 :]]) + "\n"
        return
    for how, content in altered_values(json.loads(text), wrong_values):
        yield how, json.dumps(content)


def altered_yaml(text: str, wrong_values: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    for how, content in altered_values(yaml.safe_load(text), wrong_values):
        yield how, yaml.safe_dump(content, allow_unicode=True)
    for tag in ("!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!binary x", "&x [*x]", "2001-99-99"):
        yield tag, f"added: {tag}\n{text}"


def altered_cells(text: str, _: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    delimiter = max(",;\t ", key=text.partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    for number, row in enumerate(rows):
        for at in range(len(row)):
            for cell in (*CELLS, None):
                new = [*row[:at], *([] if cell is None else [cell]), *row[at + 1 :]]
                lines = [delimiter.join(each) for each in [*rows[:number], new, *rows[number + 1 :]]]
                yield f"cell {at + 1} of line {number + 1} {cell!r:.40}", "\n".join(lines) + "\n"


SLOW = {"encoder, signed", "classifier, signed", "segmenter, signed", "recognizer, signed", "checkpoint, signed"}
LONG = {"evaluation of a classifier", "evaluation of masks", "split of volumes, signed", "split of videos, signed"}
ALTERED = {"json": altered_json, "yaml": altered_yaml, "csv": altered_cells}


def tried(
    files: Iterable[Path], root: Path, kind: str, read: Callable[[], object], *, values: tuple[Any, ...] = WRONG,
    sign: Callable[[Path], None] | None = None, most: int = 10_000,
) -> int:  # fmt: skip
    """Read with every alteration of every file, or evenly chosen ones; the number of them, all read or refused."""
    number, wrong = 0, {}
    for file in files:
        content = file.read_bytes()
        if b"\0" in content[:512] or not content.isascii():
            continue  # tensors
        before = {each: each.read_bytes() for each in root.rglob("*") if each.is_file()}
        alterations = list(ALTERED[kind](content.decode(), values))
        for how, text in alterations[:: -(-len(alterations) // most)]:
            file.write_text(text, encoding="utf-8", errors="surrogatepass")
            if sign is not None:
                sign(root)
            number += 1
            try:
                read()
            except UserError as error:
                if not str(error).strip() or "Traceback" in str(error):
                    wrong[f"{file.name}: {how}"] = f"says {error}"
            except Exception:  # noqa: BLE001 - whatever the libraries raise
                wrong[f"{file.name}: {how}"] = traceback.format_exc(limit=-3)
            for each in [each for each in root.rglob("*") if each.is_file() and each not in before]:
                each.unlink()
            for each, was in before.items():
                each.parent.mkdir(parents=True, exist_ok=True)
                each.write_bytes(was)
    shown = "\n".join(f"{how}\n{found}" for how, found in list(wrong.items())[:12])
    assert not wrong, f"{len(wrong)} of {number}:\n{shown}"
    return number


@pytest.mark.parametrize(("document", "example"), DOCUMENTS)
def test_no_field_raises_another_error(
    document: Format, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "trap.py").write_text("raise SystemExit('the code that a model names was run')\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    root = tmp_path / "files"
    root.mkdir()
    files = document.make(root, example)
    document.read(root)
    values = WRONG_OF_MODELS if document.name in SLOW else WRONG[:: 2 if document.name in LONG else 1]
    values = values[1:3] if example == "monai" else values  # takes seconds to build
    assert tried(files, root, document.kind, lambda: document.read(root), values=values, sign=document.sign) > 20


DRAWING = {
    "ssl_vision": ("ssl_vision.reports.sections", "ssl_vision.reports.classifier_sections"),
    "ssl_medseg": ("ssl_medseg.reports.sections", "ssl_medseg.reports.rounds", "ssl_medseg.reports.evaluation_section"),
    "ssl_video": ("ssl_video.reports.sections",),
}


@pytest.mark.parametrize("domain", DRAWING)
def test_no_field_of_a_run_raises_another_error_in_its_report(
    domain: str, places: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All documents of a run's folder, which a report reads together; curves are not drawn, and the data have moved.

    A report takes a tenth of a second, so that 60 alterations of each document are tried.
    """
    report: Callable[..., Path] = importlib.import_module(f"{domain}.commands.report").report
    run = Path(shutil.copytree(places(domain)["RUN"], tmp_path / "run"))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "data": str(tmp_path / "moved")}))
    for module in map(importlib.import_module, DRAWING[domain]):
        for name in ("to_inline_svg", "training_curves", "rounds_figure", "bland_altman_figure"):
            monkeypatch.setattr(module, name, lambda *_, **__: "", raising=False)
    report(run, out=tmp_path / "page.html")

    def read() -> None:
        report(run, out=tmp_path / "page.html", overwrite=True)

    values = ({"x": []}, "x")
    number = tried([run / "config.yaml"], run, "yaml", read, values=values[:1], most=60)
    others = [file for file in sorted(run.rglob("*.json*")) if file.name[0] != "." and "checkpoints" not in file.parts]
    assert {"metrics.jsonl", "timing.jsonl", "model.json"} <= {file.name for file in others}
    assert number + tried(others, run, "json", read, values=values, most=60) > 100


def test_no_field_of_the_data_of_a_run_raises_another_error(tmp_path: Path) -> None:
    """The hashes with which a resumed run and an evaluation recognise the data of training."""
    from ssl_medseg.io.label_map import LabelMap
    from ssl_medseg.reports.used_cases import Uses, cases_seen
    from ssl_medseg.training.data import keep_identity

    run: Any = SimpleNamespace(is_main=True, out=tmp_path)
    identity = {name: {"part": "labelled", "image": "0" * 64, "label": "1" * 64} for name in ("p1", "p2")}
    labels, prepared = LabelMap(("background", "a"), (0, 1)), {name: {"voxels": "2" * 32} for name in identity}
    seen: Any = SimpleNamespace(labels=labels, identity=identity, preparation=lambda: prepared)
    keep_identity(run, seen, model="m")

    def read() -> None:
        Uses.of(cases_seen(tmp_path).values())
        keep_identity(run, seen, model="m")

    read()
    assert tried([tmp_path / "data.json"], tmp_path, "json", read) > 100
