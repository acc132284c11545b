"""Evaluate MvPL with few labels on ten classes of UCF-101, compared with labels alone, FixMatch and options of MvPL.

    python -m tools.studies.ucf101 --data data/ucf101_10 --runs runs/ucf101 --out docs/results/ucf101_10_8_frames.json

Because neighbouring clips of a class share a scene, the last clips of each class are the test part, and those before
them the validation part. All methods of a draw share its labelled videos and its seed, so that differences are paired,
and all methods have the same compute. Settings were chosen on the validation part with draws 3 and 4. The other draws
are scored on the test part, which was not used for any choice. Commands with a result are not repeated, and `--collect`
writes the existing results. Runs that the results file already contains are kept unless they were repeated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contrastive_core.app.report.figures import SERIES, new_figure, plain_axes, to_png
from ssl_video.data import reader, video_index
from ssl_video.training.options import REFERENCE_CLIPS
from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all, signed

STEPS, MU, CLIPS, PEAK = 2000, 2, 8, 0.3
"""Steps, unlabelled clips per labelled clip, labelled clips, and peak learning rate of the recommended method."""
CLIP = ("--clip.frames", "8", "--clip.stride", "12", "--image-size", "48")
CPU = (
    *("--device", "cpu", "--threads", "1", "--precision", "bf16-mixed", "--log_every", "5", "--progress", "false"),
    *("--checkpoint_every", "250"),
)
VIEWS = ("rgb", "tg")
"""Views of the default method."""
WARMUP = 0.4
"""Fraction of the steps with labels alone in the default method."""


@dataclass(frozen=True)
class Method:
    """Row of the table with its name and the additional arguments of its command."""

    name: str
    arguments: tuple[str, ...] = ()
    supervised: bool = False
    views: tuple[str, ...] = VIEWS
    warmup: float = WARMUP

    @property
    def passes(self) -> float:
        """Average number of passes of clips through the network per step, with a backward pass counted as two.

        A step with labels alone takes 3 passes for each clip and view. A step with pseudo-labels takes 3 for each
        labelled and strongly augmented clip, and 1 for each weakly augmented clip. Augmentation is not counted.
        """
        labels = 3 * CLIPS
        with_pseudo_labels = labels + (3 + 1) * MU * CLIPS
        share = 0.0 if self.supervised else 1 - self.warmup
        return len(self.views) * ((1 - share) * labels + share * with_pseudo_labels)

    def steps(self, recommended: int) -> int:
        """Return the number of steps with the compute of a number of steps of the recommended method."""
        return round(recommended * Method("").passes / self.passes)


PAPER_VIEWS = ("rgb", "flow", "tg")
OFF = ("--pseudo.agreement_weight", "0")
FIXED = ("--pseudo.select", "fixed", *OFF)
METHODS: dict[str, Method] = {
    "labels-rgb": Method("labels alone, frames", ("--views", "[rgb]"), supervised=True, views=("rgb",)),
    "labels": Method("labels alone, all views", supervised=True),
    "labels-agreement": Method("labels alone, agreeing features", ("--pseudo.agreement_weight", "1"), supervised=True),
    "fixmatch": Method("FixMatch", ("--method", "fixmatch"), views=("rgb",)),
    "paper": Method(
        "MvPL, settings of the paper", ("--recipe", "paper", "--flow", "dis_fast"), views=PAPER_VIEWS, warmup=0.125
    ),
    "mvpl": Method("MvPL, fixed threshold", FIXED),
    "agreement": Method("MvPL, fixed threshold, agreeing features", ("--pseudo.select", "fixed")),
    "freematch": Method("MvPL, FreeMatch thresholds", ("--pseudo.select", "freematch", *OFF)),
    "freematch-agreement": Method("MvPL, FreeMatch thresholds, agreeing features", ("--pseudo.select", "freematch")),
    "late": Method(
        "pseudo-labels in the last fifth, threshold 0.8",
        ("--pseudo.warmup", "0.8", "--pseudo.threshold", "0.8", *OFF),
        warmup=0.8,
    ),
    "softmatch": Method("MvPL, SoftMatch weights", ("--pseudo.select", "softmatch", *OFF)),
    "align": Method("fixed threshold, distribution alignment", (*FIXED, "--pseudo.align", "true")),
    "average": Method("fixed threshold, moving average tested", (*FIXED, "--ema", "0.99")),
    "teacher": Method(
        "fixed threshold, pseudo-labels of the average", (*FIXED, "--ema", "0.99", "--pseudo.labeller", "average")
    ),
    "mix": Method("fixed threshold, TubeMix", (*FIXED, "--pseudo.mix", "1")),
    "order": Method("fixed threshold, order of frames", (*FIXED, "--strong.temporal", "[reverse,shuffle,warp,speed]")),
}
CORE = ("freematch-agreement", "agreement", "freematch", "mvpl", "labels")
DRAWS = (0, 1, 2, 5, 6)
"""Draws of labelled videos; settings were chosen with draws 3 and 4."""
FEW = 3

Scores = dict[str, dict[int, dict[str, float]]]
"""Top-1 % by method, draw and view."""


@dataclass(frozen=True)
class Study:
    """Data set, folder of the runs, draws to run, and steps of the recommended method."""

    data: Path
    runs: Path
    draws: tuple[int, ...] = DRAWS
    steps: int = STEPS

    def jobs(self) -> list[Job]:
        """Return all commands, the most informative ones first."""
        first, later = DRAWS[:FEW], DRAWS[FEW:]
        other_methods = [method for method in METHODS if method not in (*CORE, "fixmatch")]
        cells = [(percent, method, draw) for percent in (10, 5) for draw in first for method in CORE]
        cells += [(percent, "fixmatch", draw) for percent in (10, 5) for draw in first]
        cells += [(10, method, draw) for draw in first for method in other_methods]
        cells += [(20, method, draw) for draw in first for method in (*CORE, "fixmatch")]
        cells += [(percent, method, draw) for draw in later for percent in (10, 5) for method in (*CORE, "fixmatch")]
        cells += [(5, method, draw) for draw in first for method in other_methods]
        selection = [cell for cell in cells if cell[2] in self.draws]
        return [self.splits(), *(job for cell in selection for job in self.cell(*cell))]

    def splits(self) -> Job:
        """Return the job that draws the labelled videos, the validation part and the test part."""
        out = self.runs / "splits"
        arguments = (
            *("make-splits", str(self.data), str(out), "--fractions", "[0.05,0.1,0.2]", "--draws", "7"),
            *("--by", "block", "--blocks", "40", "--validation-fraction", "0.15", "--test-fraction", "0.25"),
        )
        return Job("splits", arguments, out / "20percent-draw6.json", program="ssl-video")

    def cell(self, percent: int, method: str, draw: int) -> list[Job]:
        """Return the jobs that train and test one method."""
        out, split = self.out(percent, method, draw), str(self.split(percent, draw))
        settings = METHODS[method]
        recipe = "supervised-small-cpu" if settings.supervised else "mvpl-small-cpu"
        # The flag refers to 40 clips per step; the peak is the same in all runs.
        rate = PEAK * REFERENCE_CLIPS / (CLIPS if settings.supervised else CLIPS * (1 + MU))
        train = (
            *("train", str(self.data), str(out), "--split", split, "--config", recipe, *CLIP, "--seed", str(draw)),
            *("--batch_size", str(CLIPS), "--mu", str(MU), "--steps", str(settings.steps(self.steps))),
            *("--optimizer.lr", f"{rate:.4g}", *CPU, *settings.arguments),
        )
        if not settings.supervised:
            train += ("--diagnose",)
        test = (
            *("evaluate", str(out), str(self.data), "--split", split, "--clips", "2", "--crops", "1"),
            *("--to_the_end", "--device", "cpu"),
        )
        return [
            Job(out.name, train, out / "model" / "model.json", ("splits",), program="ssl-video"),
            Job(f"{out.name}-test", test, out / "evaluation" / "test.json", (out.name,), program="ssl-video"),
        ]

    def out(self, percent: int, method: str, draw: int) -> Path:
        """Return the folder of a run."""
        return self.runs / f"{percent}percent-{method}-draw{draw}"

    def split(self, percent: int, draw: int) -> Path:
        """Return the split file of a draw."""
        return self.runs / "splits" / f"{percent}percent-draw{draw}.json"

    def line(self, job: Job) -> str:
        """Return the command of a job, independently of the folders of data and runs."""
        return job.line.replace(f"{self.runs}/", "runs/").replace(str(self.data), "ucf101_10")

    def scores(self, percent: int, methods: Mapping[str, Method]) -> Scores:
        """Return the scores of all finished tests."""
        scores: Scores = {}
        for method in methods:
            for draw in DRAWS:
                path = self.out(percent, method, draw) / "evaluation" / "test.json"
                if path.exists():
                    views = json.loads(path.read_text())["views"]
                    scores.setdefault(method, {})[draw] = {view: score["top1"] for view, score in views.items()}
        return scores

    def pseudo_labels(self, percent: int, method: str, draw: int) -> dict[str, float] | None:
        """Return coverage and accuracy of the pseudo-labels in the last quarter of a run."""
        path = self.out(percent, method, draw) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        last = [
            line for line in lines if "coverage" in line and line["step"] >= 0.75 * METHODS[method].steps(self.steps)
        ]
        if not last:
            return None
        means = {}
        for name in ("coverage", "pseudo_accuracy", "pseudo_accuracy_all"):
            # The accuracy is "NaN" in a step without selected pseudo-labels.
            numbers = [value for line in last if isinstance(value := line.get(name), int | float)]
            if numbers:
                means[name] = statistics.mean(numbers)
        return means


_IMPORTED = ("ssl_video.commands.train", "ssl_video.commands.evaluate", "ssl_video.optical_flow.methods", "cv2")


def forking(videos: Path, pattern: str) -> Callable[[Job, Path], int]:
    """Return a function that runs jobs for `run_all` in forked processes.

    Args:
        videos: Folder of the videos.
        pattern: Pattern of their paths in this folder. All of their frames are kept in memory, so there should be only
            some hundred files of 64 pixels.

    Returns:
        Function from a job and the path of its log to the exit status.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    plain, cache = reader.read_frames, {}
    for path in sorted(videos.glob(pattern)):
        cache[str(path)] = plain(path, list(range(len(video_index.index_video(path)))))

    def read_frames(path: str | Path, frames: list[int]) -> dict[int, reader.Picture]:
        pictures = cache.get(str(path))
        return plain(path, frames) if pictures is None else {frame: pictures[frame] for frame in frames}

    reader.read_frames = read_frames  # used by `read_clip`
    context = multiprocessing.get_context("fork")

    def call(job: Job, log: Path) -> int:
        process = context.Process(target=_command, args=(job, log))
        process.start()
        process.join()
        return process.exitcode or 0

    return call


