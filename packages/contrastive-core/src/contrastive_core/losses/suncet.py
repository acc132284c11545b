"""SuNCEt, the supervised noise-contrastive loss on a labelled mini-batch, with optional label smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive_core.distributed import Gather, gather_rows, how_to_gather, rank
from contrastive_core.losses._candidates import (
    check_ignore_index,
    class_numbers,
    count_labelled,
    find_positives,
    lse_by_class,
)
from contrastive_core.losses._class_probabilities import class_shares
from contrastive_core.losses._inputs import (
    Temperature,
    are_half,
    check_at_least_two,
    check_learned_temperature,
    check_rows,
    result_dtype,
    shown,
    tensors_first,
    unit_rows,
    working_dtype,
)
from contrastive_core.losses.nt_xent import softplus
from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.ring import NO_CLASS


@tensors_first
def suncet(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    gather: Gather = False,
) -> Tensor:
    """Neighbourhood-component loss with labels: is a random neighbour of this sample of its class?

        loss = mean over anchors i of   -log( sum_{j != i, y_j = y_i} exp(s_ij) / sum_{j != i} exp(s_ij) ),
        s_ij = cos(z_i, z_j) / temperature

    The positives stand inside the logarithm (in `supcon` outside). Memory O(N D), time little more than that of two
    matrix products N x N x D. Computed in float32 or better whatever autocast says; below temperature 0.1 in float64.
    The loss keeps its relative precision when it is close to 0.

    With `label_smoothing` e over the C classes that occur among the candidates, as in today's released code:

        loss = mean over anchors i of   - sum_c t_ic log( sum_{j != i} p_ij t_jc ),
        t_ic = (1 - e) [y_i = c] + e / C,     p_i = softmax of s_ij over j != i

    computed in float64, in time of three matrix products N x N x D, memory O(N (D + C)).

    Args:
        z: embeddings [N, D] of labelled samples, l2-normalised here.
        labels: class numbers [N], integers from 0 in any order.
        temperature: positive; 0.1 in the paper;
            a number, or a tensor of one to learn it (the host reads it in every call).
        label_smoothing: in [0, 1); 0 in the paper.
        ignore_index: label of unlabelled samples, usually -1. They are neither anchors nor positives, and no candidates
            either: the paper's sums run over the labelled mini-batch, and whether an unlabelled neighbour is of the
            anchor's class, which is what the loss asks, is not known. The result is that of the labelled rows alone.
        gather: candidates are the samples of all processes, anchors those of this process; with the mean of parameter
            gradients over processes, the loss of the union batch. "all"
            and "ring" say how they come (`how_to_gather`).

    Returns:
        Scalar, float64 if z is, else float32.

    Edges: an anchor that is alone in its class has no positive (its loss would be infinite, as it is in the released
    code) and is left out of the mean; `count_skipped_anchors(labels)` counts them. All left out: exactly 0, with zero
    gradient. With label smoothing every anchor counts: its loss is finite without a positive. A row of zeros has
    similarity 0 with everything and no gradient; NaN embeddings give NaN.

    Raises:
        ValueError: wrong shapes, fewer than two samples, temperature not positive and finite, label_smoothing out of
            [0, 1), negative labels other than ignore_index; with `gather`, numbers of samples that differ between
            processes (raised on each).
        TypeError: embeddings that are not floating point, labels that are not integers, temperature not a number.

    Reference: Assran et al. 2020, "Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning of
    Visual Representations", and its released src/losses.py.

    >>> import torch
    >>> from contrastive_core import suncet
    >>> z = torch.eye(4)[[0, 0, 1, 1]]
    >>> suncet(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
    tensor(0.5514)
    """
    return _suncet(
        "suncet", z, labels, temperature, label_smoothing=label_smoothing, ignore_index=ignore_index, gather=gather
    )[0]


class SuNCEtLoss(nn.Module):
    """:func:`suncet` with its keywords held.

    After a call, `skipped_anchors` is how many anchors of the batch (with `gather`: of all processes) had no positive
    and were left out, as an int64 scalar tensor.
    """

    skipped_anchors: Tensor | None = None

    @tensors_first
    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.1,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        gather: Gather = False,
    ) -> None:
        super().__init__()
        check_learned_temperature("SuNCEtLoss", temperature)
        _check_smoothing("SuNCEtLoss", label_smoothing)
        check_ignore_index("SuNCEtLoss", ignore_index)
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.ignore_index, self.gather = ignore_index, gather

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        loss, self.skipped_anchors = _suncet(
            "SuNCEtLoss", z, labels, self.temperature, label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index, gather=self.gather,
        )  # fmt: skip
        return loss

    def extra_repr(self) -> str:
        return (
            f"temperature={shown(self.temperature)}, label_smoothing={self.label_smoothing}, "
            f"ignore_index={self.ignore_index}, gather={self.gather}"
        )


def _suncet(
    name: str,
    z: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    *,
    label_smoothing: float,
    ignore_index: int | None,
    gather: Gather,
) -> tuple[Tensor, Tensor]:
    """The loss, and how many anchors were left out."""
    t = Temperature(name, temperature)
    _check_smoothing(name, label_smoothing)
    check_rows(name, z=z)
    labels = class_numbers(name, labels, rows=z, ignore_index=ignore_index)
    rows = unit_rows(z, exact_dtype(z) if label_smoothing else working_dtype(z, temperature=t.value))
    way = how_to_gather(name, gather, rows)
    if label_smoothing and gather == "ring":
        raise ValueError(f'{name}: with label_smoothing all rows are gathered; expected gather=True or "all"')
    positives = find_positives(labels, gather=way != "alone")
    check_at_least_two(name, len(positives.everyone))
    if label_smoothing:
        gathered = way != "alone"
        losses = smoothed_losses(
            t.link(rows), t.link(gather_rows(rows) if gathered else rows), positives.everyone, scale=t.scale,
            first=rank() * len(rows) if gathered else 0, label_smoothing=label_smoothing,
            with_ignored=ignore_index is not None,
        )  # fmt: skip
        labelled = (positives.anchors + positives.skipped).clamp(min=1)
        loss = losses.sum() * positives.processes / labelled
        return loss.to(result_dtype(z)), torch.zeros_like(positives.skipped)
    same, different = lse_by_class(
        t.link(rows), positives.own, scale=t.scale, way=way, half=are_half(z), with_ignored=ignore_index is not None
    )
    # Where there is no positive, same is -inf; the values put in their place are not used.
    same, different = (torch.where(positives.live, x, 0.0) for x in (same, different))
    return positives.mean(softplus(different - same)).to(result_dtype(z)), positives.skipped


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}, expected a share in [0, 1)")


def smoothed_losses(
    rows: Tensor,
    everyone: Tensor,
    labels: Tensor,
    *,
    first: int,
    scale: float,
    label_smoothing: float,
    with_ignored: bool = False,
) -> Tensor:
    """Cross-entropy [n] between an anchor's smoothed label and the smoothed labels of its random neighbour.

    Memory O(N (D + C)), see `class_shares`.

    Args:
        rows: the anchors, unit vectors [n, D].
        everyone: the candidates, unit vectors [N, D].
        labels: class numbers [N] of the candidates.
        first: place of the first anchor among the candidates, whose next ones are the others.
        scale: one over the temperature.
        label_smoothing: in (0, 1).
        with_ignored: leave out rows labelled NO_CLASS, as anchors and as candidates; the result has fewer rows then.
    """
    if with_ignored:
        labelled = labels != NO_CLASS
        own = labelled[first : first + len(rows)]
        first = count_labelled(labels[:first])
        rows, everyone, labels = rows[own], everyone[labelled], labels[labelled]
        if len(labels) < 2:
            return rows.sum(1) * 0.0  # no neighbour
    classes, number = torch.unique(labels, return_inverse=True)
    one_hot = F.one_hot(number, len(classes)).to(rows.dtype)
    share = class_shares(rows, everyone, one_hot, scale=scale, first=first)
    spread = label_smoothing / len(classes)
    target, found = (spread + (1 - label_smoothing) * part for part in (one_hot[first : first + len(rows)], share))
    return -(target * found.log()).sum(1)
