"""Which implementation of the primitive is used.

`torch` is the block path in PyTorch, `reference` the full matrix (for tests). A compiled backend enters here: one more
:class:`Backend` in `_BACKENDS`, ahead of `torch` in `_PREFERENCE`, or the reason why it did not load in `UNAVAILABLE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from contrastive_core.similarity import blocks, reference

VARIABLE = "CONTRASTIVE_CORE_BACKEND"


class SelfLse(Protocol):
    """The square form: :func:`contrastive_core.similarity.self_lse`, arguments checked, z in float32 or float64."""

    def __call__(
        self, z: Tensor, *, scale: float, skip: int | None, classes: Tensor | None, among: str, max_norm: float | None
    ) -> Tensor: ...


class RowLse(Protocol):
    """The rectangular form: :func:`contrastive_core.similarity.row_lse`, arguments checked, q and k of one type."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        scale: float,
        self_offset: int | None,
        classes: tuple[Tensor, Tensor] | None,
        among: str,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """Two differentiable functions and the name they go by."""

    name: str
    self_lse: SelfLse
    row_lse: RowLse


_BACKENDS: Mapping[str, Backend] = {
    "torch": Backend("torch", blocks.self_lse, blocks.row_lse),
    "reference": Backend("reference", reference.self_lse, reference.row_lse),
}
_PREFERENCE = ("torch",)
UNAVAILABLE: Mapping[str, str] = {"compiled": "not part of this installation"}
"""For every backend that did not load: why."""


def _choose(name: str, *, asked_by: str) -> Backend:
    if name == "auto":
        return _BACKENDS[_PREFERENCE[0]]
    if name in UNAVAILABLE:
        raise ValueError(f"{asked_by} is {name!r}, which did not load ({UNAVAILABLE[name]}); use auto")
    if name not in _BACKENDS:
        raise ValueError(f"{asked_by} is {name!r}, expected auto or one of {', '.join([*_BACKENDS, *UNAVAILABLE])}")
    return _BACKENDS[name]


# Chosen once: reading the environment in every call would break graphs under torch.compile.
_active = _choose(os.environ.get(VARIABLE, "auto"), asked_by=f"the environment variable {VARIABLE}")


def active_backend() -> Backend:
    """The backend in use: as the environment variable CONTRASTIVE_CORE_BACKEND said when this package was first used.

    auto (the default) takes the fastest that loads; torch and reference name one.
    """
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Another backend inside a `with` block, to compare them; for the whole process, like the environment variable.

    Raises:
        ValueError: no backend of that name, or it did not load here.
    """
    global _active  # noqa: PLW0603 - one choice for the process
    before = _active
    _active = _choose(name, asked_by="the backend")
    try:
        yield
    finally:
        _active = before
