"""MvPL with few labels on ten classes of UCF-101: labels alone, FixMatch, MvPL, and each of its options.

    python -m tools.studies.ucf101 --data data/ucf101_10 --runs runs/ucf101 --out docs/results/ucf101_10_8_frames.json

Neighbouring clips of a class share a scene, so the last clips of each class are reserved: a test part, and before it
a validation part. Every draw has its own labelled videos and seed, which all methods share, so differences are
paired. All methods have the same compute. Settings were chosen on the validation part with draws 3 and 4; the other
draws are scored on the test part and select nothing. Commands with a result are not repeated, and `--collect` writes
what there is.
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

import torch

from contrastive_core.app.report.figures import SERIES, new_figure, plain_axes, to_png
from ssl_video.data import reader, video_index
from ssl_video.training.options import REFERENCE_CLIPS
from tools.results import provenance, write_result
from tools.studies.common import Job, mean_and_spread, run_all

STEPS, MU, CLIPS, PEAK = 500, 2, 8, 0.3
"""Of the recommended method: steps, unlabelled clips for each labelled one, labelled clips, peak learning rate."""
CLIP = ("--clip.frames", "8", "--clip.stride", "12", "--image-size", "48")
CPU = (
    *("--device", "cpu", "--threads", "1", "--precision", "bf16-mixed", "--log_every", "5", "--progress", "false"),
    *("--checkpoint_every", "250"),
)
VIEWS = ("rgb", "tg")
"""Of the default."""
WARMUP = 0.4
"""Of the default: fraction of the steps with labels alone."""


@dataclass(frozen=True)
class Method:
    """A row of a table: its name there, and what its command adds to the recipe."""

    name: str
    words: tuple[str, ...] = ()
    supervised: bool = False
    views: tuple[str, ...] = VIEWS
    warmup: float = WARMUP

    @property
    def passes(self) -> float:
        """Passes of a clip through the network in a step on average, a backward pass counting as two forward ones.

        A step with labels alone costs 3 for each clip and view; one with pseudo-labels as much for labelled and strong
        clips, and 1 for the weak ones. Augmentation is not counted.
        """
        labels = 3 * CLIPS
        with_pseudo_labels = labels + (3 + 1) * MU * CLIPS
        share = 0.0 if self.supervised else 1 - self.warmup
        return len(self.views) * ((1 - share) * labels + share * with_pseudo_labels)

    @property
    def steps(self) -> int:
        """Steps for the compute of the recommended method."""
        return round(STEPS * Method("").passes / self.passes)


PAPER_VIEWS = ("rgb", "flow", "tg")
METHODS: dict[str, Method] = {
    "labels-rgb": Method("labels alone, frames", ("--views", "[rgb]"), supervised=True, views=("rgb",)),
    "labels": Method("labels alone, all views", supervised=True),
    "fixmatch": Method("FixMatch", ("--method", "fixmatch"), views=("rgb",)),
    "paper": Method(
        "MvPL, settings of the paper", ("--recipe", "paper", "--flow", "dis_fast"), views=PAPER_VIEWS, warmup=0.125
    ),
    "mvpl": Method("MvPL, recommended"),
    "freematch": Method("recommended, FreeMatch thresholds", ("--pseudo.select", "freematch")),
    "softmatch": Method("recommended, SoftMatch weights", ("--pseudo.select", "softmatch")),
    "align": Method("recommended, distribution alignment", ("--pseudo.align", "true")),
    "average": Method("recommended, moving average tested", ("--ema", "0.99")),
    "teacher": Method("recommended, pseudo-labels of the average", ("--ema", "0.99", "--pseudo.labeller", "average")),
    "mix": Method("recommended, TubeMix", ("--pseudo.mix", "1")),
    "order": Method("recommended, order of frames", ("--strong.temporal", "[reverse,shuffle,warp,speed]")),
    "agreement": Method("recommended, agreeing features", ("--pseudo.agreement_weight", "1")),
}
CORE = ("mvpl", "labels")
DRAWS = (0, 1, 2, 5, 6)
"""Of labelled videos; 3 and 4 are those that settings were chosen with."""
FEW = 3

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
        first, later = DRAWS[:FEW], DRAWS[FEW:]
        others = [method for method in METHODS if method not in (*CORE, "fixmatch")]
        cells = [(percent, method, draw) for percent in (10, 5) for draw in first for method in CORE]
        cells += [(percent, "fixmatch", draw) for percent in (10, 5) for draw in first]
        cells += [(10, method, draw) for draw in first for method in others]
        cells += [(20, method, draw) for draw in first for method in (*CORE, "fixmatch")]
        cells += [(percent, method, draw) for draw in later for percent in (10, 5) for method in (*CORE, "fixmatch")]
        cells += [(5, method, draw) for draw in first for method in others]
        wanted = [cell for cell in cells if cell[2] in self.draws]
        return [self.splits(), *(job for cell in wanted for job in self.cell(*cell))]

    def splits(self) -> Job:
        """The labelled videos of every draw, and what is kept."""
        out = self.runs / "splits"
        words = (
            *("make-splits", str(self.data), str(out), "--fractions", "[0.05,0.1,0.2]", "--draws", "7"),
            *("--by", "block", "--blocks", "40", "--validation-fraction", "0.15", "--test-fraction", "0.25"),
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
            *("--batch_size", str(CLIPS), "--mu", str(MU), "--steps", str(chosen.steps)),
            *("--optimizer.lr", f"{rate:.4g}", *CPU, *chosen.words),
        )
        if not chosen.supervised:
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
        last = [line for line in lines if "coverage" in line and line["step"] >= 0.75 * METHODS[method].steps]
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
    "the differences from labels alone on all views, paired by draw. 3-D ResNet of 10 layers and width 8 from scratch, "
    f"clips of 8 frames at 48 pixels, bf16-mixed. MvPL: {STEPS} steps, {CLIPS} labelled clips a step and {MU} "
    "unlabelled ones for each; the other methods take as many steps as the same number of passes through the "
    "network allows."
)
PSEUDO_LABELS = (
    "Labelled: share of the unlabelled clips whose pseudo-label counted in the last quarter of the steps; and how many "
    "of these were right."
)
VIEW_NAMES = {"rgb": "frames", "fused": "all views"}
CHOSEN = (
    "Settings are those chosen on the validation part with draws 3 and 4 for clips of 4 frames (see ucf101_10): peak "
    "learning rate 0.3, threshold 0.4. None was chosen anew."
)
BASELINE = "labels"


def paired(scores: Scores, method: str, baseline: str, view: str) -> list[float]:
    """Differences in the draws that both have."""
    mine, theirs = scores.get(method, {}), scores.get(baseline, {})
    return [
        mine[draw][view] - theirs[draw][view]
        for draw in sorted(mine.keys() & theirs.keys())
        if view in mine[draw] and view in theirs[draw]
    ]


def row(study: Study, scores: Scores, method: str, percent: int) -> list[object]:
    """One line of the table."""
    runs = scores[method]
    rgb, fused = ([run[view] for run in runs.values() if view in run] for view in ("rgb", "fused"))
    pseudo = [found for draw in runs if (found := study.pseudo_labels(percent, method, draw))]
    coverage = f"{100 * statistics.mean(found['coverage'] for found in pseudo):.0f}" if pseudo else None
    right = [found["pseudo_accuracy"] for found in pseudo if "pseudo_accuracy" in found]
    differences = [
        signed(values) if method != BASELINE and (values := paired(scores, method, BASELINE, view)) else None
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


COLUMNS = (
    "labels, %", "method", "runs", "frames", "against labels alone", "all views", "against labels alone", "labelled, %",
    "of them right, %",
)  # fmt: skip


def draw(study: Study, path: Path) -> None:
    """Every run with a tenth of the labels as a dot, and the mean over draws, on frames and on all views."""
    scores = study.scores(10, METHODS)
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


def verdict(scores: Scores, percent: int) -> str:
    """What the paired differences say: mean and standard error over draws."""
    said = []
    for method, baseline, view in (
        ("mvpl", "labels", "rgb"), ("mvpl", "labels", "fused"), ("mvpl", "labels-rgb", "rgb"),
        ("mvpl", "fixmatch", "rgb"), ("fixmatch", "labels", "rgb"), ("mvpl", "paper", "rgb"),
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
    """The results file and the plot, of what is there."""
    scores = {percent: study.scores(percent, METHODS) for percent in (5, 10, 20)}
    rows = [[percent, *row(study, found, method, percent)] for percent, found in scores.items() for method in found]
    draws = {draw for found in scores.values() for runs in found.values() for draw in runs}
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            **({"commit": commit} if commit else {}),
            "seeds": sorted(draws),
            "config": {"commands": [study.line(job) for job in jobs if job.result.exists()]},
            "table": {"columns": list(COLUMNS), "rows": rows},
            "notes": [ABOUT, PSEUDO_LABELS, *filter(None, (verdict(scores[p], p) for p in scores)), CHOSEN],
            "top1": {str(percent): found for percent, found in scores.items()},
        },
    )
    draw(study, out.with_suffix(".png"))


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
