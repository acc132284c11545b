"""Counter-based random numbers: pinned bits, a scalar reference, independence and statistics."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_core.rng import derive, permutation, uniform, uniform_number

MASK = (1 << 64) - 1
seeds = st.integers(min_value=0, max_value=(1 << 63) - 1)
ids = st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1)


def mix(x: int) -> int:
    """SplitMix64's finaliser on one unsigned number."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def one_draw(seed: int, sample: int, draw: int) -> float:
    text = b"".join(len(key).to_bytes(4, "little") + key for key in (f"i{seed}".encode(), b"suniform"))
    start = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    state = mix((mix((sample + start) & MASK) + (draw + 1) * 0x9E3779B97F4A7C15) & MASK)
    return (state >> 40) / 2**24


@settings(deadline=None, max_examples=50)
@given(seed=seeds, sample=ids, draw=st.integers(0, 40))
def test_uniform_is_splitmix(seed: int, sample: int, draw: int) -> None:
    assert uniform(seed, torch.tensor([sample]), draw + 1)[0, draw].item() == one_draw(seed, sample, draw)


def test_bits_never_change() -> None:
    """A run resumed with a later release must draw the same numbers."""
    assert derive(0) == 9112507877425210602
    assert derive(1, "order", 3) == 5592227370437453135
    drawn = uniform(7, torch.tensor([0, 123456789]), 2) * 2**24
    assert drawn.tolist() == [[1717260.0, 9671.0], [8484160.0, 13642566.0]]


@settings(deadline=None, max_examples=50)
@given(seed=seeds, samples=st.lists(ids, min_size=1, max_size=8), draws=st.integers(1, 9))
def test_a_row_depends_on_its_seed_and_id_alone(seed: int, samples: list[int], draws: int) -> None:
    together = uniform(seed, torch.tensor(samples), draws)
    assert together.shape == (len(samples), draws)
    assert together.dtype == torch.float32
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(row, uniform(seed, torch.tensor([sample]), draws + 3)[0, :draws])


def test_range_and_moments() -> None:
    u = uniform(3, torch.arange(20000), 8).double()
    assert u.min() >= 0
    assert u.max() < 1
    torch.testing.assert_close(u.mean(0), torch.full((8,), 0.5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(u.var(0), torch.full((8,), 1 / 12).double(), atol=0.003, rtol=0)
    assert (torch.corrcoef(u.T) - torch.eye(8)).abs().max() < 0.03


def test_all_bits_are_even() -> None:
    bits = (uniform(5, torch.arange(20000), 4) * 2**24).long()[..., None] >> torch.arange(24) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("step", [1, 2, 1 << 32])
def test_neighbouring_ids_and_seeds_are_independent(step: int) -> None:
    samples = torch.arange(20000)
    base = uniform(11, samples, 1)[:, 0]
    for other in (uniform(11, samples + step, 1)[:, 0], uniform(11 + step, samples, 1)[:, 0]):
        assert torch.corrcoef(torch.stack([base, other]))[0, 1].abs() < 0.03


@settings(deadline=None)
@given(seed=st.integers(), keys=st.lists(st.integers() | st.text(max_size=5), max_size=4))
def test_derive_is_a_63_bit_number(seed: int, keys: list[int | str]) -> None:
    value = derive(seed, *keys)
    assert 0 <= value < 1 << 63
    assert value == derive(seed, *keys)
    assert value != derive(seed, *keys, 0)


def test_derive_tells_keys_apart() -> None:
    keys: list[tuple[int | str, ...]] = [
        (),
        (1,),
        ("1",),
        ("a", "b"),
        ("ab",),
        ("b", "a"),
        (12,),
        (1, 2),
        ("",),
        ("", ""),
    ]
    assert len({derive(0, *key) for key in keys}) == len(keys)
    assert derive(1, 0) != derive(0, 1)


def test_permutation() -> None:
    order = permutation(9, 1000)
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(1000))
    assert order.equal(permutation(9, 1000))
    assert not order.equal(permutation(10, 1000))
    assert permutation(0, 0).shape == (0,)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    uniform(0, torch.arange(3), 2)
    permutation(0, 5)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)]
)
def test_wrong_ids_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"uniform: ids is .*, expected an int64 tensor \[N\]"):
        uniform(0, wrong, 1)


def test_a_single_number_is_the_first_draw_of_its_sample() -> None:
    for seed in (0, 7, 2**62 + 3):
        ids = [0, 1, 2, 41, 2**40, 2**62]
        assert [uniform_number(seed, i) for i in ids] == uniform(seed, torch.tensor(ids), 3)[:, 0].tolist()
