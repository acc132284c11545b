"""Read a run folder for its report: stages, model card, split, rounds, evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from contrastive_core.app.report.run_record import RunRecord, read_record
from contrastive_core.training import config
from contrastive_core.training.documents import read_object
from ssl_medseg.datasets.splits import PARTS
from ssl_medseg.evaluation.results import Evaluation, read_evaluation
from ssl_medseg.evaluation.summary import dice_where_present, never_found, summarise

_COMMANDS = "`ssl-medseg train`, `pretrain`, `selftrain` or `run`"


@dataclass(frozen=True)
class Stage:
    """One training stage of a run.

    Attributes:
        name: Name of its folder inside the run; empty if the run folder is the stage itself.
        path: Path of the folder.
        record: Configuration, metrics, timing.
        card: Metadata of the model; empty if the stage has no model yet.
        rounds: Statistics of the pseudo-labels of each round.
        preparation: How each case was prepared, as `ssl_medseg.training.data` writes it; empty for older runs.
    """

    name: str
    path: Path
    record: RunRecord
    card: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    preparation: Mapping[str, Mapping[str, Any]]

    @property
    def method(self) -> str:
        """Training method: ``train``, ``pretrain`` or ``selftrain``, with its variant."""
        detail = self.card.get("details", {}).get("method")
        if detail:
            return str(detail)
        settings = {
            "baseline_floor": "run",
            "pretraining": "pretrain",
            "selftraining": "selftrain",
            "training": "train",
        }
        return next((method for name, method in settings.items() if name in self.record.config), "run")

    @property
    def is_done(self) -> bool:
        """Whether the stage has written its model."""
        return bool(self.card)


@dataclass(frozen=True)
class Reported:
    """A run on disk, finished or not.

    Attributes:
        path: Path of the run folder.
        stages: Training stages, in the order in which they were started.
        split: Part -> pairs of case and patient, from the split file; empty if that file is no longer there.
        data: Name of the data set, from the split file, without its path.
        evaluations: Evaluations, newest first, each with the folder of its pictures.
        floor: Smallest Dice of the baseline with which `run` goes on to self-training; 0 for other commands.
    """

    path: Path
    stages: tuple[Stage, ...]
    split: Mapping[str, list[tuple[str, str]]]
    data: str
    evaluations: tuple[tuple[Evaluation, Path], ...]
    floor: float = 0.0

    @property
    def last(self) -> Stage:
        """The last stage, whose model is the model of the run."""
        return self.stages[-1]

    @property
    def has_failed(self) -> bool:
        """Whether the baseline failed, so that `run` stopped before self-training."""
        if not (self.floor and self.evaluations and self.last.name == "baseline" and self.last.is_done):
            return False
        summary = summarise(self.evaluations[0][0])
        dice = dice_where_present(summary)
        return bool(never_found(summary)) or (bool(dice) and fmean(dice.values()) < self.floor)

    @property
    def stage_evaluations(self) -> dict[str, Evaluation]:
        """Stage -> evaluation of its model, all on the same cases; the evaluation of the run serves for the last stage.

        If several sets of cases were evaluated with more than one stage, the most recent set is used; if none was, the
        result is empty.
        """
        evaluations = {stage.name: _evaluations(stage.path) for stage in self.stages if stage.path != self.path}
        if self.evaluations and evaluations:
            evaluations[self.last.name] = self.evaluations
        for evaluation, _ in evaluations.get(self.last.name, ()):
            cases = {case.case for case in evaluation.judged}
            by_stage = {
                name: next((e for e, _ in each if {case.case for case in e.judged} == cases), None)
                for name, each in evaluations.items()
            }
            matches = {name: each for name, each in by_stage.items() if each is not None}
            if len(matches) > 1:
                return {**matches, self.last.name: evaluation}
        return {}

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures; empty if no model or evaluation states them."""
        for stage in reversed(self.stages):
            if "labels" in stage.card:
                return tuple(stage.card["labels"]["names"][1:])
        return self.evaluations[0][0].structures if self.evaluations else ()


def open_run(path: Path) -> Reported:
    """Read a run folder.

    Raises:
        UserError: The folder does not contain a run, or its files are damaged.
    """
    stages = _stages(path)
    split, data = _split(stages)
    settings = path / "config.yaml"
    floor = config.read(settings).get("baseline_floor", 0.0) if settings.is_file() else 0.0
    return Reported(path, stages, split, data, _evaluations(path) or _evaluations(stages[-1].path), float(floor or 0))


def _stages(path: Path) -> tuple[Stage, ...]:
    """Read the stages: the training in the folder itself, if any, and those in its subfolders, oldest first."""
    inside = [file.parent for file in path.glob("*/config.yaml")] if path.is_dir() else []
    inside.sort(key=lambda folder: ((folder / "config.yaml").stat().st_mtime_ns, folder.name))
    folders = [*inside, path] if (path / "metrics.jsonl").is_file() or not inside else inside
    return tuple(_stage(folder, "" if folder == path else folder.name) for folder in folders)


def _stage(folder: Path, name: str) -> Stage:
    record = read_record(folder, made_by=_COMMANDS)
    card = _json(folder / "model" / "model.json").get("metadata", {})
    rounds = tuple(_json(file) for file in sorted((folder / "rounds").glob("round-*.json")))
    preparation = _json(folder / "data.json").get("preparation", {})
    return Stage(name, folder, record, card, rounds, preparation)


def _evaluations(path: Path) -> tuple[tuple[Evaluation, Path], ...]:
    """Read the evaluations of a run or a stage, newest first."""
    places = (path / "evaluation", path / "masks" / "evaluation")
    files = [file for folder in places for file in folder.glob("*.json") if not file.name.startswith(".")]
    files.sort(key=lambda file: (-file.stat().st_mtime_ns, file.name))
    return tuple((read_evaluation(file), file.parent) for file in files)


def _split(stages: tuple[Stage, ...]) -> tuple[dict[str, list[tuple[str, str]]], str]:
    for stage in reversed(stages):
        for file in split_places(stage.path, stage.record.config.get("split")):
            content = _json(file)
            if all(part in content for part in PARTS):
                parts = {part: [(str(n), str(p)) for n, p in content[part]] for part in PARTS}
                return parts, str(content.get("data", ""))
    return {}, ""


def split_places(run: Path, name: object) -> list[Path]:
    """Return the places where the split file of a run may lie, the most probable one first.

    Args:
        run: Folder of the run or of a stage.
        name: Split file in its configuration; a relative path refers to the directory where the run was started: this
            one, or a parent of the run folder.
    """
    places = [Path(str(name)), *(above / str(name) for above in run.resolve().parents)] if name else []
    return [*places, run / "split.json", run.parent / "split.json"]


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    if not file.is_file():
        return {}
    return read_object(file)
