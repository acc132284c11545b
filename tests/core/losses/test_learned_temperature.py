"""Learned temperatures: the value equals that of a number, the gradient that of the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contrastive_core import InfoNCELoss, NTXentLoss, SuNCEtLoss, SupConLoss, info_nce, nt_xent, suncet
from tests.core.losses.loss_cases import NAMES, Differentiate, Formulas, cases, randn, some_labels

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.02, 0.1, 0.7])
def test_gradient_of_the_temperature(name: str, t: float, formulas: Formulas, differentiate: Differentiate) -> None:
    z, temperature = randn(24, 8), torch.tensor(t, dtype=torch.float64)
    ours, formula = cases(12, some_labels(24, 5))[name]
    found = differentiate(ours, z, temperature)
    for a, b in zip(found, differentiate(formula(formulas), z, temperature), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    value, grad = differentiate(lambda z: ours(z, t), z)
    assert torch.equal(found[0], value)
    assert torch.equal(found[1], grad)
    single = differentiate(ours, z.float(), temperature.float())
    torch.testing.assert_close(single[2].double(), found[2], rtol=1e-5, atol=0)


def test_with_a_bank_and_with_smoothed_labels(formulas: Formulas, differentiate: Differentiate) -> None:
    a, b, bank, t = randn(6, 5), randn(6, 5, seed=1), randn(9, 5, seed=2), torch.tensor(0.3, dtype=torch.float64)
    for ours, formula in (
        (lambda *x: nt_xent(*x[:3], temperature=x[3]), lambda a, b, bank, t: formulas.nt_xent(a, b, t, bank)),
        (lambda *x: info_nce(*x[:3], temperature=x[3]), lambda a, b, bank, t: formulas.info_nce(a, b, t, bank)),
    ):
        pairs = zip(differentiate(ours, a, b, bank, t), differentiate(formula, a, b, bank, t), strict=True)
        for x, y in pairs:
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    labels = some_labels(6, 3)
    ours = differentiate(lambda z, t: suncet(z, labels, temperature=t, label_smoothing=0.1), a, t)
    for x, y in zip(ours, differentiate(lambda z, t: formulas.smoothed_suncet(z, labels, t, 0.1), a, t), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("module", [NTXentLoss, InfoNCELoss, SuNCEtLoss, SupConLoss])
def test_a_parameter_is_trained_with_its_module(module: type[nn.Module]) -> None:
    loss = module(temperature=nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    assert repr(loss).startswith(f"{module.__name__}(temperature=0.5, learned, ")
    z = randn(8, 4)
    inputs: tuple[Tensor, ...] = (z[:4], z[4:]) if module in {NTXentLoss, InfoNCELoss} else (z, torch.arange(8) % 3)
    loss(*inputs).backward()
    assert loss.temperature.grad != 0


def test_what_is_refused() -> None:
    z = randn(4, 3)
    with pytest.raises(ValueError, match=r"temperature has shape \[2\], expected one number"):
        nt_xent(z, z, temperature=torch.ones(2))
    with pytest.raises(ValueError, match=r"temperature is -0.5, expected a positive"):
        nt_xent(z, z, temperature=torch.tensor(-0.5))
