"""Inputs that losses refuse, with what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contrastive_core import (
    InfoNCELoss,
    MemoryBank,
    NTXentLoss,
    PAWSLoss,
    SuNCEtLoss,
    SupConLoss,
    distillation,
    info_nce,
    nt_xent,
    paws,
    suncet,
    supcon,
)
from contrastive_core.losses import count_skipped_anchors
from tests.core.losses.loss_cases import (
    NAMES,
    cases,
    randn,
)

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0, -0.1, math.nan, math.inf, -math.inf, 1e-320])
def test_wrong_temperatures_are_refused(name: str, t: float) -> None:
    ours, _ = cases(2, torch.tensor([0, 0, 1, 1]))[name]
    with pytest.raises(ValueError, match=f"{name}: temperature is {t}, expected a positive finite number"):
        ours(randn(4, 3), t)


@pytest.mark.parametrize("module", [NTXentLoss, SuNCEtLoss, SupConLoss, InfoNCELoss])
@pytest.mark.parametrize("t", [True, "0.1", None, torch.tensor(1), np.array([0.1])])
def test_temperatures_that_are_no_numbers_are_refused(module: Callable[..., nn.Module], t: Any) -> None:
    with pytest.raises(TypeError, match=r"temperature is a \w+, expected a number"):
        module(temperature=t)


@pytest.mark.parametrize("name", [*NAMES, "paws", "distillation", "smoothed"])
@pytest.mark.parametrize("kind", [Fraction, Decimal, np.float32, np.float64, np.array])
def test_numbers_of_other_types_are_numbers(name: str, kind: Callable[[float], Any]) -> None:
    z, labels = randn(4, 3), torch.tensor([0, 0, 1, 1])

    def loss(t: Any) -> torch.Tensor:
        if name == "paws":
            return sum(paws(z, z, z, labels, temperature=t, sharpening=t, label_smoothing=t), torch.zeros(()))
        if name == "distillation":
            return distillation(z, z.flip(0), temperature=t, scale_by_temperature=True)
        if name == "smoothed":
            return suncet(z, labels, temperature=t, label_smoothing=t)
        return cases(2, labels)[name][0](z, t)

    assert torch.equal(loss(kind(0.25)), loss(0.25))


@pytest.mark.parametrize("setting", ["sharpening", "label_smoothing"])
@pytest.mark.parametrize("wrong", ["0.1", None, torch.tensor(0.1)])
def test_settings_that_are_no_numbers_are_refused(setting: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{setting} is a \w+, expected a number"):
        PAWSLoss(**{setting: wrong})


ones = torch.ones
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "one support": (
        lambda: paws(ones(2, 3), ones(2, 3), ones(1, 3), torch.tensor([0])),
        ValueError,
        r"paws: got 1 sample\(s\)",
    ),
    "no views": (
        lambda: paws(ones(0, 3), ones(0, 3), ones(2, 3), torch.tensor([0, 1])),
        ValueError,
        r"paws: got views of shape \[0, 3\], expected at least one row",
    ),
    "no features": (
        lambda: nt_xent(ones(4, 0), ones(4, 0)),
        ValueError,
        r"nt_xent: view_a has shape \[4, 0\], expected at least one feature",
    ),
    "sharpening": (
        lambda: paws(ones(2, 3), ones(2, 3), ones(2, 3), torch.tensor([0, 1]), sharpening=0.0),
        ValueError,
        "sharpening is 0.0, expected more than 0",
    ),
    "smoothing": (lambda: PAWSLoss(label_smoothing=1.0), ValueError, "PAWSLoss: label_smoothing is 1.0"),
    "supports' width": (
        lambda: paws(ones(2, 3), ones(2, 3), ones(2, 4), torch.tensor([0, 1])),
        ValueError,
        "supports .* same width",
    ),
    "sparse": (
        lambda: supcon(ones(2, 3).to_sparse(), torch.tensor([0, 0])),
        TypeError,
        r"supcon: z is torch.sparse_coo, expected a dense tensor; convert it with .to_dense\(\)",
    ),
    "8 bits": (
        lambda: nt_xent(ones(2, 3).to(torch.float8_e4m3fn), ones(2, 3)),
        TypeError,
        r"view_a is torch.float8_e4m3fn, expected at least 16 bits; convert it with .float\(\)",
    ),
    "array": (
        lambda: nt_xent(ones(2, 3).numpy(), ones(2, 3)),  # type: ignore[arg-type]
        TypeError,
        "view_a is ndarray, expected a floating-point tensor; convert it with torch.from_numpy",
    ),
    "bank without its rows": (
        lambda: info_nce(ones(2, 3), ones(2, 3), MemoryBank(4, 3)),  # type: ignore[arg-type]
        TypeError,
        "info_nce: bank is MemoryBank, expected a floating-point tensor; pass its rows",
    ),
    "views in a dimension of their own": (
        lambda: supcon(ones(2, 2, 3), torch.tensor([0, 1])),
        ValueError,
        r"z has shape \[2, 2, 3\], expected \[N, D\]; for several views \[N, views, D\], pass x.flatten\(0, 1\)",
    ),
    "labels in a column": (
        lambda: supcon(ones(2, 3), torch.tensor([[0], [0]])),
        ValueError,
        r"labels have shape \[2, 1\], expected \[2\], one per embedding; remove the dimension with squeeze\(1\)",
    ),
    "one-hot labels": (
        lambda: supcon(ones(2, 3), torch.eye(2).long()),
        ValueError,
        r"labels have shape \[2, 2\].*turn one-hot labels into numbers with argmax\(1\)",
    ),
    "integer temperature": (
        lambda: nt_xent(ones(2, 3), ones(2, 3), temperature=torch.tensor(1)),
        TypeError,
        "temperature is a Tensor, expected a number, not a tensor of torch.int64",
    ),
    "learned temperature of a loss that has none": (
        lambda: paws(ones(2, 3), ones(2, 3), ones(2, 3), torch.tensor([0, 1]), temperature=torch.tensor(0.1)),  # type: ignore[arg-type]
        TypeError,
        "temperature is a Tensor, expected a number .this loss cannot learn its temperature",
    ),
    "one pair": (lambda: nt_xent(ones(1, 3), ones(1, 3)), ValueError, r"got 1 sample\(s\), expected at least 2"),
    "no pair": (lambda: nt_xent(ones(0, 3), ones(0, 3)), ValueError, r"got 0 sample\(s\)"),
    "one query": (lambda: info_nce(ones(1, 3), ones(1, 3)), ValueError, r"got 1 sample\(s\)"),
    "empty bank": (lambda: info_nce(ones(1, 3), ones(1, 3), ones(0, 3)), ValueError, r"got 1 sample\(s\)"),
    "no query": (lambda: info_nce(ones(0, 3), ones(0, 3), ones(5, 3)), ValueError, r"got 0 sample\(s\)"),
    "one sample": (lambda: suncet(ones(1, 3), torch.tensor([0])), ValueError, r"suncet: got 1 sample\(s\)"),
    "no sample": (lambda: supcon(ones(0, 3), torch.arange(0)), ValueError, r"supcon: got 0 sample\(s\)"),
    "counts": (
        lambda: nt_xent(ones(2, 3), ones(3, 3)),
        ValueError,
        r"view_a \[2, 3\], view_b \[3, 3\], expected the same number",
    ),
    "widths": (lambda: nt_xent(ones(2, 3), ones(2, 4)), ValueError, r"expected embeddings of the same width"),
    "bank's width": (lambda: info_nce(ones(2, 3), ones(2, 3), ones(2, 4)), ValueError, "bank .* same width"),
    "images": (lambda: nt_xent(ones(2, 3, 4, 4), ones(2, 3, 4, 4)), ValueError, r"expected \[N, D\]; flatten"),
    "vector": (lambda: supcon(ones(4), torch.arange(4)), ValueError, r"z has shape \[4\], expected \[N, D\]"),
    "integers": (
        lambda: nt_xent(ones(2, 3).long(), ones(2, 3).long()),
        TypeError,
        "view_a is torch.int64, expected a floa",
    ),
    "list": (lambda: nt_xent([[1.0]], [[1.0]]), TypeError, "view_a is list"),  # type: ignore[arg-type]
    "float labels": (
        lambda: suncet(ones(4, 3), ones(4)),
        TypeError,
        "labels are torch.float32, expected an integer tensor",
    ),
    "bool labels": (
        lambda: supcon(ones(4, 3), ones(4) > 0),
        TypeError,
        "labels are torch.bool, expected an integer tensor",
    ),
    "list labels": (lambda: supcon(ones(2, 3), [0, 0]), TypeError, "labels are list"),  # type: ignore[arg-type]
    "too few labels": (
        lambda: suncet(ones(4, 3), torch.arange(3)),
        ValueError,
        r"labels have shape \[3\], expected \[4\], one",
    ),
    "one-hot": (
        lambda: supcon(ones(4, 3), torch.eye(4).long()),
        ValueError,
        r"one-hot labels into numbers with argmax\(1\)",
    ),
    "count": (lambda: count_skipped_anchors(ones(3)), TypeError, "count_skipped_anchors: labels are torch.float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_say_what_was_expected(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
