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

from contrastive_core.errors import UserError
from contrastive_core.metrics import (
    Calibration,
    ReliabilityBin,
    calibrate,
    confusion_matrix,
    per_class_accuracy,
    top_k_accuracy,
)
from contrastive_core.text import decimal, several, some_of
from contrastive_core.training.config import InferenceOptions
from contrastive_core.training.documents import read_json, reading, to_json_lines
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs, run_files
from ssl_vision.data import input_files, resolve_split
from ssl_vision.evaluation.features import LabelledFeatures


@dataclass(frozen=True)
class Score:
    """Accuracies of one evaluation, in percent, with the settings needed to repeat it.

    Attributes:
        protocol: Command.
        top1: Share of the images whose class has the largest score.
        top5: Share of the images whose class is among the five largest; None for up to five classes.
        images: Number of classified images.
        classes: Number of classes.
        model: Evaluated model.
        encoder_hash: Hash of its weights.
        data: Data set.
        settings: Settings given by the user; scores with equal settings can be compared.
        mean_per_class: Mean accuracy over classes.
        found: Values that the evaluation chose.
        validation_share: Share of the images that were used for validation while the model was trained; above 0, the
            score is not a test score.
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
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self.validation_share)

    def __str__(self) -> str:
        more = "".join(
            f", {name} {value:.2f} %"
            for name, value in (("top-5", self.top5), ("mean per class", self.mean_per_class))
            if value is not None
        )
        text = f"{self.protocol}: top-1 {self.top1:.2f} %{more} on {self.images} images of {self.classes} classes"
        if "test_part" in self.settings:
            text += f", split {self.settings['test_part']}"
        text = "; ".join([text, *(f"{name} {_readable(value)}" for name, value in self.found.items())])
        return "\n".join([text, *validation_notes(self.validation_share)])


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:  # from a file, also NaN
        raise ValueError(f"validation_share is {share}; expected 0 to 1")


def validation_notes(share: float) -> list[str]:
    """Return the note on a score of images of which this share was used for validation, if any.

    >>> validation_notes(0.25)
    ['25 % of these images were used for validation: the score is not a test score']
    """
    if not share:
        return []
    return [f"{max(1, round(100 * share))} % of these images were used for validation: the score is not a test score"]


def training_images(probe: ProbeOptions) -> dict[str, object]:
    """Describe the training images for the settings of a score."""
    labels = {} if probe.labels is None else {"labels": Path(probe.labels).name}
    return {"train_part": probe.train_part, **labels}


def limit_note(name: str, *, setting: int, value: int, what: str) -> dict[str, object]:
    """Describe a setting that the number of images has limited, for a score; empty if it was not limited.

    >>> limit_note("k", setting=200, value=180, what="labelled images")
    {'k': '180, all labelled images (200 requested)'}
    """
    return {} if value == setting else {name: f"{value:,}, all {what} ({setting:,} requested)"}


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
    validation_share: float = 0.0,
) -> Score:
    """Compute accuracies for class scores ``[N, C]`` of images with labels ``[N]``."""
    scores, labels, classes = scores.cpu(), labels.cpu(), scores.shape[1]
    confusion = confusion_matrix(scores.argmax(dim=1), labels, classes)
    untested = classes - len({*labels.tolist()})
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
        found={**found, **({"classes without test images": untested} if untested else {})},
        validation_share=validation_share,
    )


def evaluation_folder(model: str) -> Path | None:
    """Return the folder for results on a model: ``evaluation`` in its folder, or in that of its run."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    of_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    return (folder.parent if of_run else folder) / "evaluation"


def score_file(model: str, protocol: str, out: Path | None) -> Path | None:
    """Return the file of a score: `out`, or one beside the model; None if the model has no folder."""
    folder = evaluation_folder(model)
    return out if out is not None or folder is None else folder / f"{protocol}.json"


@dataclass(frozen=True)
class ProbeOptions(InferenceOptions):
    """Training and test data of a classifier on frozen features, and the file for its score.

    Attributes:
        train_part: Part of the data to train on.
        test_part: Part of the data to test on, once, at the end.
        labels: Label file of the training images to use; by default all.
        batch_size: Number of images per forward pass, and per training step of `linear`, at most the number of images;
            the score states a lower number.
        out: JSON file for the scores; by default ``evaluation/COMMAND.json`` in the model's folder.
        overwrite: Whether to replace files that this command did not write.
    """

    train_part: str = "train"
    test_part: str = "test"
    labels: Path | None = None
    batch_size: int = 512
    out: Path | None = None
    overwrite: bool = False


