"""The strong recipe on ACDC with 1, 2, 3 and 8 labelled patients and all. Into docs/results/acdc_strong.json.

    python -m tools.studies.acdc_strong --data data/acdc --runs runs/acdc-strong --out docs/results/acdc_strong.json

For each draw of labelled patients a baseline on the labels, N steps; from it N more steps of every method; and 2N
steps on the labels alone, so that these are trained as long as the rest. Differences to that line are paired by draw.
The test patients are those that `split.csv` keeps for validation; two other patients choose the step.
The last step is scored beside the chosen one. Commands that have run are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from ssl_medseg.training.recipe import EFFORTS
from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all

COUNTS = (2, 1, 3, 8)
"""Labelled patients, in the order of the runs."""


@dataclass(frozen=True)
class Method:
    """A line of the table: its name, and what its command adds to `selftrain`; None: labels alone."""

    name: str
    words: tuple[str, ...] | None = None


LABELS = "labels"
METHODS = {
    "first": Method("labels alone, N steps: where the methods begin"),
    LABELS: Method("labels alone, 2N steps"),
    "consistency": Method("consistency", ("--method", "consistency")),
    "copy-paste": Method("copy-paste", ("--method", "copy-paste")),
    "rounds": Method("rounds of pseudo-labels", ("--method", "rounds", "--pseudo.guard", "warn")),
    "consistency-contrast": Method(
        "consistency + local contrastive loss, 0.1", ("--method", "consistency", "--contrast.weight", "0.1")
    ),
    "copy-paste-contrast": Method(
        "copy-paste + local contrastive loss, 0.1", ("--method", "copy-paste", "--contrast.weight", "0.1")
    ),
    "contrast": Method(
        "rounds, local contrastive loss in place of pseudo-labels",
        ("--method", "rounds", "--pseudo_weight", "0", "--contrast.weight", "0.1", "--pseudo.guard", "warn"),
    ),
}
MAIN = ("first", "consistency", LABELS)
"""Run first, draw by draw."""


@dataclass(frozen=True)
class Study:
    """The data, the folder of the runs, and how much of the study is wanted.

    Attributes:
        data: ACDC.
        runs: the folder.
        draws: of labelled patients.
        effort: of every stage, which sets N.
        precision: of training.
        device: of training and prediction.
        counts: numbers of labelled patients.
    """

    data: Path
    runs: Path
    draws: int
    effort: str
    precision: str = "32-true"
    device: str = "cpu"
    counts: tuple[int, ...] = COUNTS

    def jobs(self) -> list[Job]:
        """Every command: the main lines draw by draw, all labels, then the other methods."""
        cells = [(count, draw) for draw in range(1, self.draws + 1) for count in self.counts]
        rest = [name for name in METHODS if name not in MAIN]
        return [
            self.splits(),
            *(job for cell in cells for name in MAIN for job in self.line(name, *cell)),
            *self.upper(),
            *(job for name in rest for cell in cells for job in self.line(name, *cell)),
        ]

    def splits(self) -> Job:
        """Labelled, validation, test and unlabelled patients of every draw."""
        out, table = self.runs / "splits", self.data / "split.csv"
        words = ("make-splits", str(self.data), str(out), "--labelled", "[1,2,3,8]", "--draws", "5")
        chosen = ("--validation", "2", "--table", str(table), "--table_test", "[val]")
        return Job("splits", (*words, *chosen), out / "all-labelled.json", program="ssl-medseg")

    def line(self, name: str, count: int, draw: int) -> list[Job]:
        """Training and test of one method with some labelled patients."""
        split = self.runs / "splits" / f"{count}-labelled-draw{draw}.json"
        out, first = self.out(name, count, draw), self.out("first", count, draw)
        words = METHODS[name].words
        if words is None:
            command = ["train", str(self.data), str(split), str(out)]
            command += ["--steps", str(2 * EFFORTS[self.effort].steps)] if name == LABELS else []
            return self._trained(out, command, draw, "splits")
        command = ["selftrain", str(first), str(self.data), str(split), str(out), *words]
        return self._trained(out, command, draw, first.name)

    def upper(self) -> list[Job]:
        """All labels but those of validation and test, 2N steps."""
        out, split = self.runs / "all", self.runs / "splits" / "all-labelled.json"
        steps = str(2 * EFFORTS[self.effort].steps)
        return self._trained(out, ["train", str(self.data), str(split), str(out), "--steps", steps], 1, "splits")

    def out(self, name: str, count: int, draw: int) -> Path:
        """A run's folder."""
        return self.runs / f"{name}-{count}-draw{draw}"

    def scores(self, name: str, count: int, which: str) -> dict[int, float]:
        """Draw -> mean Dice on the test patients, of the draws that have run; `which` is chosen or last."""
        found = {}
        for draw in range(1, self.draws + 1):
            path = _scores(self.out(name, count, draw), which)
            if path.exists():
                found[draw] = _mean(path)
        return found

    def _trained(self, out: Path, command: list[str], seed: int, after: str) -> list[Job]:
        shared = [
            "--effort",
            self.effort,
            "--seed",
            str(seed),
            "--cache",
            str(self.runs / "cache"),
            "--device",
            self.device,
        ]
        shared += ["--threads", "1", "--precision", self.precision, "--log_every", "25"]
        jobs = [Job(out.name, (*command, *shared), out / "model" / "model.json", (after,), "ssl-medseg")]
        for which, model in (("chosen", out), ("last", out / "models" / "last")):
            result = _scores(out, which)
            split = ("--split", _split(command), "--part", "test")
            words = ("evaluate", str(model), str(self.data), *split, "--name", which, "--out", str(result.parent))
            flags = ("--pictures", "false", "--device", self.device)
            jobs.append(Job(f"{out.name}-{which}", (*words, *flags), result, (out.name,), "ssl-medseg"))
        return jobs


