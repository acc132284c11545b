"""The images that a classifier is surest and most wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from contrastive_core.app.report import page
from contrastive_core.errors import UserError
from ssl_vision.data import ImageSet, open_images
from ssl_vision.prediction_files import Predictions
from ssl_vision.reporting.evaluations import Evaluated
from ssl_vision.reporting.sheets import Picture


@dataclass(frozen=True)
class Mistake:
    """An image whose class is not the predicted one.

    Attributes:
        index: of the image.
        true: its class.
        predicted: the class of largest probability.
        confidence: that probability.
        given: the probability of the true class.
    """

    index: int
    true: str
    predicted: str
    confidence: float
    given: float


def most_confident(predictions: Predictions, count: int) -> list[Mistake]:
    """The wrong images of largest confidence, the surest first; of equals the first in the set."""
    predicted, confidences = predictions.predicted, predictions.confidences
    wrong = np.flatnonzero(predicted != predictions.labels)
    ranked = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    return [
        Mistake(
            index=int(i),
            true=str(predictions.classes[predictions.labels[i]]),
            predicted=str(predictions.classes[predicted[i]]),
            confidence=float(confidences[i]),
            given=float(predictions.probabilities[i, predictions.labels[i]]),
        )
        for i in ranked
    ]


def mistakes(evaluated: Evaluated, *, data: str | None, count: int) -> list[str]:
    """The part of an evaluation's section that shows them; `data` is where the images lie by now, if elsewhere."""
    title = f"<h3>{escape('Most confident mistakes')}</h3>"
    predictions = evaluated.predictions()
    if predictions is None:
        return [title, page.paragraph("The predictions were taken away; evaluate again to see the mistakes.")]
    chosen = most_confident(predictions, count)
    if not chosen:
        return [title, page.paragraph("There are none: every image is right.")]
    try:
        images = open_images(data or evaluated.score.data, split=evaluated.score.split)
        _check(images, predictions, chosen)
        pictures = [Picture(images.read(m.index), images.path(m.index), m.true) for m in chosen]
    except UserError as error:
        text = f"The images could not be opened ({error}). `ssl-vision report --data DATA` takes them from elsewhere."
        return [title, page.paragraph(text)]
    wrong = int((predictions.predicted != predictions.labels).sum())
    text = (
        f"Of {wrong:,} wrong images those that the classifier is surest of. Beneath each: its class, what it was taken "
        "for with which probability, and the probability of its class. Wrong labels and doubtful images gather here."
    )
    cells = "".join(f"<div>{_cell(*shown)}</div>" for shown in zip(pictures, chosen, strict=True))
    return [title, page.paragraph(text), page.figure(f'<div class="mistakes sheet">{cells}</div>')]


def _cell(picture: Picture, mistake: Mistake) -> str:
    return (
        page.image(picture.pixels, label=f"{picture.path}, {mistake.true} taken for {mistake.predicted}")
        + f'<span class="same">{escape(mistake.true)}</span> {_percent(mistake.given)}<br>'
        + f'<span class="other">{escape(mistake.predicted)}</span> {_percent(mistake.confidence)}'
    )


def _percent(probability: float) -> str:
    # No mistake shall read as certain that is not.
    return f"{100 * min(probability, 0.999):.1f} %" if probability < 0.9995 else "> 99.9 %"


def _check(images: ImageSet, predictions: Predictions, chosen: Sequence[Mistake]) -> None:
    """That the images are those that were predicted."""
    name = [images.path(m.index) if m.index < len(images) else "" for m in chosen]
    before = [str(predictions.paths[m.index]) for m in chosen]
    endings = [(now.rpartition("/")[2], then.rpartition("/")[2]) for now, then in zip(name, before, strict=True)]
    if len(images) != len(predictions.labels) or any(now != then for now, then in endings):
        raise UserError(f"{images.name}: its images are not those that were evaluated; evaluate again")
