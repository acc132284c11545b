"""`ssl-video demo`: run all steps on generated clips, whose classes need both appearance and motion."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from contrastive_core.training.config import DeviceName
from contrastive_core.training.outputs import claim_folder
from contrastive_core.training.run import stages_of
from ssl_video.augment import StrongOptions
from ssl_video.commands.evaluate import evaluate
from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
from ssl_video.commands.report import report
from ssl_video.commands.train import train
from ssl_video.data import ClipSpec
from ssl_video.data.synthetic import CLASSES, make_videos
from ssl_video.evaluation import FUSED, Evaluation, SamplingOptions
from ssl_video.models import NetworkOptions
from ssl_video.training.options import InputOptions, OptimizerOptions, PseudoOptions, TrainingOptions

PER_CLASS, LABELS = 40, 12
_SPLIT = f"{LABELS}each-draw0.json"


@dataclass(frozen=True)
class DemoResult:
    """Result of `demo`; `str` gives the text that the command prints.

    Attributes:
        score: Scores of the network on the test videos.
        report: HTML file with the report.
    """

    score: Evaluation
    report: Path

    def __str__(self) -> str:
        views = self.score.views
        return "\n".join(
            [
                f"Top-1 accuracy in percent on {views['rgb'].videos} generated videos held out from training, with",
                f"{LABELS} labelled videos of each of the {len(CLASSES)} classes. Two classes differ only in colour,",
                "two only in the direction of motion, so that a single view can reach at most 75.",
                "",
                f"frames             {views['rgb'].top1:6.1f}",
                f"temporal gradient  {views['tg'].top1:6.1f}",
                f"both together      {views[FUSED].top1:6.1f}",
                "",
                f"report: {self.report}",
            ]
        )


def demo(
    out: Path = Path("runs/video-demo"),
    *,
    steps: int = 200,
    seed: int = 0,
    device: DeviceName = "auto",
) -> DemoResult:
    """Generate videos, split them, train with few labels, test and report, in a minute or two on a CPU.

    Nothing is downloaded, and OpenCV is not needed: the views are frames and temporal gradient. Called again with the
    same arguments, it resumes the run in the folder, or shows its result again.

    Args:
        out: Folder for videos, split and run: new or empty, or the folder of an earlier demo.
        steps: Training steps.
        seed: Seed of all random draws.
        device: Device to run on: auto, cpu, cuda or mps.

    Returns:
        The accuracies of frames, temporal gradient and both, and the path of the report.
    """
    if steps < 1:
        raise UserError(f"demo needs steps >= 1, got {steps}")
    out = Path(out)
    claim_folder(out, command="ssl-video demo")
    videos = str(make_videos(out / "videos", per_class=PER_CLASS, seed=seed))
    split, run = out / _SPLIT, out / "run"
    make_splits(
        videos,
        out,
        draw=LabelDrawOptions(fractions=(), per_class=(LABELS,), draws=1, validation_fraction=0.0, seed=seed),
        by="clip",
        test_fraction=0.4,
    )
    again = f"ssl-video demo --out {shlex.quote(str(out))} --steps {steps} --seed {seed} --device {device}"
    with stages_of("ssl-video demo", out, again=again):
        train(
            videos,
            run,
            split=split,
            inputs=InputOptions(views=("rgb", "tg"), image_size=28),
            clip=ClipSpec(frames=4, stride=4),
            network=NetworkOptions("small_slow", width=8, dropout=0.0),
            training=TrainingOptions(steps=steps, batch_size=8, mu=3, recalibrate=96),
            pseudo=PseudoOptions(threshold=0.6, warmup=0.15, diagnose=True),
            # Two classes differ only in colour, so colours are not augmented.
            strong=StrongOptions(num_ops=1, magnitude=5, cutout=0.3, rgb_ops="geometric", motion_ops="geometric"),
            optimizer=OptimizerOptions(lr=0.125),
            run=RunOptions(seed=seed, device=device, resume=True),
        )
    score = evaluate(str(run), videos, split=split, sampling=SamplingOptions(clips=1, crops=1), device=device)
    return DemoResult(score, report(run))
