"""Labels for unlabelled cases from a network's predictions, and which of their pixels are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.pseudo_label import PseudoLabels, agreement, class_thresholds, fuse, hard_labels
from contrastive_core.training.documents import reading
from contrastive_core.training.files import write_atomic
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.models.inference import slice_probabilities
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.selftraining.crf import SETTINGS, refine
from ssl_medseg.selftraining.options import PseudoLabelOptions

UNUSED = 255
"""Stands in a pseudo-label for pixels that no loss looks at."""

_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,))


@dataclass(frozen=True)
class PseudoCase:
    """The pseudo-label of a case.

    Attributes:
        name: of the case.
        label: uint8 [S, H, W]; `UNUSED` where a pixel is not sure enough.
        predicted: uint8 [S, H, W], the same before that choice.
        view_dice: how much the views agree, mean Dice over structures; None with one view.
        rejected: slices whose CRF result was refused.
    """

    name: str
    label: Tensor
    predicted: Tensor
    view_dice: float | None = None
    rejected: int = 0

    @property
    def used(self) -> bool:
        """Whether any pixel of it is used."""
        return bool((self.label != UNUSED).any())


def make_pseudo_labels(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    options: PseudoLabelOptions,
) -> list[PseudoCase]:
    """Predict every slice of some cases, clean the result and choose what is used of it.

    Nothing is drawn, and no label of `cases` is read.

    Raises:
        UserError: no case passes `case_dice`.
    """
    found = [_predict(network, case, options) for case in cases]
    classes = torch.cat([labels.classes.flatten() for labels, *_ in found])
    sure = torch.cat([labels.confidence.flatten() for labels, *_ in found])
    number = found[0][3]
    thresholds = torch.full((number,), options.threshold)
    if options.class_share < 1:
        every = PseudoLabels(classes, sure, torch.ones_like(classes, dtype=torch.bool))
        thresholds = class_thresholds(every, share=options.class_share, num_classes=number, least=options.threshold)
    made = []
    for case, (labels, rejected, view_dice, _) in zip(cases, found, strict=True):
        predicted = labels.classes.to(torch.uint8)
        keep = labels.keep & (labels.confidence >= thresholds[labels.classes])
        if view_dice is not None and view_dice < options.case_dice:
            keep = torch.zeros_like(keep)
        label = torch.where(keep, predicted, torch.tensor(UNUSED, dtype=torch.uint8))
        made.append(PseudoCase(case.name, label, predicted, view_dice, rejected))
    if not any(case.used for case in made):
        best = max((case.view_dice or 0.0 for case in made), default=0.0)
        raise UserError(
            f"no pseudo-label of {len(made)} cases is used: pseudo.case_dice {options.case_dice}, the most that a "
            f"case's views agree is {best:.2f}; pseudo.threshold {options.threshold}, pseudo.agreement "
            f"{options.agreement}. Lower them, or train the first network longer"
        )
    return made


def _predict(
    network: nn.Module, case: PreparedCase, options: PseudoLabelOptions
) -> tuple[PseudoLabels, int, float | None, int]:
    """Classes with confidence and agreement, refused CRF slices, agreement of the views, number of classes."""
    flips = _FLIPS[: options.views]
    views = torch.stack(
        [slice_probabilities(network, case.slices.flip(list(flip))).cpu().flip(list(flip)) for flip in flips]
    )
    probabilities = fuse(views)
    labels, rejected = hard_labels(probabilities), 0
    if options.crf != "off":
        refined = refine(case.slices, probabilities, SETTINGS[options.crf])
        # How sure the network is of what the CRF chose: after a CRF nearly all is sure.
        confidence = probabilities.gather(1, refined.labels[:, None])[:, 0]
        labels = PseudoLabels(refined.labels, confidence, torch.ones_like(confidence, dtype=torch.bool))
        rejected = int(refined.rejected.sum())
    if options.agreement:
        labels = labels._replace(keep=labels.keep & (agreement(views) >= options.agreement))
    view_dice = None if len(flips) == 1 else _agreement_of_views(views)
    return labels, rejected, view_dice, probabilities.shape[1]


def _agreement_of_views(views: Tensor) -> float:
    """Mean over the other views and the structures found of the Dice with the first view."""
    named = views.argmax(2)
    scores = [label_map_dice(named[0], other, views.shape[2])[1:] for other in named[1:]]
    found = torch.cat(scores)
    return float(found[~found.isnan()].mean()) if bool((~found.isnan()).any()) else 0.0


def label_map_dice(a: Tensor, b: Tensor, classes: int) -> Tensor:
    """`class_dice` of two label maps given as tensors: float64 [C]."""
    return torch.from_numpy(class_dice(a.cpu().numpy(), b.cpu().numpy(), classes=classes))


def write_pseudo_labels(path: Path, made: Sequence[PseudoCase]) -> None:
    """Keep the pseudo-labels of a round: tensors NAME (used pixels) and NAME.predicted."""
    tensors = {case.name: case.label.clone(memory_format=torch.contiguous_format) for case in made}
    tensors |= {f"{case.name}.predicted": case.predicted.clone(memory_format=torch.contiguous_format) for case in made}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors))


def read_pseudo_labels(path: Path) -> list[PseudoCase]:
    """What `write_pseudo_labels` wrote, by name, without what is not in the file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    with reading(path, "cannot be read as pseudo-labels", "start the run again"):
        tensors = safetensors.torch.load_file(path)
    names = [name for name in tensors if f"{name}.predicted" in tensors]
    return [PseudoCase(name, tensors[name], tensors[f"{name}.predicted"]) for name in sorted(names)]
