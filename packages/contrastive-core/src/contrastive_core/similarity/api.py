"""Check the arguments of the row-wise log-sum-exp and select the backend that computes it.

The backend `native` is the compiled library, if available; `torch` computes tiles in PyTorch; `reference` computes the
full matrix, for tests.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.native.library import NotLoadedError
from contrastive_core.similarity import autograd, native_backend, reference
from contrastive_core.similarity.precision import HALF_DTYPES
from contrastive_core.similarity.reference import Entries

VARIABLE = "CONTRASTIVE_CORE_BACKEND"

Among = Literal["all", "same", "other"]


def self_lse(
    z: Tensor,
    *,
    scale: float,
    skip: int | None = None,
    classes: Tensor | None = None,
    among: Among = "all",
    max_norm: float | None = None,
    half: bool = False,
) -> Tensor:
    """Compute the row-wise log-sum-exp of the similarities between the vectors of a set, without storing the matrix.

        out[i] = log sum_{j in C(i)} exp(scale * z_i . z_j),    C(i): all rows but i and those excluded below

    A row with empty C(i) gives -inf and propagates no gradient. Value and gradient together take O(N D) memory and the
    time of two matrix products N x N x D. Similarities are computed in float32 (float64 for float64 input) regardless
    of autocast and TF32 settings, and their sums in float64; a float32 gradient computed on the tensor cores of a GPU
    has a relative error of at most 2e-5. Derivatives up to the third order are available in O(N D) memory, including
    forward mode and `torch.func`.

    Args:
        z: Vectors [N, D] of any floating type and strides; not normalised here.
        scale: One over the temperature.
        skip: Offset of further rows to exclude, i + skip and i - skip; for two stacked views, the other view of the
            same sample.
        classes: Class numbers [N] in ascending order and below 2^63 - 1, required by `among`. Omit rows without a
            class.
        among: "same" restricts C(i) to the rows of i's class, "other" to the rows of other classes.
        max_norm: Upper bound on the lengths of the vectors (1 for unit vectors), which is not checked. With it, the
            data need not be read, which would synchronise with a GPU, and tensor cores can be used.
        half: Whether the vectors were computed from float16 or bfloat16 numbers (z itself may be of such a type).
            Tensor cores may then round the vectors to 11 bits, which takes a third of the time. Sums are in float32.

    Returns:
        Log-sum-exp [N] in float64 (float32 on MPS), because losses are differences of such numbers.

    Raises:
        TypeError: z is not floating point.
        ValueError: Shapes are wrong, scale is not a positive finite number, or only one of `classes` and `among` is
            given.

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> self_lse(z, scale=2.0).exp().round(decimals=3)
    tensor([8.3890, 2.0000, 8.3890], dtype=torch.float64)
    """
    _check("self_lse", scale, among, classes is not None, z=z)
    if classes is not None:
        _check_classes("self_lse", z, classes)
    half = half or z.dtype in HALF_DTYPES
    pair = None if classes is None else (classes, classes)
    return active_backend().self_lse(z, Entries(scale, skip, pair, among, max_norm, half))


def row_lse(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    self_offset: int | None = None,
    classes: tuple[Tensor, Tensor] | None = None,
    among: Among = "all",
    max_norm: float | None = None,
    half: bool = False,
) -> Tensor:
    """Compute the row-wise log-sum-exp of the similarities between queries and keys, without storing the matrix.

        out[i] = log sum_{j in C(i)} exp(scale * q_i . k_j),    C(i): all keys but those excluded below

    This is the counterpart of :func:`self_lse` for two sets, for example with keys from other processes or a memory
    bank. It takes O((Nq + Nk) D) memory and the time of four matrix products Nq x Nk x D. Only required gradients are
    computed.

    Args:
        q: Queries [Nq, D].
        k: Keys [Nk, D].
        scale: One over the temperature.
        self_offset: Offset of the key to exclude for each query: query i excludes key i + self_offset, if it exists.
        classes: Class numbers [Nq] and [Nk], both ascending, required by `among`.
        among: "same" restricts C(i) to the keys of the query's class, "other" to the keys of other classes.
        max_norm: Upper bound on the lengths of queries and keys, as in :func:`self_lse`.
        half: As in :func:`self_lse`.

    Returns:
        Log-sum-exp [Nq] in float64 (float32 on MPS); -inf for a query without candidates.

    Raises:
        TypeError, ValueError: As in :func:`self_lse`, or if widths or devices differ.

    >>> row_lse(torch.eye(2), torch.eye(2), scale=1.0).exp().round(decimals=3)
    tensor([3.7180, 3.7180], dtype=torch.float64)
    """
    _check("row_lse", scale, among, classes is not None, q=q, k=k)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"row_lse: q is {list(q.shape)} and k is {list(k.shape)}, expected the same number of columns")
    if q.device != k.device:
        raise ValueError(f"row_lse: q is on {q.device} and k on {k.device}, expected the same device")
    if classes is not None:
        _check_classes("row_lse", q, classes[0])
        _check_classes("row_lse", k, classes[1])
    dtype = torch.promote_types(q.dtype, k.dtype)
    entries = Entries(scale, self_offset, classes, among, max_norm, half or dtype in HALF_DTYPES)
    return active_backend().row_lse(q.to(dtype), k.to(dtype), entries)


def row_lse_gradient(
    grad: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    classes: tuple[Tensor, Tensor] | None = None,
    among: Among = "all",
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Compute the contribution of a subset of the keys to the gradient of a log-sum-exp over all keys.

        dq_i = scale * grad_i sum_j exp(S_ij - lse_i) k_j,     dk_j = scale * sum_i grad_i exp(S_ij - lse_i) q_i

    Args:
        grad: Gradient [Nq] with respect to the log-sum-exp over all keys.
        lse: Log-sum-exp [Nq] over all keys, which include `k`.
        q: Queries [Nq, D] in float32 or float64.
        k: Subset of the keys, [Nk, D] of the same type.
        scale: As in :func:`row_lse`.
        classes: As in :func:`row_lse`.
        among: As in :func:`row_lse`.
        needs: Whether to compute dq and whether to compute dk.

    Returns:
        dq [Nq, D] and dk [Nk, D]; an empty tensor instead of one that is not needed.
    """
    q_classes, k_classes = classes or (None, None)
    is_native = active_backend().name == "native" and q.device.type == "cpu"
    operators = torch.ops.contrastive_core_native if is_native else torch.ops.contrastive_core
    parts: tuple[Tensor, Tensor] = operators.row_lse_backward(
        grad, lse, q, k, scale, None, q_classes, k_classes, among, *needs
    )
    return parts


