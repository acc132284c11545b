"""`ssl-vision few-labels`: find the classifier to use with few labels by cross-validation on these labels alone."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import RunOptions
from contrastive_core.training.config import DeviceName, InferenceOptions, Precision
from contrastive_core.training.files import write_atomic
from contrastive_core.training.model_file import save_model
from contrastive_core.training.outputs import Outputs, claim_folder
from ssl_vision.data import ImageSet, Subset, list_splits, open_images, resolve_split
from ssl_vision.data.class_names import find_class_names
from ssl_vision.data.dataset import ReadOptions, TrainingReadOptions
from ssl_vision.evaluation.accuracy import percent_correct
from ssl_vision.evaluation.features import extract
from ssl_vision.evaluation.probes import (
    ChosenLogistic,
    choose_logistic,
    choose_neighbours,
    knn_scores,
    stratified_folds,
)
from ssl_vision.evaluation.scores import validation_notes
from ssl_vision.labels.files import LabelFile, write_label_file
from ssl_vision.labels.subsets import (
    check_classes,
    note_unseen_classes,
    require_two_classes,
    training_set,
    validation_share,
)
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import (
    PIXELS,
    classifier_card,
    load_classifier,
    load_encoder,
    open_start,
)
from ssl_vision.training.finetuning import SIMCLR, finetune
from ssl_vision.training.options import FinetuningOptions

Method = Literal["linear", "knn", "finetune"]
RATES = (0.003, 0.01, 0.03, 0.1)
"""Peak learning rates of fine-tuning to choose from."""
BATCH_SIZE = 64
"""Images per step of fine-tuning."""
MARGINS: dict[Method, float] = {"linear": 1.0, "knn": 1.64, "finetune": 1.0}
"""Standard errors by which a method must be better than a cheaper one, in accuracy or likelihood, to be recommended.

