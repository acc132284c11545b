"""Semi-supervised segmentation of ACDC with 1 and 2 labelled patients. Into results/acdc.json.

    python -m tools.evidence_acdc --data data/acdc --runs runs/acdc --out results/acdc.json

Five draws of labelled patients; for each the supervised baseline, and from the same first segmenter, in as many further
steps, the paper's joint training (segmentation loss on labels, local contrastive loss on pseudo-labels), plain
self-training (Dice on the pseudo-labels) and both together. Methods of a draw share everything but the loss, so their
differences are paired. Scores are of the ten patients that `split.csv` keeps for validation, here the test part, which
choose nothing; two other patients choose the step. Commands that have run are not run again; a cell whose draws are not
all there says how many it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.evidence_runs import Job, mean_and_spread, run_all
from tools.results import provenance, write_result

FIRST, ROUNDS, STEPS = 600, 3, 150
MORE = ROUNDS * STEPS
NETWORK = ("--network.width", "8", "--size", "64")
CPU = ("--device", "cpu", "--threads", "1", "--log_every", "25")

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supervised": ("labels alone", ()),
    "pseudo": ("plain self-training", ("--method", "pseudo")),
    "contrast": ("contrastive joint training", ("--method", "contrast")),
    "both": ("both, weight 0.1", ("--method", "both")),
    "both-light": ("both, weight 0.01", ("--method", "both", "--contrast.weight", "0.01")),
}
"""Method -> its name in the table, and what its command adds."""

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
        """Every command, draw by draw, so that what is there at any time is complete draws."""
        cells = [(count, draw) for draw in range(1, self.draws + 1) for count in (2, 1)]
        return [self.splits(), *(job for cell in cells for job in self.cell(*cell))]

    def splits(self) -> Job:
        """Labelled, validation, test and unlabelled patients of every draw."""
        out, table = self.runs / "splits", self.data / "split.csv"
        words = ("make-splits", str(self.data), str(out), "--labelled", "[1,2]", "--draws", "5", "--validation", "2")
        return self._job("splits", (*words, "--table", str(table), "--table_test", "[val]"), out / "all-labelled.json")

    def cell(self, count: int, draw: int) -> list[Job]:
        """Training and test of every method with some labelled patients."""
        jobs = [self.train("first", count, draw, FIRST)]
        for method in self.methods:
            jobs.append(
                self.train(method, count, draw, FIRST + MORE)
                if method == "supervised"
                else self.go_on(method, count, draw)
            )
            jobs.append(self.test(method, count, draw))
        return jobs

    def train(self, name: str, count: int, draw: int, steps: int) -> Job:
        """On the labels alone."""
        out = self.out(name, count, draw)
        words = ("train", str(self.data), str(self.split(count, draw)), str(out), "--steps", str(steps), *NETWORK)
        return self._job(out.name, (*words, *self._shared(draw)), out / "model" / "model.json", "splits")

    def go_on(self, method: str, count: int, draw: int) -> Job:
        """From the first segmenter, with the unlabelled patients."""
        out, first = self.out(method, count, draw), self.out("first", count, draw)
        words = (
            *("selftrain", str(first), str(self.data), str(self.split(count, draw)), str(out), *METHODS[method][1]),
            *("--rounds", str(ROUNDS), "--steps", str(STEPS), "--pseudo.guard", "warn", "--score_withheld"),
        )
        return self._job(out.name, (*words, *self._shared(draw)), out / "model" / "model.json", first.name)

    def test(self, method: str, count: int, draw: int) -> Job:
        """Score the test patients."""
        out = self.out(method, count, draw)
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
                path = self.out(method, count, draw) / "evaluation" / "test.json"
                if path.exists():
                    mean = json.loads(path.read_text())["summary"]["mean_dice"]["mean"]
                    found.setdefault(method, {})[draw] = float(mean)
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


def paired(scores: Scores, method: str, baseline: str) -> list[float]:
    """Differences in the draws that both have."""
    mine, theirs = scores.get(method, {}), scores.get(baseline, {})
    return [mine[draw] - theirs[draw] for draw in sorted(mine.keys() & theirs.keys())]


def rows(study: Study) -> list[list[object]]:
    """The table: a line per number of labelled patients and method."""
    lines: list[list[object]] = []
    for count in (1, 2):
        scores = study.scores(count)
        for method in study.methods:
            values = list(scores.get(method, {}).values())
            if not values:
                continue
            differences = paired(scores, method, "pseudo") if method != "pseudo" else []
            pseudo = [entry[-1] for entry in study.pseudo_dice(method, count)]
            lines.append(
                [
                    count, METHODS[method][0], len(values), mean_and_spread(values, decimals=3),
                    _signed(differences) if differences else None,
                    mean_and_spread(pseudo, decimals=3) if pseudo else None,
                ]
            )  # fmt: skip
    return lines


def _signed(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="ACDC as a Decathlon folder with split.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1, help="commands side by side, a thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, arguments.draws, tuple(arguments.methods))
    jobs = study.jobs()
    if not arguments.collect:
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
        if missing:
            raise SystemExit(f"not all results are there, for {', '.join(missing)} did not end well")
    notes = [
        "Mean foreground Dice of the 20 volumes of 10 test patients on their own grids: mean and standard deviation "
        "over the draws of labelled patients that have run. Slices of 64 x 64 pixels, U-Net of width 8; "
        f"{FIRST} steps on the labels, then {ROUNDS} rounds of {STEPS} (labels alone: {FIRST + MORE} steps), one run "
        "per cell.",
        "A step of labels alone sees 20 slices, of plain self-training and of contrastive joint training 40, of both "
        "60: steps are matched, compute is not.",
    ]
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": list(range(1, study.draws + 1)),
            "config": {"commands": [job.line for job in jobs if job.result.exists()]},
            "table": {
                "columns": [
                    "labelled patients", "method", "draws", "Dice", "against plain self-training", "last pseudo-labels",
                ],
                "rows": rows(study),
            },
            "notes": notes,
            "test_dice": {str(count): study.scores(count) for count in (1, 2)},
            "pseudo_dice": {
                str(count): {method: study.pseudo_dice(method, count) for method in study.methods} for count in (1, 2)
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
