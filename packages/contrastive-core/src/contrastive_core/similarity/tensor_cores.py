"""Compute the log-sum-exp on the tensor cores of GPUs, with Triton kernels.

The PyTorch backend uses these kernels on GPUs on which they were measured. Vectors are split into float16 parts,
z = (high + low) / 2^e. With one part (for inputs of half precision), products are those of z rounded to 11 bits. With
two parts (and three products), they have the accuracy of float32. Sums are computed in float32, and sums of
exponentials over tiles in float64.

The forward pass computes a tile of S and sums exp(S) without storing either. The backward pass computes a strip of
rows of the weights

    W_ij = exp(S_ij) (a_i + a_j),    a_i = g_i / sum_j exp(S_ij)        (rectangular form: exp(S_ij) a_i)

in float16 and multiplies it with the vectors by cuBLAS. No matrix N x N is stored: the computation takes O(N D) memory
and at most half a GiB for the strip. As in the PyTorch backend, the square form computes only the tiles on and above
the diagonal. The exponential is computed without a shift, so the length of the vectors must be bounded.

Value and gradient of 65,536 vectors with 768 features took 25 ms on an H200 with one part, which is two thirds of the
rate of a plain float16 product on the same card.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.similarity.reference import NO_CLASS

VARIABLE = "CONTRASTIVE_CORE_TENSOR_CORES"

# Fastest of eight tile shapes on an H200, with 128 and with 768 features.
_TILE, _DEPTH = 128, 64
_LAUNCH = {"num_warps": 4, "num_stages": 3}
_STRIP = 4096
_STRIP_NUMBERS = 1 << 28
# Smaller matrices take less time than the kernel launches, and PyTorch tiles need no compiler.
_LEAST_ROWS = 1024
# Tensor cores round sums towards zero, an error that grows with their length; with two parts, long sums are split.
_LONGEST_SUM = 2048
_WEIGHT_BITS = 14  # |W_ij| is at most twice the largest |g|, and float16 ends at 2^16
_NO_DIAGONAL = 1 << 30
NO_CODE = -1  # class code of rows and columns that are excluded


class Problem(NamedTuple):
    """Queries, keys and the excluded entries of their similarity matrix."""

    q: Tensor
    """Queries [Nq, D] in float32."""
    k: Tensor | None
    """Keys [Nk, D] in float32; None for the square form, in which the keys are the queries."""
    diagonals: tuple[int, ...]
    """Up to three values of column - row whose entries are excluded; symmetric in the square form."""
    classes: tuple[Tensor, Tensor] | None
    """Ascending class numbers [Nq] and [Nk]; entries of the same class and those of NO_CLASS are excluded."""
    scale: float
    """One over the temperature."""
    max_norm: float
    """Upper bound on the lengths of the vectors; scale * max_norm^2 is at most 40."""
    half: bool
    """Whether to use one float16 part instead of two."""


def take(q: Tensor, k: Tensor) -> bool:
    """Return whether these kernels should compute the similarities of these vectors."""
    return (
        q.device.type == "cuda"
        and q.dtype == torch.float32
        and min(len(q), len(k)) >= _LEAST_ROWS
        and in_use(q.device.index)
    )


@functools.cache
def in_use(device: int) -> bool:
    """Return whether the kernels are enabled for a device and pass their self-check on it.

    The environment variable `CONTRASTIVE_CORE_TENSOR_CORES` enables them: auto (the default) for compute capability 9,
    1 also for other devices from compute capability 8.0, which are untested, and 0 for none.
    """
    setting = os.environ.get(VARIABLE, "auto")
    if setting == "0" or importlib.util.find_spec("triton") is None:
        return False
    major = torch.cuda.get_device_capability(device)[0]
    if major < 8 or (major != 9 and setting != "1"):
        return False
    if error := self_check(torch.device("cuda", device)):
        warnings.warn(
            f"contrastive_core: losses on {torch.cuda.get_device_name(device)} use PyTorch tiles, not the Triton "
            f"kernels for tensor cores: {error}. Please report this message; {VARIABLE}=0 silences it",
            stacklevel=2,
        )
        return False
    return True


def state() -> str:
    """Describe the implementation of the losses on the first CUDA device."""
    if not torch.cuda.is_available():
        return "no device"
    if in_use(0):
        return "Triton kernels for tensor cores; PyTorch tiles for small batches"
    return f"PyTorch tiles; {VARIABLE}=1 tries the Triton kernels"


def self_check(device: torch.device) -> str:
    """Compare the kernels with the full matrix on a small problem and return the problem found, or an empty string."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(n, 37, generator=generator)).to(device) for n in (300, 257))
    gradient = torch.rand(300, generator=generator, dtype=torch.float64).to(device) + 0.1
    names = ("log-sum-exp", "gradient of the queries", "gradient of the keys")
    try:
        for half, bound in ((True, 2e-3), (False, 1e-5)):
            for keys, diagonals in ((None, (0, 150, -150)), (k, (3,))):
                problem = Problem(q, keys, diagonals, None, 10.0, 1.0, half)
                lse = forward(problem)
                results = (lse, *backward(problem, gradient, lse))
                for name, result, exact in zip(names, results, _full_matrix(problem, gradient), strict=True):
                    if not (result - exact).norm() <= bound * exact.norm():
                        return f"their {name} differs from the full matrix"
    # Triton calls the C compiler of the machine, which can fail in any manner; no failure must stop a training run.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return ""


