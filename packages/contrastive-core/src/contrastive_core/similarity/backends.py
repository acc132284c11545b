"""Which implementation of the primitive is used.

`native` is the compiled library, where there is one; `torch` is the block path in PyTorch; `reference` is the full
matrix (for tests).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from contrastive_core.native.library import NotLoadedError
from contrastive_core.similarity import autograd, native_backend, reference, unit_vectors

VARIABLE = "CONTRASTIVE_CORE_BACKEND"


class SelfLse(Protocol):
    """The square form: :func:`contrastive_core.similarity.self_lse`, arguments checked, z of any floating type."""

    def __call__(
        self,
        z: Tensor,
        *,
        scale: float,
        skip: int | None,
        classes: Tensor | None,
        among: str,
        max_norm: float | None,
        half: bool,
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
        max_norm: float | None,
        half: bool,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """Differentiable functions and the name they go by (`losses.rows` describes the last two)."""

    name: str
    self_lse: SelfLse
    row_lse: RowLse
    unit_rows: Callable[[Tensor, torch.dtype], Tensor] = unit_vectors.unit_rows
    paired_similarity: Callable[[Tensor, Tensor], Tensor] = unit_vectors.paired_similarity


_BACKENDS: Mapping[str, Backend] = {
    "torch": Backend("torch", autograd.self_lse, autograd.row_lse),
    "reference": Backend("reference", reference.self_lse, reference.row_lse),
}
_NAMES = ("native", *_BACKENDS)


@functools.cache
def _native() -> Backend | str:
    """The compiled backend, or why it is not there."""
    try:
        native_backend.load_operators()
    except NotLoadedError as error:
        return str(error)
    return Backend(
        "native",
        native_backend.self_lse,
        native_backend.row_lse,
        native_backend.unit_rows,
        native_backend.paired_similarity,
    )


def unavailable() -> dict[str, str]:
    """For every backend that does not load: why, and what to do."""
    found = _native()
    return {"native": found} if isinstance(found, str) else {}


def _choose(name: str, *, asked_by: str) -> Backend:
    if name in _BACKENDS:
        return _BACKENDS[name]
    if name not in ("auto", "native"):
        raise ValueError(f"{asked_by} is {name!r}, expected auto or one of {', '.join(_NAMES)}")
    found = _native()
    if isinstance(found, Backend):
        return found
    if name == "native":
        raise ValueError(f"{asked_by} is 'native', which did not load ({found}); or use auto")
    return _BACKENDS["torch"]


# Chosen once: reading the environment in every call would break graphs under torch.compile.
_active = _choose(os.environ.get(VARIABLE, "auto"), asked_by=f"the environment variable {VARIABLE}")


def active_backend() -> Backend:
    """The backend in use: as the environment variable CONTRASTIVE_CORE_BACKEND said when this package was first used.

    auto (the default) takes the fastest that loads; native, torch and reference name one.
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
