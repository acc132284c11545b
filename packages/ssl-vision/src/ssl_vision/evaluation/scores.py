"""Scores of features and of classifiers, and their files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor
from torch.nn import functional as F

from contrastive_core.metrics import (
    Calibration,
    ReliabilityBin,
    calibrate,
    confusion_matrix,
    per_class_accuracy,
    top_k_accuracy,
)
from contrastive_core.training.documents import read_json, reading
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from ssl_vision.data import input_files


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
        if "test_part" in self.settings:
            text += f", split {self.settings['test_part']}"
        return "; ".join([text, *(f"{name} {_readable(value)}" for name, value in self.found.items())])


def training_images(probe: ProbeOptions) -> dict[str, object]:
    """How a score says which images were learnt from."""
    labels = {} if probe.labels is None else {"labels": Path(probe.labels).name}
    return {"train_part": probe.train_part, **labels}


def capped(name: str, *, asked: int, used: int, what: str) -> dict[str, object]:
    """What a score says of a setting that the number of images has limited; nothing of one that it has not.

    >>> capped("k", asked=200, used=180, what="labelled images")
    {'k': '180, all labelled images (200 asked for)'}
    """
    return {} if used == asked else {name: f"{used:,}, all {what} ({asked:,} asked for)"}


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


def score_file(model: str, protocol: str, out: Path | None) -> Path | None:
    """The file of a score: `out`, else beside the model; None where the model has no folder."""
    folder = evaluation_folder(model)
    return out if out is not None or folder is None else folder / f"{protocol}.json"


@dataclass(frozen=True)
class ProbeOptions:
    """Data that a classifier on frozen features learns from and is tested on, and where its score is written.

    Attributes:
        train_part: Part of the data to learn from.
        test_part: Part of the data to test on, once, at the end.
        labels: Label file of the training images to learn from; by default all.
        batch_size: Images per forward pass, and per training step of `linear`: at most as many as there are, which the
            score then says.
        device: Device to run on: auto, cpu, cuda or mps.
        out: JSON file for the scores; by default ``evaluation/COMMAND.json`` in the model's folder.
        overwrite: Whether to replace files that this command did not write.
    """

    train_part: str = "train"
    test_part: str = "test"
    labels: Path | None = None
    batch_size: int = 512
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False


def plan_score(model: str, protocol: str, data: str, probe: ProbeOptions) -> Outputs:
    """The output of a protocol's command, checked before anything is computed.

    Raises:
        UserError: The file exists, and the command did not write it.
    """
    file = score_file(model, protocol, probe.out)
    return Outputs(
        [] if file is None else [file], command=f"ssl-vision {protocol}", inputs=input_files(data, probe.labels),
        overwrite=probe.overwrite,
    )  # fmt: skip


def record_score(score: Score, out: Path | None) -> None:
    """Write the score as JSON: to `out`, else beside the model, else nowhere."""
    file = score_file(score.model, score.protocol, out)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(asdict(score), indent=2) + "\n").encode())


def _readable(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


FORMAT = "ssl-vision evaluation 1"
_NAMED = 3


@dataclass(frozen=True)
class ClassAccuracy:
    """Of one class: how many images it has, how many of them are right, and the share in percent (None of none)."""

    name: str
    images: int
    right: int
    accuracy: float | None


@dataclass(frozen=True)
class ClassifierScore:
    """Accuracies in percent, likelihood, calibration and confusion of a classifier on a labelled split.

    Attributes:
        model: what was evaluated.
        model_hash: of its weights.
        data: the images.
        split: of them.
        images: how many.
        top1: share of the images whose class has the largest probability.
        top5: share whose class is among the five largest; None of up to five classes.
        mean_per_class: mean of `per_class` over the classes that have images.
        nll: mean negative log-likelihood of the true class, in nats.
        calibration: of the predicted class; see `contrastive_core.metrics.calibrate`.
        per_class: in the classifier's order.
        confusion: counts, a row for each true class, a column for each predicted one.
        validation_share: share of the images that training was validated on; above 0 the score is no test score.
        class_names: names of the classes that are called by WordNet identifiers.
    """

    model: str
    model_hash: str
    data: str
    split: str
    images: int
    top1: float
    top5: float | None
    mean_per_class: float
    nll: float
    calibration: Calibration
    per_class: list[ClassAccuracy]
    confusion: list[list[int]]
    validation_share: float = 0.0
    class_names: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        present = [c for c in self.per_class if c.images]
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        error = f"calibration error {100 * self.calibration.ece:.2f} %"
        lines = [
            f"top-1 {self.top1:.2f} %{top5}, mean per class {self.mean_per_class:.2f} % on {self.images:,} images of "
            f"{len(present)} classes ({self.data}, split {self.split})",
            f"mean confidence {100 * self.calibration.confidence:.2f} %, {error} ({len(self.calibration.bins)} bins of "
            f"equal width); negative log-likelihood {self.nll:.4f}",
        ]
        if self.validation_share:
            lines.append(
                f"training was validated on {100 * self.validation_share:.0f} % of these images: this is no test score"
            )
        imperfect = [c for c in present if c.right < c.images]
        weakest = sorted(imperfect, key=lambda c: (c.right / c.images, c.name))[:_NAMED]
        if weakest:
            shown = [f"{self.label(c.name)} {c.accuracy:.1f} % of {c.images}" for c in weakest]
            lines.append(f"weakest classes: {', '.join(shown)}")
        mistakes = [
            f"{self.label(true)} taken for {self.label(taken)} ({count})"
            for true, taken, count in self.mistakes()[:_NAMED]
        ]
        if mistakes:
            lines.append("most frequent mistakes: " + ", ".join(mistakes))
        return "\n".join(lines)

    @property
    def classes(self) -> list[str]:
        """Names in the order of rows and columns of the confusion."""
        return [c.name for c in self.per_class]

    def label(self, name: str) -> str:
        """A class as it is shown: by its name, where it has one beside its WordNet identifier."""
        return self.class_names.get(name, name)

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Pairs of true and predicted class with how often the one was taken for the other, most often first."""
        found = [
            (self.classes[row], self.classes[column], count)
            for row, counts in enumerate(self.confusion)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        return sorted(found, key=lambda mistake: -mistake[2])


def score_classifier(
    logits: Tensor, labels: Tensor, *, classes: Sequence[str], model: str, model_hash: str, data: str, split: str,
    bins: int, validation_share: float = 0.0, class_names: Mapping[str, str] = MappingProxyType({}),
) -> ClassifierScore:  # fmt: skip
    """Everything about logits ``[N, C]`` of images with labels ``[N]``, N > 0."""
    log_probabilities = logits.double().log_softmax(dim=1)
    confusion = confusion_matrix(logits.argmax(dim=1), labels, len(classes))
    shares = per_class_accuracy(confusion)
    per_class = [
        ClassAccuracy(name, images, right, 100 * share if images else None)
        for name, images, right, share in zip(
            classes, confusion.sum(dim=1).tolist(), confusion.diagonal().tolist(), shares.tolist(), strict=True
        )
    ]
    return ClassifierScore(
        model=model,
        model_hash=model_hash,
        data=data,
        split=split,
        images=len(labels),
        top1=100 * top_k_accuracy(logits, labels, 1),
        top5=100 * top_k_accuracy(logits, labels, 5) if len(classes) > 5 else None,
        mean_per_class=100 * shares.nanmean().item(),
        nll=F.nll_loss(log_probabilities, labels).item(),
        calibration=calibrate(log_probabilities.exp(), labels, bins=bins),
        per_class=per_class,
        confusion=confusion.tolist(),
        validation_share=validation_share,
        class_names=dict(class_names),
    )


def to_json(score: ClassifierScore) -> str:
    """The score as `read_classifier_score` takes it; a row of the confusion is a line."""
    fields = dataclasses.asdict(score)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in fields.pop("confusion"))
    head = json.dumps({"format": FORMAT, **fields}, indent=1).removesuffix("\n}")
    return f'{head},\n "confusion": [\n{rows}\n ]\n}}\n'


def read_classifier_score(file: Path) -> ClassifierScore | None:
    """What `evaluate` wrote, or None where the file is of another kind.

    Raises:
        UserError: the file is damaged.
    """
    fields = read_json(file)
    with reading(
        file, "found no evaluation", "expected what `ssl-vision evaluate` writes; remove it or evaluate again"
    ):
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            return None
        bins = [ReliabilityBin(**b) for b in fields["calibration"].pop("bins")]
        calibration = Calibration(**fields.pop("calibration"), bins=bins)
        per_class = [ClassAccuracy(**c) for c in fields.pop("per_class")]
        return ClassifierScore(**fields, calibration=calibration, per_class=per_class)
