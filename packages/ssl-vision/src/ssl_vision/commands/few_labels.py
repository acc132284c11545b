"""`ssl-vision few-labels`: find the classifier to use with few labels, by cross-validation on these labels alone."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.training import RunOptions
from contrastive_core.training.files import write_atomic
from contrastive_core.training.model_file import save_model
from ssl_vision.commands.finetune import SIMCLR, finetune
from ssl_vision.data import ImageSet, Subset, list_splits, open_images
from ssl_vision.data.decode import ReadOptions
from ssl_vision.evaluation.features import extract
from ssl_vision.evaluation.probes import choose_logistic, knn_scores, stratified_folds
from ssl_vision.labels.files import LabelFile, write_label_file
from ssl_vision.labels.subsets import check_classes, require_two_classes, training_set
from ssl_vision.models.checkpoint import (
    PIXELS,
    Architecture,
    classifier_card,
    load_classifier,
    load_encoder,
    load_pretrained,
)
from ssl_vision.training.options import OptimizerOptions

Method = Literal["linear", "knn", "finetune"]
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)
RATES = (0.01, 0.05, 0.2)
_NAMES = {"linear": "linear classifier", "knn": "nearest neighbours", "finetune": "fine-tuning"}
_ALL_FOLDS = 200  # labels up to which fine-tuning is validated on every fold, beyond it on one


@dataclass(frozen=True)
class Candidate:
    """A classifier and how good it is.

    Attributes:
        method: ``linear``, ``knn`` or ``finetune``.
        setting: What cross-validation chose.
        validated: Share of right answers on held-out labelled images, in percent; None where nothing can be held out.
        held_out: Number of these images.
        test: Share of right answers on the test part, in percent; None without labelled test images.
    """

    method: Method
    setting: str
    validated: float | None
    held_out: int
    test: float | None

    @property
    def error(self) -> float:
        """Standard error of the validated accuracy, in percent."""
        if not self.held_out or self.validated is None:
            return 0.0
        return math.sqrt(max(self.validated * (100 - self.validated), 100.0) / self.held_out)


@dataclass(frozen=True)
class FewLabelsResult:
    """What was compared, and what to use; `str` is what the command prints.

    Attributes:
        candidates: In the order of effort.
        recommended: The method to use.
        labels: Number of labelled images.
        classes: Number of classes among them.
        test_images: Number of test images; 0 without labelled ones.
        test_part: Their part of the data.
        model: Folder of the recommended classifier; None if it is nearest neighbours.
    """

    candidates: tuple[Candidate, ...]
    recommended: Method
    labels: int
    classes: int
    test_images: int
    test_part: str
    model: Path | None

    def __str__(self) -> str:
        test = f"test ({self.test_images:,}, part {self.test_part})" if self.test_images else "test"
        rows = [["", "cross-validated", test, "setting"]]
        for c in self.candidates:
            validated = "–" if c.validated is None else f"{c.validated:.1f} ± {c.error:.1f}"
            mark = "*" if c.method == self.recommended else " "
            rows.append(
                [f"{mark} {_NAMES[c.method]}", validated, "–" if c.test is None else f"{c.test:.1f}", c.setting]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"Top-1 accuracy in percent from {self.labels:,} labels of {self.classes} classes:", ""]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += ["", f"* recommended: {_NAMES[self.recommended]}, by cross-validation; within its error, the cheapest"]
        lines.append(f"classifier: {self.model}" if self.model else "classify with `ssl-vision knn`")
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
    folds: int = 5,
    epochs: int = 0,
    batch_size: int = 512,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> FewLabelsResult:
    """Compare a linear classifier, nearest neighbours and fine-tuning with few labels, and recommend one.

    Every setting is chosen by stratified cross-validation on the labelled images alone: the l2 penalty of a logistic
    regression on frozen features, the number of neighbours, the learning rate of fine-tuning (on one fold with more
    than 200 labels). The method with the best cross-validated accuracy is recommended, or a cheaper one within the
    standard error of the best. Test images, where there are labelled ones, are scored at the end and choose nothing.

    Args:
        model: Run folder or model folder to start from, or ``pixels``.
        data: Image folder, CSV manifest or named data set.
        out: Folder of the results: the recommended classifier as a model folder, the table as JSON, the fine-tuning
            runs.
        labels: Label file of the images whose labels may be seen; by default every image of the part.
        part: Part of the data that holds the labelled images.
        test_part: Part of the data to score at the end, if the data have it.
        methods: Methods to compare.
        folds: Largest number of folds; at most as many as images of the rarest class.
        epochs: Passes of fine-tuning over the labelled images; 0: 60, fewer with more than 500 labels, at least 10.
        batch_size: Images per forward pass of feature extraction.
        seed: Seed of folds and of fine-tuning.
        device: Device to run on: auto, cpu, cuda or mps.
        read: How image files are read.

    Returns:
        The table and the recommendation.

    Raises:
        UserError: Labelled images of a single class, or no method that can be run.
    """
    if not methods or folds < 2:
        raise UserError(f"few-labels needs at least one method and 2 folds, got {len(methods)} and {folds}")
    loaded = load_encoder(model, device=device)
    images = open_images(data, split=part, channels=loaded.channels, read=read)
    train = training_set(images, labels)
    require_two_classes(train)
    test = _test_images(data, part=part, test_part=test_part, images=images)
    x, y = extract(loaded, train, batch_size=batch_size).cpu(), train.labels()
    queries = None if test is None else extract(loaded, test, batch_size=batch_size).cpu()
    truth = None if test is None else test.labels()
    parts = stratified_folds(y, folds=folds, seed=derive(seed, "few labels"))
    if len(parts) < 2:
        parts = []
    out = Path(out)
    candidates: list[Candidate] = []
    if "linear" in methods:
        candidates.append(_linear(model, x, y, queries, truth, classes=train.classes, folds=folds, seed=seed, out=out))
    if "knn" in methods:
        candidates.append(_neighbours(x, y, queries, truth, classes=len(train.classes), parts=parts))
    if "finetune" in methods and model != PIXELS:
        work = _Finetuning(model, data, train, part, out, epochs=epochs, seed=seed, device=device, read=read)
        candidates.append(work.candidate(parts, test, batch_size=batch_size))
    if not candidates:
        raise UserError(f"{model}: fine-tuning needs a network; expected a run folder or model folder")
    chosen = _recommended(candidates)
    folder = {"linear": out / "linear", "finetune": out / "finetune", "knn": None}[chosen.method]
    result = FewLabelsResult(
        tuple(candidates), chosen.method, len(train), len(torch.unique(y)), 0 if test is None else len(test),
        test_part if test is None else test.split, folder,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    content = {**asdict(result), "model": str(folder) if folder else None, "from": model, "data": data}
    write_atomic(out / "few-labels.json", (json.dumps(content, indent=1) + "\n").encode())
    return result


def _recommended(candidates: Sequence[Candidate]) -> Candidate:
    """The best by cross-validation, or the first one, which is the cheapest, within the standard error of the best."""
    validated = [c for c in candidates if c.validated is not None]
    if not validated:
        return candidates[0]
    best = max(validated, key=lambda c: c.validated or 0)
    return next(c for c in validated if (c.validated or 0) >= (best.validated or 0) - best.error)


def _test_images(data: str, *, part: str, test_part: str, images: ImageSet) -> ImageSet | None:
    """Labelled test images, if the data have some that are not those learnt from."""
    splits = list_splits(data)
    stands_in = test_part == "test" and "test" not in splits and "val" in splits and part != "val"
    if test_part == part or not (test_part in splits or stands_in):
        return None
    test = open_images(data, split=test_part, channels=images.channels, read=images.options)
    if not test.is_labelled:
        return None
    check_classes(test, images.classes, of="trained on")
    return test


def _linear(
    model: str, x: Tensor, y: Tensor, queries: Tensor | None, truth: Tensor | None, *, classes: list[str], folds: int,
    seed: int, out: Path,
) -> Candidate:  # fmt: skip
    found = choose_logistic(x, y, len(classes), folds=folds, seed=derive(seed, "few labels"))
    classifier = found.fit.classifier
    if model != PIXELS:
        start = load_pretrained(model)
        architecture = Architecture(start.options, start.image_size)
        network = architecture.build(len(classes))
        network.encoder.load_state_dict(start.encoder.state_dict())
        network.fc.load_state_dict(classifier.state_dict())
        save_model(out / "linear" / "model", dict(network.state_dict()), classifier_card(architecture, classes))
    with torch.no_grad():
        test = None if queries is None or truth is None else _percent(classifier(queries), truth)
    validated = 100 * sum(found.accuracies) / len(found.accuracies) if found.accuracies else None
    return Candidate("linear", f"l2 {found.fit.l2:.3g}", validated, len(y) if found.accuracies else 0, test)


def _neighbours(
    x: Tensor, y: Tensor, queries: Tensor | None, truth: Tensor | None, *, classes: int, parts: Sequence[Tensor]
) -> Candidate:
    best, validated = 1, None
    for k in NEIGHBOURS if parts else ():
        if k > len(y) - max(map(len, parts)):
            break
        right = 0
        for held_out in parts:
            stay = _without(len(y), held_out)
            scores = knn_scores(x[held_out], x[stay], y[stay], num_classes=classes, k=k)
            right += int((scores.argmax(dim=1) == y[held_out]).sum())
        if validated is None or 100 * right / len(y) > validated:
            best, validated = k, 100 * right / len(y)
    test = None
    if queries is not None and truth is not None:
        test = _percent(knn_scores(queries, x, y, num_classes=classes, k=best), truth)
    return Candidate("knn", f"k {best}", validated, len(y) if parts else 0, test)


class _Finetuning:
    """Fine-tuning runs: one for each learning rate and fold, and the final one on all labels."""

    def __init__(
        self, model: str, data: str, train: ImageSet, part: str, out: Path, *, epochs: int, seed: int,
        device: Literal["auto", "cpu", "cuda", "mps"], read: ReadOptions,
    ) -> None:  # fmt: skip
        self._model, self._data, self._train, self._part, self._out = model, data, train, part, out
        self._epochs = epochs or min(60, max(10, 30_000 // len(train)))
        self._seed, self._device, self._read = seed, device, read

    def candidate(self, parts: Sequence[Tensor], test: ImageSet | None, *, batch_size: int) -> Candidate:
        """Choose the learning rate, train with it on all labels, and score the test images."""
        used = list(parts) if len(self._train) <= _ALL_FOLDS else list(parts[:1])
        best, validated = RATES[1], None
        for rate in RATES if used else ():
            right = sum(
                self._run(f"rate-{rate:g}-fold-{fold}", rate, _without(len(self._train), held_out), held_out)
                for fold, held_out in enumerate(used)
            )
            accuracy = 100 * right / sum(map(len, used))
            if validated is None or accuracy > validated:
                best, validated = rate, accuracy
        everything = torch.arange(len(self._train))
        self._run("", best, everything, None)
        folder = self._out / "finetune"
        found = None
        if test is not None:
            classifier = load_classifier(str(folder), device=self._device)
            found = _percent(extract(classifier, test, batch_size=batch_size).cpu(), test.labels())
        return Candidate(
            "finetune", f"learning rate {best:g}, {self._epochs} epochs", validated, sum(map(len, used)), found
        )

    def _run(self, name: str, rate: float, indices: Tensor, held_out: Tensor | None) -> float:
        """Number of held-out images that a run classifies correctly."""
        folder = self._out / "cross-validation" / name if name else self._out / "finetune"
        lists = self._out / "lists"
        labels = self._list(lists / f"{name or 'all'}.json", indices)
        validation = None if held_out is None else str(self._list(lists / f"{name}-held-out.json", held_out))
        batch = min(256, len(indices))
        print(f"fine-tuning: {name or f'all labels, learning rate {rate:g}'}", file=sys.stderr, flush=True)  # noqa: T201
        with contextlib.redirect_stderr(io.StringIO()):  # one line a run is enough
            self._finetune(folder, labels, validation, rate=rate, batch=batch)
        if held_out is None:
            return 0.0
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return float([r["validation_accuracy"] for r in records if "validation_accuracy" in r][-1]) * len(held_out)

    def _finetune(self, folder: Path, labels: Path, validation: str | None, *, rate: float, batch: int) -> None:
        finetune(
            self._model, self._data, folder, labels=labels, part=self._part, validation=validation,
            validate_every=self._epochs, epochs=self._epochs, batch_size=batch, read=self._read,
            optimizer=OptimizerOptions(**{**vars(SIMCLR), "lr": rate * 256 / batch}),
            run=RunOptions(seed=self._seed, device=self._device, progress=False, resume=True),
        )  # fmt: skip

    def _list(self, file: Path, indices: Tensor) -> Path:
        some = Subset(self._train, indices.tolist())
        names = [(some.key(i), some.classes[label]) for i, label in enumerate(some.labels().tolist())]
        write_label_file(file, LabelFile(self._train.name, self._part, tuple(names), {"by": "few-labels"}))
        return file


def _without(count: int, held_out: Tensor) -> Tensor:
    """The indices below `count` that are not held out."""
    stay = torch.ones(count, dtype=torch.bool)
    stay[held_out] = False
    return torch.nonzero(stay).flatten()


def _percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * int((scores.argmax(dim=1) == labels).sum()) / len(labels)