def _split(command: list[str]) -> str:
    """The split's file among the words of a training."""
    return next(word for word in command if word.endswith(".json"))


def _scores(run: Path, which: str) -> Path:
    return run / "evaluation" / f"{which}.json"


def _mean(path: Path) -> float:
    return float(json.loads(path.read_text())["summary"]["mean_dice"]["mean"])


def rows(study: Study) -> list[list[object]]:
    """The table: a line per number of labelled patients and method."""
    lines: list[list[object]] = []
    for count in sorted(COUNTS):
        baseline = study.scores(LABELS, count, "chosen")
        for name, method in METHODS.items():
            chosen, last = (study.scores(name, count, which) for which in ("chosen", "last"))
            if not chosen:
                continue
            gains = [chosen[draw] - baseline[draw] for draw in sorted(chosen.keys() & baseline.keys())]
            better = f"{statistics.mean(gains):+.3f} ({sum(g > 0 for g in gains)} of {len(gains)})" if gains else None
            lines.append(
                [
                    count, method.name, len(chosen), mean_and_spread(list(chosen.values()), decimals=3),
                    f"{min(chosen.values()):.3f}", None if name == LABELS else better,
                    mean_and_spread(list(last.values()), decimals=3) if last else None,
                ]
            )  # fmt: skip
    upper = {which: _scores(study.runs / "all", which) for which in ("chosen", "last")}
    if upper["chosen"].exists():
        values = [f"{_mean(path):.3f}" if path.exists() else None for path in upper.values()]
        lines.append(["all", METHODS[LABELS].name, 1, values[0], values[0], None, values[1]])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="ACDC as a Decathlon folder with split.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", choices=COUNTS, default=COUNTS, help="labelled patients")
    parser.add_argument("--effort", choices=EFFORTS, default="hour")
    parser.add_argument("--precision", default="32-true", help="number format of training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="commands side by side, a thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(
        arguments.data,
        arguments.runs,
        arguments.draws,
        arguments.effort,
        arguments.precision,
        arguments.device,
        tuple(arguments.counts),
    )
    jobs = study.jobs()
    if not arguments.collect:
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
        if missing:
            raise SystemExit(f"these jobs have no result: {', '.join(missing)}; see their logs")
    size, steps = EFFORTS[study.effort].size, EFFORTS[study.effort].steps
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": list(range(1, study.draws + 1)),
            "config": {"commands": [job.line for job in jobs if job.result.exists()]},
            "table": {
                "columns": [
                    "labelled patients", "method", "draws", "Dice", "worst draw", "against labels alone, 2N steps",
                    "Dice of the last step",
                ],
                "rows": rows(study),
            },
            "notes": [
                "Mean foreground Dice of the 20 volumes of 10 test patients on their own grids: mean and standard "
                f"deviation over the draws that have run. Recipe strong, effort {study.effort}: slices of {size} x "
                f"{size} pixels, N = {steps:,} steps of 12 labelled slices, and of the methods 12 unlabelled ones; "
                f"precision {study.precision}. Two other patients choose the step, mirroring and largest components.",
                "Steps are matched: the methods begin with the first line. A step of a method costs about 2.5 times "
                "a step on labels alone, because unlabelled slices pass the student and the teacher.",
            ],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
