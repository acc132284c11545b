"""The memory bank: what it keeps, in which order it forgets, and that a restored one continues."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contrastive_core import MemoryBank


def keys(first: int, count: int) -> Tensor:
    """Rows of unit length, each at its own angle."""
    angle = torch.arange(first, first + count) / 10
    return torch.stack([angle.cos(), angle.sin()], 1)


def kept(bank: MemoryBank) -> Tensor:
    """Return the rows in the order of their angle."""
    return bank.rows[torch.atan2(bank.rows[:, 1], bank.rows[:, 0]).argsort()]


@pytest.mark.parametrize("batches", [[3], [3, 2], [2, 2, 2, 2], [5], [9], [4, 7], [7, 1, 4], [5, 5, 1]])
def test_the_last_rows_are_kept(batches: list[int]) -> None:
    bank, added = MemoryBank(5, 2), 0
    assert len(bank) == len(bank.rows) == 0
    for count in batches:
        bank.add(3 * keys(added, count))
        added += count
    assert len(bank) == min(5, added)
    torch.testing.assert_close(kept(bank), keys(max(0, added - 5), min(5, added)))


def test_rows_are_of_unit_length_in_float32_and_without_gradient() -> None:
    bank, key = MemoryBank(4, 3), torch.randn(2, 3, requires_grad=True)
    bank.add(key.bfloat16())
    assert bank.rows.dtype == torch.float32
    assert not bank.rows.requires_grad
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(2))
    double = MemoryBank(4, 3, dtype=torch.float64)
    double.add(key.double())
    torch.testing.assert_close(double.rows.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_a_restored_bank_goes_on_in_the_same_bits() -> None:
    first, second = MemoryBank(5, 2), MemoryBank(5, 2)
    first.add(keys(0, 7))
    second.load_state_dict({k: v.clone() if isinstance(v, Tensor) else v for k, v in first.state_dict().items()})
    for bank in (first, second):
        bank.add(keys(7, 2))
    assert torch.equal(first.rows, second.rows)


def test_what_does_not_fit_is_refused() -> None:
    bank = MemoryBank(5, 2)
    with pytest.raises(ValueError, match="same width"):
        bank.add(torch.ones(3, 4))
    with pytest.raises(TypeError, match="expected a floating-point tensor"):
        bank.add(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"state of a bank of shape \[4, 2\], expected \[5, 2\]"):
        bank.load_state_dict(MemoryBank(4, 2).state_dict())
    with pytest.raises(ValueError, match="size 0"):
        MemoryBank(0, 2)


def test_a_state_is_a_snapshot() -> None:
    bank, other = MemoryBank(4, 2), MemoryBank(4, 2)
    bank.add(torch.eye(2))
    state, rows = bank.state_dict(), bank.rows.clone()
    bank.add(torch.full((4, 2), -1.0))
    other.load_state_dict(state)
    assert torch.equal(other.rows, rows)
    other.add(torch.full((4, 2), -1.0))
    assert torch.equal(state["rows"][:2], rows)
    with pytest.raises(ValueError, match="MemoryBank: the state lacks added"):
        other.load_state_dict({"rows": rows})
