"""Which implementation of the primitive computes: the door through which a compiled one comes in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from contrastive_core.similarity import blocks

VARIABLE = "CONTRASTIVE_CORE_BACKEND"
CHOICES = ("auto", "torch")


class Backend(Protocol):
    """What a backend offers: forward and backward of both forms, in the dtype of the operands.

    The signatures are those of :mod:`contrastive_core.similarity.blocks`.
    """

    def self_lse(self, z: Tensor, /, *, scale: float) -> Tensor:
        """[N, D] -> [N]."""

    def self_lse_backward(self, grad: Tensor, z: Tensor, lse: Tensor, /, *, scale: float) -> Tensor:
        """[N], [N, D], [N] -> [N, D]."""

    def row_lse(self, q: Tensor, k: Tensor, /, *, scale: float, self_offset: int | None) -> Tensor:
        """[Nq, D], [Nk, D] -> [Nq]."""

    def row_lse_backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        /,
        *,
        scale: float,
        self_offset: int | None,
        need_q: bool,
        need_k: bool,
    ) -> tuple[Tensor, Tensor]:
        """[Nq], [Nq, D], [Nk, D], [Nq] -> [Nq, D], [Nk, D]; empty, [0, D], where not needed."""


@dataclass(frozen=True)
class Choice:
    """The backend in use, and why each other one is not."""

    name: str
    not_used: dict[str, str]


def choose() -> Choice:
    """Read the choice from the environment.

    Raises:
        ValueError: CONTRASTIVE_CORE_BACKEND names no backend.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise ValueError(f"{VARIABLE} is {wanted!r}; expected one of {', '.join(CHOICES)}")
    return Choice("torch", {"compiled": "this version has no compiled extension; PyTorch blocks are used everywhere"})


def backend_for(operand: Tensor) -> Backend:
    """The backend that computes on this operand."""
    choose()
    return blocks
