"""Selection of the backend that computes similarities.

`native` is the compiled library, if available; `torch` computes tiles in PyTorch; `reference` computes the full matrix
(for tests).
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
    """Name and differentiable functions of a backend (`losses._inputs` describes the last two)."""

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
    """Return the compiled backend, or the reason why it is unavailable."""
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
    """Return the reason and the remedy for each backend that does not load."""
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
    """Return the backend in use.

    The environment variable CONTRASTIVE_CORE_BACKEND selects it when this package is first used: auto (the default)
    for the fastest that loads, or native, torch or reference.
    """
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use another backend inside a `with` block, for the whole process, for example to compare backends.

    Raises:
        ValueError: There is no backend of that name, or it does not load on this machine.
    """
    global _active  # noqa: PLW0603 - one choice for the process
    before = _active
    _active = _choose(name, asked_by="the backend")
    try:
        yield
    finally:
        _active = before
