"""Distillation: the student learns the teacher's class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.losses._common import check_same_shape, check_temperature


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, scale_by_temperature: bool = False
) -> Tensor:
    """Cross-entropy of the student's probabilities under the teacher's, both at the same temperature.

    ``loss = - mean over images of  sum over classes y of  P_teacher(y) log P_student(y)``
    with ``P(y) = softmax(logits / temperature)``. The teacher receives no gradient.

    Shapes: both ``[N, C]`` -> scalar, computed in float32 (float64 for float64 logits).

    Args:
        student_logits: of the network that learns.
        teacher_logits: of the network that is imitated.
        temperature: above 1 softer, below 1 sharper targets.
        scale_by_temperature: multiply by temperature squared, which keeps the size of the gradient; the released notebook
            does, the equation of the paper does not.

    Raises:
        ValueError: shapes differ or are not [N, C], no images, temperature not positive.

    Reference: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", Eq. 2.

    >>> import torch
    >>> from contrastive_core import distillation
    >>> logits = torch.zeros(5, 4)
    >>> round(distillation(logits, logits).item(), 4)  # log 4
    1.3863
    """
    check_temperature(temperature)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.ndim != 2 or len(student_logits) == 0 or not student_logits.is_floating_point():
        raise ValueError(f"logits must be floating-point [N, C] with N > 0, got {tuple(student_logits.shape)}")
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    target = (teacher_logits.detach().to(dtype) / temperature).softmax(dim=1)
    loss = -(target * (student_logits.to(dtype) / temperature).log_softmax(dim=1)).sum(dim=1).mean()
    return loss * temperature**2 if scale_by_temperature else loss


class DistillationLoss(nn.Module):
    """:func:`distillation` with its keywords held."""

    def __init__(self, *, temperature: float = 1.0, scale_by_temperature: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.scale_by_temperature = temperature, scale_by_temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return distillation(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            scale_by_temperature=self.scale_by_temperature,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, scale_by_temperature={self.scale_by_temperature}"
