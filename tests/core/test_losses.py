"""nt_xent, suncet, supcon and info_nce against their formulas with the full matrix, and at their edges, by backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
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
from contrastive_core.losses import count_skipped_anchors, smoothed

pytestmark = pytest.mark.usefixtures("backend")
Formulas = SimpleNamespace
Differentiate = Callable[..., tuple[Tensor, ...]]

many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.001, 0.03, 0.1, 0.7, 10.0])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(n: int, classes: int, seed: int = 0) -> Tensor:
    """Unsorted, not consecutive, a few negative; one class has two samples at least."""
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed)) * 7 - 9
    labels[-1] = labels[0]
    return labels


def stride(x: Tensor, layout: str) -> Tensor:
    return {"rows": x, "columns": x.T.contiguous().T, "gaps": torch.stack([x, x], -1).flatten(1)[:, ::2]}[layout]


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def cases(
    n: int, labels: Tensor
) -> dict[str, tuple[Callable[..., Tensor], Callable[[Formulas], Callable[..., Tensor]]]]:
    """For every loss on 2 n rows: ours, and the formula's function of the same arguments."""
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
        patch.setattr(smoothed, "_BLOCK", 7)
        ours = differentiate(lambda z: suncet(z, labels, temperature=t, label_smoothing=share), z)
    formula = differentiate(lambda z: formulas.smoothed_suncet(z, labels, t, share), z)
    for a, b in zip(ours, formula, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 / t)
    module = SuNCEtLoss(temperature=t, label_smoothing=share)
    torch.testing.assert_close(module(z, labels), ours[0])
    assert module.skipped_anchors == 0


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_wrong_share_of_smoothing_is_refused(share: float) -> None:
    for call in (lambda: suncet(randn(4, 2), torch.zeros(4).long(), label_smoothing=share), SuNCEtLoss):
        with pytest.raises(ValueError, match="label_smoothing is"):
            call(**({"label_smoothing": share} if call is SuNCEtLoss else {}))


def hard_batch(kind: str, n: int, d: int) -> Tensor:
    """Two views of n samples; kinds of rows that have hurt float32."""
    a = randn(n, d, seed=1)
    b = {"independent": randn(n, d, seed=2), "close": a + 0.05 * randn(n, d, seed=2)}.get(
        kind, a + 0.5 * randn(n, d, seed=2)
    )
    if kind == "antipodal outliers":
        a[1], b[1], b[2] = -a[0], -b[0], -a[2]
    elif kind == "duplicates":
        a[:4], b[2:5] = a[0].clone(), a[0].clone()
    elif kind == "zero rows":
        a[3], b[3], b[5] = 0, 0, 0
    elif kind == "common direction":
        a, b = a + 1, b + 1
    return torch.cat([a, b])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.001, 0.01, 0.07, 0.1, 0.5, 10.0])