def plan_score(model: str, protocol: str, data: str, probe: ProbeOptions) -> Outputs:
    """Plan the output of a command, checked before anything is computed.

    Raises:
        UserError: The file exists, and the command did not write it, or two names of parts stand for the same images.
    """
    test_split = resolve_split(data, probe.test_part)
    if probe.train_part != probe.test_part and _tests_on_training_images(data, probe):
        raise UserError(
            f"{data}: the training part {probe.train_part} and the test part {probe.test_part} hold the same images "
            f"(split {test_split}), so that the score would not be one of unseen images; choose two different parts "
            "with --train-part and --test-part"
        )
    file = score_file(model, protocol, probe.out)
    return Outputs(
        [] if file is None else [file], command=f"ssl-vision {protocol}",
        inputs=input_files(data, probe.labels, *run_files(model)), overwrite=probe.overwrite,
    )  # fmt: skip


def _tests_on_training_images(data: str, probe: ProbeOptions) -> bool:
    train_split, test_split = resolve_split(data, probe.train_part), resolve_split(data, probe.test_part)
    return "all" in (train_split, test_split) or bool({*train_split.split("+")} & {*test_split.split("+")})


def score_probe(
    output_files: Outputs, protocol: str, scores: Tensor, test: LabelledFeatures, probe: ProbeOptions, *, model: str,
    data: str, settings: Mapping[str, object], found: Mapping[str, object] = MappingProxyType({}),
) -> Score:  # fmt: skip
    """Compute the score of a classifier on frozen features and write it.

    Args:
        output_files: Outputs of the command, from `plan_score`.
        protocol: Command.
        scores: Class scores of the test images, ``[N, C]``.
        test: Features and labels of the test images.
        probe: Training and test data, and the file.
        model: Evaluated model.
        data: Data set.
        settings: Further settings of the command.
        found: Values that the evaluation chose.
    """
    settings = {**settings, **training_images(probe), "test_part": test.split}
    if _tests_on_training_images(data, probe):
        found = {**found, "tested on": "the training images"}
    score = accuracy(
        protocol, scores, test.labels,
        model=model, encoder_hash=test.encoder_hash, data=data, settings=settings, found=found,
        validation_share=test.validation_share,
    )  # fmt: skip
    with output_files:
        record_score(score, probe.out)
    return score


def record_score(score: Score, out: Path | None) -> None:
    """Write the score as JSON: to `out`, or beside the model if it has a folder."""
    file = score_file(score.model, score.protocol, out)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(asdict(score), indent=2) + "\n").encode())


