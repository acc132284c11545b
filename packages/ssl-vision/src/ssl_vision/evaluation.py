"""What every evaluation shares: features with labels, accuracies, and where they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision.data import ImageSet, open_images
from ssl_vision.features import extract
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
    """Accuracies of one evaluation, in percent, with what is needed to repeat it."""

    protocol: str
    top1: float
    top5: float | None
    images: int
    classes: int
    model: str
    encoder_hash: str
    data: str
    settings: Mapping[str, object]

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        return f"{self.protocol}: top-1 {self.top1:.2f} %{top5} on {self.images} images of {self.classes} classes"


def module_hash(module: nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers: equal if and only if nothing changed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def labelled_images(data: str, *, split: str, classes: list[str] | None = None) -> ImageSet:
    """Open a split whose images all have labels, of the classes given.

    Raises:
        UserError: images without labels, no images, or other classes than expected.
    """
    images = open_images(data, split=split)
    images.labels()
    if classes is not None and images.classes != classes:
        only = sorted(set(images.classes) ^ set(classes))
        raise UserError(
            f"{data}, split {split!r}: its classes differ from those trained on"
            + (f" ({', '.join(only[:5])} on one side only)" if only else " in their order")
            + "; both splits need the same class names"
        )
    return images


def labelled_features(
    model: str,
    data: str,
    *,
    split: str,
    batch_size: int,
    device: str,
    classes: list[str] | None = None,
    loaded: LoadedModel | None = None,
) -> LabelledFeatures:
    """Features of a labelled split under the frozen model, batch norm in inference mode."""
    images = labelled_images(data, split=split, classes=classes)
    loaded = loaded or load_encoder(model, device=device)
    features = extract(loaded, images, batch_size=batch_size)
    labels = images.labels().to(features.device)
    return LabelledFeatures(features, labels, images.classes, module_hash(loaded.encoder))


def accuracy(
    protocol: str,
    scores: Tensor,
    truth: LabelledFeatures,
    *,
    model: str,
    data: str,
    settings: Mapping[str, object],
) -> Score:
    """Top-1 and, with more than five classes, top-5 accuracy of class scores ``[N, C]``."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == truth.labels[:, None]
    percent = 100 / len(scores)
    return Score(
        protocol=protocol,
        top1=ranked[:, 0].sum().item() * percent,
        top5=ranked.any(dim=1).sum().item() * percent if scores.shape[1] > 5 else None,
        images=len(scores),
        classes=scores.shape[1],
        model=model,
        encoder_hash=truth.encoder_hash,
        data=data,
        settings=settings,
    )


def record_score(score: Score, out: Path | None) -> None:
    """Write the score as JSON: to `out`, else beside the model, else nowhere."""
    folder = Path(score.model)
    if out is None and folder.is_dir():
        out = folder / "evaluation" / f"{score.protocol}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(asdict(score), indent=2) + "\n")
