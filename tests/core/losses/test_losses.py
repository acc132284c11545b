"""nt_xent, suncet, supcon and info_nce against full-matrix formulas, also as modules and compiled."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import contrastive_core
from contrastive_core import (
    InfoNCELoss,
    NTXentLoss,
    PAWSLoss,
    SuNCEtLoss,
    SupConLoss,
    info_nce,
    nt_xent,
    paws,
    suncet,
    supcon,
)
from contrastive_core.losses import _class_probabilities
from tests.core.losses.loss_cases import (
    NAMES,
    Differentiate,
    Formulas,
    cases,
    many,
    randn,
    seeds,
    some_labels,
    stride,
    temperatures,
)

pytestmark = pytest.mark.usefixtures("backend")


@many
@given(n=st.integers(2, 15), d=st.integers(2, 9), classes=st.integers(1, 30), seed=seeds, t=temperatures,
       layout=st.sampled_from(["rows", "columns", "gaps"]), name=st.sampled_from(NAMES))  # fmt: skip
@pytest.mark.usefixtures("small_tiles")
def test_against_the_formula(
    n: int,
    d: int,
    classes: int,
    seed: int,
    t: float,
    layout: str,
    name: str,
    formulas: Formulas,
    differentiate: Differentiate,
) -> None:
    z = stride(randn(2 * n, d, seed=seed), layout)
    ours, formula = cases(n, some_labels(2 * n, classes, seed))[name]
    value, grad = differentiate(lambda z: ours(z, t), z)
    expected, expected_grad = differentiate(lambda z: formula(formulas)(z, t), z)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11 / t)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-10 / t)


@many
@given(
    n=st.integers(1, 9), m=st.integers(0, 12), seed=seeds, t=temperatures, name=st.sampled_from(["nt_xent", "info_nce"])
)
@pytest.mark.usefixtures("small_tiles")
def test_with_a_bank(
    n: int, m: int, seed: int, t: float, name: str, formulas: Formulas, differentiate: Differentiate
) -> None:
    query, key, bank = randn(n, 5, seed=seed), randn(n, 5, seed=seed + 1), randn(m, 5, seed=seed + 2)
    if n == 1 and m == 0:
        return
    loss, exact = getattr(contrastive_core, name), getattr(formulas, name)
    ours = differentiate(lambda *x: loss(*x, temperature=t), query, key, bank)
    formula = differentiate(lambda q, k, b: exact(q, k, t, b), query, key, bank)
    for a, b in zip(ours, formula, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 / t)
    frozen = differentiate(lambda q: loss(q, key, bank, temperature=t), query)
    torch.testing.assert_close(frozen, ours[:2], rtol=1e-12, atol=1e-12)


@many
@given(n=st.integers(2, 25), classes=st.integers(1, 30), seed=seeds, t=temperatures, share=st.floats(0.01, 0.9))
def test_suncet_with_smoothed_labels(
    n: int, classes: int, seed: int, t: float, share: float, formulas: Formulas, differentiate: Differentiate
) -> None:
    z, labels = randn(n, 5, seed=seed), some_labels(n, classes, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_class_probabilities, "_BLOCK", 7)
        ours = differentiate(lambda z: suncet(z, labels, temperature=t, label_smoothing=share), z)
    formula = differentiate(lambda z: formulas.smoothed_suncet(z, labels, t, share), z)
    for a, b in zip(ours, formula, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 / t)
    module = SuNCEtLoss(temperature=t, label_smoothing=share)
    torch.testing.assert_close(module(z, labels), ours[0])
    assert module.skipped_anchors == 0


@pytest.mark.parametrize("block", [7, 512])
def test_paws_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch, differentiate: Differentiate) -> None:
    views, supports, labels = randn(24, 5), randn(9, 5, seed=1), torch.arange(9) % 3
    soft = 0.1 / 3 + 0.9 * torch.nn.functional.one_hot(labels, 3).double()

    def formula(views: Tensor, supports: Tensor) -> Tensor:
        unit_views, unit_supports = (x / x.norm(dim=1, keepdim=True) for x in (views, supports))
        predicted = (unit_views @ unit_supports.T / 0.3).softmax(1) @ soft
        sharp = predicted**4 / (predicted**4).sum(1, keepdim=True)
        consistency = -(sharp.detach().roll(12, 0) * predicted.log()).sum(1).mean()
        return consistency + (sharp.mean(0) * sharp.mean(0).log()).sum()

    monkeypatch.setattr(_class_probabilities, "_BLOCK", block)
    ours = differentiate(lambda v, s: sum(paws(v[:12], v[12:], s, labels, temperature=0.3)), views, supports)
    for a, b in zip(ours, differentiate(formula, views, supports), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_wrong_share_of_smoothing_is_refused(share: float) -> None:
    for call in (lambda: suncet(randn(4, 2), torch.zeros(4).long(), label_smoothing=share), SuNCEtLoss):
        with pytest.raises(ValueError, match="label_smoothing is"):
            call(**({"label_smoothing": share} if call is SuNCEtLoss else {}))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_one_view_with_gradient(needs: tuple[bool, bool], differentiate: Differentiate) -> None:
    a, b = randn(5, 4), randn(5, 4, seed=1)
    for loss in (nt_xent, info_nce):
        _, *grads = differentiate(loss, a, b)
        x, y = a.clone().requires_grad_(needs[0]), b.clone().requires_grad_(needs[1])
        loss(x, y).backward()
        for leaf, needed, grad in zip((x, y), needs, grads, strict=True):
            assert (leaf.grad is not None) == needed
            if needed:
                torch.testing.assert_close(leaf.grad, grad)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    ours, _ = cases(4, some_labels(8, 3))[name]
    assert torch.autograd.gradcheck(lambda z: ours(z, 0.5), randn(8, 3).requires_grad_())


def test_losses_agree_with_each_other() -> None:
    """With one positive each, supcon and suncet are nt_xent; without others, info_nce's both directions are not."""
    a, b = randn(7, 5), randn(7, 5, seed=1)
    stacked, labels = torch.cat([a, b]), torch.arange(7).repeat(2)
    expected = nt_xent(a, b, temperature=0.3)
    torch.testing.assert_close(suncet(stacked, labels, temperature=0.3), expected)
    torch.testing.assert_close(supcon(stacked, labels, temperature=0.3), expected)
    with_bank = info_nce(a, b, a, temperature=0.3)
    assert with_bank > info_nce(a, b, temperature=0.3)