def _command(job: Job, log: Path) -> None:
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        program = importlib.import_module(f"{job.program.replace('-', '_')}.cli")
        status = program.main(list(job.resuming))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an ordinary exit would wait for threads that exist only in the parent


ABOUT = (  # to be completed by the number of steps
    "Top-1 % on the 208 videos of the test part, with 2 clips of each: mean and standard deviation over the draws; "
    "differences from labels alone on all views, paired by draw: mean and standard error. 3-D ResNet with 10 layers "
    "and width 8, trained from scratch on clips of 8 frames at 48 pixels in bf16-mixed. MvPL: {:,} steps with "
    f"{CLIPS} labelled clips each and {MU} unlabelled clips per labelled one; the other methods have the number of "
    "steps with the same number of passes through the network."
)
PSEUDO_LABELS = (
    "The last columns show the share of the unlabelled clips with a selected pseudo-label in the last quarter of the "
    "steps, and the share of correct pseudo-labels among these."
)
CHOSEN = (
    "Settings are those chosen on the validation part with draws 3 and 4 for clips of 4 frames (see ucf101_10), peak "
    "learning rate 0.3 and threshold 0.4. With 5 % of the labels the threshold is 0.8, the default for fewer than four "
    "labelled videos per class. No setting was chosen again."
)
BASELINE = "labels"
PERCENTS = (5, 10, 20)


