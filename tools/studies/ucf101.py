"""MvPL with few labels on ten classes of UCF-101, and its ablations.

    python -m tools.studies.ucf101 --data data/ucf101_10 --runs runs/ucf101 --out docs/results/ucf101_10.json

Neighbouring clips of a class share a scene, so the last clips of each class are reserved: a test part, and before it
a validation part. Every draw has its own labelled videos and seed, which all methods share, so differences are
paired. Settings were chosen on the validation part with draws 3 and 4; the other draws are scored on the test part
and select nothing. Commands with a result are not repeated, and `--collect` writes what there is.
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
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from contrastive_core.app.report.figures import SERIES, new_figure, plain_axes, to_png
from ssl_video.data import reader, video_index
from ssl_video.training.options import REFERENCE_CLIPS
from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all

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


_IMPORTED = ("ssl_video.commands.train", "ssl_video.commands.evaluate", "ssl_video.optical_flow.methods", "cv2")


def forking(videos: Path, pattern: str) -> Callable[[Job, Path], int]:
    """A way to run jobs for `run_all`.

    Args:
        videos: folder of the videos.
        pattern: of their names below it. All their frames are kept: 64 pixels, not more than some hundred files.

    Returns:
        From a job and the path of its log to the exit status.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    plain, kept = reader.read_frames, {}
    for path in sorted(videos.glob(pattern)):
        kept[str(path)] = plain(path, list(range(len(video_index.index_video(path)))))

    def read_frames(path: str | Path, frames: list[int]) -> dict[int, reader.Picture]:
        found = kept.get(str(path))
        return plain(path, frames) if found is None else {frame: found[frame] for frame in frames}

    reader.read_frames = read_frames  # `read_clip` looks it up there
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
        os._exit(status)  # at an ordinary end it would wait for threads that stayed behind in the parent


ABOUT = (
    "Top-1 % on the 208 videos of the test part, 2 clips of each: mean and standard deviation over the draws, and of "
    "the differences from the baseline, paired by draw. 3-D ResNet of 10 layers and width 8, clips of 4 frames at 40 "
    f"pixels, {STEPS} steps, {CLIPS} labelled clips a step and {MU} unlabelled ones for each."
)
PSEUDO_LABELS = (
    "Labelled: share of the unlabelled clips whose pseudo-label counted in the last quarter of the steps; and how many "
    "of these were right."
)
VIEW_NAMES = {"rgb": "frames", "fused": "all views"}
CHOSEN = (
    "Chosen on 96 validation videos with draws 3 and 4 in runs of 500 steps, one a setting: the peak of the learning "
    "rate 0.3 (labels alone, all views, draw 3: frames 40.6, all views 54.2; with 0.1: 35.4, 46.9; with 0.6: 27.1, "
    "47.9), and the threshold 0.4 (MvPL: frames 49.0 and 40.6; with 0.6: 43.8 and 37.5)."
)
ABLATED = "As in the table before; each row changes one setting of MvPL on all views (or of FixMatch)."


def paired(scores: Scores, method: str, baseline: str, view: str) -> list[float]:
    """Differences in the draws that both have."""
    mine, theirs = scores.get(method, {}), scores.get(baseline, {})
    return [
        mine[draw][view] - theirs[draw][view]
        for draw in sorted(mine.keys() & theirs.keys())
        if view in mine[draw] and view in theirs[draw]
    ]


def row(study: Study, scores: Scores, method: str, percent: int, baseline: str) -> list[object]:
    """One line of a table."""
    runs = scores[method]
    rgb, fused = ([run[view] for run in runs.values() if view in run] for view in ("rgb", "fused"))
    pseudo = [found for draw in runs if (found := study.pseudo_labels(percent, method, draw))]
    coverage = f"{100 * statistics.mean(found['coverage'] for found in pseudo):.0f}" if pseudo else None
    right = [found["pseudo_accuracy"] for found in pseudo if "pseudo_accuracy" in found]
    differences = [
        signed(values) if method != baseline and (values := paired(scores, method, baseline, view)) else None
        for view in ("rgb", "fused")
    ]
    return [
        METHODS[method].name, len(runs), mean_and_spread(rgb), differences[0],
        mean_and_spread(fused) if fused else None, differences[1],
        coverage, f"{100 * statistics.mean(right):.0f}" if right else None,
    ]  # fmt: skip


