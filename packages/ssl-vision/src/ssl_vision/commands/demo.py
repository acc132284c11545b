"""`ssl-vision demo`: the whole of it on scikit-learn's digits, on any computer, without a download."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.random import derive, permutation
from contrastive_core.train import RunOptions
from contrastive_core.train.files import write_atomic
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.report import report
from ssl_vision.data import open_images
from ssl_vision.evaluation import LabelledFeatures, accuracy, labelled_features, record_score
from ssl_vision.model_folder import PIXELS, load_encoder
from ssl_vision.models import EncoderOptions
from ssl_vision.neighbours import knn_scores
from ssl_vision.options import AugmentOptions, OptimizerOptions
from ssl_vision.probe import Cached, fit_linear
from ssl_vision.reporting import scores
from ssl_vision.reporting.picture import run_picture
from ssl_vision.reporting.run_folder import open_run, read_scores
from ssl_vision.reporting.sheets import make_sheets
from ssl_vision.reporting.style import to_png

DATA = "digits"
IMAGE_SIZE = 16
FEW = 10
DRAWS = 10
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class DemoResult:
    """Top-1 accuracies in percent by features, and the files that show the run; `str` is what the command prints.

    Attributes:
        few: features -> mean over random choices of ten labelled images per class, nearest neighbour and linear.
        spread: features -> standard deviation between choices, likewise.
        everything: features -> accuracy with all training labels, likewise.
        report: the HTML file.
        picture: the same in one picture.
    """

    few: Mapping[str, tuple[float, float]]
    spread: Mapping[str, tuple[float, float]]
    everything: Mapping[str, tuple[float, float]]
    report: Path
    picture: Path

    def __str__(self) -> str:
        width = max(map(len, self.few))
        lines = [
            "Top-1 accuracy on test images that training never saw, in percent:",
            "",
            f"{'':{width}}  {f'{FEW} labels per class':^27}  {'all labels':^17}",
            f"{'features':{width}}  {'neighbour':>13} {'linear':>13}  {'neighbour':>9} {'linear':>7}",
        ]
        for name, means in self.few.items():
            cells = [f"{mean:.1f} +- {spread:.1f}" for mean, spread in zip(means, self.spread[name], strict=True)]
            all_labels = self.everything[name]
            lines.append(f"{name:{width}}  {cells[0]:>13} {cells[1]:>13}  {all_labels[0]:9.1f} {all_labels[1]:7.1f}")
        lines += [
            "",
            f"With {FEW} labels per class: mean and standard deviation over {DRAWS} random choices of the images.",
            "",
            f"report:  {self.report}",
            f"picture: {self.picture}",
        ]
        return "\n".join(lines)


def demo(out: Path = Path("runs/demo"), *, epochs: int = 30, seed: int = 0, device: Device = "auto") -> DemoResult:
    """Pre-train on scikit-learn's digits without labels, then classify with few labels; a few minutes on a CPU.

    Digits are not mirrored, and have no colour to drop: the views are crops and changes of brightness and contrast.

    Args:
        out: the run's folder, new or empty.
        epochs: of pre-training.
        seed: of everything.
        device: auto, cpu, cuda or mps.

    Returns:
        The accuracies of raw pixels, the untrained and the trained network, and where the report is.
    """
    pretrain(
        DATA,
        out,
        epochs=epochs,
        batch_size=128,
        image_size=IMAGE_SIZE,
        temperature=0.2,
        encoder=EncoderOptions(width=0.25),
        augment=AugmentOptions(strength=0.3, flip=False, gray=0.0, jitter=0.5),
        optimizer=OptimizerOptions(name="sgd", lr=0.12, weight_decay=1e-4),
        save_every=epochs,
        run=RunOptions(seed=seed, device=device, log_every=5),
    )
    models = {"raw pixels": PIXELS, "untrained": str(out / "models" / "epoch-0000"), "trained": str(out)}
    few, spread, everything = {}, {}, {}
    for name, model in models.items():
        loaded = load_encoder(model, device=device, image_size=IMAGE_SIZE)
        train, test = (
            labelled_features(model, DATA, split=split, batch_size=512, device=device, loaded=loaded)
            for split in ("train", "test")
        )
        drawn = [classify(train, test, choice) for choice in few_labels(train.labels, seed=seed)]
        by_protocol = list(zip(*drawn, strict=True))
        few[name] = (statistics.mean(by_protocol[0]), statistics.mean(by_protocol[1]))
        spread[name] = (statistics.stdev(by_protocol[0]), statistics.stdev(by_protocol[1]))
        everything[name] = classify(train, test, torch.arange(len(train.labels)))
        _keep(everything[name], test, model=model)
    written = report(out, device=device)
    run = open_run(out)
    images = open_images(DATA)
    sheets = make_sheets(run.settings, images, load_encoder(str(out), device=device), rows=6, bank=1000, seed=seed)
    curves, baselines = scores.accuracy_curves(scores.by_protocol(read_scores(run)))
    picture = out / "report.png"
    write_atomic(picture, to_png(run_picture(run, sheets=sheets, accuracies=curves, baselines=baselines)))
    return DemoResult(few, spread, everything, written, picture)


def few_labels(labels: Tensor, *, seed: int) -> list[Tensor]:
    """Random choices of `FEW` images of every class."""
    choices = []
    for draw in range(DRAWS):
        order = permutation(derive(seed, "few labels", draw), len(labels)).to(labels.device)
        choices.append(torch.cat([order[labels[order] == label][:FEW] for label in torch.unique(labels)]))
    return choices


def classify(train: LabelledFeatures, test: LabelledFeatures, chosen: Tensor) -> tuple[float, float]:
    """Test accuracy in percent by the nearest neighbour and by a linear classifier, of the chosen labelled images."""
    features, labels, classes = train.features[chosen], train.labels[chosen], len(train.classes)
    votes = knn_scores(test.features, features, labels, num_classes=classes, k=1)
    classifier = fit_linear(
        Cached(features),
        labels,
        classes,
        features=features.shape[1],
        epochs=100,
        batch_size=min(len(chosen), 128),
        lr=1.0,
        seed=0,
    )
    with torch.no_grad():
        logits = classifier(test.features)
    by_vote, by_line = ((given.argmax(dim=1) == test.labels).double().mean().item() * 100 for given in (votes, logits))
    return by_vote, by_line


def _keep(top1: tuple[float, float], test: LabelledFeatures, *, model: str) -> None:
    """Write the accuracies with all labels where `report` looks for them."""
    if model == PIXELS:
        return
    for protocol, percent in zip(("knn", "linear"), top1, strict=True):
        settings: dict[str, object] = {"train_split": "train", "test_split": "test"}
        blank = torch.zeros(len(test.labels), len(test.classes))
        score = accuracy(protocol, blank, test, model=model, data=DATA, settings=settings)
        record_score(dataclasses.replace(score, top1=percent, top5=None), None)
