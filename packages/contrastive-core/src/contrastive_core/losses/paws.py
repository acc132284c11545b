"""PAWS loss: consistent soft nearest-neighbour predictions for two views of an unlabelled image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.distributed import gather_labels, gather_rows
from contrastive_core.losses._class_probabilities import class_shares, sharpen
from contrastive_core.losses._inputs import (
    LossModule,
    check_at_least_two,
    check_ignore_index,
    check_label_smoothing,
    check_number,
    check_rows,
    check_same_count,
    check_temperature,
    class_numbers,
    refuse_vmap_over_labels,
    result_dtype,
    tensors_first,
    unit_rows,
    without_ignored,
)
from contrastive_core.similarity.autograd import differentiable_once
from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.reference import NO_CLASS

_NEGLIGIBLE = 1e-4  # smaller target probabilities are set to 0, as in the released code


@tensors_first
def paws(
    view_a: Tensor,
    view_b: Tensor,
    supports: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    sharpening: float = 0.25,
    label_smoothing: float = 0.1,
    ignore_index: int | None = None,
    gather: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the two terms of the PAWS loss, consistency between two views and mean-entropy maximisation.

        p(z) = sum_j softmax_j(cos(z, support_j) / temperature) t_j,    t_j the smoothed label of support j
        rho(p)_c = p_c^(1 / sharpening), normalised to sum 1
        consistency = mean over the 2N views of   - sum_c rho(p(other view))_c log p(view)_c,  no gradient through rho
        me_max = sum_c q_c log q_c,    q = mean over the 2N views of rho(p(view))

    The loss is the sum of both terms. There are no negatives: `me_max`, the negative entropy of the mean prediction,
    prevents all views from collapsing to one class. The soft nearest neighbours are those of `suncet`. The terms are
    computed in float64. For M supports and C classes they take O((N + M) (D + C)) memory and a block of 512 x M.

    Args:
        view_a: Embeddings [N, D] of the first views, l2-normalised here.
        view_b: Embeddings [N, D] of the second views, l2-normalised here.
        supports: Embeddings [M, D] of labelled samples, l2-normalised here.
        labels: Class numbers [M] of the supports, integers from 0. Only the classes that occur are predicted.
        temperature: Temperature of the similarities; 0.1 in the paper.
        sharpening: Temperature of the targets; 0.25 in the paper.
        label_smoothing: Label smoothing in [0, 1); 0.1 in the paper.
        ignore_index: Label of unlabelled supports, usually -1. They are excluded as candidates, because they have no
            label to contribute to the prediction. NaN in these rows has no effect, and their gradient is 0.
        gather: Whether to use the supports and the mean prediction of all processes. With parameter gradients averaged
            over processes, this is the loss of the union batch.

    Returns:
        consistency and me_max, scalars; float64 if an input is float64, else float32. Without smoothing, a class whose
        supports are all distant has probability 0 in floating point, and the loss is infinite if the other view is
        confident of that class.

    Raises:
        ValueError: Shapes differ, there is no view or fewer than two labelled supports, a label other than ignore_index
            is negative, temperature or sharpening is not positive, or label_smoothing is outside [0, 1); with `gather`,
            numbers of rows differ between processes.
        TypeError: Embeddings are not floating point, or labels are not integers.

    Reference: Assran et al. 2021, "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting View
    Assignments with Support Samples", equations 1 to 4, two views without small crops.

    >>> import torch
    >>> views, supports = torch.eye(4)[:2], torch.eye(4)[:2]
    >>> [round(loss.item(), 3) for loss in paws(views, views, supports, torch.tensor([0, 1]))]
    [0.051, -0.693]
    """
    temperature, sharpening, label_smoothing = _check_settings("paws", temperature, sharpening, label_smoothing)
    check_rows("paws", view_a=view_a, view_b=view_b, supports=supports)
    check_same_count("paws", view_a=view_a, view_b=view_b)
    if len(view_a) == 0:
        raise ValueError(f"paws: got views of shape {list(view_a.shape)}, expected at least one row")
    labels = class_numbers("paws", labels, rows=supports, ignore_index=ignore_index, wait=True)
    refuse_vmap_over_labels("paws", labels)
    if ignore_index is not None:
        supports = without_ignored(supports, labels)
    exact = exact_dtype(view_a)
    views = torch.cat([unit_rows(view_a, exact), unit_rows(view_b, exact)])
    candidates = unit_rows(supports, exact)
    if gather:
        candidates, labels = gather_rows(candidates), gather_labels(labels)
    if ignore_index is not None:
        is_labelled = labels != NO_CLASS
        candidates, labels = candidates[is_labelled], labels[is_labelled]
    check_at_least_two("paws", len(candidates))
    classes, number = torch.unique(labels, return_inverse=True)
    spread = label_smoothing / len(classes)
    smoothed = spread + (1 - label_smoothing) * F.one_hot(number, len(classes)).to(exact)
    prediction = class_shares(views, candidates, smoothed, scale=1 / temperature)
    sharp = sharpen(prediction, temperature=sharpening)
    target = sharp.detach().roll(len(view_a), 0)
    target = target.masked_fill(target < _NEGLIGIBLE, 0.0)
    consistency = -torch.xlogy(target, prediction).sum(1).mean()
    # All rows rather than means, because gathering compares the numbers of views, which must be equal.
    mean = (gather_rows(sharp) if gather else sharp).mean(0)
    dtype = result_dtype(view_a, view_b, supports)
    me_max = torch.xlogy(mean, mean).sum()
    first, second = (differentiable_once(x.to(dtype), view_a, view_b, supports) for x in (consistency, me_max))
    return first, second


class PAWSLoss(LossModule):
    """:func:`paws` as a module that returns the sum of both terms: ``PAWSLoss()(view_a, view_b, supports, labels)``."""

    @tensors_first
    def __init__(
        self,
        *,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        label_smoothing: float = 0.1,
        ignore_index: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        _check_settings("PAWSLoss", temperature, sharpening, label_smoothing)
        self.temperature, self.sharpening = temperature, sharpening
        check_ignore_index("PAWSLoss", ignore_index)
        self.label_smoothing, self.ignore_index, self.gather = label_smoothing, ignore_index, gather

    def forward(self, view_a: Tensor, view_b: Tensor, supports: Tensor, labels: Tensor) -> Tensor:
        consistency, me_max = paws(
            view_a,
            view_b,
            supports,
            labels,
            temperature=self.temperature,
            sharpening=self.sharpening,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            gather=self.gather,
        )
        return consistency + me_max


def _check_settings(
    name: str, temperature: float, sharpening: float, label_smoothing: float
) -> tuple[float, float, float]:
    """Return the settings as numbers."""
    temperature = check_temperature(name, temperature)
    sharpening = check_number(name, "sharpening", sharpening)
    if not sharpening > 0:
        raise ValueError(f"{name}: sharpening is {sharpening}, expected more than 0; 1 leaves the targets unchanged")
    return temperature, sharpening, check_label_smoothing(name, label_smoothing)