def test_float32_is_within_a_millionth_of_float64(
    name: str, t: float, formulas: Formulas, differentiate: Differentiate
) -> None:
    for kind in ("independent", "close", "antipodal outliers", "duplicates", "zero rows", "common direction"):
        for n, d in ((8, 16), (150, 64)):
            z = hard_batch(kind, n, d).float()
            ours, formula = cases(n, some_labels(2 * n, n // 3))[name]
            value, grad = differentiate(functools.partial(ours, t=t), z)
            assert value.dtype == grad.dtype == torch.float32
            exact, exact_grad = differentiate(functools.partial(formula(formulas), t=t), z.double())
            # The formula itself cancels: log-sum-exp less the positive, numbers of size 1 / t.
            lost = 1e-15 / t
            assert abs(value.item() - exact.item()) <= 1e-6 * exact.item() + lost, (kind, n)
            assert (grad.double() - exact_grad).norm() <= 1e-6 * exact_grad.norm() + lost / z.norm(), (kind, n)


@pytest.mark.parametrize("name", ["nt_xent", "suncet", "info_nce"])
def test_a_loss_close_to_zero_keeps_its_digits(name: str, differentiate: Differentiate) -> None:
    """Well separated samples: all of the sum but 4e-4 of it is the positive."""
    z = (torch.cat([torch.eye(4), -torch.eye(4)], 1).repeat(2, 1) + 0.1 * randn(8, 8)).float()
    ours, _ = cases(4, torch.arange(4).repeat(2))[name]
    value, grad = differentiate(lambda z: ours(z, 0.1), z)
    exact, exact_grad = differentiate(lambda z: ours(z, 0.1), z.double())
    assert 0 < exact < 1e-3
    assert abs(value.item() / exact.item() - 1) < 3e-6
    assert relative(grad, exact_grad) < 3e-6


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@pytest.mark.parametrize("name", NAMES)
def test_scale_of_the_rows_does_not_matter(name: str, factor: float, differentiate: Differentiate) -> None:
    ours, _ = cases(6, some_labels(12, 4))[name]
    for x in (randn(12, 5), randn(12, 5).float()):
        value, grad = differentiate(lambda z: ours(z, 0.2), x)
        scaled, scaled_grad = differentiate(lambda z: ours(z, 0.2), x * factor)
        torch.testing.assert_close(scaled, value, rtol=3e-7, atol=0)
        torch.testing.assert_close(scaled_grad * factor, grad, rtol=1e-5, atol=1e-7)
        uneven = x * torch.tensor([factor, 1.0, 3.0] * 4, dtype=x.dtype)[:, None]
        torch.testing.assert_close(ours(uneven, 0.2), value, rtol=3e-7, atol=0)
    huge = randn(12, 5) * 1e200
    torch.testing.assert_close(ours(huge, 0.2), ours(huge / 1e200, 0.2))


@pytest.mark.parametrize("name", NAMES)
def test_zero_rows_have_no_gradient_and_nan_is_passed_on(name: str, differentiate: Differentiate) -> None:
    ours, _ = cases(6, some_labels(12, 3))[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        z = randn(12, 5).to(dtype)
        z[[1, 2, 8]] = 0
        value, grad = differentiate(lambda z: ours(z, 0.1), z)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert (grad[[1, 2, 8]] == 0).all()
        assert (grad != 0).any()
        value, grad = differentiate(lambda z: ours(z, 0.1), torch.zeros(12, 5, dtype=dtype))
        assert value.isfinite()
        assert (grad == 0).all()
        for bad in (math.nan, math.inf):
            z[4, 0] = bad
            assert ours(z, 0.1).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_types_and_autocast(name: str, dtype: torch.dtype, differentiate: Differentiate) -> None:
    """As exact as the same numbers in float32; autocast changes no bit, wherever the backward pass runs."""
    ours, _ = cases(10, some_labels(20, 4))[name]
    z = randn(20, 8).to(dtype)
    value, grad = differentiate(lambda z: ours(z, 0.1), z)
    exact, exact_grad = differentiate(lambda z: ours(z, 0.1), z.float())
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    assert torch.equal(value, exact)
    assert torch.equal(grad, exact_grad.to(dtype))
    with torch.autocast("cpu", dtype):
        inside = differentiate(lambda z: ours(z, 0.1), z.float())
    assert torch.equal(inside[0], exact)
    assert torch.equal(inside[1], exact_grad)


def test_types_are_promoted() -> None:
    a, b = randn(4, 3), randn(4, 3, seed=1)
    assert nt_xent(a.half(), b).dtype == torch.float64
    assert nt_xent(a.half(), b.bfloat16()).dtype == torch.float32
    assert info_nce(a.float(), b.float(), a).dtype == torch.float64
    assert nt_xent(a.float(), b.float(), temperature=0.01).dtype == torch.float32


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


@pytest.mark.parametrize(("loss", "module"), [(suncet, SuNCEtLoss), (supcon, SupConLoss)])
def test_anchors_without_a_positive_are_left_out_and_counted(
    loss: Callable[..., Tensor], module: type[SuNCEtLoss | SupConLoss], formulas: Formulas, differentiate: Differentiate
) -> None:
    z, labels = randn(6, 4), torch.tensor([3, 1, 3, 8, 3, -2])
    value, grad = differentiate(lambda z: loss(z, labels), z)
    expected, expected_grad = differentiate(lambda z: getattr(formulas, loss.__name__)(z, labels, 0.1), z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    # They are still candidates of the others.
    assert (grad[[1, 3, 5]] != 0).all()
    assert count_skipped_anchors(labels) == 3
    held = module()
    assert held.skipped_anchors is None
    torch.testing.assert_close(held(z, labels), value)
    assert held.skipped_anchors == 3
    assert held(z, torch.zeros(6, dtype=torch.int64)).isfinite()
    assert held.skipped_anchors == 0
    assert held.state_dict() == {}


@pytest.mark.parametrize("loss", [suncet, supcon])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_anchors_left_out_is_zero_with_zero_gradient(
    loss: Callable[..., Tensor], dtype: torch.dtype, differentiate: Differentiate
) -> None:
    z, labels = randn(5, 4).to(dtype), torch.tensor([4, 2, 0, 1, 3])
    value, grad = differentiate(lambda z: loss(z, labels), z)
    assert value == 0
    assert (grad == 0).all()
    assert count_skipped_anchors(labels) == 5


def test_one_class_only() -> None:
    """Every candidate is a positive: nothing to tell apart, log of their number for supcon."""
    z, labels = torch.ones(5, 3).requires_grad_(), torch.full((5,), 2)
    assert suncet(z, labels) == 0
    assert abs(supcon(z, labels).item() / math.log(4) - 1) < 1e-6
    suncet(z, labels).backward()
    assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_order_and_layout(dtype: torch.dtype) -> None:
    z, labels = randn(9, 4), torch.tensor([5, 0, 5, 7, 0, 1, 7, 7, 1])
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    for loss in (suncet, supcon):
        expected = loss(z, labels)
        torch.testing.assert_close(loss(z, labels.to(dtype)), expected)
        torch.testing.assert_close(loss(z[order], labels.to(dtype)[order]), expected)
        torch.testing.assert_close(loss(z, torch.stack([labels, labels], 1).flatten()[::2].to(dtype)), expected)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0, -0.1, math.nan, math.inf, -math.inf, 1e-320])
def test_wrong_temperatures_are_refused(name: str, t: float) -> None:
    ours, _ = cases(2, torch.tensor([0, 0, 1, 1]))[name]
    with pytest.raises(ValueError, match=f"{name}: temperature is {t}, expected a positive finite number"):
        ours(randn(4, 3), t)


@pytest.mark.parametrize("module", [NTXentLoss, SuNCEtLoss, SupConLoss, InfoNCELoss])
@pytest.mark.parametrize("t", [True, "0.1", None, torch.tensor(0.1)])
def test_temperatures_that_are_no_numbers_are_refused(module: Callable[..., nn.Module], t: Any) -> None:
    with pytest.raises(TypeError, match=r"temperature is a \w+, expected a number"):
        module(temperature=t)


ones = torch.ones
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "one support": (
        lambda: paws(ones(2, 3), ones(2, 3), ones(1, 3), torch.tensor([0])),
        ValueError,
        r"paws: got 1 sample\(s\)",
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
        r"view_a \[2, 3\], view_b \[3, 3\], expected as many",
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


def test_second_derivative_is_refused() -> None:
    z = randn(6, 4).requires_grad_()
    for loss in (nt_xent(z[:3], z[3:]), supcon(z, torch.tensor([0, 0, 1, 1, 2, 2]))):
        (grad,) = torch.autograd.grad(loss, z, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            grad.sum().backward()


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
