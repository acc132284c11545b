"""Formats that contrastive-core reads: documents, checkpoints and model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from contrastive_core.app.report.run_record import read_record
from contrastive_core.errors import UserError
from contrastive_core.training import config, files
from contrastive_core.training.checkpoint import Position, Snapshots
from contrastive_core.training.documents import read_json, read_rows, read_yaml
from contrastive_core.training.model_file import load_model, save_model, write_card
from contrastive_core.training.processes import Processes
from tools.fuzz.format import Format, digest


def document(name: str, text: str) -> Callable[[Path, str], list[Path]]:
    """Return a function that writes an example consisting of one text file."""

    def make(root: Path, _: str) -> list[Path]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
        return [root / name]

    return make


def sign_card(root: Path) -> None:
    """Update the hashes in model.json to match a damaged model folder, if the file is still JSON."""
    try:
        file = next(root.rglob("model.json"))
        card = json.loads(file.read_text(encoding="utf-8"))
        card.pop("card_sha256", None)
        card["sha256"] = files.sha256(file.with_name("model.safetensors"))
        write_card(file, card)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return


def _make_model(root: Path, _: str) -> list[Path]:
    folder = save_model(root / "model", {"a": torch.arange(6.0), "b.c": torch.ones(2, 3)}, {"format": "x", "width": 3})
    return [folder / "model.json", folder / "model.safetensors"]


def _read_model(root: Path) -> str:
    return digest(*load_model(root))


_CONFIG = {"lr": 0.1, "encoder": {"name": "resnet18", "widths": [1, 2, 3]}, "seed": 3, "flag": True, "out": None}


def _new_objects() -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return {"net": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)}


def _make_checkpoints(root: Path, _: str) -> list[Path]:
    torch.manual_seed(0)
    objects = _new_objects()
    snapshots = _snapshots(root, objects)
    for step in (1, 2):
        objects["net"](torch.randn(4, 3)).sum().backward()
        objects["optimizer"].step()
        snapshots.save(Position(step=step))
        (root / f"state-{step}").write_text(_state(objects))
    return sorted((root / "checkpoints" / "step-000002").iterdir())


def _state(objects: dict[str, Any]) -> str:
    return digest({name: value.state_dict() for name, value in objects.items()})


def _snapshots(root: Path, objects: dict[str, Any]) -> Snapshots:
    snapshots = Snapshots(root / "checkpoints", keep=2)
    for name, value in objects.items():
        snapshots.track(name, value)
    return snapshots


def _read_checkpoint(root: Path) -> str:
    """Read the newest checkpoint; if it is damaged, the previous one must be restored unchanged."""
    objects = _new_objects()
    position = _snapshots(root, objects).restore(Processes(rank=0, world_size=1), say=lambda _: None)
    state = _state(objects)
    if position.step == 1 and state == (root / "state-1").read_text():
        raise UserError(f"{root}: the newest checkpoint is damaged")
    return digest(state, vars(position))


def _sign_checkpoint(root: Path) -> None:
    folder = root / "checkpoints" / "step-000002"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            facts.update(bytes=(folder / name).stat().st_size, sha256=files.sha256(folder / name))
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return


def _make_run(root: Path, _: str) -> list[Path]:
    (root / "config.yaml").write_text(yaml.safe_dump({**_CONFIG, "run": {"seed": 0}}))
    records = [{"step": step, "loss": 1 / (step + 1)} for step in range(3)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    timing = [{"session": 1, "device": "cpu"}, {"step": 1, "seconds": 1.5}, {"step": 2, "seconds": 2.5}]
    (root / "timing.jsonl").write_text("".join(json.dumps(record) + "\n" for record in timing))
    return [root / "metrics.jsonl", root / "timing.jsonl"]


def _read_run(root: Path) -> str:
    return digest(vars(read_record(root, made_by="x")))


FORMATS = (
    Format("JSON", document("x.json", json.dumps({"labels": {"0": "a", "1": "b"}, "list": [1, 2.5, None, [True]]})),
           lambda root: digest(read_json(root / "x.json")), kind="json"),
    Format("YAML", document("x.yaml", yaml.safe_dump(_CONFIG)),
           lambda root: digest(read_yaml(root / "x.yaml")), kind="yaml"),
    Format("CSV", document("x.csv", 'path,class,split\na.png,cat,train\n"b, c.png",dog,val\n'),
           lambda root: digest(read_rows(root / "x.csv")), kind="csv"),
    Format("configuration of a run", document("config.yaml", yaml.safe_dump(_CONFIG)),
           lambda root: digest(config.read(root / "config.yaml")), kind="yaml"),
    Format("metrics and timing of a run", _make_run, _read_run, kind="json"),
    Format("model folder", _make_model, _read_model, has_checksum=True),
    Format("model folder, signed", _make_model, _read_model, kind="json", sign=sign_card),
    Format("checkpoint", _make_checkpoints, _read_checkpoint, has_checksum=True),
    Format("checkpoint, signed", _make_checkpoints, _read_checkpoint, kind="json", sign=_sign_checkpoint),
)  # fmt: skip
