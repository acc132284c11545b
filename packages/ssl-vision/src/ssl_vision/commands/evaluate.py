"""`ssl-vision evaluate`: test a classifier on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.app.report.figures import confusion_figure, to_png
from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.config import InferenceOptions
from contrastive_core.training.files import check_space, write_atomic
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.names import check_file_name
from contrastive_core.training.outputs import Outputs, run_files
from ssl_vision.data import ImageSet, input_files
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.open import refuse_new_images
from ssl_vision.evaluation.features import extract, labelled_images
from ssl_vision.evaluation.predictions import Predictions, make_predictions, write_predictions
from ssl_vision.evaluation.scores import ClassifierScore, evaluation_folder, score_classifier, to_json
from ssl_vision.labels.subsets import validation_share
from ssl_vision.models.model_folder import load_classifier
from ssl_vision.reports.figures import reliability_figure
from ssl_vision.reports.run_folder import data_name


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; `str` gives the text that the command prints.

    Attributes:
        score: All numbers.
        written: The JSON file, the predictions (npz), and the pictures of confusion matrix and calibration.
    """

    score: ClassifierScore
    written: list[Path]

    def __str__(self) -> str:
        return "\n".join([str(self.score), "", *(f"written: {file}" for file in self.written)])


def evaluate(
    model: str,
    data: str,
    *,
    part: str = "test",
    name: str | None = None,
    out: Path | None = None,
    bins: int = 15,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Evaluation:
    """Test a classifier on labelled images: accuracies, confusion, likelihood, calibration.

    Classes are matched by name. Images are cropped as in every evaluation (the central 7/8, or all of a small image),
    and batch norm is in inference mode. Calibration is the expected calibration error of the predicted class, over
    bins of equal width in confidence.

    Four files are written: ``NAME.json`` with all numbers, ``NAME-predictions.npz`` with arrays probabilities float32
    ``[N, C]``, labels ``[N]``, paths and classes, ``NAME-confusion.png`` and ``NAME-reliability.png``.

    Args:
        model: Run folder of ``ssl-vision finetune`` or ``distill``, or its model folder.
        data: Image folder, CSV manifest or named data set with labels.
        part: Part of the data to score. If there is no test split, ``val`` is used in its place and named in the
            files, unless it was used for validation; ``--part val`` scores it as the validation part.
        name: Stem of the names of the files; by default the names of the data and the part.
        out: Folder for the files; by default ``evaluation`` in the model's folder.
        bins: Number of bins for the calibration.
        inference: Batch size and device.
        read: Options for reading image files.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Scores and paths of the files.
    """
    if bins < 1:
        raise UserError(f"evaluate needs bins >= 1, got bins={bins}")
    classifier = load_classifier(model, device=inference.device)
    images = labelled_images(data, split=part, channels=classifier.channels, read=read.for_model(classifier.bits))
    labels = match_classes(images, classifier.classes)
    share = validation_share(images, classifier.validated_on, part=part)
    folder = Path(out) if out is not None else evaluation_folder(model) or Path()
    stem = check_file_name(
        name or f"{data_name(data).removesuffix('.csv')}-{images.split}", what="name of the files", source="--name"
    )
    targets = [folder / f"{stem}{end}" for end in _ENDINGS]
    refuse_new_images(targets, data, command="ssl-vision evaluate")
    output_files = Outputs(
        targets, command="ssl-vision evaluate",
        inputs=input_files(data, *run_files(model)), overwrite=overwrite,
    )  # fmt: skip
    num_bytes = len(images) * (_ROW + 4 * len(classifier.classes)) + _PICTURES
    check_space(folder, num_bytes, what=f"the results of {len(images):,} images", files=len(_ENDINGS))
    logits = extract(classifier, images, batch_size=inference.batch_size).cpu()
    score = score_classifier(
        logits,
        labels,
        classes=classifier.classes,
        model=model,
        model_hash=module_hash(classifier.model),
        data=data,
        split=images.split,
        bins=bins,
        validation_share=share,
        class_names=classifier.class_names,
    )
    predictions = make_predictions(
        logits.softmax(dim=1).numpy(),
        labels.numpy(),
        paths=[images.path(i) for i in range(len(images))],
        classes=classifier.classes,
    )
    with output_files:
        return Evaluation(score, _write(folder, stem, score, predictions))


_ROW, _PICTURES = 100, 200_000  # bytes of an image's path and label, and of the two pictures
_ENDINGS = (".json", "-predictions.npz", "-confusion.png", "-reliability.png")


def match_classes(images: ImageSet, classes: list[str]) -> Tensor:
    """Convert the labels of a set to the class numbers of a classifier, which can have more classes than the set.

    Raises:
        UserError: There are no labels, or an image has a class that the classifier was not trained on.
    """
    labels = images.labels()
    class_numbers = torch.unique(labels).tolist()
    unknown = [images.classes[label] for label in class_numbers if images.classes[label] not in classes]
    if unknown:
        raise UserError(
            f"{images.name}: found images of {len(unknown)} classes that the classifier was not trained on "
            f"({some_of(unknown)}); its classes are {some_of(classes)}. Give data with these class names"
        )
    number = torch.tensor([classes.index(name) if name in classes else -1 for name in images.classes])
    return number[labels]


def _write(folder: Path, stem: str, score: ClassifierScore, predictions: Predictions) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem}{end}" for end in _ENDINGS]
    write_predictions(files[1], predictions)
    write_atomic(files[2], to_png(confusion_figure(score.confusion, [score.label(name) for name in score.classes])))
    write_atomic(files[3], to_png(reliability_figure(score.calibration)))
    write_atomic(files[0], to_json(score))  # last: if it exists, the others do
    return files
