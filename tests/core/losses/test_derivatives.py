"""Derivatives of every order and kind against autograd on the full-matrix formula; none may be silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.autograd.forward_ad as fw
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import functional

from contrastive_core import distillation, info_nce, local_contrastive, nt_xent, paws, suncet, supcon
from contrastive_core.similarity import row_lse, self_lse, use_backend

pytestmark = [
    pytest.mark.usefixtures("small_tiles", "backend"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

Loss = Callable[[Tensor], Tensor]
N, D, T = 10, 4, 0.3
LABELS = torch.tensor([0, 1, 0, 2, 1, 1, 3, 0, 2, 2])  # one of class 3: an anchor without a positive


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["nt_xent", "bank", "suncet", "smoothed", "supcon", "info_nce", "paws", "self_lse", "row_lse"])
def pair(request: pytest.FixtureRequest, formulas: SimpleNamespace) -> tuple[Loss, Loss]:
    """A loss of [N, D] embeddings, and the same loss as a formula."""
    other, bank, weight = randn(N, D, seed=1), randn(3, D, seed=2), randn(N)

    def reference(f: Callable[..., Tensor], *rows: Tensor, **options: float) -> Tensor:
        with use_backend("reference"):
            lse = f(*rows, **options)
        return (lse * weight[: len(lse)]).sum()

    half = N // 2

    def paws_formula(z: Tensor) -> Tensor:
        z, supports = (F.normalize(x, dim=1) for x in (z, other))
        one_hot = F.one_hot(LABELS).double() * 0.9 + 0.1 / 4
        p = (z @ supports.T / T).softmax(1) @ one_hot
        sharp = p**4 / (p**4).sum(1, keepdim=True)
        target = sharp.detach().roll(half, 0)
        target = torch.where(target < 1e-4, 0.0, target)
        q = sharp.mean(0)
        return -(target * p.log()).sum(1).mean() + (q * q.log()).sum()

    pairs: dict[str, tuple[Loss, Loss]] = {
        "nt_xent": (
            lambda z: nt_xent(z[:half], z[half:], temperature=T),
            lambda z: formulas.nt_xent(z[:half], z[half:], T),
        ),
        "bank": (
            lambda z: nt_xent(z[:half], z[half:], bank, temperature=T),
            lambda z: formulas.nt_xent(z[:half], z[half:], T, bank),
        ),
        "suncet": (lambda z: suncet(z, LABELS, temperature=T), lambda z: formulas.suncet(z, LABELS, T)),
        "smoothed": (
            lambda z: suncet(z, LABELS, temperature=T, label_smoothing=0.1),
            lambda z: formulas.smoothed_suncet(z, LABELS, T, 0.1),
        ),
        "supcon": (lambda z: supcon(z, LABELS, temperature=T), lambda z: formulas.supcon(z, LABELS, T)),
        "info_nce": (
            lambda z: info_nce(z, other, z.flip(0), temperature=T),
            lambda z: formulas.info_nce(z, other, T, z.flip(0)),
        ),
        "paws": (lambda z: sum(paws(z[:half], z[half:], other, LABELS, temperature=T)), paws_formula),  # type: ignore[arg-type]
        "self_lse": (
            lambda z: (self_lse(z, scale=2.0, skip=3) * weight).sum(),
            lambda z: reference(self_lse, z, scale=2.0, skip=3),
        ),
        "row_lse": (
            lambda z: (row_lse(z[:7], z[5:], scale=2.0, self_offset=1) * weight[:7]).sum(),
            lambda z: reference(row_lse, z[:7], z[5:], scale=2.0, self_offset=1),
        ),
    }
    return pairs[request.param]


def named(f: Loss) -> Tensor:
    """Compute second derivatives by calling autograd.grad with named inputs twice."""
    x = randn(N, D).requires_grad_()
    (grad,) = torch.autograd.grad(f(x), inputs=x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), inputs=x)[0]


def forward_over_reverse(f: Loss) -> Tensor:
    return torch.func.jvp(torch.func.grad(f), (randn(N, D),), (randn(N, D, seed=5),))[1]


def dual_numbers(f: Loss) -> Tensor:
    with fw.dual_level():
        tangent = fw.unpack_dual(f(fw.make_dual(randn(N, D), randn(N, D, seed=5)))).tangent
        assert tangent is not None
        return tangent


def third(f: Loss) -> Tensor:
    x = randn(N, D).requires_grad_()
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    return torch.autograd.grad(second.square().sum(), x)[0]


def backward_twice(f: Loss) -> Tensor:
    x = randn(N, D).requires_grad_()
    f(x).backward(create_graph=True)
    assert x.grad is not None
    first, x.grad = x.grad, None
    first.square().sum().backward()
    return x.grad


WAYS: dict[str, Callable[[Loss], Tensor]] = {
    "autograd.grad twice": named,
    "backward twice": backward_twice,
    "functional.hessian": lambda f: functional.hessian(f, randn(N, D)),
    "functional.hessian vectorized": lambda f: functional.hessian(f, randn(N, D), vectorize=True),
    "functional.hessian forward": lambda f: functional.hessian(
        f, randn(N, D), vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "functional.hvp": lambda f: functional.hvp(f, randn(N, D), randn(N, D, seed=5))[1],
    "functional.vhp": lambda f: functional.vhp(f, randn(N, D), randn(N, D, seed=5))[1],
    "functional.jvp": lambda f: functional.jvp(f, randn(N, D), randn(N, D, seed=5))[1],
    "forward_ad": dual_numbers,
    "func.grad": lambda f: torch.func.grad(f)(randn(N, D)),
    "func.jvp": lambda f: torch.func.jvp(f, (randn(N, D),), (randn(N, D, seed=5),))[1],
    "func.jacrev": lambda f: torch.func.jacrev(f)(randn(N, D)),
    "func.jacfwd": lambda f: torch.func.jacfwd(f)(randn(N, D)),
    "func.hessian": lambda f: torch.func.hessian(f)(randn(N, D)),
    "func.jacrev twice": lambda f: torch.func.jacrev(torch.func.jacrev(f))(randn(N, D)),
    "forward over reverse": forward_over_reverse,
    "reverse over forward": lambda f: torch.func.grad(
        lambda x: torch.func.jvp(f, (x,), (randn(N, D, seed=5),))[1]
    )(randn(N, D)),
    "func.vmap": lambda f: torch.vmap(f)(randn(3, N, D)),
    "func.vmap of grad": lambda f: torch.vmap(torch.func.grad(f), in_dims=1)(randn(N, 3, D)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_are_those_of_the_formula(pair: tuple[Loss, Loss], way: str) -> None:
    ours, formula = pair
    # torch's own vectorisation fails on the formula's boolean masks.
    expected = WAYS["functional.hessian" if way.startswith("functional.hessian") else way](formula)
    torch.testing.assert_close(WAYS[way](ours), expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def test_forward_mode_twice_is_refused(pair: tuple[Loss, Loss]) -> None:
    """PyTorch ignores forward-mode rules inside forward mode: results would be silently wrong."""
    with pytest.raises(RuntimeError, match="losses cannot be differentiated twice in forward mode; use forward over"):
        torch.func.jacfwd(torch.func.jacfwd(pair[0]))(randn(N, D))


def test_third_derivative(pair: tuple[Loss, Loss]) -> None:
    ours, formula = pair
    torch.testing.assert_close(third(ours), third(formula), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_at_low_precision_and_temperature(dtype: torch.dtype, formulas: SimpleNamespace) -> None:
    x = randn(N, D).to(dtype)
    exact = formulas_grad(lambda z: formulas.supcon(z, LABELS, 0.05), x.double())
    ours = formulas_grad(lambda z: supcon(z, LABELS, temperature=0.05), x)
    assert ours.dtype == dtype
    assert (ours.double() - exact).norm() <= {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype] * exact.norm()


def formulas_grad(f: Loss, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad((grad * randn(N, D, seed=3).to(x.dtype)).sum(), x)[0]


@pytest.mark.parametrize("far", [0.01, 30.0])
def test_second_derivatives_where_numbers_leave_the_range(far: float, formulas: SimpleNamespace) -> None:
    """Temperatures at which exponentials of differences overflow, rows of zeros, close views."""
    a = randn(5, D)
    z = torch.cat([a, a + 1e-4 * randn(5, D, seed=1)])
    f, formula = (lambda x: nt_xent(x[:5], x[5:], x[:2], temperature=far)), lambda x: formulas.nt_xent(
        x[:5], x[5:], far, x[:2]
    )  # fmt: skip
    ours, expected = formulas_grad(f, z), formulas_grad(formula, z)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    z[3] = 0
    assert bool((formulas_grad(f, z)[3] == 0).all())
    assert bool(formulas_grad(f, z).isfinite().all())


def test_learned_temperature_in_every_mode(formulas: SimpleNamespace) -> None:
    z, t = randn(N, D), torch.tensor(0.3, dtype=torch.float64)
    ours: Callable[[Tensor, Tensor], Tensor] = lambda z, t: supcon(z, LABELS, temperature=t)  # noqa: E731
    formula: Callable[[Tensor, Tensor], Tensor] = lambda z, t: formulas.supcon(z, LABELS, t)  # noqa: E731
    for way in (
        lambda f: torch.func.jvp(f, (z, t), (randn(N, D, seed=5), torch.ones_like(t)))[1],
        lambda f: torch.func.grad(f, argnums=1)(z, t),
        lambda f: torch.func.jacrev(torch.func.grad(f, argnums=1), argnums=(0, 1))(z, t),
        lambda f: torch.func.jacfwd(torch.func.grad(f, argnums=1), argnums=(0, 1))(z, t),
        lambda f: functional.hessian(f, (z, t)),
    ):
        torch.testing.assert_close(way(ours), way(formula), rtol=1e-9, atol=1e-11)
    with pytest.raises(RuntimeError, match=r"supcon: torch\.vmap cannot run over the temperature"):
        torch.vmap(ours, in_dims=(None, 0))(z, t.expand(2))


def test_meta_learning_and_gradient_penalty(formulas: SimpleNamespace) -> None:
    """Through a network: an inner step of MAML, and the norm of the input's gradient as a penalty."""
    x = randn(N, 6, seed=7)

    def encode(p: list[Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x @ p[0]) @ p[1]

    def gradients(loss: Loss) -> list[Tensor]:
        p = [randn(6, 7, seed=8).requires_grad_(), randn(7, D, seed=9).requires_grad_()]
        inner = torch.autograd.grad(loss(encode(p, x)), p, create_graph=True)
        stepped = [q - 0.1 * h for q, h in zip(p, inner, strict=True)]
        meta = torch.autograd.grad(loss(encode(stepped, x)), p)
        q = x.clone().requires_grad_()
        (of_input,) = torch.autograd.grad(loss(encode(p, q)), q, create_graph=True)
        return [*meta, *torch.autograd.grad(of_input.square().sum(), p)]

    for ours, theirs in zip(
        gradients(lambda z: suncet(z, LABELS, temperature=T)),
        gradients(lambda z: formulas.suncet(z, LABELS, T)), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_pixels() -> None:
    """`local_contrastive`, against finite differences of its own gradient."""
    label = torch.tensor([[[0, 1, 1], [2, 2, 0]], [[1, 1, 0], [0, 2, 2]]])
    anchors = torch.tensor([[[[0, 1]], [[1, 0]]], [[[0, 0]], [[1, 2]]]])
    pairs = torch.tensor([[0, 1]])

    def f(x: Tensor) -> Tensor:
        return local_contrastive(x, label, pairs=pairs, anchors=anchors)

    x = randn(2, 3, 2, 3)
    assert torch.autograd.gradgradcheck(f, x.requires_grad_())
    torch.testing.assert_close(torch.func.grad(f)(x), torch.autograd.grad(f(x), x)[0])
    torch.testing.assert_close(torch.func.hessian(f)(x), functional.hessian(f, x))


def test_beyond_one_block_of_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    from contrastive_core.losses import _class_probabilities

    def f(z: Tensor) -> Tensor:
        return suncet(z, LABELS, temperature=T, label_smoothing=0.2)

    expected = torch.func.hessian(f)(randn(N, D)), torch.func.grad(f)(randn(N, D))
    monkeypatch.setattr(_class_probabilities, "_BLOCK", 3)
    torch.testing.assert_close(torch.func.hessian(f)(randn(N, D)), expected[0])
    torch.testing.assert_close(torch.func.grad(f)(randn(N, D)), expected[1])


def test_second_derivatives_through_checkpoints_and_scaled_losses() -> None:
    from torch.utils.checkpoint import checkpoint

    net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, D)).double()
    x = randn(N, 6)

    def penalty(encode: Callable[[Tensor], Tensor], scale: float) -> tuple[Tensor, ...]:
        q = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(supcon(encode(q), LABELS, temperature=T) * scale, q, create_graph=True)
        return torch.autograd.grad((grad / scale).square().sum(), tuple(net.parameters()), allow_unused=True)

    plain = penalty(net, 1.0)
    for other in (penalty(lambda q: checkpoint(net, q, use_reentrant=False), 1.0), penalty(net, 65536.0)):  # type: ignore[no-any-return]
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b)


