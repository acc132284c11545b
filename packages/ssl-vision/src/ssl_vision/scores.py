"""Accuracies of features, and where they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from contrastive_core.metrics import confusion_matrix, per_class_accuracy, top_k_accuracy
from contrastive_core.training.files import write_atomic


@dataclass(frozen=True)
class Score:
    """Accuracies of one evaluation, in percent, with what is needed to repeat it.

    Attributes:
        protocol: the command.
        top1: share of the images whose class has the largest score.
        top5: share whose class is among the five largest; None of up to five classes.
        images: how many were classified.
        classes: how many there are.
        model: what was evaluated.
        encoder_hash: of its weights.
        data: the images.
        settings: what was chosen by whoever evaluated; scores of equal settings may be compared.
        mean_per_class: mean over classes of the share of the class's images that is right.
        found: what the evaluation itself has chosen.
    """

    protocol: str
    top1: float
    top5: float | None
    images: int
    classes: int
    model: str
    encoder_hash: str
    data: str
    settings: Mapping[str, object]
    mean_per_class: float | None = None
    found: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(
            f", {name} {value:.2f} %"
            for name, value in (("top-5", self.top5), ("mean per class", self.mean_per_class))
            if value is not None
        )
        text = f"{self.protocol}: top-1 {self.top1:.2f} %{more} on {self.images} images of {self.classes} classes"
        if "test_split" in self.settings:
            text += f", split {self.settings['test_split']}"
        return "; ".join([text, *(f"{name} {_readable(value)}" for name, value in self.found.items())])


def training_images(split: str, labels: Path | None) -> dict[str, object]:
    """How a score says which images were learnt from."""
    return {"train_split": split} if labels is None else {"train_split": split, "labels": Path(labels).name}


def accuracy(
    protocol: str,
    scores: Tensor,
    labels: Tensor,
    *,
    model: str,
    encoder_hash: str,
    data: str,
    settings: Mapping[str, object],
    found: Mapping[str, object] = MappingProxyType({}),
) -> Score:
    """Accuracies of class scores ``[N, C]`` of images with labels ``[N]``."""
    scores, labels, classes = scores.cpu(), labels.cpu(), scores.shape[1]
    confusion = confusion_matrix(scores.argmax(dim=1), labels, classes)
    return Score(
        protocol=protocol,
        top1=100 * top_k_accuracy(scores, labels, 1),
        top5=100 * top_k_accuracy(scores, labels, 5) if classes > 5 else None,
        images=len(scores),
        classes=classes,
        model=model,
        encoder_hash=encoder_hash,
        data=data,
        settings=settings,
        mean_per_class=100 * per_class_accuracy(confusion).nanmean().item(),
        found=dict(found),
    )


def evaluation_folder(model: str) -> Path | None:
    """Where what is found out about a model is kept: ``evaluation`` in its folder, for that of a run in the run's."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    of_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    return (folder.parent if of_run else folder) / "evaluation"


def record_score(score: Score, out: Path | None) -> None:
    """Write the score as JSON: to `out`, else beside the model, else nowhere."""
    folder = evaluation_folder(score.model)
    if out is None and folder is not None:
        out = folder / f"{score.protocol}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(asdict(score), indent=2) + "\n").encode())


def _readable(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
