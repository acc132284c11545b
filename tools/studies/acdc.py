"""Evaluate semi-supervised segmentation of ACDC with 1, 2 and 8 labelled patients.

    python -m tools.studies.acdc --data data/acdc --runs runs/acdc --out docs/results/acdc.json

The study has five draws of labelled patients. For each draw, a supervised baseline is trained. Starting from the same
model, plain self-training (Dice on the pseudo-labels), the paper's joint training (segmentation loss on labels, local
contrastive loss on pseudo-labels), both together, and further baselines are trained. Methods of a draw differ only in
the loss, so that differences are paired. The test part consists of the ten patients that `split.csv` reserves for
validation; two other patients select the step. Commands with a result are not repeated; the table states the number of
finished draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from ssl_medseg.datasets import open_dataset, read_split
from ssl_medseg.io import read_label
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.preprocessing.prepare import prepare_label, slice_geometry, to_voxels
from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all

FIRST, ROUNDS, STEPS = 300, 3, 100
MORE = ROUNDS * STEPS
PAPER = ("--recipe", "paper")
NETWORK = ("--network.width", "8", "--image-size", "64")
CPU = ("--device", "cpu", "--threads", "1", "--log_every", "25")
APART = ("--norm", "apart")
ROUNDS_ALONE = ("--method", "rounds")
CONTRAST = (*ROUNDS_ALONE, "--pseudo_weight", "0", "--contrast.weight", "0.1")
COUNTS = (2, 1, 8)


@dataclass(frozen=True)
class Method:
    """Row of the table.

    Attributes:
        name: Name of the method.
        arguments: Additional arguments of its command.
        each: Number of slices per step.
        steps: Number of steps of training, or of all rounds together, after the first segmenter.
        kind: Kind of command: none for the first segmenter itself; a longer training on labels alone; `selftrain`; or
            the pre-training of the parent method before the labels.
    """

    name: str
    arguments: tuple[str, ...] = ()
    each: int = 20
    steps: int = MORE
    kind: Literal["first", "train", "selftrain", "parent"] = "selftrain"

    @property
    def slices(self) -> int:
        """Total number of slices, including those of the first segmenter."""
        return 20 * FIRST + self.each * self.steps


METHODS = {
    "first": Method("labels alone, where all others begin", steps=0, kind="first"),
    "supervised": Method("labels alone", kind="train"),
    "pseudo": Method("plain self-training", ROUNDS_ALONE, 40),
    "both": Method("both, weight 0.03", (*ROUNDS_ALONE, "--contrast.weight", "0.03", *APART), 60),
    "contrast": Method("contrastive joint training (inter)", (*CONTRAST, *APART), 40),
    "supervised-long": Method("labels alone, as many slices as both", kind="train", steps=3 * MORE),
    "pseudo-long": Method("plain self-training, as many slices as both", ROUNDS_ALONE, 40, 3 * MORE // 2),
    "teacher": Method("mean teacher", ("--method", "mean-teacher"), 40),
    "intra": Method("contrastive, intra", (*CONTRAST, "--contrast.class_means", "intra", *APART), 40),
    "official": Method(
        "contrastive, the released reduction", (*CONTRAST, "--contrast.reduction", "official", *APART), 40
    ),
    "joint": Method(
        "both, weight 0.03, batch statistics shared as released",
        (*ROUNDS_ALONE, "--contrast.weight", "0.03", "--norm", "joint"),
        60,
    ),
    "parent": Method("parent pre-training, then labels", kind="parent", each=48),
}
MAIN = ("first", "supervised", "pseudo", "both", "contrast")
"""Methods that run first, draw by draw."""

Scores = dict[str, dict[int, float]]
"""Mean Dice by method and draw."""


@dataclass(frozen=True)
class Study:
    """Data set, folder of the runs, and extent of the study."""

    data: Path
    runs: Path
    draws: int
    methods: tuple[str, ...]

    def jobs(self) -> list[Job]:
        """Return all commands: the main methods draw by draw, all labels, and then the other methods."""
        cells = [(count, draw) for draw in range(1, self.draws + 1) for count in COUNTS[:2]]
        cells += [(8, draw) for draw in range(1, 4)]
        main = [method for method in self.methods if method in MAIN]
        other_methods = [method for method in self.methods if method not in MAIN]
        return [
            self.splits(),
            *(job for cell in cells for job in self.cell(*cell, main)),
            *(job for draw in (1, 2, 3) for job in self.upper(draw)),
            *(job for cell in cells for job in self.cell(*cell, other_methods)[1:]),
        ]

    def splits(self) -> Job:
        """Return the job that draws labelled, validation, test and unlabelled patients."""
        out, table = self.runs / "splits", self.data / "split.csv"
        arguments = (
            "make-splits",
            str(self.data),
            str(out),
            "--n-labelled",
            "[1,2,8]",
            "--draws",
            "5",
            "--n-validation",
            "2",
        )
        return self._job(
            "splits", (*arguments, "--table", str(table), "--table_test", "[val]"), out / "all-labelled.json"
        )

    def cell(self, count: int, draw: int, methods: Sequence[str]) -> list[Job]:
        """Return the jobs of the first segmenter and of the methods with a number of labelled patients."""
        jobs = [self.train("first", count, draw, FIRST, *NETWORK)]
        for method in methods:
            if (kind := METHODS[method].kind) != "first":
                jobs += {"train": self.more, "selftrain": self.go_on, "parent": self.parent}[kind](method, count, draw)
            jobs.append(self.test(method, count, draw))
        return jobs

    def upper(self, seed: int) -> list[Job]:
        """Return the jobs that train on all labels except those of validation and test, as long as on labels alone."""
        out, split = self.runs / f"all-seed{seed}", self.runs / "splits" / "all-labelled.json"
        arguments = (
            "train",
            str(self.data),
            str(out),
            "--split",
            str(split),
            "--steps",
            str(FIRST + MORE),
            *PAPER,
            *NETWORK,
        )
        job = self._job(out.name, (*arguments, *self._flags(seed)), out / "model" / "model.json", "splits")
        return [job, self._test(out)]

    def train(self, name: str, count: int, draw: int, steps: int, *arguments: str) -> Job:
        """Return the job that trains on the labels alone."""
        out = self.out(name, count, draw)
        command = (
            "train",
            str(self.data),
            str(out),
            "--split",
            str(self.split(count, draw)),
            "--steps",
            str(steps),
            *PAPER,
            *arguments,
        )
        return self._job(out.name, (*command, *self._flags(draw)), out / "model" / "model.json", "splits")

    def more(self, method: str, count: int, draw: int) -> list[Job]:
        """Return the job that trains on the labels alone for more steps."""
        return [self.train(method, count, draw, FIRST + METHODS[method].steps, *NETWORK)]

    def parent(self, method: str, count: int, draw: int) -> list[Job]:
        """Return the jobs of both stages of pre-training on all training volumes and of training on the labels."""
        out = self.out("trunk", count, draw)
        stages = ("--global_steps", str(MORE // 2), "--local_steps", str(MORE // 2))
        split = str(self.split(count, draw))
        command = ("pretrain", str(self.data), str(out), "--split", split, *stages, *NETWORK)
        trunk = self._job(out.name, (*command, *self._flags(draw)), out / "model" / "model.json", "splits")
        return [trunk, self.train(method, count, draw, FIRST, "--init", str(out))]

    def go_on(self, method: str, count: int, draw: int) -> list[Job]:
        """Return the job of self-training with the unlabelled patients, starting from the first segmenter."""
        out, first, settings = self.out(method, count, draw), self.out("first", count, draw), METHODS[method]
        rounds = 1 if method == "teacher" else ROUNDS
        arguments = (
            *("selftrain", str(first), str(self.data), str(out), "--split", str(self.split(count, draw))),
            *(*PAPER, *settings.arguments),
            *("--rounds", str(rounds), "--steps", str(settings.steps // rounds), "--reuse", "whole"),
            *("--pseudo.guard", "warn", "--score_withheld"),
        )
        return [self._job(out.name, (*arguments, *self._flags(draw)), out / "model" / "model.json", first.name)]

    def test(self, method: str, count: int, draw: int) -> Job:
        """Return the job that scores the test patients."""
        return self._test(self.out(method, count, draw))

    def _test(self, out: Path) -> Job:
        arguments = ("evaluate", str(out), str(self.data), "--name", "test", "--pictures", "false", "--device", "cpu")
        return self._job(f"{out.name}-test", arguments, out / "evaluation" / "test.json", out.name)

    def out(self, method: str, count: int, draw: int) -> Path:
        """Return the folder of a run."""
        return self.runs / f"{method}-{count}-draw{draw}"

    def split(self, count: int, draw: int) -> Path:
        """Return the split file of a draw."""
        return self.runs / "splits" / f"{count}-labelled-draw{draw}.json"

    def scores(self, count: int) -> Scores:
        """Return the scores of all finished tests."""
        scores: Scores = {}
        for method in self.methods:
            for draw in range(1, self.draws + 1):
                _read(self.out(method, count, draw), scores.setdefault(method, {}), draw)
        return {method: values for method, values in scores.items() if values}

    def upper_scores(self) -> dict[int, float]:
        """Return the scores with all labels."""
        scores: dict[int, float] = {}
        for seed in (1, 2, 3):
            _read(self.runs / f"all-seed{seed}", scores, seed)
        return scores

    def pseudo_dice(self, method: str, count: int) -> list[list[float]]:
        """Return the Dice of the pseudo-labels with the withheld true labels, by round, of every finished draw."""
        dice = []
        for draw in range(1, self.draws + 1):
            rounds = sorted((self.out(method, count, draw) / "rounds").glob("round-*.json"))
            withheld = [json.loads(path.read_text())["withheld"] for path in rounds]
            if withheld and None not in withheld:
                dice.append([entry["mean"] for entry in withheld])
        return dice

    def _flags(self, draw: int) -> tuple[str, ...]:
        return ("--cache", str(self.runs / "cache"), "--seed", str(draw), *CPU)

    def _job(self, name: str, arguments: Sequence[str], result: Path, *after: str) -> Job:
        return Job(name, tuple(arguments), result, after, program="ssl-medseg")


def _read(run: Path, into: dict[int, float], number: int) -> None:
    path = run / "evaluation" / "test.json"
    if path.exists():
        into[number] = float(json.loads(path.read_text())["summary"]["mean_dice"]["mean"])


def ceiling(model: Path, data: Path, split: Path) -> float:
    """Compute the mean foreground Dice of the true labels after resampling to the pixels of the network and back.

    Args:
        model: Model whose preprocessing is used.
        data: Data set.
        split: Split file with the test cases.
    """
    segmenter, dataset = load_segmenter(str(model), device="cpu"), open_dataset(data)
    dice = []
    for case in dataset.select(read_split(split, dataset).test):
        if case.label is None:
            raise ValueError(f"{data}: the test case {case.name} has no label")
        classes, grid = read_label(case.label, segmenter.labels)
        geometry, _ = slice_geometry(grid, segmenter.preprocessing)
        pixels, _ = prepare_label(classes, geometry)
        shares = F.one_hot(pixels.long(), len(segmenter.labels)).permute(0, 3, 1, 2).float()
        back = to_voxels(shares, geometry).argmax(dim=1)
        truth = torch.from_numpy(np.ascontiguousarray(geometry.to_slices(classes)))
        for structure in range(1, len(segmenter.labels)):
            prediction, target = back == structure, truth == structure
            if target.any():
                dice.append(2 * (prediction & target).sum().item() / (prediction.sum() + target.sum()).item())
    return statistics.mean(dice)


def paired(scores: Scores, method: str, baseline: str) -> list[float]:
    """Return the differences in the draws that both methods have."""
    method_scores, baseline_scores = scores.get(method, {}), scores.get(baseline, {})
    return [
        method_scores[draw] - baseline_scores[draw] for draw in sorted(method_scores.keys() & baseline_scores.keys())
    ]


def rows(study: Study) -> list[list[object]]:
    """Return the table, with a row for each number of labelled patients and method."""
    lines: list[list[object]] = []
    for count in sorted(COUNTS):
        scores = study.scores(count)
        for method, runs in scores.items():
            values = list(runs.values())
            differences = paired(scores, method, "pseudo") if method != "pseudo" else []
            pseudo = [entry[-1] for entry in study.pseudo_dice(method, count)]
            lines.append(
                [
                    count, METHODS[method].name, len(values), METHODS[method].slices // 1000,
                    mean_and_spread(values, decimals=3), _signed(differences) if differences else None,
                    mean_and_spread(pseudo, decimals=3) if pseudo else None,
                ]
            )  # fmt: skip
    upper = list(study.upper_scores().values())
    if upper:
        seen = 20 * (FIRST + MORE) // 1000
        lines.append(["all", "labels alone", len(upper), seen, mean_and_spread(upper, decimals=3), None, None])
    return lines


COMPARED = (
    ("pseudo", "supervised"), ("both", "pseudo"), ("both", "pseudo-long"), ("pseudo", "supervised-long"),
    ("both", "supervised-long"), ("teacher", "pseudo"), ("contrast", "first"), ("intra", "contrast"),
    ("official", "contrast"), ("parent", "supervised"),
)  # fmt: skip
"""Pairs of a method and the method with which it is compared, for the notes."""


def claims(scores: Scores, count: int) -> str:
    """Describe paired differences with their standard errors over draws."""
    sentences = []
    for method, baseline in COMPARED:
        values = paired(scores, method, baseline)
        if len(values) > 1:
            error = statistics.stdev(values) / len(values) ** 0.5
            better = sum(value > 0 for value in values)
            sentences.append(
                f"{METHODS[method].name} minus {METHODS[baseline].name} {statistics.mean(values):+.3f} ± {error:.3f} "
                f"({better} of {len(values)} draws better)"
            )
    return f"Mean differences and their standard errors, {count} labelled: {'; '.join(sentences)}." if sentences else ""


def _signed(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of ACDC in the layout of the Decathlon with split.csv"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--workers", type=int, default=1, help="number of commands to run at a time, with one thread each"
    )
    parser.add_argument("--collect", action="store_true", help="write the existing results without running commands")
    parser.add_argument("--commit", help="commit of the code that ran the commands, if it differs from this one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, arguments.draws, tuple(arguments.methods))
    jobs = study.jobs()
    if not arguments.collect:
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
        if missing:
            raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    top = ceiling(study.upper(1)[0].result.parent, study.data, study.split(1, 1))
    notes = [
        "Mean foreground Dice of the 20 volumes of 10 test patients on their original grids: mean and standard "
        "deviation over the completed draws of labelled patients (with all labels, over seeds), one run per draw. "
        "Slices of 64 x 64 pixels, U-Net of width 8, and the defaults of the package; "
        f"{FIRST} steps on the labels, then {ROUNDS} rounds of {STEPS} steps (labels alone: {FIRST + MORE} steps "
        "without interruption). The step is chosen on two validation patients.",
        "The number of steps is matched, but compute is matched only in the rows with as many slices as both. The "
        "column with thousands of slices counts all slices processed by the network, including those of the initial "
        "segmenter.",
        *filter(None, (claims(study.scores(count), count) for count in sorted(COUNTS))),
        f"The true labels, resampled to these pixels and back, have a Dice of {top:.3f}.",
    ]
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            **({"commit": arguments.commit} if arguments.commit else {}),
            "seeds": list(range(1, study.draws + 1)),
            "config": {"commands": [job.line for job in jobs if job.result.exists()]},
            "table": {
                "columns": [
                    "labelled patients", "method", "draws", "thousand slices seen", "Dice",
                    "against plain self-training", "last pseudo-labels",
                ],
                "rows": rows(study),
            },
            "notes": notes,
            "test_dice": {str(count): study.scores(count) for count in COUNTS} | {"all": study.upper_scores()},
            "pseudo_dice": {
                str(count): {method: study.pseudo_dice(method, count) for method in study.methods} for count in COUNTS
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
