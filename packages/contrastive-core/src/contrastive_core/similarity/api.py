"""Row log-sum-exp of a similarity matrix: argument checks, working precision, and the call of the backend."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from contrastive_core.similarity.backends import active_backend
from contrastive_core.similarity.precision import HALF_DTYPES

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
    """Row-wise log-sum-exp of the similarities of a set of vectors with each other, without the matrix.

        out[i] = log sum_{j in C(i)} exp(scale * z_i . z_j),    C(i) all rows but i, and fewer by `skip` or `classes`

    A row whose C(i) is empty gives -inf and passes no gradient. Memory O(N D), time of two matrix products N x N x D
    for value and gradient together. Similarities are computed in float32 (float64 for float64 input) whatever autocast
    or the TF32 switch says, their sums in float64; a float32 gradient from the tensor cores of a GPU is within 2e-5.
    Derivatives exist up to the third, in memory O(N D), forward mode and `torch.func` included.

    Args:
        z: [N, D], any floating type and strides; it is not normalised here.
        scale: one over the temperature.
        skip: also leave out rows i + skip and i - skip; with two views stacked, the other view of the same sample.
        classes: integers [N] in ascending order, with `among`.
        among: "same" keeps in C(i) the rows of i's class, "other" those of the other classes.
        max_norm: a bound on the vectors' lengths known to the caller (1 for unit vectors). It spares a look at the
            data, which on a GPU would wait for it, and lets one use its tensor cores; it must hold.
        half: the vectors were made of float16 or bfloat16 numbers (z itself may be such): tensor cores may take them
            rounded to 11 bits, in a third of the time. Sums stay float32.

    Returns:
        [N] in float64 (on MPS float32): losses are differences of such numbers.

    Raises:
        TypeError: z is not floating point.
        ValueError: wrong shapes, scale not a positive finite number, `classes` without `among` or the reverse.

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> self_lse(z, scale=2.0).exp().round(decimals=3)
    tensor([8.3890, 2.0000, 8.3890], dtype=torch.float64)
    """
    _check("self_lse", scale, among, classes is not None, z=z)
    if classes is not None:
        _check_classes("self_lse", z, classes)
    half = half or z.dtype in HALF_DTYPES
    return active_backend().self_lse(
        z, scale=scale, skip=skip, classes=classes, among=among, max_norm=max_norm, half=half
    )


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
    """Row-wise log-sum-exp of the similarities of queries with keys, without the matrix.

        out[i] = log sum_{j in C(i)} exp(scale * q_i . k_j)

    As :func:`self_lse`, for two sets: rows gathered from other processes, memory banks. Memory O((Nq + Nk) D), time of
    four matrix products Nq x Nk x D; only the gradients that are needed are computed.

    Args:
        q: [Nq, D].
        k: [Nk, D].
        scale: one over the temperature.
        self_offset: leave out column i + self_offset of row i, where there is one.
        classes: integers [Nq] and [Nk], both ascending, with `among`.
        among: "same" keeps the keys of the query's class, "other" those of other classes.
        max_norm: a bound on the lengths of queries and keys; as in :func:`self_lse`.
        half: as there.

    Returns:
        [Nq] in float64 (on MPS float32); -inf where no key is left.

    Raises:
        TypeError, ValueError: as :func:`self_lse`; widths or devices that differ.

    >>> row_lse(torch.eye(2), torch.eye(2), scale=1.0).exp().round(decimals=3)
    tensor([3.7180, 3.7180], dtype=torch.float64)
    """
    _check("row_lse", scale, among, classes is not None, q=q, k=k)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"row_lse: q is {list(q.shape)} and k is {list(k.shape)}, expected the same width")
    if q.device != k.device:
        raise ValueError(f"row_lse: q is on {q.device} and k on {k.device}, expected the same device")
    if classes is not None:
        _check_classes("row_lse", q, classes[0])
        _check_classes("row_lse", k, classes[1])
    dtype = torch.promote_types(q.dtype, k.dtype)
    return active_backend().row_lse(
        q.to(dtype), k.to(dtype), scale=scale, self_offset=self_offset, classes=classes, among=among,
        max_norm=max_norm, half=half or dtype in HALF_DTYPES,
    )  # fmt: skip


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
    """What keys contribute to the gradient of a log-sum-exp over more keys than these.

        dq_i = scale * grad_i sum_j exp(S_ij - lse_i) k_j,     dk_j = scale * sum_i grad_i exp(S_ij - lse_i) q_i

    Args:
        grad: [Nq], of the log-sum-exp over all keys.
        lse: [Nq], that log-sum-exp; at least that over `k`.
        q: [Nq, D] in float32 or float64.
        k: [Nk, D] of the same type, some of the keys.
        scale: as in :func:`row_lse`.
        classes: as there.
        among: as there.
        needs: which of both is wanted; the other is an empty tensor.
    """
    q_classes, k_classes = classes or (None, None)
    compiled = active_backend().name == "native" and q.device.type == "cpu"
    operators = torch.ops.contrastive_core_native if compiled else torch.ops.contrastive_core
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
    # Comparisons, because torch.compile cannot ask math.isfinite of a number it treats as variable.
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