def signed(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{spread}"


def columns(baseline: str) -> list[str]:
    return [
        "runs", "frames", f"against {baseline}", "all views", f"against {baseline}", "labelled, %", "of them right, %",
    ]  # fmt: skip


def draw(study: Study, path: Path) -> None:
    """Every run with a tenth of the labels as a dot, and the mean over draws, on frames and on all views."""
    scores = study.scores(10, MAIN)
    figure = new_figure(7.2, 3.6)
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
    axes.set_yticks(range(len(scores)), [MAIN[method].name for method in scores])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    path.write_bytes(to_png(figure))


def verdict(scores: Scores, percent: int) -> str:
    """What the paired differences say: mean and standard error over draws."""
    said = []
    for method, baseline, view in (
        ("all", "rgb", "rgb"), ("fixmatch", "rgb", "rgb"), ("mvpl", "rgb", "rgb"), ("mvpl", "fixmatch", "rgb"),
        ("mvpl-tg", "all", "rgb"), ("mvpl-flow", "all", "rgb"), ("mvpl", "all", "rgb"), ("mvpl", "all", "fused"),
        ("mvpl", "all-long", "rgb"), ("mvpl", "all-long", "fused"),
        ("middle", "all", "rgb"), ("middle", "all", "fused"), ("high", "all", "rgb"), ("high", "all", "fused"),
    ):  # fmt: skip
        values = paired(scores, method, baseline, view)
        if len(values) > 1:
            error = statistics.stdev(values) / len(values) ** 0.5
            said.append(
                f"{METHODS[method].name} against {METHODS[baseline].name}, on {VIEW_NAMES[view]}: "
                f"{statistics.mean(values):+.1f} ± {error:.1f} ({len(values)} draws)"
            )
    return f"Differences and their standard errors with {percent} % of the labels: {'; '.join(said)}." if said else ""


def write(study: Study, jobs: Sequence[Job], out: Path, commit: str | None) -> None:
    """Both files and the plot, of what is there."""
    shown = {5: {**MAIN, **{method: ABLATIONS[method] for method in SURER}}, 10: MAIN, 20: MAIN}
    main_scores = {percent: study.scores(percent, methods) for percent, methods in shown.items()}
    rows = [
        [percent, *row(study, scores, method, percent, "all")]
        for percent, scores in main_scores.items()
        for method in scores
    ]
    verdicts = [verdict(scores, percent) for percent, scores in main_scores.items()]
    shared = {
        **provenance(),
        **({"commit": commit} if commit else {}),
        "seeds": list(study.draws),
        "config": {"commands": [study.line(job) for job in jobs if job.result.exists()]},
    }
    write_result(
        out,
        {
            "name": out.stem,
            **shared,
            "table": {"columns": ["labels, %", "method", *columns("labels alone, all views")], "rows": rows},
            "notes": [ABOUT, PSEUDO_LABELS, *filter(None, verdicts), CHOSEN],
            "top1": {str(percent): scores for percent, scores in main_scores.items()},
        },
    )
    draw(study, out.with_suffix(".png"))
    study = replace(study, draws=tuple(draw for draw in study.draws if draw in DRAWS[:FEW]))
    scores = study.scores(10, {"mvpl": MAIN["mvpl"], **ABLATIONS})
    if len(scores) > 1:
        other = out.with_name(f"{out.stem}_ablations.json")
        rows = [row(study, scores, method, 10, "mvpl") for method in scores]
        table = {"columns": ["10 % of the labels", *columns("MvPL, all views")], "rows": rows}
        write_result(other, {"name": other.stem, **shared, "table": table, "notes": [ABLATED], "top1": {"10": scores}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ucf101_10")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, nargs="+", choices=DRAWS, default=DRAWS)
    parser.add_argument("--workers", type=int, default=1, help="commands side by side, a thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--commit", help="of the code that ran, where it is another one than this")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, tuple(arguments.draws))
    jobs = study.jobs()
    if not arguments.collect:
        torch.set_num_threads(1)
        call = forking(arguments.data, "train/*/*.avi")
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers, call=call)
        if missing:
            raise SystemExit(f"not all results are there, for {', '.join(missing)} did not end well")
    write(study, jobs, arguments.out, arguments.commit)


if __name__ == "__main__":
    main()