Nearest neighbours need more, because a wrong choice costs more: with 50 labels of CIFAR-10, they are five points less
accurate than the linear classifier on average. Fine-tuning starts from the linear classifier and is seldom worse.
"""
_NAMES = {"linear": "linear classifier", "knn": "nearest neighbours", "finetune": "fine-tuning"}
_ALL_FOLDS = 200  # number of labels up to which fine-tuning is validated on every fold, above it on one


@dataclass(frozen=True)
class Candidate:
    """A method of classification and its accuracy.

    Attributes:
        method: ``linear``, ``knn`` or ``finetune``.
        setting: Setting chosen by cross-validation.
        validated: Accuracy on held-out labelled images, in percent; None if no images can be held out.
        held_out: Number of held-out images.
        test: Accuracy on the test part, in percent; None without labelled test images.
        error: Standard error of the validated accuracy, in percent.
        log_likelihood: Mean log-probability of the true class of a held-out image, in nats; None if no images can be
            held out.
    """

    method: Method
    setting: str
    validated: float | None
    held_out: int
    test: float | None
    error: float = 0.0
    log_likelihood: float | None = None


@dataclass(frozen=True)
class _Trial:
    """A method with its chosen setting, and its answers on held-out images.

    Attributes:
        method: See `Candidate`.
        setting: See `Candidate`.
        right: Whether the class of each labelled image was predicted correctly when it was held out, bool ``[N]``.
        log_likelihood: Log-probability of the class of each image when it was held out, float64 ``[N]``; 0 if no other
            fold has an image of the class, and no method can predict it.
        held_out: Whether each image was held out, bool ``[N]``.
        test: See `Candidate`.
    """

    method: Method
    setting: str
    right: Tensor
    log_likelihood: Tensor
    held_out: Tensor
    test: float | None

    def candidate(self) -> Candidate:
        """Summarise the answers for the table."""
        count = int(self.held_out.sum())
        if not count:
            return Candidate(self.method, self.setting, None, 0, self.test)
        validated = 100 * int(self.right[self.held_out].sum()) / count
        error = math.sqrt(max(validated * (100 - validated), 100.0) / count)
        likelihood = self.log_likelihood[self.held_out].mean().item()
        return Candidate(self.method, self.setting, validated, count, self.test, error, likelihood)


@dataclass(frozen=True)
class FewLabelsResult:
    """Result of `few_labels`; `str` gives the text that the command prints.

    Attributes:
        candidates: Compared methods, in the order of effort.
        recommended: Recommended method.
        reason: Reason, with the difference on held-out images and its standard error.
        labels: Number of labelled images.
        classes: Number of classes among them.
        test_images: Number of test images; 0 without labelled ones.
        test_part: Part of the data with the test images.
        model: Folder of the recommended classifier; None for nearest neighbours and for pixels, which have no network.
        validation_share: Share of the test images that were used for validation while the model was trained.
    """

    candidates: tuple[Candidate, ...]
    recommended: Method
    reason: str
    labels: int
    classes: int
    test_images: int
    test_part: str
    model: Path | None
    validation_share: float = 0.0

    def __str__(self) -> str:
        test = f"test ({self.test_images:,}, part {self.test_part})" if self.test_images else "test"
        rows = [["", "cross-validated", "log-likelihood", test, "setting"]]
        for c in self.candidates:
            validated = "–" if c.validated is None else f"{c.validated:.1f} ± {c.error:.1f}"
            mark = "*" if c.method == self.recommended else " "
            likelihood = "–" if c.log_likelihood is None else f"{c.log_likelihood:.2f}"
            tested = "–" if c.test is None else f"{c.test:.1f}"
            rows.append([f"{mark} {_NAMES[c.method]}", validated, likelihood, tested, c.setting])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"Top-1 accuracy in percent from {self.labels:,} labels of {self.classes} classes:", ""]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += validation_notes(self.validation_share)
        lines += ["", f"* recommended: {_NAMES[self.recommended]}. {self.reason}"]
        if self.model:
            lines.append(f"classifier: {self.model}")
        elif self.recommended == "knn":
            lines.append("classify with `ssl-vision knn`")
        else:
            lines.append("no classifier was written, because pixels have no network")
        return "\n".join(lines)


def few_labels(
    model: str,
    data: str,
    out: Path,
    *,
    labels: Path | None = None,
    part: str = "train",
    test_part: str = "test",
    methods: tuple[Method, ...] = ("linear", "knn", "finetune"),
    encoder: EncoderOptions | None = None,
    folds: int = 5,
    epochs: int = 0,
    seed: int = 0,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    precision: Precision = "32-true",
    read: ReadOptions = ReadOptions(),  # noqa: B008
) -> FewLabelsResult:
    """Compare a linear classifier, nearest neighbours and fine-tuning with few labels, and recommend one.

    Every setting is chosen by stratified cross-validation on the labelled images alone, by likelihood: the l2 penalty
    of a logistic regression on frozen features, the number of neighbours, and the learning rate of fine-tuning (on one
    fold if there are more than 200 labels). Fine-tuning starts from the linear classifier (``finetune
    --classifier-init linear``), with batches of 64. The recommended method is the cheapest one, unless another has both
    a higher accuracy and a higher likelihood on the same held-out images, and one of the differences exceeds its
    standard error (1.64 standard errors for nearest neighbours); the result states which was the case. Accuracy alone
    is not sufficient, because with 50 held-out images it often differs by more than the standard error by chance.
    Labelled test images, if any, are scored at the end and do not affect any choice.

    Args:
        model: Run folder or model folder to start from, ``none`` for a network with weights from a file (`encoder`), or
            ``pixels`` for the images themselves.
        data: Image folder, CSV manifest or named data set.
        out: Folder for the recommended classifier (as a model folder), the table (as JSON) and the fine-tuning runs; it
            must be new, empty or from an earlier call with the same labels.
        labels: Label file of the images whose labels may be used; by default all images of the part.
        part: Part of the data with the labelled images.
        test_part: Part of the data to score at the end, if it exists.
        methods: Methods to compare.
        encoder: Network and its file of weights, if `model` is ``none``.
        folds: Largest number of folds; at most the number of images of the second-largest class.
        epochs: Number of passes of fine-tuning over the labelled images; 0 for 60, fewer with more than 250 labels, but
            at least 6.
        seed: Seed of all random draws: of the folds and of fine-tuning.
        inference: Batch size of feature extraction, and device.
        precision: Number format of fine-tuning, as for `finetune`.
        read: Options for reading image files.

    Returns:
        Accuracies and recommendation.

    Raises:
        UserError: All labelled images are of one class, no method can be run, or `out` is from other labels.
    """
    if not methods or folds < 2:
        raise UserError(f"few-labels needs at least one method and 2 folds, got {len(methods)} and {folds}")
    out = Path(out)
    claim_folder(out, command="ssl-vision few-labels")
    loaded_model = load_encoder(model, device=inference.device, encoder=encoder)
    images = open_images(data, split=part, channels=loaded_model.channels, read=read.for_model(loaded_model.bits))
    train = training_set(images, labels)
    require_two_classes(train, labels=labels)
    note_unseen_classes(train, labels)
    _write_list(out, "all", train)  # refuses a folder with results from other labels
    test = _test_images(data, part=part, test_part=test_part, images=images)
    share = 0.0 if test is None else validation_share(test, loaded_model.validated_on, part=test_part)
    x, y = extract(loaded_model, train, batch_size=inference.batch_size).cpu(), train.labels()
    queries = None if test is None else extract(loaded_model, test, batch_size=inference.batch_size).cpu()
    truth = None if test is None else test.labels()
    parts = stratified_folds(y, folds=folds, seed=derive(seed, "few labels"))
    if len(parts) < 2:
        parts = []
    trials: list[_Trial] = []
    logistic = None
    if "linear" in methods:
        logistic = choose_logistic(x, y, len(train.classes), folds=folds, seed=derive(seed, "few labels"))
        trials.append(_linear(logistic, y, queries, truth))
    if "knn" in methods:
        trials.append(_neighbours(x, y, queries, truth, classes=len(train.classes), parts=parts))
    if "finetune" in methods and model != PIXELS:
        finetuning = _Finetuning(
            model, data, train, part, out,
            encoder=encoder, epochs=epochs, seed=seed, device=inference.device, precision=precision, read=read,
        )  # fmt: skip
        trials.append(finetuning.trial(parts, test, batch_size=inference.batch_size))
    if not trials:
        raise UserError(f"{model}: fine-tuning needs a network; expected a run folder or model folder")
    folders: dict[Method, Path | None] = {"linear": None, "knn": None, "finetune": out / "finetune"}
    if logistic is not None and model != PIXELS:
        # Written at the end, because fine-tuning may refuse the folder, which then keeps what an earlier call found.
        start = open_start(model, encoder=encoder, from_layer=0, image_size=None)
        network = start.build(len(train.classes))
        network.fc.load_state_dict(logistic.fit.classifier.state_dict())
        card = classifier_card(
            start.architecture, train.classes, class_names=find_class_names(data, train.classes),
            validated_on=start.validated_on, bits=images.options.bits,
        )  # fmt: skip
        folders["linear"] = out / "linear"
        save_model(out / "linear" / "model", dict(network.state_dict()), card)
    choice, reason = _recommend(trials)
    folder = folders[choice.method]
    result = FewLabelsResult(
        tuple(t.candidate() for t in trials), choice.method, reason, len(train), len(torch.unique(y)),
        0 if test is None else len(test), test_part if test is None else test.split, folder, share,
    )  # fmt: skip
    content = {**asdict(result), "model": str(folder) if folder else None, "from": model, "data": data}
    with Outputs([out / "few-labels.json"], command="ssl-vision few-labels"):
        write_atomic(out / "few-labels.json", (json.dumps(content, indent=1) + "\n").encode())
    return result


def _recommend(trials: Sequence[_Trial]) -> tuple[_Trial, str]:
    """Return the recommended method: each one in turn, from the cheapest, replaces the former if it is better.

    Methods are compared on the images that all of them have held out.

    Returns:
        The method, and the reason for it.
    """
    if len(trials) == 1:
        return trials[0], "No other method was compared."
    common = torch.stack([t.held_out for t in trials]).all(dim=0)
    if not common.any():
        return trials[0], (
            "No methods could be compared, because no image can be held out, and the cheapest one is recommended. A "
            "comparison requires at least two classes with two labelled images each."
        )
    best, over = trials[0], trials[0]
    for other in trials[1:]:
        if _Difference(other, best, common).is_better:
            best, over = other, best
    if best is not over:
        return best, _Difference(best, over, common).advantage
    rival = max(trials[1:], key=lambda t: int(t.right[common].sum()))
    return best, _Difference(rival, best, common).shortfall


class _Difference:
    """Difference of two methods on the same held-out images.

    The standard error of the difference between two numbers of correct answers is the square root of the number of
    images that exactly one of the two is right on (McNemar's test); that of the mean difference of log-likelihoods is
    the usual one of a mean.

    Attributes:
        gain: Difference of the accuracies, `method` minus `cheaper`, in percent.
        gain_error: Its standard error.
        evidence: Difference of the mean log-likelihoods, in nats.
        evidence_error: Its standard error.
    """

    def __init__(self, method: _Trial, cheaper: _Trial, images: Tensor) -> None:
        self._method, self._cheaper, self._count = method, cheaper, int(images.sum())
        right, worse = method.right[images], cheaper.right[images]
        self.gain = 100 * int(right.sum() - worse.sum()) / self._count
        self.gain_error = 100 * math.sqrt(int((right != worse).sum())) / self._count
        likelihoods = (method.log_likelihood - cheaper.log_likelihood)[images].double()
        self.evidence = likelihoods.mean().item()
        self.evidence_error = likelihoods.std(correction=0).item() / math.sqrt(self._count)

    @property
    def is_better(self) -> bool:
        """Whether accuracy and likelihood are both higher, one of them by more than the margin of the method."""
        margin = MARGINS[self._method.method]
        is_clear = self.gain > margin * self.gain_error or self.evidence > margin * self.evidence_error
        return self.gain > 0 and self.evidence > 0 and is_clear

    @property
    def advantage(self) -> str:
        """Reason why the method is recommended."""
        return (
            f"On {self._count} held-out images its accuracy is {self.gain:.1f} ± {self.gain_error:.1f} points above "
            f"that of the {_NAMES[self._cheaper.method]} (± standard error), and its mean log-likelihood "
            f"{self.evidence:.2f} ± {self.evidence_error:.2f}."
        )

    @property
    def shortfall(self) -> str:
        """Reason why the cheaper method is recommended."""
        if self.gain <= 0:
            return (
                f"No other method classifies more of the {self._count} held-out images correctly, and it is the "
                "cheapest."
            )
        sentence = (
            f"On {self._count} held-out images, {_NAMES[self._method.method]} is {self.gain:.1f} ± "
            f"{self.gain_error:.1f} points more accurate, "
        )
        if self.evidence <= 0:
            return sentence + (
                f"but its mean log-likelihood is {-self.evidence:.2f} ± {self.evidence_error:.2f} lower. Only a method "
                "that is better in both is recommended in place of a cheaper one."
            )
        margin = MARGINS[self._method.method]
        within = "the standard error" if margin == 1 else f"{margin:g} standard errors"
        return sentence + (
            f"which is within {within}, like the difference of their likelihoods: so few images cannot distinguish the "
            "two, and the cheaper one is recommended."
        )


def _test_images(data: str, *, part: str, test_part: str, images: ImageSet) -> ImageSet | None:
    """Open labelled test images, if the data have some that are not used for training."""
    tested = resolve_split(data, test_part)
    if tested == resolve_split(data, part) or tested not in list_splits(data):
        return None
    test = open_images(data, split=tested, channels=images.channels, read=images.options)
    if not test.is_labelled:
        return None
    check_classes(test, images.classes, of="trained on")
    return test


def _linear(logistic: ChosenLogistic, y: Tensor, queries: Tensor | None, truth: Tensor | None) -> _Trial:
    with torch.no_grad():
        test = None if queries is None or truth is None else percent_correct(logistic.fit.classifier(queries), truth)
    right = torch.zeros(len(y), dtype=torch.bool) if logistic.right is None else logistic.right
    likelihood = (
        torch.zeros(len(y), dtype=torch.float64) if logistic.log_likelihood is None else logistic.log_likelihood
    )
    held_out = torch.full_like(right, bool(logistic.accuracies))
    return _Trial("linear", f"l2 {logistic.fit.l2:.3g}", right, likelihood, held_out, test)


def _neighbours(
    x: Tensor, y: Tensor, queries: Tensor | None, truth: Tensor | None, *, classes: int, parts: Sequence[Tensor]
) -> _Trial:
    right = torch.zeros(len(y), dtype=torch.bool)
    likelihood = torch.zeros(len(y), dtype=torch.float64)
    for held_out in parts:
        # The settings are chosen again without the held-out images, or their accuracy would be too high.
        stay = _without(len(y), held_out)
        settings = choose_neighbours(x[stay], y[stay])
        scores = knn_scores(x[held_out], x[stay], y[stay], num_classes=classes, k=settings.k)
        right[held_out] = scores.argmax(dim=1) == y[held_out]
        is_known = torch.isin(y[held_out], y[stay])
        likelihood[held_out] = settings.log_likelihood(scores, y[held_out]) * is_known
    best = choose_neighbours(x, y).k
    test = None
    if queries is not None and truth is not None:
        test = percent_correct(knn_scores(queries, x, y, num_classes=classes, k=best), truth)
    return _Trial("knn", f"k {best}", right, likelihood, torch.full_like(right, bool(parts)), test)


class _Finetuning:
    """Fine-tuning runs: one per learning rate and fold, and a final one on all labels."""

    def __init__(
        self, model: str, data: str, train: ImageSet, part: str, out: Path, *, encoder: EncoderOptions | None,
        epochs: int, seed: int, device: DeviceName, precision: Precision, read: ReadOptions,
    ) -> None:  # fmt: skip
        self._model, self._encoder, self._data, self._train = model, encoder, data, train
        self._part, self._out = part, out
        self._epochs = epochs or min(60, max(6, 15_000 // len(train)))
        self._run = RunOptions(seed=seed, device=device, precision=precision, progress=False, resume=True)
        self._read = TrainingReadOptions(**vars(read))

    def trial(self, parts: Sequence[Tensor], test: ImageSet | None, *, batch_size: int) -> _Trial:
        """Choose the learning rate, train with it on all labels, and score the test images."""
        folds = list(parts) if len(self._train) <= _ALL_FOLDS else list(parts[:1])
        labels = self._train.labels()
        is_held_out = torch.zeros(len(labels), dtype=torch.bool)
        right = torch.zeros(len(RATES), len(labels), dtype=torch.bool)
        likelihood = torch.zeros(len(RATES), len(labels), dtype=torch.float64)
        for row, rate in enumerate(RATES if folds else ()):
            for fold, held_out in enumerate(folds):
                is_held_out[held_out] = True
                stay = _without(len(labels), held_out)
                folder = self._finetune(f"rate-{rate:g}-fold-{fold}", rate, stay)
                logits = self._logits(folder, Subset(self._train, held_out.tolist()), batch_size)
                right[row, held_out] = logits.argmax(dim=1) == labels[held_out]
                is_known = torch.isin(labels[held_out], labels[stay])
                likelihood[row, held_out] = -F.cross_entropy(logits, labels[held_out], reduction="none") * is_known
        best_row = int(likelihood.sum(dim=1).argmax())
        best_rate = RATES[best_row]
        folder = self._finetune("", best_rate, torch.arange(len(labels)))
        accuracy = None
        if test is not None:
            accuracy = percent_correct(self._logits(folder, test, batch_size), test.labels())
        setting = f"learning rate {best_rate:g}, {self._epochs} epochs"
        return _Trial("finetune", setting, right[best_row], likelihood[best_row], is_held_out, accuracy)

    def _logits(self, folder: Path, images: ImageSet, batch_size: int) -> Tensor:
        """Return the logits of the classifier of a run, float64 ``[N, C]``."""
        classifier = load_classifier(str(folder), device=self._run.device)
        return extract(classifier, images, batch_size=batch_size).double().cpu()

    def _finetune(self, name: str, rate: float, indices: Tensor) -> Path:
        """Fine-tune on these images, quietly, and return the folder of the run."""
        folder = self._out / "cross-validation" / name if name else self._out / "finetune"
        labels = _write_list(self._out, name or "all", Subset(self._train, indices.tolist()))
        batch = min(BATCH_SIZE, len(indices))
        print(f"fine-tuning: {name or f'all labels, learning rate {rate:g}'}", file=sys.stderr, flush=True)  # noqa: T201
        with contextlib.redirect_stderr(io.StringIO()):  # one line per run is enough
            finetune(
                self._model, self._data, folder, labels=labels, part=self._part, classifier_init="linear",
                encoder=self._encoder, training=FinetuningOptions(self._epochs, batch), read=self._read,
                optimizer=replace(SIMCLR, lr=rate * 256 / batch), run=self._run,
            )  # fmt: skip
        return folder


def _write_list(out: Path, name: str, images: ImageSet) -> Path:
    """Write the label file of some of the labelled images, and return its path."""
    file = out / "lists" / f"{name}.json"
    names = [(images.key(i), images.classes[label]) for i, label in enumerate(images.labels().tolist())]
    write_label_file(file, LabelFile(images.name, images.split, tuple(names), {"by": "few-labels"}))
    return file


def _without(count: int, held_out: Tensor) -> Tensor:
    """Return the indices below `count` that are not held out."""
    stay = torch.ones(count, dtype=torch.bool)
    stay[held_out] = False
    return torch.nonzero(stay).flatten()
