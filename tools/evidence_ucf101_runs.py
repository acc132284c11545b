"""The commands of the study of `tools/evidence_ucf101.py`, and what they have found so far."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_video.options import REFERENCE_CLIPS
from tools.evidence_runs import Job

STEPS, MU, WARMUP, THRESHOLD = 1000, 2, 0.4, 0.4
CLIPS = 8
PEAK = 0.3
CLIP = ("--clip.frames", "4", "--clip.stride", "16", "--size", "40", "--flow", "dis_fast")
CPU = ("--device", "cpu", "--threads", "1", "--log_every", "5", "--progress", "false", "--checkpoint_every", "1000")
ALL = "[rgb,flow,tg]"


@dataclass(frozen=True)
class Method:
    """A row of a table: its name there, and what its command adds to the shared settings."""

    name: str
    words: tuple[str, ...]
    supervised: bool = False
    longer: float = 1.0
    """Times the steps."""


def equal_compute() -> float:
    """How many times the steps labels alone may take for MvPL's passes through the network.

    A backward pass counts as two forward ones: a step of labels alone costs 3 for each of its clips and views; one with
    pseudo-labels as much for labelled and strong clips, and 1 for the weak ones. Augmentation is not counted.
    """
    with_pseudo_labels = 3 * (1 + MU) + MU
    return (WARMUP * 3 + (1 - WARMUP) * with_pseudo_labels) / 3


def mvpl(name: str, *words: str, views: str = ALL) -> Method:
    return Method(name, ("--views", views, *words))


MAIN: dict[str, Method] = {
    "rgb": Method("labels alone, frames", ("--views", "[rgb]"), supervised=True),
    "all": Method("labels alone, all views", ("--views", ALL), supervised=True),
    "all-long": Method(
        "labels alone, all views, MvPL's compute", ("--views", ALL), supervised=True, longer=equal_compute()
    ),
    "fixmatch": Method("FixMatch, frames", ("--method", "fixmatch")),
    "mvpl-tg": mvpl("MvPL, frames + temporal gradient", views="[rgb,tg]"),
    "mvpl-flow": mvpl("MvPL, frames + flow", views="[rgb,flow]"),
    "mvpl": mvpl("MvPL, all views"),
}
ABLATIONS: dict[str, Method] = {
    "self": mvpl("target: self", "--pseudo.target", "self"),
    "cross": mvpl("target: cross", "--pseudo.target", "cross"),
    "random": mvpl("target: random", "--pseudo.target", "random"),
    "middle": mvpl("MvPL, threshold 0.6", "--pseudo.threshold", "0.6"),
    "high": mvpl("MvPL, threshold 0.8", "--pseudo.threshold", "0.8"),
    "strong": mvpl(
        "augmentation at full strength",
        *("--strong.ops", "2", "--strong.magnitude", "10", "--strong.cutout", "0.571", "--strong.motion_ops", "full"),
    ),
    "fixmatch-high": Method("FixMatch, threshold 0.8", ("--method", "fixmatch", "--pseudo.threshold", "0.8")),
    "joint": mvpl("joint batch norm, recalibrated", "--bn", "joint"),
    "joint-raw": mvpl("joint batch norm, not recalibrated", "--bn", "joint", "--recalibrate", "0"),
    "split-raw": mvpl("batch norm per view, not recalibrated", "--recalibrate", "0"),
}
METHODS = {**MAIN, **ABLATIONS}
DRAWS = (0, 1, 2, 5, 6)
"""Of labelled videos; 3 and 4 are those that settings were chosen with."""
PAIRS = ("mvpl-tg", "mvpl-flow")
SURER = ("middle", "high")
"""With the fewest labels too, where most pseudo-labels are wrong."""
FEW = 3
"""Draws of what is not the main comparison."""
FEWER_AND_MORE = ("rgb", "all", "mvpl", "fixmatch")

Scores = dict[str, dict[int, dict[str, float]]]
"""Method -> draw -> view -> top-1 %."""


@dataclass(frozen=True)
class Study:
    """The data, the folder of the runs, and which draws are wanted."""

    data: Path
    runs: Path
    draws: tuple[int, ...] = DRAWS

    def jobs(self) -> list[Job]:
        """Every command; what says most comes first."""
        main = (*FEWER_AND_MORE, *PAIRS, "all-long")
        stages: list[tuple[int, Sequence[str], tuple[int, ...]]] = [
            (10, main, DRAWS[:FEW]), (10, tuple(ABLATIONS), DRAWS[:FEW]), (5, FEWER_AND_MORE, DRAWS[:FEW]),
            (20, FEWER_AND_MORE, DRAWS[:FEW]), (10, main, DRAWS[FEW:]), (5, SURER, DRAWS[:FEW]),
            (5, PAIRS, DRAWS[:FEW]), (20, PAIRS, DRAWS[:FEW]), (5, ("all-long",), DRAWS[:FEW]),
            (20, ("all-long",), DRAWS[:FEW]),
        ]  # fmt: skip
        cells = [
            (percent, method, draw)
            for percent, methods, draws in stages
            for draw in draws
            if draw in self.draws
            for method in methods
        ]
        return [self.splits(), *(job for cell in cells for job in self.cell(*cell))]

    def splits(self) -> Job:
        """The labelled videos of every draw, and what is kept."""
        out = self.runs / "splits"
        words = (
            *("make-splits", str(self.data), str(out), "--fractions", "[0.05,0.1,0.2]", "--draws", "7"),
            *("--by", "block", "--blocks", "40", "--validation", "0.15", "--test", "0.25"),
        )
        return Job("splits", words, out / "20percent-draw6.json", program="ssl-video")

    def cell(self, percent: int, method: str, draw: int) -> list[Job]:
        """Training and test."""
        out, split = self.out(percent, method, draw), str(self.split(percent, draw))
        chosen = METHODS[method]
        recipe = "supervised-small-cpu" if chosen.supervised else "mvpl-small-cpu"
        # Stated for 40 clips a step; the peak is the same in all runs.
        rate = PEAK * REFERENCE_CLIPS / (CLIPS if chosen.supervised else CLIPS * (1 + MU))
        train = (
            *("train", str(self.data), str(out), "--split", split, "--config", recipe, *CLIP, "--seed", str(draw)),
            *("--batch_size", str(CLIPS), "--mu", str(MU), "--steps", str(round(STEPS * chosen.longer))),
            *("--optimizer.lr", f"{rate:.4g}", *CPU, *chosen.words),
        )
        if not chosen.supervised:
            train += ("--diagnose",)
            if "--pseudo.threshold" not in train:
                train += ("--pseudo.threshold", str(THRESHOLD))
        test = (
            *("evaluate", str(out), str(self.data), "--split", split, "--clips", "2", "--crops", "1"),
            *("--to_the_end", "--device", "cpu"),
        )
        return [
            Job(out.name, train, out / "model" / "model.json", ("splits",), program="ssl-video"),
            Job(f"{out.name}-test", test, out / "evaluation" / "test.json", (out.name,), program="ssl-video"),
        ]

    def out(self, percent: int, method: str, draw: int) -> Path:
        """A run's folder."""
        return self.runs / f"{percent}percent-{method}-draw{draw}"

    def split(self, percent: int, draw: int) -> Path:
        """The videos of a draw."""
        return self.runs / "splits" / f"{percent}percent-draw{draw}.json"

    def line(self, job: Job) -> str:
        """Its command, wherever data and runs are."""
        return job.line.replace(f"{self.runs}/", "runs/").replace(str(self.data), "ucf101_10")

    def scores(self, percent: int, methods: Mapping[str, Method]) -> Scores:
        """What has been tested so far."""
        found: Scores = {}
        for method in methods:
            for draw in self.draws:
                path = self.out(percent, method, draw) / "evaluation" / "test.json"
                if path.exists():
                    views = json.loads(path.read_text())["views"]
                    found.setdefault(method, {})[draw] = {view: score["top1"] for view, score in views.items()}
        return found

    def pseudo_labels(self, percent: int, method: str, draw: int) -> dict[str, float] | None:
        """Coverage and accuracy of the pseudo-labels in the last quarter of a run."""
        path = self.out(percent, method, draw) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        last = [line for line in lines if "coverage" in line and line["step"] >= 0.75 * STEPS]
        if not last:
            return None
        found = {}
        for name in ("coverage", "pseudo_accuracy", "pseudo_accuracy_all"):
            # A step in which no pseudo-label counted has no accuracy: "NaN" there.
            numbers = [value for line in last if isinstance(value := line.get(name), int | float)]
            if numbers:
                found[name] = statistics.mean(numbers)
        return found