def _check(name: str, scale: float, among: str, with_classes: bool, **rows: Tensor) -> None:
    for argument, x in rows.items():
        if not x.is_floating_point():
            raise TypeError(f"{name}: {argument} is {x.dtype}, expected a floating-point tensor")
        if x.ndim != 2:
            raise ValueError(f"{name}: {argument} has shape {list(x.shape)}, expected [rows, features]")
    # Comparisons, because torch.compile does not support math.isfinite for a symbolic number.
    if not 0 < scale < math.inf:
        raise ValueError(f"{name}: scale is {scale}, expected a positive finite number (one over the temperature)")
    if among not in ("all", "same", "other") or (among != "all") != with_classes:
        raise ValueError(
            f"{name}: among is {among!r} {'with' if with_classes else 'without'} classes; expected 'same' or 'other' "
            "together with classes, or neither"
        )


def _check_classes(name: str, x: Tensor, classes: Tensor) -> None:
    if classes.shape != x.shape[:1]:
        raise ValueError(f"{name}: classes has shape {list(classes.shape)}, expected [{len(x)}], one per row")


@dataclass(frozen=True)
class Backend:
    """Name and differentiable functions of a backend; `losses._inputs` describes the last two functions."""

    name: str
    self_lse: Callable[[Tensor, Entries], Tensor]
    row_lse: Callable[[Tensor, Tensor, Entries], Tensor]
    unit_rows: Callable[[Tensor, torch.dtype], Tensor] = autograd.unit_rows
    paired_similarity: Callable[[Tensor, Tensor], Tensor] = autograd.paired_similarity


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
    """Return the reason and the remedy for each backend that could not be loaded."""
    backend = _native()
    return {"native": backend} if isinstance(backend, str) else {}


def _choose(name: str, *, source: str) -> Backend:
    if name in _BACKENDS:
        return _BACKENDS[name]
    if name not in ("auto", "native"):
        raise ValueError(f"{source} is {name!r}, expected auto or one of {', '.join(_NAMES)}")
    backend = _native()
    if isinstance(backend, Backend):
        return backend
    if name == "native":
        raise ValueError(f"{source} is 'native', which could not be loaded ({backend}); alternatively, use auto")
    return _BACKENDS["torch"]


# The backend is chosen once, because reading the environment in every call would break graphs under torch.compile.
_active = _choose(os.environ.get(VARIABLE, "auto"), source=f"the environment variable {VARIABLE}")


def active_backend() -> Backend:
    """Return the backend in use.

    The environment variable CONTRASTIVE_CORE_BACKEND selects it when this package is first used: auto (the default)
    selects the fastest available backend, and native, torch or reference select a specific one.
    """
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use another backend inside a `with` block, in all threads of the process, for example to compare backends.

    Args:
        name: auto, native, torch or reference, as for `active_backend`.

    Raises:
        ValueError: There is no backend of that name, or it cannot be loaded on this machine.
    """
    global _active  # noqa: PLW0603 - one choice for the process
    before = _active
    _active = _choose(name, source="the backend")
    try:
        yield
    finally:
        _active = before