def _full_matrix(problem: Problem, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the results of `forward` and `backward` from the full matrix in float64."""
    q, k = problem.q.double(), (problem.q if problem.k is None else problem.k).double()
    s = problem.scale * (q @ k.T)
    for diagonal in problem.diagonals:
        s.diagonal(diagonal).fill_(-torch.inf)
    p = problem.scale * gradient[:, None] * s.softmax(1)
    dq, dk = p @ k, p.T @ q
    return (s.logsumexp(1), dq + dk, dk.new_empty(0)) if problem.k is None else (s.logsumexp(1), dq, dk)


def forward(problem: Problem) -> Tensor:
    """Compute the log-sum-exp [Nq] of each query over its candidates, in float64."""
    work = _Work.of(problem)
    total = torch.zeros(len(work.q), dtype=exact_dtype(work.q), device=work.q.device)
    for strip in work.strips():
        across = total.new_empty(strip.width // _TILE, strip.height, dtype=torch.float32)
        down = total.new_empty(strip.height // _TILE, strip.width if work.square else 0, dtype=torch.float32)
        work.launch("sum_tiles", strip, across, down, strip.top, strip.left, strip.height, strip.width)
        total[strip.rows] += across.sum(0, dtype=total.dtype)
        if strip.goes_on:
            total[strip.bottom :] += down[:, strip.height :].sum(0, dtype=total.dtype)
    return total[: len(problem.q)].log_()


def backward(
    problem: Problem, grad: Tensor, lse: Tensor, *, needs: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, Tensor]:
    """Compute the gradients [Nq, D] and [Nk, D] in float32.

    A gradient that is not needed is an empty tensor, and so is the second gradient of the square form.
    """
    work, half = _Work.of(problem), problem.half
    # Weights are divided by the largest gradient and moved into the range of float16.
    largest = grad.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    # A row without candidates has lse -inf: no gradient.
    exact = torch.where(lse == -torch.inf, 0.0, grad / largest * torch.exp(_WEIGHT_BITS * math.log(2) - lse))
    weight = torch.zeros(len(work.q), dtype=torch.float32, device=grad.device)
    weight[: len(exact)] = exact
    needs_q, needs_k = needs[0], needs[1] and not work.square
    dq = torch.zeros(work.q_parts[0].shape if needs_q else (0, 0), dtype=torch.float32, device=grad.device)
    dk = torch.zeros(work.k_parts[0].shape if needs_k else (0, 0), dtype=torch.float32, device=grad.device)
    buffers: list[Tensor] = []
    for strip in work.strips():
        numbers = strip.height * strip.width
        # The first strip is the largest.
        buffers = buffers or [work.q.new_empty(numbers) for _ in work.q_parts]
        parts = [buffer[:numbers].view(strip.height, strip.width) for buffer in buffers]
        descriptors = (_descriptor(parts[0], _TILE), _descriptor(parts[-1], _TILE))
        work.launch("weigh_tiles", strip, weight, *descriptors, strip.top, strip.left, strip.height, HAS_LOW=not half)
        for w, of_q, of_k in _products(parts, work):
            if needs_q:
                _add_product(dq[strip.rows], w, of_k[strip.left :], half=half)
            if strip.goes_on:
                _add_product(dq[strip.bottom :], w[:, strip.height :].T, of_q[strip.rows], half=half)
            if needs_k:
                _add_product(dk, w.T, of_q[strip.rows], half=half)
    factor = (largest * (problem.scale * 2.0 ** -(_WEIGHT_BITS + work.exponent))).to(torch.float32)
    return _trimmed(dq, problem.q).mul_(factor), _trimmed(dk, problem.k).mul_(factor)


class _Strip(NamedTuple):
    """Rows [top, bottom) and columns [left, right), all multiples of a tile."""

    top: int
    bottom: int
    left: int
    right: int
    goes_on: bool
    """Whether, in the square form, there are columns beyond the strip's own rows."""

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)


