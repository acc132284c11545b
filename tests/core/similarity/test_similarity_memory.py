"""No loss holds an N x N matrix or saves one for the backward pass: memory is O(N D)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contrastive_core import info_nce, nt_xent, paws, suncet, supcon
from contrastive_core.losses import _class_probabilities
from contrastive_core.similarity import torch_backend, use_backend
from tests.core.similarity.memory import allocations

N, D = 2048, 16
ROWS = N * D * 4  # bytes of all embeddings in float32
MATRIX = N * N * 4
LABELS = {"few classes": torch.arange(N) % 3, "many classes": torch.arange(N) % 500, "all alone": torch.arange(N)}
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "nt_xent": lambda z: nt_xent(z[: N // 2], z[N // 2 :]),
    "nt_xent in float64": lambda z: nt_xent(z[: N // 2], z[N // 2 :], temperature=0.01),
    "nt_xent with row maximum": lambda z: nt_xent(z[: N // 2], z[N // 2 :], temperature=0.001),
    "info_nce": lambda z: info_nce(z[: N // 2], z[N // 2 :], z[: N // 2].detach()),
    **{f"suncet, {name}": lambda z, y=y: suncet(z, y) for name, y in LABELS.items()},
    **{f"supcon, {name}": lambda z, y=y: supcon(z, y) for name, y in LABELS.items()},
}


WITH_CLASS_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "paws": lambda z: sum(paws(z[: N // 2], z[N // 2 :], z.detach(), LABELS["few classes"])),
    "suncet with label smoothing": lambda z: suncet(z, LABELS["few classes"], label_smoothing=0.1),
}


@pytest.fixture(autouse=True)
def tiles_of_128(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_BLOCK", {"cpu": 128})
    monkeypatch.setattr(_class_probabilities, "_BLOCK", 64)


def embeddings() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0)).requires_grad_()


def kept_for_backward(loss: Callable[[Tensor], Tensor]) -> int:
    """Return the bytes of the distinct storages that autograd saves."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    z = embeddings()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = loss(z)
    value.backward()
    return sum(kept.values())


def pass_through(loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Run the forward and backward pass."""
    z = embeddings()
    return lambda: loss(z).backward()


# What a backend takes whatever N is; of the compiled one every thread's weights of a tile in float64.
FIXED = {"torch": 0, "native": torch.get_num_threads() * 192 * 400 * 8}


@pytest.mark.parametrize("name", LOSSES)
def test_memory_is_linear(name: str, tmp_path: Path, backend: str) -> None:
    kept = kept_for_backward(LOSSES[name])
    largest, peak = allocations(pass_through(LOSSES[name]), tmp_path)
    # Several copies of the rows in float64, indices of labels; a tile of 128 x 128 is 64 or 128 KB.
    assert kept <= 12 * ROWS
    assert largest <= max(2 * ROWS, FIXED[backend])
    assert peak <= 20 * ROWS + FIXED[backend]
    assert peak - FIXED[backend] < MATRIX / 6


@pytest.mark.parametrize("name", WITH_CLASS_SHARES)
def test_a_block_of_anchors_by_candidates_at_a_time(name: str, tmp_path: Path) -> None:
    loss, block = WITH_CLASS_SHARES[name], 64 * N * 8
    assert kept_for_backward(loss) <= 12 * ROWS
    largest, peak = allocations(pass_through(loss), tmp_path)
    assert largest <= block
    assert peak <= 20 * ROWS + 5 * block < 2 * N * N * 8 / 2


def test_the_measure_sees_a_full_matrix(tmp_path: Path) -> None:
    with use_backend("reference"):
        assert kept_for_backward(LOSSES["nt_xent"]) > MATRIX
        largest, peak = allocations(pass_through(LOSSES["nt_xent"]), tmp_path)
    assert largest >= MATRIX
    assert peak > 2 * MATRIX
