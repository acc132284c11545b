"""SuNCEt, the supervised noise-contrastive estimation loss, with optional label smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.distributed import Gather, gather_rows, how_to_gather, rank
from contrastive_core.losses._class_probabilities import class_shares
from contrastive_core.losses._inputs import (
    LossModule,
    Temperature,
    are_half,
    check_at_least_two,
    check_ignore_index,
    check_label_smoothing,
    check_learned_temperature,
    check_rows,
    class_numbers,
    count_labelled,
    find_positives,
    lse_by_class,
    refuse_vmap_over_labels,
    result_dtype,
    tensors_first,
    unit_rows,
    without_ignored,
    working_dtype,
)
from contrastive_core.losses.nt_xent import softplus
from contrastive_core.similarity.autograd import differentiable_once
from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.reference import NO_CLASS
from contrastive_core.synchronization import free_to_read

# Largest batch on a GPU for which label smoothing uses a column per sample rather than one per class.
_MOST_COLUMNS = 1024


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
    """Compute the supervised noise-contrastive estimation loss (SuNCEt).

        loss = mean over anchors i of   -log( sum_{j != i, y_j = y_i} exp(s_ij) / sum_{j != i} exp(s_ij) ),
        s_ij = cos(z_i, z_j) / temperature

    Each term is the negative log-probability that a neighbour drawn by softmax similarity has the anchor's class. The
    sum over positives is inside the logarithm (in `supcon` it is outside). The loss takes O(N D) memory and little more
    time than two matrix products N x N x D. It is computed in float32 or better regardless of autocast, and in float64
    below temperature 0.1. It keeps its relative precision close to 0.

    With `label_smoothing` e over the C classes that occur among the candidates, as in the current released code,

        loss = mean over anchors i of   - sum_c t_ic log( sum_{j != i} p_ij t_jc ),
        t_ic = (1 - e) [y_i = c] + e / C,     p_i = softmax of s_ij over j != i

    The smoothed loss is computed in float64, in the time of three matrix products N x N x D and O(N (D + C)) memory.

    Args:
        z: Embeddings [N, D] of labelled samples, l2-normalised here.
        labels: Class numbers [N], integers from 0 in any order.
        temperature: Positive number, or a tensor with one element to learn it (the host reads it in every call);
            0.1 in the paper.
        label_smoothing: Label smoothing in [0, 1); 0 in the paper.
        ignore_index: Label of unlabelled samples, usually -1. They are excluded as anchors, positives and candidates,
            so that the result is that of the labelled rows alone: the paper's sums run over the labelled mini-batch,
            and whether an unlabelled neighbour has the anchor's class is unknown. NaN in these rows has no effect, and
            their gradient is 0.
        gather: Whether the candidates are the samples of all processes; the anchors are those of this process. With
            parameter gradients averaged over processes, this is the loss of the union batch. "all" and "ring" select
            how rows are exchanged (see `how_to_gather`).

    Returns:
        Scalar; float64 if z is float64, else float32. A row of zeros has similarity 0 with every row and no gradient;
        NaN embeddings of labelled samples give NaN.

    Raises:
        ValueError: Shapes are wrong, there are fewer than two samples, the temperature is not positive and finite,
            label_smoothing is outside [0, 1), or a label other than ignore_index is negative; with `gather`, the number
            of samples differs between processes (raised on each).
        TypeError: Embeddings are not floating point, labels are not integers, or the temperature is not a number.

    Note:
        An anchor that is the only sample of its class has no positive (its loss would be infinite, as in the released
        code) and is excluded from the mean; `count_skipped_anchors(labels)` counts these anchors. If all anchors are
        excluded, the loss is exactly 0, with zero gradient. With label smoothing no anchor is excluded, because the
        loss is finite without a positive.

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


