r"""Evaluate the strong recipe with few labelled patients, on ACDC, prostate data, or isotropic prostate volumes.

    python -m tools.studies.strong acdc --data data/acdc --runs runs/acdc-strong --out docs/results/acdc_strong.json
    python -m tools.studies.strong prostate --data data/prostate --runs runs/prostate --out runs/prostate_strong.json

For each draw of labelled patients, a baseline is trained on the labels for N steps. Every method then trains for N more
steps from this baseline. For comparison, a network is trained on the labels alone for 2N steps; differences from it are
paired by draw. On ACDC, the test patients are those that `split.csv` reserves for validation, and two other patients
select the step. Of the ten patients of the prostate data, three are for the test and one selects the step. The last
step is also scored. `prostate-1mm` first resamples the prostate volumes to voxels of 1 mm. Commands with a result are
not repeated. Runs that the results file already contains are kept unless they were repeated.

    python -m tools.studies.strong acdc --data data/acdc --runs runs/gpu --out acdc.json --device cuda --counts 2 \
        --effort minutes --precision bf16-mixed --workers 12 --by-draw --seconds 240

On a GPU, many small trainings run at the same time. `--by-draw` finishes all methods of a draw before the next draw,
and `--seconds` sets a time limit after which the table of the finished commands is written, so that a short session
yields complete rows.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

from ssl_medseg.training.recipe import EFFORTS
from tools.results import provenance, write_result
from tools.studies.common import Job, Starter, mean_and_spread, run_all
from tools.studies.prostate import measured


@dataclass(frozen=True)
class Material:
    """Data set of the study.

    Attributes:
        counts: Numbers of labelled patients, in the order of the runs.
        draws: Number of draws of labelled patients.
        splits: Additional arguments of `make-splits`; TABLE is replaced by the path of `split.csv`.
        test: Description of the test volumes.
        choosing: Description of the patients on whom the step is chosen, for the notes.
        upper: Whether to train on all labels as well.
        spacing: Voxel size in mm to which the volumes are resampled; None: no resampling.
    """

    counts: tuple[int, ...]
    draws: int
    splits: tuple[str, ...]
    test: str
    choosing: str
    upper: bool = False
    spacing: tuple[float, float, float] | None = None


_PROSTATE = Material((2,), 3, ("--n-validation", "1", "--n-test", "3"), "3 test patients", "one validation patient")
MATERIALS = {
    "acdc": Material(
        (2, 1, 3, 8),
        5,
        ("--n-validation", "2", "--table", "TABLE", "--table_test", "val"),
        "20 volumes of 10 test patients",
        "two validation patients",
        upper=True,
    ),
    "prostate": _PROSTATE,
    "prostate-1mm": replace(_PROSTATE, spacing=(1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Method:
    """Row of the table.

    Attributes:
        name: Name in the table.
        arguments: Additional arguments of `selftrain`; None: labels alone.
        training: Additional arguments of `train`.
        effort: Effort of the training, if it differs from that of the study.
    """

    name: str
    arguments: tuple[str, ...] | None = None
    training: tuple[str, ...] = ()
    effort: str | None = None


Scores = dict[str, float]
"""Mean Dice of the chosen and the last step, and HD95, of one run."""
Results = dict[str, dict[str, dict[int, Scores]]]
"""Scores by number of labelled patients, method and draw."""
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
    "rounds-contrast": Method(
        "rounds of pseudo-labels + local contrastive loss, 0.1",
        ("--method", "rounds", "--contrast.weight", "0.1", "--pseudo.guard", "warn"),
    ),
    "contrast": Method(
        "rounds, local contrastive loss in place of pseudo-labels",
        ("--method", "rounds", "--pseudo_weight", "0", "--contrast.weight", "0.1", "--pseudo.guard", "warn"),
    ),
}
LIBRARIES = (
    "torch",
    "monai",
    "ssl_medseg.training.supervised",
    "ssl_medseg.selftraining.training",
    "ssl_medseg.evaluation",
)
MAIN = ("first", "consistency", LABELS)
"""Methods that run first, draw by draw."""


@dataclass(frozen=True)
class Study:
    """Data set, folder of the runs, and extent of the study.

    Attributes:
        material: Kind of data set.
        data: Folder of the data set.
        runs: Folder of the runs.
        draws: Number of draws of labelled patients.
        effort: Effort of every stage, which sets N.
        precision: Number format of training.
        device: Device of training and prediction.
        counts: Numbers of labelled patients.
        methods: Names of the rows.
        by_draw: Whether to run all rows of a draw before the next draw.
        steps: Number of steps N; 0 for that of the effort.
        flags: Additional flags of every training on labels, whose size and network the methods inherit.
        catalogue: All rows by name.
    """

    material: Material
    data: Path
    runs: Path
    draws: int
    effort: str
    precision: str = "32-true"
    device: str = "cpu"
    counts: tuple[int, ...] = ()
    methods: tuple[str, ...] = tuple(METHODS)
    by_draw: bool = False
    steps: int = 0
    flags: tuple[str, ...] = ()
    catalogue: Mapping[str, Method] = field(default_factory=lambda: METHODS)

    def jobs(self) -> list[Job]:
        """Return all commands: main rows draw by draw, all labels, then the other methods; or everything by draw."""
        cells = [(count, draw) for draw in range(1, self.draws + 1) for count in self._counts]
        if self.by_draw:
            lines = [job for cell in cells for name in self.methods for job in self.line(name, *cell)]
            return [self.splits(), *lines]
        other_methods = [name for name in self.methods if name not in MAIN]
        return [
            self.splits(),
            *(job for cell in cells for name in MAIN if name in self.methods for job in self.line(name, *cell)),
            *(self.upper() if self.material.upper else ()),
            *(job for name in other_methods for cell in cells for job in self.line(name, *cell)),
        ]

    def splits(self) -> Job:
        """Return the job that draws labelled, validation, test and unlabelled patients."""
        out, counts = self.runs / "splits", ",".join(map(str, sorted(self._counts)))
        arguments = ("make-splits", str(self.data), str(out), "--n-labelled", counts, "--draws", str(self.draws))
        material_arguments = (
            str(self.data / "split.csv") if argument == "TABLE" else argument for argument in self.material.splits
        )
        last = f"{max(self._counts)}-labelled-draw{self.draws}.json"
        return Job("splits", (*arguments, *material_arguments), out / last, program="ssl-medseg")

    def line(self, name: str, count: int, draw: int) -> list[Job]:
        """Return the jobs that train and test one method with a number of labelled patients."""
        split = self.runs / "splits" / f"{count}-labelled-draw{draw}.json"
        out, first = self.out(name, count, draw), self.out("first", count, draw)
        method = self.catalogue[name]
        if method.arguments is None:
            command = ["train", str(self.data), str(out), "--split", str(split)]
            command += [*self._steps(2 if name == LABELS else 1), *self.flags, *method.training]
            return self._training(out, command, draw, "splits", effort=method.effort)
        command = ["selftrain", str(first), str(self.data), str(out), "--split", str(split)]
        command += [*method.arguments, *self._steps(1)]
        return self._training(out, command, draw, first.name)

    def upper(self) -> list[Job]:
        """Return the jobs that train for 2N steps on all labels except those of validation and test."""
        out, split = self.runs / "all", self.runs / "splits" / "all-labelled.json"
        return self._training(
            out, ["train", str(self.data), str(out), "--split", str(split), *self._steps(2), *self.flags], 1, "splits"
        )

    @property
    def n(self) -> int:
        """Number of steps N of the first training and of every method."""
        return self.steps or EFFORTS[self.effort].steps

    def _steps(self, times: int) -> list[str]:
        """Return the flag for a multiple of N steps, if it differs from the number of steps of the effort."""
        return ["--steps", str(times * self.n)] if times > 1 or self.steps else []

    @property
    def _counts(self) -> tuple[int, ...]:
        return self.counts or self.material.counts

    def out(self, name: str, count: int, draw: int) -> Path:
        """Return the folder of a run."""
        return self.runs / f"{name}-{count}-draw{draw}"

    def scores(self, name: str, count: int) -> dict[int, Scores]:
        """Return the scores of every finished draw."""
        paths = {draw: self.out(name, count, draw) for draw in range(1, self.draws + 1)}
        return {draw: scores for draw, path in paths.items() if (scores := _scores(path))}

    def _training(
        self, out: Path, command: list[str], seed: int, after: str, *, effort: str | None = None
    ) -> list[Job]:
        common = [
            "--effort",
            effort or self.effort,
            "--seed",
            str(seed),
            "--cache",
            str(self.runs / "cache"),
            "--device",
            self.device,
        ]
        common += ["--threads", "1", "--precision", self.precision, "--log_every", "25"]
        jobs = [Job(out.name, (*command, *common), out / "model" / "model.json", (after,), "ssl-medseg")]
        models = {"chosen": out, "last": out / "models" / "last"}
        if "rounds" in command:  # the models of the rounds are kept instead of that of the last step
            del models["last"]
        for which, model in models.items():
            result = _file(out, which)
            split = ("--split", _split(command), "--part", "test")
            arguments = ("evaluate", str(model), str(self.data), *split, "--name", which, "--out", str(result.parent))
            flags = ("--pictures", "false", "--device", self.device)
            jobs.append(Job(f"{out.name}-{which}", (*arguments, *flags), result, (out.name,), "ssl-medseg"))
        return jobs


def _split(command: list[str]) -> str:
    """Return the split file in the arguments of a training."""
    return next(argument for argument in command if argument.endswith(".json"))


def _file(run: Path, which: str) -> Path:
    return run / "evaluation" / f"{which}.json"


def _scores(run: Path) -> Scores:
    """Return the mean Dice of a run on the test patients, that of its last step, and HD95; empty if not finished."""
    if not _file(run, "chosen").exists():
        return {}
    scores = {name: _mean(_file(run, name)) for name in ("chosen", "last") if _file(run, name).exists()}
    distance = measured(_file(run, "chosen"))["hd95"]
    return scores if distance is None else {**scores, "hd95": distance}


def _mean(path: Path) -> float:
    return float(json.loads(path.read_text())["summary"]["mean_dice"]["mean"])


ALL = "all"
"""Key of the training on all labels, in place of the number of labelled patients."""
COLUMNS = (
    "labelled patients", "method", "draws", "Dice", "worst draw", "against labels alone, 2N steps",
    "Dice of the last step", "HD95",
)  # fmt: skip


def collect(study: Study, earlier: Mapping[str, Any]) -> Results:
    """Return the scores of the finished runs, and those of an earlier results file that were not repeated."""
    old: Mapping[str, Any] = earlier.get("scores", {})
    results: Results = {}
    for count in sorted({*study.material.counts, *(int(key) for key in old if key != ALL)}):
        for name in study.catalogue:
            runs = {int(draw): scores for draw, scores in old.get(str(count), {}).get(name, {}).items()}
            runs |= study.scores(name, count)
            if runs:
                results.setdefault(str(count), {})[name] = dict(sorted(runs.items()))
    upper = _scores(study.runs / ALL) or old.get(ALL, {}).get(LABELS, {}).get("1")
    if upper:
        results[ALL] = {LABELS: {1: upper}}
    return results


def rows(results: Results, earlier: Sequence[Sequence[object]] = ()) -> list[list[object]]:
    """Return the table, with a row for each number of labelled patients and method.

    Args:
        results: Scores of the runs.
        earlier: Rows of an earlier table; those without scores in `results` are kept.
    """
    lines: dict[tuple[str, str], list[object]] = {(str(line[0]), str(line[1])): list(line) for line in earlier}
    for count, methods in results.items():
        for name, runs in methods.items():
            baseline = methods.get(LABELS, {})
            best, last, far = (
                {draw: scores[key] for draw, scores in runs.items() if key in scores}
                for key in ("chosen", "last", "hd95")
            )
            gains = [best[draw] - baseline[draw]["chosen"] for draw in sorted(best.keys() & baseline.keys())]
            better = f"{statistics.mean(gains):+.3f} ({sum(g > 0 for g in gains)} of {len(gains)})" if gains else None
            lines[count, METHODS[name].name] = [
                count if count == ALL else int(count), METHODS[name].name, len(best),
                mean_and_spread(list(best.values()), decimals=3), f"{min(best.values()):.3f}",
                None if name == LABELS else better,
                mean_and_spread(list(last.values()), decimals=3) if last else None,
                mean_and_spread(list(far.values()), decimals=1) if len(far) == len(best) else None,
            ]  # fmt: skip
    counts = {count: (count == ALL, int(count) if count.isdigit() else 0) for count, _ in lines}
    names = [method.name for method in METHODS.values()]
    return [lines[key] for key in sorted(lines, key=lambda key: (counts[key[0]], names.index(key[1])))]


def isotropic(data: Path, out: Path, spacing: tuple[float, float, float]) -> Path:
    """Write a copy of a Decathlon folder whose volumes have voxels of the given size."""
    for path in sorted(data.glob("*Tr/*.nii.gz")):
        target = out / path.parent.name / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            image = nib.load(path)
            order = 0 if path.parent.name == "labelsTr" else 1
            result = resample_to_output(image, spacing, order=order)
            if not order:
                result = nib.Nifti1Image(np.asarray(result.dataobj).astype(np.uint8), result.affine)
            result.header.set_xyzt_units("mm")
            nib.save(result, target)
    shutil.copy(data / "dataset.json", out / "dataset.json")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", choices=MATERIALS)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder in the layout of the Decathlon; for ACDC with split.csv"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, help="number of draws of labelled patients; all by default")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=(), help="numbers of labelled patients; all by default"
    )
    parser.add_argument("--effort", choices=EFFORTS, default="hour")
    parser.add_argument("--precision", default="32-true", help="number format of training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of commands to run at a time, with one thread each"
    )
    parser.add_argument(
        "--methods", choices=METHODS, nargs="+", default=list(METHODS), help="methods to run; all by default"
    )
    parser.add_argument("--by-draw", action="store_true", help="run all methods of a draw before the next draw")
    parser.add_argument(
        "--seconds", type=float, help="time limit in seconds, after which the existing results are written"
    )
    parser.add_argument("--steps", type=int, default=0, help="number of steps N; by default that of the effort")
    parser.add_argument("--flags", default="", help="additional flags of training on labels, in one string")
    parser.add_argument("--collect", action="store_true", help="write the existing results without running commands")
    parser.add_argument("--commit", help="commit of the code that ran the commands, if it differs from this one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    material = MATERIALS[arguments.material]
    data = isotropic(arguments.data, arguments.runs / "data", material.spacing) if material.spacing else arguments.data
    study = Study(
        material,
        data,
        arguments.runs,
        arguments.draws or material.draws,
        arguments.effort,
        arguments.precision,
        arguments.device,
        tuple(arguments.counts),
        tuple(arguments.methods),
        arguments.by_draw,
        arguments.steps,
        tuple(shlex.split(arguments.flags)),
    )
    jobs = study.jobs()
    if not arguments.collect:
        call = Starter(LIBRARIES, deadline)
        missing = run_all(
            jobs, logs=arguments.runs / "logs", workers=arguments.workers, call=call, deadline=deadline
        )  # fmt: skip
        if missing and (deadline is None or time.monotonic() < deadline):
            raise SystemExit(
                f"no results were written, because these jobs failed: {', '.join(missing)}; see their logs"
            )
    size, steps = EFFORTS[study.effort].size, study.n
    earlier = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results = collect(study, earlier)
    lines = [*earlier.get("config", {}).get("commands", []), *(job.line for job in jobs if job.result.exists())]
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            **({"commit": arguments.commit} if arguments.commit else {}),
            "seeds": sorted({*earlier.get("seeds", ()), *range(1, study.draws + 1)}),
            "config": {"commands": list(dict.fromkeys(lines))},
            "table": {
                "columns": list(COLUMNS),
                "rows": rows(results, earlier.get("table", {}).get("rows", ())),
            },
            "notes": earlier.get("notes") or [
                f"Mean foreground Dice of the {material.test} on their original grids: mean and standard deviation "
                f"over the completed draws. Recipe strong, effort {study.effort}: slices of {size} x {size} pixels, "
                f"N = {steps:,} steps of 12 labelled slices, and 12 unlabelled ones in self-training; precision "
                f"{study.precision}. The step, mirroring and largest components are chosen on {material.choosing}. "
                "HD95 is in mm; on ACDC, whose files do not state the voxel size, it is in voxels.",
                "The number of steps is matched: methods of self-training start from the model of the first row and "
                "train for N further steps. A step of self-training costs about 2.5 times a step on labels alone, "
                "because unlabelled slices pass through both student and teacher.",
            ],
            "scores": results,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