@dataclass(frozen=True)
class Results:
    """Scores with one percentage of labels, and the pseudo-labels of the runs.

    Attributes:
        scores: Top-1 % by method, draw and view.
        pseudo_labels: Means over runs by method, each with its draws: `{"draws": [0], "coverage": 0.7, ...}`.
    """

    scores: Scores
    pseudo_labels: dict[str, list[dict[str, Any]]]

    def mean(self, method: str, name: str) -> float | None:
        """Return the mean of one property of the pseudo-labels over all draws that have it."""
        pairs = [(len(entry["draws"]), entry[name]) for entry in self.pseudo_labels.get(method, []) if name in entry]
        return sum(count * value for count, value in pairs) / sum(count for count, _ in pairs) if pairs else None


def collect(study: Study, percent: int, earlier: Mapping[str, Any]) -> Results:
    """Return the finished runs of a study, and those of an earlier results file that were not repeated."""
    new = study.scores(percent, METHODS)
    old = earlier.get("top1", {}).get(str(percent), {})
    old_pseudo = earlier.get("pseudo_labels", {}).get(str(percent), {})
    scores: Scores = {}
    pseudo: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        runs = {int(number): views for number, views in old.get(method, {}).items()} | new.get(method, {})
        if runs:
            scores[method] = dict(sorted(runs.items()))
        entries = list(old_pseudo.get(method, []))
        old_draws = {number for entry in entries for number in entry["draws"]}
        entries += [
            {"draws": [number], **means}
            for number in sorted(set(new.get(method, {})) - old_draws)
            if (means := study.pseudo_labels(percent, method, number))
        ]
        if entries:
            pseudo[method] = entries
    return Results(scores, pseudo)


