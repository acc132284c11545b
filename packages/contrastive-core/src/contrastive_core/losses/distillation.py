"""Distillation loss between the class probabilities of a student and a teacher."""

from __future__ import annotations

from torch import Tensor

from contrastive_core.losses._inputs import LossModule, check_floating, check_temperature, result_dtype, tensors_first
from contrastive_core.similarity.autograd import differentiable_once


@tensors_first
def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
) -> Tensor:
    """Compute the cross-entropy between the class probabilities of teacher and student at the same temperature.

        loss = mean over samples of   - sum_c softmax(teacher / temperature)_c log softmax(student / temperature)_c

    The teacher receives no gradient. Classes to which the teacher gives probability 0, such as those with a logit of
    -inf, contribute 0. The loss is computed in float32 or better regardless of autocast.

    Args:
        student_logits: Logits [N, C] of the student.
        teacher_logits: Logits [N, C] of the teacher.
        temperature: Positive number; values above 1 soften the probabilities. SimCLRv2 uses 0.1 for self-distillation
            and 1 for a smaller student.
        scale_by_temperature: Whether to multiply the loss by the squared temperature, which keeps the size of gradients
            about the same. The notebook released with SimCLRv2 multiplies by it; the paper's equation does not.

    Returns:
        Scalar; float64 if an input is float64, else float32. Its minimum is the entropy of the teacher's probabilities.

    Raises:
        ValueError: Shapes differ or are not [N, C], there is no sample, or the temperature is not positive and finite.
        TypeError: Logits are not floating point, or the temperature is not a number.

    Reference: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", equation 2.

    >>> import torch
    >>> from contrastive_core import distillation
    >>> distillation(torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, -9.0]]))
    tensor(0.1269)
    """
    temperature = check_temperature("distillation", temperature)
    check_floating("distillation", student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2 or student_logits.numel() == 0:
        raise ValueError(
            f"distillation: student_logits is {list(student_logits.shape)} and teacher_logits is "
            f"{list(teacher_logits.shape)}, expected both [N, C] with at least one sample and one class"
        )
    dtype = result_dtype(student_logits, teacher_logits)
    student, teacher = (_over_temperature(x.to(dtype), temperature) for x in (student_logits, teacher_logits.detach()))
    target = teacher.softmax(1)
    # Classes that both exclude by logits of -inf contribute 0, not 0 * -inf.
    losses = -(target * student.log_softmax(1).masked_fill(target == 0, 0.0)).sum(1)
    return differentiable_once(losses.mean(), student_logits) * (temperature**2 if scale_by_temperature else 1.0)


class DistillationLoss(LossModule):
    """:func:`distillation` as a module: ``DistillationLoss(temperature=0.1)(student, teacher)``."""

    @tensors_first
    def __init__(self, *, temperature: float = 1.0, scale_by_temperature: bool = False) -> None:
        super().__init__()
        check_temperature("DistillationLoss", temperature)
        self.temperature, self.scale_by_temperature = temperature, scale_by_temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return distillation(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            scale_by_temperature=self.scale_by_temperature,
        )


def _over_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by the temperature, after subtracting the largest one so that rounding is not magnified."""
    return (logits - logits.detach().amax(1, keepdim=True)) / temperature