def _readable(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


FORMAT = "ssl-vision evaluation 1"
_NAMED = 3
_CONSTANT = 0.9  # share of one predicted class from which a classifier is considered constant
_CHANCE = 1.1  # factor of the accuracy of guessing up to which a classifier is considered no better


@dataclass(frozen=True)
class ClassAccuracy:
    """Results of one class: number of images, of correct ones, and accuracy in percent (None without images)."""

    name: str
    images: int
    right: int
    accuracy: float | None


@dataclass(frozen=True)
class ClassifierScore:
    """Accuracies in percent, likelihood, calibration and confusion matrix of a classifier on a labelled split.

    Attributes:
        model: Evaluated model.
        model_hash: Hash of its weights.
        data: Data set.
        split: Split of the data set.
        images: Number of images.
        top1: Share of the images whose class has the largest probability.
        top5: Share of the images whose class is among the five largest; None for up to five classes.
        mean_per_class: Mean of `per_class` over the classes with images.
        nll: Mean negative log-likelihood of the true class, in nats.
        calibration: Calibration of the predicted class, see `contrastive_core.metrics.calibrate`.
        per_class: Results of each class, in the classifier's order.
        confusion: Confusion matrix: counts with one row per true class and one column per predicted class.
        validation_share: Share of the images that were used for validation during training; above 0, the score is not
            a test score.
        class_names: Names of classes whose labels are WordNet identifiers.
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

    def __post_init__(self) -> None:
        _check_share(self.validation_share)

    def __str__(self) -> str:
        tested_classes = [c for c in self.per_class if c.images]
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        error = f"calibration error {100 * self.calibration.ece:.2f} %"
        lines = [
            f"top-1 {self.top1:.2f} %{top5}, mean per class {self.mean_per_class:.2f} % on {self.images:,} images of "
            f"{several(len(tested_classes), 'class', 'classes')} ({self.data}, split {self.split})",
            f"mean confidence {100 * self.calibration.confidence:.2f} %, {error} ({len(self.calibration.bins)} bins of "
            f"equal width); negative log-likelihood {decimal(self.nll, 4)}",
        ]
        lines += validation_notes(self.validation_share)
        lines += [f"warning: {self.warning}"] if self.warning else []
        untested = [self.label(c.name) for c in self.per_class if not c.images]
        lines += [f"classes without images, not tested: {some_of(untested)}"] if untested else []
        imperfect = [c for c in tested_classes if c.right < c.images]
        weakest = sorted(imperfect, key=lambda c: (c.right / c.images, c.name))[:_NAMED]
        if weakest:
            texts = [f"{self.label(c.name)} {c.accuracy:.1f} % of {c.images}" for c in weakest]
            lines.append(f"weakest classes: {', '.join(texts)}")
        mistakes = [
            f"{self.label(true)} predicted as {self.label(prediction)} ({count})"
            for true, prediction, count in self.mistakes()[:_NAMED]
        ]
        if mistakes:
            lines.append("most frequent mistakes: " + ", ".join(mistakes))
        return "\n".join(lines)

    @property
    def warning(self) -> str:
        """Warning about images of one class, or a classifier that is constant or no better than chance; or nothing."""
        prediction_counts = [sum(row[column] for row in self.confusion) for column in range(len(self.classes))]
        tested_classes = [c for c in self.per_class if c.images]
        most = max(range(len(prediction_counts)), key=prediction_counts.__getitem__)
        largest = max(c.images for c in tested_classes) / self.images
        share = prediction_counts[most] / self.images
        if len(tested_classes) == 1:
            return (
                "All images are of one class, so that the accuracy does not show whether the classifier can tell the "
                "classes apart."
            )
        if share > max(_CONSTANT, largest + (1 - largest) / 2):
            return (
                f"{100 * share:.0f} % of the images are predicted as class {self.label(self.classes[most])}; the "
                "classifier has collapsed. Lower the learning rate, train longer, or look at the labels."
            )
        if self.mean_per_class < 100 / len(tested_classes) * _CHANCE:
            return "The accuracy is no better than chance; look at the training curves and the labels."
        return ""

    @property
    def classes(self) -> list[str]:
        """Names in the order of rows and columns of the confusion matrix."""
        return [c.name for c in self.per_class]

    def label(self, name: str) -> str:
        """Return the displayed name of a class, which differs from its label for WordNet identifiers."""
        return self.class_names.get(name, name)

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Return pairs of true and predicted class with the number of such mistakes, most frequent first."""
        pairs = [
            (self.classes[row], self.classes[column], count)
            for row, counts in enumerate(self.confusion)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        return sorted(pairs, key=lambda mistake: -mistake[2])


def score_classifier(
    logits: Tensor, labels: Tensor, *, classes: Sequence[str], model: str, model_hash: str, data: str, split: str,
    bins: int, validation_share: float = 0.0, class_names: Mapping[str, str] = MappingProxyType({}),
) -> ClassifierScore:  # fmt: skip
    """Score logits ``[N, C]`` of images with labels ``[N]``, N > 0."""
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


def to_json(score: ClassifierScore) -> bytes:
    """Convert a score to JSON for `read_classifier_score`, with one line per class and row of the confusion matrix."""
    fields = dataclasses.asdict(score)
    lists = {name: fields.pop(name) for name in ("per_class", "confusion")}
    return to_json_lines({"format": FORMAT, **fields}, lists)


def read_classifier_score(file: Path) -> ClassifierScore | None:
    """Read a file of `evaluate`; None if the file is of another kind.

    Raises:
        UserError: The file is damaged.
    """
    fields = read_json(file)
    with reading(file, "found no evaluation", "expected a file of `ssl-vision evaluate`; remove it or evaluate again"):
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            return None
        bins = [ReliabilityBin(**b) for b in fields["calibration"].pop("bins")]
        calibration = Calibration(**fields.pop("calibration"), bins=bins)
        per_class = [ClassAccuracy(**c) for c in fields.pop("per_class")]
        return ClassifierScore(**fields, calibration=calibration, per_class=per_class)
