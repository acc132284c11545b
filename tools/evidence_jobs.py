"""The commands that the experiments with few labels have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.evidence_data import half_of
from tools.evidence_runs import Job, run_all
from tools.results import provenance, write_result

SEEDS = (0, 1, 2)

ENCODERS = {"simclr": 0.25, "small": 0.125}  # channel multiplier of ResNet-18
PER_CLASS = {1: 25, 10: 250}  # percent of 25,000 images -> labelled images of each of ten classes
PRETRAIN = ("--config", "simclr-cifar10-cpu", "--head.layers", "3", "--threads", "1")
TRAIN = ("--batch_size", "64", "--precision", "bf16-mixed", "--threads", "1")
EPOCHS = {1: "60", 10: "20"}  # of fine-tuning: 15,000 and 50,000 images
EPOCHS_FROM_SCRATCH = {1: "150", 10: "45"}


@dataclass(frozen=True)
class Place:
    """The images, and the folder of the runs."""

    data: Path
    runs: Path

    def labels(self) -> Job:
        """Labelled images, a draw for every seed, and 2,500 others that settings were chosen on."""
        counts = f"[{', '.join(map(str, PER_CLASS.values()))}]"
        words = ("make-splits", str(self.data), str(self.runs / "labels"), "--per_class", counts, "--fractions", "[]")
        return Job("labels", (*words, "--validation", "0.1"), self.runs / "labels" / "validation.json")

    def label_file(self, percent: int, seed: int) -> Path:
        """The labelled images of a seed."""
        return self.runs / "labels" / f"{PER_CLASS[percent]}-per-class-draw{seed}.json"

    def pretraining(self, encoder: str, seed: int) -> Job:
        """SimCLR with the encoder of that name, kept after every quarter: 8 epochs, 397,312 views."""
        name = f"{encoder}-s{seed}"
        words = (
            *("pretrain", str(self.data), str(self.runs / name), *PRETRAIN, "--encoder.width", str(ENCODERS[encoder])),
            *("--epochs", "8", "--save_every", "2", "--seed", str(seed)),
        )
        return Job(name, words, self.model(name))

    def finetuning(self, name: str, model: Path, percent: int, seed: int, *, after: str, layer: int = 0) -> list[Job]:
        """Fine-tune a model on the labels of a seed, and test it."""
        words = (
            *("finetune", str(model), str(self.data), str(self.runs / name), *TRAIN, "--epochs", EPOCHS[percent]),
            *("--optimizer.lr", "0.1", "--from_layer", str(layer)),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, words, self.model(name), ("labels", after)), self.test(name)]

    def supervised(self, encoder: str, percent: int, seed: int) -> list[Job]:
        """The same network from scratch, on the labels alone, and its test."""
        name = f"supervised-{encoder}-{percent}-s{seed}"
        words = (
            *("finetune", "none", str(self.data), str(self.runs / name), "--config", "supervised", *TRAIN),
            *("--encoder.width", str(ENCODERS[encoder]), "--epochs", EPOCHS_FROM_SCRATCH[percent]),
            *("--labels", str(self.label_file(percent, seed)), "--seed", str(seed)),
        )
        return [Job(name, words, self.model(name), ("labels",)), self.test(name)]

    def test(self, name: str) -> Job:
        """Score a classifier on the test images."""
        words = ("evaluate", str(self.runs / name), str(self.data), "--name", "test")
        return Job(f"{name}-test", words, self._scores(name), (name,))

    def model(self, name: str) -> Path:
        """The file that exists when a run has ended."""
        return self.runs / name / "model" / "model.json"

    def top1(self, name: str) -> float:
        """Its test accuracy in percent."""
        return float(json.loads(self._scores(name).read_text())["top1"])

    def _scores(self, name: str) -> Path:
        return self.runs / name / "evaluation" / "test.json"


def parse(description: str | None) -> argparse.Namespace:
    """The arguments of an experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as a folder train/<class>, test/<class>")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="commands side by side, a thread each")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def perform(study: Callable[[Place], list[Job]], arguments: argparse.Namespace) -> tuple[Place, list[Job]]:
    """Run what has not run yet.

    Raises:
        SystemExit: a command did not end well; it is named.
    """
    place = Place(half_of(arguments.data, arguments.runs / "data"), arguments.runs)
    jobs = study(place)
    missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
    if missing:
        raise SystemExit(f"no results, for {', '.join(missing)} did not end well")
    return place, jobs


def write(
    out: Path,
    jobs: Sequence[Job],
    *,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str],
    accuracies: Mapping[str, object],
) -> None:
    """Write the results file of an experiment."""
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            "seeds": list(SEEDS),
            "config": {"commands": [job.line for job in jobs]},
            "table": {"columns": list(columns), "rows": list(rows)},
            "notes": list(notes),
            "accuracies": accuracies,
        },
    )
