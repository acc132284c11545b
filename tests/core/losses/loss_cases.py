"""All losses in one form, with their formulas, and rows and labels to try them on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive_core import (
    info_nce,
    nt_xent,
    suncet,
    supcon,
)

Formulas = SimpleNamespace
Differentiate = Callable[..., tuple[Tensor, ...]]

many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.001, 0.03, 0.1, 0.7, 10.0])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(n: int, classes: int, seed: int = 0) -> Tensor:
    """Unsorted, non-consecutive labels; at least one class has two samples."""
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed)) * 7
    labels[-1] = labels[0]
    return labels


def stride(x: Tensor, layout: str) -> Tensor:
    return {"rows": x, "columns": x.T.contiguous().T, "gaps": torch.stack([x, x], -1).flatten(1)[:, ::2]}[layout]


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def cases(
    n: int, labels: Tensor
) -> dict[str, tuple[Callable[..., Tensor], Callable[[Formulas], Callable[..., Tensor]]]]:
    """Return our function and the formula, with the same arguments, for every loss of 2 n rows."""
    return {
        "nt_xent": (
            lambda z, t: nt_xent(z[:n], z[n:], temperature=t),
            lambda f: lambda z, t: f.nt_xent(z[:n], z[n:], t),
        ),
        "suncet": (lambda z, t: suncet(z, labels, temperature=t), lambda f: lambda z, t: f.suncet(z, labels, t)),
        "supcon": (lambda z, t: supcon(z, labels, temperature=t), lambda f: lambda z, t: f.supcon(z, labels, t)),
        "info_nce": (
            lambda z, t: info_nce(z[:n], z[n:], temperature=t),
            lambda f: lambda z, t: f.info_nce(z[:n], z[n:], t),
        ),
    }


NAMES = ("nt_xent", "suncet", "supcon", "info_nce")