class SuNCEtLoss(LossModule):
    """:func:`suncet` as a module.

    After a call, `skipped_anchors` holds the number of anchors of the batch (with `gather`: of all processes) that had
    no positive and were excluded, as an int64 scalar tensor.
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
        check_label_smoothing("SuNCEtLoss", label_smoothing)
        check_ignore_index("SuNCEtLoss", ignore_index)
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.ignore_index, self.gather = ignore_index, gather

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        loss, self.skipped_anchors = _suncet(
            "SuNCEtLoss", z, labels, self.temperature, label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index, gather=self.gather,
        )  # fmt: skip
        return loss


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
    """Return the loss and the number of excluded anchors."""
    t = Temperature(name, temperature)
    label_smoothing = check_label_smoothing(name, label_smoothing)
    check_rows(name, z=z)
    labels = class_numbers(name, labels, rows=z, ignore_index=ignore_index)
    if label_smoothing or ignore_index is not None:
        refuse_vmap_over_labels(name, labels)
    labelled_rows = z if ignore_index is None else without_ignored(z, labels)
    rows = unit_rows(labelled_rows, exact_dtype(z) if label_smoothing else working_dtype(z, temperature=t.value))
    way = how_to_gather(name, gather, rows)
    if label_smoothing and gather == "ring":
        raise ValueError(
            f'{name}: got gather="ring" with label_smoothing, which gathers all rows; expected gather=True or "all"'
        )
    positives = find_positives(labels, gather=way != "alone")
    check_at_least_two(name, len(positives.all_labels))
    if label_smoothing:
        is_gathered = way != "alone"
        losses = smoothed_losses(
            t.link(rows), t.link(gather_rows(rows) if is_gathered else rows), positives.all_labels, scale=t.scale,
            first=rank() * len(rows) if is_gathered else 0, label_smoothing=label_smoothing,
            with_ignored=ignore_index is not None,
        )  # fmt: skip
        num_labelled = (positives.anchors + positives.skipped).clamp(min=1)
        loss = positives.or_nan(losses.sum()) * positives.processes / num_labelled
        return differentiable_once(loss.to(result_dtype(z)), z), torch.zeros_like(positives.skipped)
    same, different = lse_by_class(
        t.link(rows), positives.own, scale=t.scale, way=way, half=are_half(z), with_ignored=ignore_index is not None
    )
    # Without a positive, `same` is -inf; the values that replace it here are not used.
    same, different = (torch.where(positives.live, x, 0.0) for x in (same, different))
    loss = positives.mean(softplus(different - same)).to(result_dtype(z))
    return differentiable_once(loss, z), positives.skipped


def smoothed_losses(
    rows: Tensor,
    all_rows: Tensor,
    labels: Tensor,
    *,
    first: int,
    scale: float,
    label_smoothing: float,
    with_ignored: bool = False,
) -> Tensor:
    """Compute the cross-entropy [n] between an anchor's smoothed label and those of a randomly drawn neighbour.

    The computation takes O(N (D + C)) memory (see `class_shares`).

    Args:
        rows: Anchors, unit vectors [n, D].
        all_rows: Candidates, unit vectors [N, D].
        labels: Class numbers [N] of the candidates.
        first: Index of the first anchor among the candidates; the other anchors follow it.
        scale: One over the temperature.
        label_smoothing: Label smoothing in (0, 1).
        with_ignored: Whether to exclude rows labelled NO_CLASS as anchors and candidates; the result then contains
            zeros for them or omits them.
    """
    mask = labels != NO_CLASS
    if with_ignored and free_to_read(labels):
        own = mask[first : first + len(rows)]
        first = count_labelled(labels[:first])
        rows, all_rows, labels, mask = rows[own], all_rows[mask], labels[mask], mask[mask]
        if len(labels) < 2:
            return rows.sum(1) * 0.0  # no neighbour
    number, classes = _number_classes(labels)
    one_hot = ((number[:, None] == classes) & mask[:, None]).to(rows.dtype)
    share = class_shares(rows, all_rows, one_hot, scale=scale, first=first)
    of_rows = slice(first, first + len(rows))
    counts = mask[of_rows] & (mask.sum() > 1)
    if with_ignored:  # rows of NO_CLASS have no class, so that the shares of the classes do not sum to 1
        share = share / torch.where(counts, share.sum(1), 1.0)[:, None]
    present = one_hot.any(0)
    spread = label_smoothing / present.sum().clamp(min=1).to(rows.dtype)
    target, prediction = (spread + (1 - label_smoothing) * part for part in (one_hot[of_rows], share))
    return torch.where(counts, -(target * prediction.log() * present).sum(1), 0.0)


def _number_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the classes from 0; return the number of each label's class [N] and a range [C] that contains them all.

    C is the number of classes. For small batches on a GPU it is N, because counting the classes would make the host
    wait.
    """
    if free_to_read(labels) or len(labels) > _MOST_COLUMNS:
        classes, number = torch.unique(labels, return_inverse=True)
        return number, torch.arange(len(classes), device=labels.device)
    sorted_labels = labels.sort().values
    rank = F.pad((sorted_labels[1:] != sorted_labels[:-1]).cumsum(0), (1, 0))
    return rank[torch.searchsorted(sorted_labels, labels)], torch.arange(len(labels), device=labels.device)
