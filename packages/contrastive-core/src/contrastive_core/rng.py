"""Counter-based random numbers: each draw depends only on its keys, not on earlier draws, order or process.

The draws of a stateful generator depend on its history, which includes the number of loader workers, skipped images and
restarts. Here a draw is a hash of (seed, keys, sample, index of the draw).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number: the step of SplitMix64
_UNSIGNED = 2**64 - 1
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def derive(seed: int, *keys: int | str) -> int:
    """Derive an independent seed from a seed and a sequence of keys: `derive(seed, "order", epoch)`.

    The result is in [0, 2**63) and is the same in every process and on every platform. Different keys give independent
    seeds; 1 and "1" are different keys, and so are ("a", "b") and ("ab",).

    >>> derive(0, "order", 1) == derive(0, "order", 1), derive(0, "order", 1) == derive(0, "order", 2)
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for key in (seed, *keys):
        text = f"{'s' if isinstance(key, str) else 'i'}{key}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def uniform(seed: int, ids: Tensor, draws: int, *, device: torch.device | str | None = None) -> Tensor:
    """Draw uniform numbers in [0, 1) for each sample: float32 ``[N, draws]`` with 24 random bits each.

    Row i is a function of seed and ids[i] alone, and draw j does not depend on the number of draws. The bits are the
    same on every device.

    Args:
        seed: Seed of these draws; use :func:`derive` to obtain a separate one for each purpose.
        ids: Sample numbers, int64 ``[N]``.
        draws: Number of draws per sample.
        device: Device of the result; the device of `ids` if None.

    Raises:
        TypeError: `ids` is not an int64 tensor of one dimension.
    """
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise TypeError(f"uniform: ids is {ids.dtype} of shape {list(ids.shape)}, expected an int64 tensor [N]")
    ids = ids if device is None else ids.to(device)
    counter = torch.arange(1, draws + 1, dtype=torch.int64, device=ids.device)
    # Hash the seed first: otherwise sample 1 of seed 0 would get the draws of sample 0 of seed 1.
    state = _mix(_mix(ids + derive(seed, "uniform"))[:, None] + counter * _GOLDEN)
    return _shift(state, 40).to(torch.float32) * 2**-24


def uniform_number(seed: int, sample: int) -> float:
    """Return the first draw of :func:`uniform` for one sample, ``uniform(seed, [sample], 1)``, without a tensor."""
    state = _mix_number(_mix_number(sample + derive(seed, "uniform")) + _GOLDEN)
    return (state >> 40) * 2.0**-24


def permutation(seed: int, n: int) -> Tensor:
    """Return a random permutation of 0 .. n-1 as int64 ``[n]`` on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _mix(x: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64, which makes each bit of the result depend on each bit of x (modulo 2^64)."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _mix_number(x: int) -> int:
    """Apply `_mix` to one unsigned number."""
    x &= _UNSIGNED
    x = ((x ^ (x >> 30)) * _MIX_1) & _UNSIGNED
    x = ((x ^ (x >> 27)) * _MIX_2) & _UNSIGNED
    return x ^ (x >> 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right logically, because `>>` on int64 is arithmetic and copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
