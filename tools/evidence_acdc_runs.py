"""The commands of the study of `tools/evidence_acdc.py`, and what they have found so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.evidence_runs import Job

FIRST, ROUNDS, STEPS = 300, 3, 100
MORE = ROUNDS * STEPS
NETWORK = ("--network.width", "8", "--size", "64")
CPU = ("--device", "cpu", "--threads", "1", "--log_every", "25")
APART = ("--norm", "apart")
COUNTS = (2, 1, 8)


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        name: in words.
        words: what its command adds.
        each: slices that a step sees.
        steps: of training, or of all rounds together, after the first segmenter.
        kind: its command: none, for it is the first segmenter itself; a longer training on labels alone; `selftrain`;
            or the parent's pre-training before the labels.
    """

    name: str
    words: tuple[str, ...] = ()
    each: int = 20
    steps: int = MORE
    kind: Literal["first", "train", "selftrain", "parent"] = "selftrain"

    @property
    def slices(self) -> int:
        """Slices seen in all, those of the first segmenter included."""
        return 20 * FIRST + self.each * self.steps


METHODS = {
    "first": Method("labels alone, where all others begin", steps=0, kind="first"),
    "supervised": Method("labels alone", kind="train"),
    "pseudo": Method("plain self-training", ("--method", "pseudo"), 40),
    "both": Method("both, weight 0.03", ("--method", "both", "--contrast.weight", "0.03", *APART), 60),
    "contrast": Method("contrastive joint training (inter)", ("--method", "contrast", *APART), 40),
    "supervised-long": Method("labels alone, as many slices as both", kind="train", steps=3 * MORE),
    "pseudo-long": Method("plain self-training, as many slices as both", ("--method", "pseudo"), 40, 3 * MORE // 2),
    "teacher": Method("mean teacher", ("--method", "mean-teacher"), 40),
    "intra": Method("contrastive, intra", ("--method", "contrast", "--contrast.variant", "intra", *APART), 40),
    "official": Method(
        "contrastive, the released reduction", ("--method", "contrast", "--contrast.reduction", "official", *APART), 40
    ),
    "joint": Method(
        "both, weight 0.03, batch statistics shared as released",
        ("--method", "both", "--contrast.weight", "0.03", "--norm", "joint"),
        60,
    ),
    "parent": Method("parent pre-training, then labels", kind="parent", each=48),
}
MAIN = ("first", "supervised", "pseudo", "both", "contrast")
"""Run first, draw by draw."""

Scores = dict[str, dict[int, float]]
"""Method -> draw -> mean Dice."""


@dataclass(frozen=True)
class Study:
    """The data, the folder of the runs, and how much of the study is wanted."""

    data: Path
    runs: Path
    draws: int
    methods: tuple[str, ...]

    def jobs(self) -> list[Job]:
        """Every command: the main methods draw by draw, all labels, then the rest."""
        cells = [(count, draw) for draw in range(1, self.draws + 1) for count in COUNTS[:2]]
        cells += [(8, draw) for draw in range(1, 4)]
        main = [method for method in self.methods if method in MAIN]
        rest = [method for method in self.methods if method not in MAIN]
        return [
            self.splits(),
            *(job for cell in cells for job in self.cell(*cell, main)),
            *(job for draw in (1, 2, 3) for job in self.upper(draw)),
            *(job for cell in cells for job in self.cell(*cell, rest)[1:]),
        ]

    def splits(self) -> Job:
        """Labelled, validation, test and unlabelled patients of every draw."""
        out, table = self.runs / "splits", self.data / "split.csv"
        words = ("make-splits", str(self.data), str(out), "--labelled", "[1,2,8]", "--draws", "5", "--validation", "2")
        return self._job("splits", (*words, "--table", str(table), "--table_test", "[val]"), out / "all-labelled.json")

    def cell(self, count: int, draw: int, methods: Sequence[str]) -> list[Job]:
        """The first segmenter, then training and test of methods, with some labelled patients."""
        jobs = [self.train("first", count, draw, FIRST, *NETWORK)]
        for method in methods:
            if (kind := METHODS[method].kind) != "first":
                jobs += {"train": self.more, "selftrain": self.go_on, "parent": self.parent}[kind](method, count, draw)
            jobs.append(self.test(method, count, draw))
        return jobs

    def upper(self, seed: int) -> list[Job]:
        """All labels but those of validation and test, as many steps as labels alone."""
        out, split = self.runs / f"all-seed{seed}", self.runs / "splits" / "all-labelled.json"
        words = ("train", str(self.data), str(split), str(out), "--steps", str(FIRST + MORE), *NETWORK)
        job = self._job(out.name, (*words, *self._shared(seed)), out / "model" / "model.json", "splits")
        return [job, self._tested(out)]

    def train(self, name: str, count: int, draw: int, steps: int, *words: str) -> Job:
        """On the labels alone."""
        out = self.out(name, count, draw)
        command = ("train", str(self.data), str(self.split(count, draw)), str(out), "--steps", str(steps), *words)
        return self._job(out.name, (*command, *self._shared(draw)), out / "model" / "model.json", "splits")

    def more(self, method: str, count: int, draw: int) -> list[Job]:
        """On the labels alone for longer."""
        return [self.train(method, count, draw, FIRST + METHODS[method].steps, *NETWORK)]

    def parent(self, method: str, count: int, draw: int) -> list[Job]:
        """Both stages of pre-training on all training volumes, then the labels."""
        out = self.out("trunk", count, draw)
        stages = ("--global_steps", str(MORE // 2), "--local_steps", str(MORE // 2))
        command = ("pretrain", str(self.data), str(self.split(count, draw)), str(out), *stages, *NETWORK)
        trunk = self._job(out.name, (*command, *self._shared(draw)), out / "model" / "model.json", "splits")
        return [trunk, self.train(method, count, draw, FIRST, "--start", str(out))]

    def go_on(self, method: str, count: int, draw: int) -> list[Job]:
        """From the first segmenter, with the unlabelled patients."""
        out, first, found = self.out(method, count, draw), self.out("first", count, draw), METHODS[method]
        rounds = 1 if method == "teacher" else ROUNDS
        words = (
            *("selftrain", str(first), str(self.data), str(self.split(count, draw)), str(out), *found.words),
            *("--rounds", str(rounds), "--steps", str(found.steps // rounds), "--start", "whole"),
            *("--pseudo.guard", "warn", "--score_withheld"),
        )
        return [self._job(out.name, (*words, *self._shared(draw)), out / "model" / "model.json", first.name)]

    def test(self, method: str, count: int, draw: int) -> Job:
        """Score the test patients."""
        return self._tested(self.out(method, count, draw))

    def _tested(self, out: Path) -> Job:
        words = ("evaluate", str(out), str(self.data), "--name", "test", "--pictures", "false", "--device", "cpu")
        return self._job(f"{out.name}-test", words, out / "evaluation" / "test.json", out.name)

    def out(self, method: str, count: int, draw: int) -> Path:
        """A run's folder."""
        return self.runs / f"{method}-{count}-draw{draw}"

    def split(self, count: int, draw: int) -> Path:
        """The patients of a draw."""
        return self.runs / "splits" / f"{count}-labelled-draw{draw}.json"

    def scores(self, count: int) -> Scores:
        """What has been tested so far."""
        found: Scores = {}
        for method in self.methods:
            for draw in range(1, self.draws + 1):
                _read(self.out(method, count, draw), found.setdefault(method, {}), draw)
        return {method: values for method, values in found.items() if values}

    def upper_scores(self) -> dict[int, float]:
        """With all labels."""
        found: dict[int, float] = {}
        for seed in (1, 2, 3):
            _read(self.runs / f"all-seed{seed}", found, seed)
        return found

    def pseudo_dice(self, method: str, count: int) -> list[list[float]]:
        """Dice of the pseudo-labels with the withheld truth, round by round, of every draw that has run."""
        found = []
        for draw in range(1, self.draws + 1):
            rounds = sorted((self.out(method, count, draw) / "rounds").glob("round-*.json"))
            withheld = [json.loads(path.read_text())["withheld"] for path in rounds]
            if withheld and None not in withheld:
                found.append([entry["mean"] for entry in withheld])
        return found

    def _shared(self, draw: int) -> tuple[str, ...]:
        return ("--cache", str(self.runs / "cache"), "--seed", str(draw), *CPU)

    def _job(self, name: str, words: Sequence[str], result: Path, *after: str) -> Job:
        return Job(name, tuple(words), result, after, program="ssl-medseg")


def _read(run: Path, into: dict[int, float], number: int) -> None:
    path = run / "evaluation" / "test.json"
    if path.exists():
        into[number] = float(json.loads(path.read_text())["summary"]["mean_dice"]["mean"])
