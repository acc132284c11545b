"""Fixtures of the core tests: backends, small tiles, and the losses written as formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock  # torch requires it
from torch import Tensor

from contrastive_core.native import library
from contrastive_core.native.build import BuildError, build_cpu
from contrastive_core.similarity import api, torch_backend, use_backend


@pytest.fixture(scope="session")
def native() -> None:
    """The compiled library, built once for all tests; skips with the reason if it cannot be built."""
    folder = library.cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "lock"):  # another test process may be building it
        api._native.cache_clear()
        if api.unavailable():
            try:
                build_cpu(folder)
            except BuildError as error:
                pytest.skip(f"no compiled library: {error}")
            library.load.cache_clear()
            api._native.cache_clear()
    if reason := api.unavailable().get("native"):
        pytest.skip(f"no compiled library: {reason}")


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each backend that users may meet."""
    if request.param == "native":
        request.getfixturevalue("native")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def little_blocks(native: None) -> Iterator[None]:
    """Make the blocks of the compiled library so small that small inputs span many."""
    library.set_up(largest_block=48)
    yield
    library.set_up()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that small inputs span many, the last ones incomplete."""
    monkeypatch.setattr(torch_backend, "_BLOCK", {"cpu": 7})
    monkeypatch.setattr(torch_backend, "_BLOCK_WITHIN_CLASSES", 3)


def unit(x: Tensor) -> Tensor:
    """Divide rows by their length; zero rows stay zero, without gradient."""
    dead = (x == 0).all(1, keepdim=True)
    return torch.where(dead, 0.0, x / torch.where(dead, 1.0, x).norm(dim=1, keepdim=True))


def nt_xent(view_a: Tensor, view_b: Tensor, temperature: float, bank: Tensor | None = None) -> Tensor:
    z = unit(torch.cat([view_a, view_b]))
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    if bank is not None:
        logits = torch.cat([logits, z @ unit(bank).T / temperature], 1)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(view_a)))


def _labelled(z: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits without the anchor itself, a mask of positives, and which anchors have any."""
    z = unit(z)
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    return (z @ z.T / temperature).masked_fill(itself, -torch.inf), positive, positive.any(1)


def suncet(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits, positive, live = _labelled(z, labels, temperature)
    among_positives = logits.masked_fill(~positive, -torch.inf)
    return (logits[live].logsumexp(1) - among_positives[live].logsumexp(1)).mean()


def smoothed_suncet(z: Tensor, labels: Tensor, temperature: float, label_smoothing: float) -> Tensor:
    logits, _, _ = _labelled(z, labels, temperature)
    one_hot = (labels[:, None] == labels.unique()).double()
    target = (1 - label_smoothing) * one_hot + label_smoothing / one_hot.shape[1]
    return -(target * (logits.softmax(1) @ target).log()).sum(1).mean()


def supcon(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits, positive, live = _labelled(z, labels, temperature)
    mean = torch.where(positive, logits, 0.0).sum(1)[live] / positive.sum(1)[live]
    return (logits[live].logsumexp(1) - mean).mean()


def info_nce(query: Tensor, key: Tensor, temperature: float, bank: Tensor | None = None) -> Tensor:
    candidates = unit(key) if bank is None else unit(torch.cat([key, bank]))
    return F.cross_entropy(unit(query) @ candidates.T / temperature, torch.arange(len(query)))


@pytest.fixture(scope="session")
def formulas() -> SimpleNamespace:
    """`nt_xent`, `suncet`, `smoothed_suncet`, `supcon`, `info_nce` as in the papers, with the full matrix."""
    return SimpleNamespace(
        nt_xent=nt_xent, suncet=suncet, smoothed_suncet=smoothed_suncet, supcon=supcon, info_nce=info_nce
    )


@pytest.fixture(scope="session")
def differentiate() -> Callable[..., tuple[Tensor, ...]]:
    """`differentiate(f, *inputs)` returns the scalar f(*inputs) and its gradient with respect to each input."""

    def run(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
        value = f(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run