def test_functional_call_and_vmapped_models() -> None:
    """Per-sample style use of `torch.func`: gradients of an ensemble of encoders at once."""
    net = nn.Linear(6, D).double()
    params = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in net.named_parameters()}
    x = randn(N, 6)

    def loss(p: dict[str, Tensor]) -> Tensor:
        z = torch.func.functional_call(net, p, (x,))
        return nt_xent(z[: N // 2], z[N // 2 :], temperature=T)

    together = torch.vmap(torch.func.grad(loss))(params)
    for i in range(2):
        alone = torch.func.grad(loss)({name: p[i] for name, p in params.items()})
        for name in params:
            torch.testing.assert_close(together[name][i], alone[name])


def test_what_is_refused_names_the_package_and_a_way_out() -> None:
    def f(z: Tensor) -> Tensor:
        return supcon(z, LABELS, temperature=T)

    hessian = functional.hessian
    x = randn(N, D).requires_grad_()
    g = f(x)
    for _ in range(3):
        (g,) = torch.autograd.grad(g.square().sum(), inputs=x, create_graph=True)
    with pytest.raises(RuntimeError, match="contrastive_core: losses can be differentiated three times"):
        torch.autograd.grad(g.sum(), inputs=x)
    with pytest.raises(RuntimeError, match="contrastive_core: losses cannot be differentiated twice in forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(f))(randn(N, D))
    with pytest.raises(RuntimeError, match="contrastive_core: third derivatives of a loss exist in reverse mode only"):
        torch.func.jacfwd(torch.func.jacrev(torch.func.jacrev(f)))(randn(N, D))
    with use_backend("reference"):
        assert hessian(lambda x: hessian(f, x, create_graph=True).square().sum(), randn(N, D)).isfinite().all()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "loss",
    {
        "nt_xent": lambda z: nt_xent(z, z.roll(1, 0)),
        "info_nce": lambda z: info_nce(z, z.roll(1, 0)),
        "suncet": lambda z: suncet(z, LABELS),
        "ignored": lambda z: suncet(z, LABELS, ignore_index=3),
        "supcon": lambda z: supcon(z, LABELS),
        "paws": lambda z: sum(paws(z, z.roll(1, 0), z, LABELS)),
        "distillation": lambda z: distillation(z, z.detach().roll(1, 0)),
        "local": lambda z: local_contrastive(z, LABELS[None, None], pairs=torch.zeros(1, 2, dtype=torch.int64)),
    }.items(),
    ids=lambda item: item[0] if isinstance(item, tuple) else None,
)
def test_second_derivatives_of_compiled_losses_are_errors(loss: tuple[str, Loss], compiler: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(loss[1], backend=compiler)
    x, weight = randn(N, D), randn(D, D, seed=1).requires_grad_()

    def value() -> Tensor:
        rows = (x @ weight).tanh()
        return compiled(rows.T.reshape(1, D, 1, N) if loss[0] == "local" else rows)

    torch.autograd.grad(value(), weight)
    # Inputs are named because the pass then runs only through nodes that lead to them.
    with pytest.raises(RuntimeError, match=r"differentiated once|double backward|donated buffers"):
        torch.autograd.grad(torch.autograd.grad(value(), weight, create_graph=True)[0].sum(), weight)
