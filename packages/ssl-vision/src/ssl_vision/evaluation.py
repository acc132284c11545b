"""What every evaluation shares: features with labels, accuracies, and where they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from contrastive_core.classification import confusion_matrix, per_class_accuracy, top_k_accuracy
from contrastive_core.train.files import write_atomic
from contrastive_core.train.model_file import module_hash
from ssl_vision.data import ImageSet, Subset, open_images
from ssl_vision.features import extract
from ssl_vision.label_files import read_labelled
from ssl_vision.labelled import check_classes
from ssl_vision.model_folder import LoadedModel, load_encoder


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``[N, D]`` of a labelled split, with the hash of the encoder that made them."""

    features: Tensor
    labels: Tensor
    classes: list[str]
    encoder_hash: str


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
        return "; ".join([text, *(f"{name} {_readable(value)}" for name, value in self.found.items())])


def labelled_images(data: str, *, split: str, classes: list[str] | None = None, labels: Path | None = None) -> ImageSet:
    """Open a split whose images all have labels, of the classes given.

    Args:
        data: an image folder, CSV manifest or named data set.
        split: which part of it.
        classes: the names expected, in their order.
        labels: a label file: only the images in it are taken.

    Raises:
        UserError: images without labels, no images, or other classes than expected.
    """
    images = open_images(data, split=split)
    if labels is not None:
        images = Subset(images, read_labelled(Path(labels), images).tolist())
    images.labels()
    if classes is not None:
        check_classes(images, classes, of="trained on")
    return images


def labelled_features(
    model: str,
    data: str,
    *,
    split: str,
    batch_size: int,
    device: str,
    classes: list[str] | None = None,
    labels: Path | None = None,
    loaded: LoadedModel | None = None,
) -> LabelledFeatures:
    """Features of a labelled split under the frozen model, batch norm in inference mode; see `labelled_images`."""
    images = labelled_images(data, split=split, classes=classes, labels=labels)
    loaded = loaded or load_encoder(model, device=device)
    features = extract(loaded, images, batch_size=batch_size)
    return LabelledFeatures(features, images.labels().to(features.device), images.classes, module_hash(loaded.encoder))


def training_images(split: str, labels: Path | None) -> dict[str, object]:
    """How a score says which images were learnt from."""
    return {"train_split": split} if labels is None else {"train_split": split, "labels": Path(labels).name}


def accuracy(
    protocol: str,
    scores: Tensor,
    truth: LabelledFeatures,
    *,
    model: str,
    data: str,
    settings: Mapping[str, object],
    found: Mapping[str, object] = MappingProxyType({}),
) -> Score:
    """Accuracies of class scores ``[N, C]``."""
    scores, labels, classes = scores.cpu(), truth.labels.cpu(), scores.shape[1]
    confusion = confusion_matrix(scores.argmax(dim=1), labels, classes)
    return Score(
        protocol=protocol,
        top1=100 * top_k_accuracy(scores, labels, 1),
        top5=100 * top_k_accuracy(scores, labels, 5) if classes > 5 else None,
        images=len(scores),
        classes=classes,
        model=model,
        encoder_hash=truth.encoder_hash,
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
