"""Evaluate self-training on prostate MRI with 2 labelled patients, scored on the grids of the images in mm.

    python -m tools.studies.prostate --data data/prostate --runs runs/prostate --out docs/results/prostate.json

For every draw of labelled patients, `ssl-medseg run` trains a baseline and then rounds of plain self-training. The
control is a training on the labels alone with the same number of steps. One patient, the same in all draws, selects the
step and decides whether self-training is kept; three patients are for the test. The last weights of self-training,
which were not selected by any score, are also scored. Commands with a result are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all

FIRST, ROUNDS, STEPS = 300, 3, 100
MORE = ROUNDS * STEPS
NETWORK = ("--recipe", "paper", "--network.width", "8", "--image-size", "64")
CPU = ("--device", "cpu", "--threads", "1", "--log_every", "25")
MODELS = {
    "first": (f"labels alone, {FIRST} steps", "{run}/baseline"),
    "labels": (f"labels alone, {FIRST + MORE} steps", "{labels}"),
    "last": ("self-training, its last weights", "{run}/selftrain/models/round-03"),
    "kept": ("self-training, as run keeps it", "{run}"),
}
"""Names of the rows of the table, and folders of their models."""
MEASURES = ("dice", "hd95", "assd")


@dataclass(frozen=True)
class Study:
    """Data set, folder of the runs, and number of draws."""

    data: Path
    runs: Path
    draws: int

    def jobs(self) -> list[Job]:
        """Return all commands, draw by draw."""
        return [self.splits(), *(job for draw in range(1, self.draws + 1) for job in self.draw(draw))]

    def splits(self) -> Job:
        """Return the job that draws labelled, validation, test and unlabelled patients."""
        out = self.runs / "splits"
        arguments = (
            "make-splits",
            str(self.data),
            str(out),
            "--n-labelled",
            "[2]",
            "--n-validation",
            "1",
            "--n-test",
            "3",
        )
        return _job("splits", (*arguments, "--draws", "3"), out / "2-labelled-draw1.json")

    def draw(self, draw: int) -> Iterator[Job]:
        """Yield the jobs of a draw: both stages, the control, and the test of every model."""
        split, run = self.split(draw), self.runs / f"draw{draw}"
        common = ("--cache", str(self.runs / "cache"), "--seed", str(draw), *NETWORK, *CPU)
        stages = ("--baseline_steps", str(FIRST), "--rounds", str(ROUNDS), "--steps", str(STEPS))
        arguments = (
            "run",
            str(self.data),
            str(run),
            "--split",
            str(split),
            *stages,
            "--reuse",
            "whole",
            "--method",
            "rounds",
        )
        yield _job(run.name, (*arguments, "--pseudo.guard", "warn", *common), run / "model" / "model.json", "splits")
        labels = self.runs / f"labels-draw{draw}"
        longer = ("train", str(self.data), str(labels), "--split", str(split), "--steps", str(FIRST + MORE))
        yield _job(labels.name, (*longer, *common), labels / "model" / "model.json", "splits")
        for name, (_, folder) in MODELS.items():
            model = folder.format(run=run, labels=labels)
            scores, dependency = self.scores(name, draw), labels.name if name == "labels" else run.name
            test_arguments = (
                "evaluate",
                model,
                str(self.data),
                "--split",
                str(split),
                "--part",
                "test",
                "--name",
                "test",
            )
            where = ("--out", str(scores.parent), "--pictures", "false", "--device", "cpu")
            yield _job(f"{name}-draw{draw}-test", (*test_arguments, *where), scores, dependency)

    def split(self, draw: int) -> Path:
        """Return the split file of a draw."""
        return self.runs / "splits" / f"2-labelled-draw{draw}.json"

    def scores(self, name: str, draw: int) -> Path:
        """Return the scores file of `evaluate`."""
        return self.runs / "scores" / f"{name}-draw{draw}" / "test.json"

    def validation(self, draw: int) -> list[float]:
        """Return the validation Dice of the first segmenter and of the best step after it."""
        rounds = sorted((self.runs / f"draw{draw}" / "selftrain" / "rounds").glob("round-*.json"))
        dice = [json.loads(path.read_text())["validation"] for path in rounds]
        return [dice[0]["before"], max(entry["after"] for entry in dice)] if dice else []


def measured(path: Path) -> dict[str, float | None]:
    """Return the mean of each measure over structures and test volumes; None if a structure has no distance."""
    structures = json.loads(path.read_text())["summary"]["structures"]
    means: dict[str, float | None] = {}
    for measure in MEASURES:
        entries = [structure["measures"].get(measure) for structure in structures]
        is_complete = all(entry is not None and not entry["n_missing"] for entry in entries)
        means[measure] = statistics.mean(entry["mean"] for entry in entries) if is_complete else None
    return means


def rows(study: Study) -> list[list[object]]:
    """Return a row of the table for every model."""
    lines: list[list[object]] = []
    for name, (title, _) in MODELS.items():
        paths = [study.scores(name, draw) for draw in range(1, study.draws + 1)]
        results = [measured(path) for path in paths if path.exists()]
        if not results:
            continue
        line: list[object] = [title, len(results)]
        for measure, decimals in zip(MEASURES, (3, 1, 1), strict=True):
            values = [value for entry in results if (value := entry[measure]) is not None]
            missing = len(results) - len(values)
            text = mean_and_spread(values, decimals=decimals) if values else "-"
            line.append(f"{text} ({missing} draws lack a structure)" if missing else text)
        lines.append(line)
    return lines


def _job(name: str, arguments: tuple[str, ...], result: Path, *after: str) -> Job:
    return Job(name, arguments, result, after, program="ssl-medseg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder in the layout of the Medical Segmentation Decathlon"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--collect", action="store_true", help="write the existing results without running commands")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, arguments.draws)
    jobs = study.jobs()
    if not arguments.collect:
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=1)
        if missing:
            raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    draws = range(1, study.draws + 1)
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": list(draws),
            "config": {"commands": [job.line for job in jobs if job.result.exists()]},
            "table": {"columns": ["method", "draws", "Dice", "HD95, mm", "ASSD, mm"], "rows": rows(study)},
            "notes": [
                "Mean over both zones and 3 test patients on the original grids; mean and standard deviation over the "
                "completed draws of 2 labelled patients. Slices of 64 x 64 pixels, U-Net of width 8, and the defaults "
                "of the package. The step, and whether self-training is kept, are chosen on one validation patient."
            ],
            "validation_dice": {str(draw): study.validation(draw) for draw in draws},
            "test": {
                str(draw): {
                    name: measured(study.scores(name, draw)) for name in MODELS if study.scores(name, draw).exists()
                }
                for draw in draws
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