def paired(scores: Scores, method: str, baseline: str, view: str) -> list[float]:
    """Return the differences in the draws that both methods have."""
    method_scores, baseline_scores = scores.get(method, {}), scores.get(baseline, {})
    return [
        method_scores[draw][view] - baseline_scores[draw][view]
        for draw in sorted(method_scores.keys() & baseline_scores.keys())
        if view in method_scores[draw] and view in baseline_scores[draw]
    ]


def row(results: Results, method: str) -> list[object]:
    """Return a row of the table."""
    runs = results.scores[method]
    rgb, fused = ([run[view] for run in runs.values() if view in run] for view in ("rgb", "fused"))
    shares = [results.mean(method, name) for name in ("coverage", "pseudo_accuracy")]
    differences = [
        signed(values) if method != BASELINE and (values := paired(results.scores, method, BASELINE, view)) else None
        for view in ("rgb", "fused")
    ]
    return [
        METHODS[method].name, len(runs), mean_and_spread(rgb), differences[0],
        mean_and_spread(fused) if fused else None, differences[1],
        *(None if share is None else f"{100 * share:.0f}" for share in shares),
    ]  # fmt: skip


COLUMNS = (
    "labels, %", "method", "runs", "frames", "difference to labels alone", "all views", "difference to labels alone",
    "selected, %", "correct of these, %",
)  # fmt: skip


def draw(scores: Scores, path: Path) -> None:
    """Draw every run with 10 % of the labels as a dot, and the mean over draws, on frames and on all views."""
    figure = new_figure(7.2, 1.2 + 0.35 * len(scores))
    axes = figure.subplots()
    plain_axes(axes, "10 % of the labels: top-1 % on the test part")
    for colour, view, name in zip(SERIES, ("rgb", "fused"), ("frames", "all views"), strict=False):
        label: str | None = name
        for place, method in enumerate(scores):
            values = [views[view] for views in scores[method].values() if view in views]
            if values:
                y = place + (0.15 if view == "fused" else -0.15)
                axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.5, label=label)
                axes.plot([statistics.mean(values)], [y], "|", color=colour, markersize=16, markeredgewidth=2)
                label = None
    axes.set_yticks(range(len(scores)), [METHODS[method].name for method in scores])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    path.write_bytes(to_png(figure))


def write(study: Study, jobs: Sequence[Job], out: Path, commit: str | None) -> None:
    """Write the results file and the figure from the existing results, and add to those of an earlier file."""
    earlier = json.loads(out.read_text()) if out.exists() else {}
    by_percent = {percent: collect(study, percent, earlier) for percent in PERCENTS}
    lines = [*earlier.get("config", {}).get("commands", []), *(study.line(job) for job in jobs if job.result.exists())]
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            **({"commit": commit} if commit else {}),
            "seeds": sorted(
                {number for results in by_percent.values() for runs in results.scores.values() for number in runs}
            ),
            "config": {"commands": list(dict.fromkeys(lines))},
            "table": {
                "columns": list(COLUMNS),
                "rows": [
                    [percent, *row(results, method)]
                    for percent, results in by_percent.items()
                    for method in results.scores
                ],
            },
            "notes": earlier.get("notes", [ABOUT.format(study.steps), PSEUDO_LABELS, CHOSEN]),
            "top1": {str(percent): results.scores for percent, results in by_percent.items()},
            "pseudo_labels": {str(percent): results.pseudo_labels for percent, results in by_percent.items()},
        },
    )
    draw(by_percent[10].scores, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ucf101_10")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, nargs="+", choices=DRAWS, default=DRAWS)
    parser.add_argument("--steps", type=int, default=STEPS, help="number of steps of the recommended method")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of commands to run at a time, with one thread each"
    )
    parser.add_argument("--collect", action="store_true", help="write the existing results without running commands")
    parser.add_argument("--commit", help="commit of the code that ran the commands, if it differs from this one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, tuple(arguments.draws), arguments.steps)
    jobs = study.jobs()
    if not arguments.collect:
        torch.set_num_threads(1)
        call = forking(arguments.data, "train/*/*.avi")
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers, call=call)
        if missing:
            raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    write(study, jobs, arguments.out, arguments.commit)


if __name__ == "__main__":
    main()