def test_modules_hold_keywords() -> None:
    a, b, labels = randn(6, 4), randn(6, 4, seed=1), torch.tensor([0, 1, 0, 1, 0, 1])
    pairs: list[tuple[nn.Module, tuple[Tensor, ...], Tensor]] = [
        (NTXentLoss(temperature=0.3), (a, b), nt_xent(a, b, temperature=0.3)),
        (SuNCEtLoss(temperature=0.3), (a, labels), suncet(a, labels, temperature=0.3)),
        (SupConLoss(temperature=0.3, gather=True), (a, labels), supcon(a, labels, temperature=0.3)),
        (NTXentLoss(temperature=0.3), (a, b, a), nt_xent(a, b, a, temperature=0.3)),
        (PAWSLoss(temperature=0.3), (a, b, a, labels), sum(paws(a, b, a, labels, temperature=0.3), torch.tensor(0.0))),
        (InfoNCELoss(temperature=0.3), (a, b, a), info_nce(a, b, a, temperature=0.3)),
    ]
    for module, inputs, expected in pairs:
        assert torch.equal(module(*inputs), expected)
        assert "temperature=0.3" in repr(module)
        assert list(module.parameters()) == []
    assert InfoNCELoss()(a, b) == info_nce(a, b)


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, False) for name in NAMES), ("nt_xent", True), ("module", False)]
)
def test_compiles_without_a_graph_break(name: str, dynamic: bool, differentiate: Differentiate) -> None:
    labels, held = some_labels(12, 4), SuNCEtLoss(temperature=0.2)
    ours = cases(6, labels)["suncet" if name == "module" else name][0]

    def plain(z: Tensor) -> Tensor:
        return ours(z, 0.2)

    torch._dynamo.reset()
    compiled = torch.compile(
        (lambda z: held(z, labels)) if name == "module" else plain, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for a, b in zip(differentiate(compiled, randn(12, 5)), differentiate(plain, randn(12, 5)), strict=True):
        torch.testing.assert_close(a, b)


def test_same_bits_every_time(differentiate: Differentiate) -> None:
    for name in NAMES:
        ours, _ = cases(400, some_labels(800, 30))[name]
        first, second = (differentiate(functools.partial(ours, t=0.1), randn(800, 16).float()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_public_names() -> None:
    for name in (*NAMES, "distillation", "local_contrastive"):
        assert callable(getattr(contrastive_core, name))
