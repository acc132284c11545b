"""`ssl-vision demo`: pre-train and evaluate on scikit-learn's digits, without a download."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.app.report.figures import to_png
from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from contrastive_core.training.config import DeviceName
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs, claim_folder
from contrastive_core.training.run import stages_of
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.report import report
from ssl_vision.data import open_images
from ssl_vision.evaluation.accuracy import FewLabelAccuracy, few_label_accuracy
from ssl_vision.evaluation.features import LabelledFeatures, labelled_features
from ssl_vision.evaluation.scores import Score, record_score
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import PIXELS, load_encoder
from ssl_vision.reports.overview import run_picture
from ssl_vision.reports.run_folder import open_run, read_scores
from ssl_vision.reports.sections import accuracy_curves, by_protocol
from ssl_vision.reports.sheets import make_sheets
from ssl_vision.training.options import AugmentOptions, OptimizerOptions, PretrainingOptions

DATA = "digits"
LABELS: tuple[int | None, ...] = (2, 5, 10, None)
DRAWS = 10
_FOLLOWED: tuple[int | None, ...] = (5, None)  # numbers of labels whose accuracy the report shows over training
_SAVED = 3  # models saved during training
_VIEW_SIZE, _PIXEL_SIZE = 16, 8

Row = Mapping[int | None, FewLabelAccuracy]


@dataclass(frozen=True)
class DemoResult:
    """Result of `demo`; `str` gives the text that the command prints.

    Attributes:
        accuracies: Features -> labelled images per class (None: all) -> accuracies on the test images.
        images: Number of test images.
        report: HTML file with the report.
        picture: Picture with the main results.
    """

    accuracies: Mapping[str, Row]
    images: int
    report: Path
    picture: Path

    def __str__(self) -> str:
        head = "".join(f"{'all' if n is None else n:>13}" for n in LABELS)
        lines = [
            f"Top-1 accuracy in percent on {self.images} test images held out from training:",
            "",
            f"{'labelled images per class':26}{head}",
        ]
        for title, name in (("linear classifier on", "linear"), ("nearest neighbour with", "neighbour")):
            lines.append(title)
            for features, row in self.accuracies.items():
                lines.append(f"  {features:24}" + "".join(f"{getattr(row[n], name)!s:>13}" for n in LABELS))
        lines += [
            "",
            f"± is the standard deviation over {DRAWS} random choices of the labelled images.",
            *(self._compare(n) for n in LABELS),
            "",
            f"report:  {self.report}",
            f"picture: {self.picture}",
        ]
        return "\n".join(lines)

    def _compare(self, labels: int | None) -> str:
        """Compare learnt features with raw pixels, each with its better classifier."""
        rows = list(self.accuracies.values())
        ahead = rows[-1][labels].best - rows[0][labels].best
        count = _count(labels)
        if abs(ahead) < 1:
            return f"With {count}, learnt features and raw pixels are within a point of each other ({ahead:+.1f})."
        return (
            f"With {count}, learnt features are {abs(ahead):.1f} points {'above' if ahead > 0 else 'below'} raw pixels."
        )


def demo(
    out: Path = Path("runs/vision-demo"), *, epochs: int = 30, seed: int = 0, device: DeviceName = "auto"
) -> DemoResult:
    """Pre-train on scikit-learn's digits without labels, then classify with few labels; a few minutes on a CPU.

    Digits are not mirrored and have no colour: the views are crops and changes of brightness and contrast. Called again
    with the same arguments, it continues the run in the folder, or shows its results again.

    Args:
        out: Folder of the run: new or empty, or the folder of an earlier demo.
        epochs: Number of pre-training epochs.
        seed: Seed of all random draws.
        device: Device to run on: auto, cpu, cuda or mps.

    Returns:
        The accuracies of raw pixels, the untrained and the trained network, and the path of the report.
    """
    if epochs < 1:
        raise UserError(f"demo needs epochs >= 1, got {epochs}")
    out = Path(out)
    claim_folder(out, command="ssl-vision demo")
    every = max(1, epochs // _SAVED)
    again = f"ssl-vision demo --out {shlex.quote(str(out))} --epochs {epochs} --seed {seed} --device {device}"
    with stages_of("ssl-vision demo", out, again=again):
        pretrain(
            DATA,
            out,
            training=PretrainingOptions(epochs, batch_size=128, image_size=_VIEW_SIZE, save_every=every),
            temperature=0.2,
            encoder=EncoderOptions(width_multiplier=0.25),
            augment=AugmentOptions(strength=0.6, flip=False, gray=0.0, jitter=0.8),
            optimizer=OptimizerOptions(name="sgd", lr=0.12, weight_decay=1e-4),
            run=RunOptions(seed=seed, device=device, log_every=5, resume=True),
        )
    models = out / "models"
    for epoch in range(every, epochs, every):
        _evaluate(models / f"epoch-{epoch:04d}", _FOLLOWED, seed=seed, device=device)
    accuracies = {
        "raw pixels": _evaluate(out, LABELS, seed=seed, device=device, pixels=True),
        "untrained network": _evaluate(models / "epoch-0000", LABELS, seed=seed, device=device),
        "network trained by SimCLR": _evaluate(out, LABELS, seed=seed, device=device),
    }
    page = report(out, device=device)
    picture = out / "report.png"
    with Outputs([picture], command="ssl-vision demo"):
        write_atomic(picture, _picture(out, device=device))
    return DemoResult(accuracies, len(open_images(DATA, split="test")), page, picture)


def _evaluate(folder: Path, labels: tuple[int | None, ...], *, seed: int, device: str, pixels: bool = False) -> Row:
    """Evaluate a model, or raw pixels, for each number of labels per class, and record scores for the report."""
    model = PIXELS if pixels else str(folder)
    loaded_model = load_encoder(model, device=device, image_size=_PIXEL_SIZE)
    train, test = (labelled_features(loaded_model, DATA, split=split, batch_size=512) for split in ("train", "test"))
    row = {n: few_label_accuracy(train, test, per_class=n, draws=DRAWS, seed=seed) for n in labels}
    for number in _FOLLOWED:
        for name, protocol, accuracy in (
            ("linear", "linear classifier", row[number].linear),
            ("neighbour", "nearest neighbour", row[number].neighbour),
        ):
            file = f"{'pixels-' if pixels else ''}{name}-{'all' if number is None else number}.json"
            score = _score(f"{protocol}, {_count(number)}", accuracy.mean, number, test, model=model)
            record_score(score, folder / "evaluation" / file)
    return row


def _score(protocol: str, top1: float, number: int | None, test: LabelledFeatures, *, model: str) -> Score:
    return Score(
        protocol=protocol,
        top1=top1,
        top5=None,
        images=len(test.labels),
        classes=len(test.classes),
        model=model,
        encoder_hash=test.encoder_hash,
        data=DATA,
        settings={} if number is None else {"labelled images": f"mean over {DRAWS} random choices"},
    )


def _count(labels: int | None) -> str:
    return "all labels" if labels is None else f"{labels} labels per class"


def _picture(out: Path, *, device: str) -> bytes:
    run = open_run(out)
    sheets = make_sheets(
        run.settings, open_images(DATA), load_encoder(str(out), device=device), rows=6, bank=2000, seed=0
    )
    curves, baselines = accuracy_curves(by_protocol(read_scores(run)))
    return to_png(run_picture(run, sheets=sheets, accuracies=curves, baselines=baselines))