@dataclass(frozen=True)
class _Work:
    """Arguments of the kernels: vectors times 2^exponent in float16 parts, padded with zeros to whole tiles."""

    q_parts: list[Tensor]
    k_parts: list[Tensor]
    q: Tensor
    k: Tensor
    """Parts of the keys side by side; one product with the parts in `q` adds the products of all parts."""
    counts: tuple[Any, ...]
    """Arguments of the kernels that select the entries: numbers of rows and columns, diagonals and classes."""
    factor: float
    exponent: int
    square: bool

    @classmethod
    def of(cls, problem: Problem) -> _Work:
        exponent = math.floor(15 - math.log2(max(problem.max_norm, 2.0**-30)))
        q_parts = _split(problem.q, exponent, half=problem.half)
        k_parts = q_parts if problem.k is None else _split(problem.k, exponent, half=problem.half)
        if problem.half:
            q, k = q_parts[0], k_parts[0]
        else:
            # Small products come first, where rounding costs least.
            q = torch.cat([q_parts[1], q_parts[0], q_parts[0]], 1)
            k = torch.cat([k_parts[0], k_parts[1], k_parts[0]], 1)
        left_out = (*problem.diagonals, *[_NO_DIAGONAL] * 3)[:3]
        classes = (None, None) if problem.classes is None else _class_codes(*problem.classes)
        keys = problem.q if problem.k is None else problem.k
        return cls(
            q_parts, k_parts, q, k, counts=(len(problem.q), len(keys), *left_out, *classes), exponent=exponent,
            factor=problem.scale * math.log2(math.e) * 4.0**-exponent, square=problem.k is None,
        )  # fmt: skip

    def strips(self) -> Iterator[_Strip]:
        rows, columns = len(self.q), len(self.k)
        step = min(_STRIP, max(_TILE, _STRIP_NUMBERS // columns // _TILE * _TILE))
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            yield _Strip(top, bottom, top if self.square else 0, columns, self.square and bottom < rows)

    def launch(self, name: str, strip: _Strip, *arguments: Any, **options: Any) -> None:
        """Run a kernel on every tile of a strip."""
        from contrastive_core.similarity import tensor_core_kernels  # noqa: PLC0415 - needs Triton

        tiles = (strip.height // _TILE) * (strip.width // _TILE)
        # Triton launches on the current device, whatever the device of the tensors.
        with torch.cuda.device_of(self.q):  # type: ignore[no-untyped-call]
            getattr(tensor_core_kernels, name)[(tiles,)](
                _descriptor(self.q, _DEPTH), _descriptor(self.k, _DEPTH), *arguments, *self.counts, self.factor,
                self.q.shape[1], SYMMETRIC=self.square, HAS_CLASSES=self.counts[-1] is not None, HEIGHT=_TILE,
                WIDTH=_TILE, DEPTH=_DEPTH, **options, **_LAUNCH,
            )  # fmt: skip


def _split(x: Tensor, exponent: int, *, half: bool) -> list[Tensor]:
    """Split x * 2^exponent into one or two parts, padded with zeros to whole tiles."""
    rows, columns = (-(-size // step) * step for size, step in zip(x.shape, (_TILE, _DEPTH), strict=True))
    parts = [torch.zeros(rows, columns, dtype=torch.float16, device=x.device) for _ in range(1 if half else 2)]
    inside = (slice(len(x)), slice(x.shape[1]))
    rest = x * 2.0**exponent
    for part in parts:
        part[inside] = rest
        rest = rest - part[inside]
    return parts


def _class_codes(q_classes: Tensor, k_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Number ascending classes of any size in int32, equal where the classes are equal; `NO_CODE` for NO_CLASS.

    The code of a class of the keys is twice the index of its first key; that of other classes is an odd number.
    """
    codes = []
    for classes in (q_classes, k_classes):
        first, end = (torch.searchsorted(k_classes, classes, right=right, out_int32=True) for right in (False, True))
        codes.append((2 * first + (first == end)).masked_fill(classes == NO_CLASS, NO_CODE))
    return codes[0], codes[1]


def _trimmed(gradient: Tensor, x: Tensor | None) -> Tensor:
    """Remove the padding of a gradient; an empty gradient becomes one-dimensional."""
    if x is None or gradient.numel() == 0:
        return gradient.view(-1)
    return gradient[: len(x), : x.shape[1]].contiguous()


def _descriptor(x: Tensor, columns: int) -> Any:
    """Describe a matrix in tiles of `_TILE` rows for the tensor memory accelerator."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: PLC0415 - an optional dependency

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [_TILE, columns])


def _products(w: list[Tensor], work: _Work) -> list[tuple[Tensor, Tensor, Tensor]]:
    """List the parts of weights, queries and keys whose products add up to the whole product, the smallest first."""
    high = (w[0], work.q_parts[0], work.k_parts[0])
    return [high] if len(w) == 1 else [(w[1], *high[1:]), (w[0], work.q_parts[1], work.k_parts[1]), high]


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, half: bool) -> None:
    """Add the product of float16 matrices a and b to `out`, summed in float32."""
    step = len(b) if half else _LONGEST_SUM
    for left, right in zip(torch.split(a, step, 1), torch.split(b, step), strict=True):
        if out.is_cuda:
            torch.addmm(out, left, right, out_dtype=torch.float32, out=out)
        else:  # in Triton's interpreter
            out.addmm_(left.float(), right.float())
