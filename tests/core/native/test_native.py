"""The compiled library: kernels of every instruction set, odd sizes, threads, types, compilation."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.native import library
from contrastive_core.native.build import SOURCES
from contrastive_core.similarity import row_lse, self_lse, use_backend

pytestmark = pytest.mark.usefixtures("native")
INSTRUCTIONS = ("AVX-512", "AVX2")


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(n: int, d: int, *, seed: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(randn(n, d, seed=seed)).to(dtype)


def sorted_labels(n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed)).sort().values


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each available set of kernels, with small blocks."""
    try:
        library.set_up(instructions=request.param, largest_block=48)
    except library.NotLoadedError as error:
        pytest.skip(str(error))
    yield request.param
    library.set_up()


def differentiated(backend: str, inputs: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """Return the value, and gradients of a random combination of its finite entries."""
    f = self_lse if len(inputs) == 1 else row_lse
    leaves = [x.detach().requires_grad_() for x in inputs]
    with use_backend(backend):
        lse = f(*leaves, **options)
        weights = randn(len(lse), seed=9).abs() + 0.1  # as in a mean: no part of a gradient cancels another
        value = torch.where(lse.isfinite(), lse * weights, 0.0).sum()
        return [lse.detach(), *torch.autograd.grad(value, leaves)]


def errors(inputs: tuple[Tensor, ...], **options: Any) -> list[float]:
    """Errors of value and gradients relative to the float64 full matrix; a gradient of 0 must be exactly 0."""
    ours = differentiated("native", inputs, **options)
    exact = differentiated("reference", tuple(x.double() for x in inputs), **options)
    found = []
    for a, b in zip(ours, exact, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        finite = b.isfinite()
        size = b[finite].norm().item()
        found.append((a.double() - b)[finite].norm().item() / (size or 1.0))
    return found


# One register, one panel and one block more or less, and more features than are summed in one go.
SIZES = [(1, 1), (2, 3), (7, 16), (47, 5), (48, 33), (49, 31), (95, 64), (145, 48), (200, 17), (97, 300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 10.0, 400.0])
def test_ragged_sizes_and_every_kind_of_candidate(instructions: str, dtype: torch.dtype, scale: float) -> None:
    # At scale 400 rounding of a similarity, 1e-8 here, is multiplied by 400.
    limit = {torch.float32: 5e-7 * max(1.0, scale / 10), torch.float64: 1e-13}[dtype]
    for (n, d), seed in zip(SIZES, itertools.count(), strict=False):
        z, k = unit(n, d, seed=seed, dtype=dtype), unit(n * 2 // 3 + 1, d, seed=seed + 50, dtype=dtype)
        labels, others = sorted_labels(n, n // 12 + 1, seed), sorted_labels(len(k), n // 12 + 1, seed + 1)
        for options in ({}, {"skip": n // 2 + 1}, {"max_norm": 1.001}):
            assert max(errors((z,), scale=scale, **options)) < limit, (n, d, options)
        for options in ({}, {"self_offset": 0}, {"self_offset": -n // 3}):
            assert max(errors((z, k), scale=scale, **options)) < limit, (n, d, options)
        for among in ("same", "other"):
            assert max(errors((z,), scale=scale, classes=labels, among=among)) < limit, (n, d, among)
            assert max(errors((z, k), scale=scale, classes=(labels, others), among=among)) < limit, (n, d, among)


def adversarial(kind: str, n: int, d: int) -> Tensor:
    """Unit rows that are close to one another, and rows that are hard for a sum of exponentials."""
    z = F.normalize(randn(n, d, seed=3) * 0.05 + torch.eye(d, dtype=torch.float64)[0])
    if kind == "antipodal outliers":
        z[[1, n // 2]] *= -1
    elif kind == "zero rows":
        z[[0, n // 3, n - 1]] = 0
    elif kind == "duplicates":
        z[: n // 2] = z[0].clone()
    return z


@pytest.mark.parametrize("kind", ["antipodal outliers", "zero rows", "duplicates"])
@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.1, 1.0, 10.0])
def test_adversarial_rows(instructions: str, kind: str, temperature: float) -> None:
    """Exact in float64, which losses use below temperature 0.1; within 1e-6 in float32 above that."""
    z, k = adversarial(kind, 150, 40), adversarial(kind, 70, 40)
    for inputs in ((z,), (z, k)):
        assert max(errors(inputs, scale=1 / temperature)) < 1e-12 * max(1.0, 0.1 / temperature)
        if temperature >= 0.1:
            assert max(errors(tuple(x.float() for x in inputs), scale=1 / temperature)) < 1e-6


def test_nothing_depends_on_the_number_of_threads(instructions: str) -> None:
    before = torch.get_num_threads()
    # Wide enough to be worth a thread, from one block of 48 to many, and rectangles of either orientation.
    shapes = [(300, 400, None), (700, 64, None), (60, 300, 900), (900, 300, 60), (300, 128, 500), (40, 900, 400)]
    try:
        for (n, d, keys), dtype in itertools.product(shapes, (torch.float32, torch.float64)):
            inputs = tuple(unit(m, d, seed=m, dtype=dtype) for m in (n, keys) if m)
            for scale in (10.0, 1000.0):
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(differentiated("native", inputs, scale=scale))
                for other in results[1:]:
                    assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), (n, d, keys, scale)
    finally:
        torch.set_num_threads(before)


def pairs(n: int, d: int, *, noise: float, dtype: torch.dtype) -> Tensor:
    """Two stacked views, as close as trained embeddings if the noise is small."""
    a = randn(n, d, seed=n)
    return F.normalize(torch.cat([a, a + noise * randn(n, d, seed=d)])).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_what_is_left_out_of_the_gradient_is_below_the_precision(
    instructions: str, dtype: torch.dtype, noise: float
) -> None:
    """Relative to the norm of the incoming gradient times the scale: the size of the result without cancellation."""
    z, keys = pairs(250, 24, noise=noise, dtype=dtype), pairs(140, 24, noise=noise, dtype=dtype)
    ascending = sorted_labels(500, 4, seed=1)
    cases: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((z,), {}), ((z,), {"skip": 250}), ((z,), {"classes": ascending, "among": "other"}), ((z, keys), {}),
        ((keys, z), {"self_offset": 3}),
    ]  # fmt: skip
    changed = 0
    try:
        for (inputs, options), scale in itertools.product(cases, (30.0, 100.0, 1000.0)):
            ours = differentiated("native", inputs, scale=scale, **options)
            library.set_up(instructions=instructions, largest_block=48, part_omitted=0)
            whole = differentiated("native", inputs, scale=scale, **options)
            library.set_up(instructions=instructions, largest_block=48)
            size = scale * (randn(len(inputs[0]), seed=9).abs() + 0.1).norm().item()
            assert torch.equal(ours[0], whole[0])
            for mine, every in zip(ours[1:], whole[1:], strict=True):
                assert (mine - every).norm().item() <= torch.finfo(dtype).eps * size
                changed += not torch.equal(mine, every)
    finally:
        library.set_up()
    assert changed >= 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_that_is_not_finite_is_left_out(instructions: str, value: float) -> None:
    z, keys = (pairs(60, 24, noise=0.3, dtype=torch.float32) for _ in range(2))
    z[70, 3] = value
    for inputs in ((z,), (z, keys), (keys, z)):
        ours = differentiated("native", inputs, scale=100.0)
        library.set_up(instructions=instructions, largest_block=48, part_omitted=0)
        whole = differentiated("native", inputs, scale=100.0)
        library.set_up(instructions=instructions, largest_block=48)
        assert any(not x.isfinite().all() for x in whole)
        for mine, every in zip(ours, whole, strict=True):
            assert torch.equal(mine, every) or torch.equal(mine.isnan(), every.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(little_blocks: None, dtype: torch.dtype) -> None:
    z, k = unit(100, 24, seed=0, dtype=dtype), unit(60, 24, seed=1, dtype=dtype)
    for inputs in ((z,), (z, k)):
        ours = differentiated("native", inputs, scale=10.0)
        single = differentiated("native", tuple(x.float() for x in inputs), scale=10.0)
        assert torch.equal(ours[0], single[0])
        for a, b in zip(ours[1:], single[1:], strict=True):
            assert a.dtype == dtype
            assert torch.equal(a, b.to(dtype))


def test_half_rows_are_kept_as_they_are(native: None) -> None:
    """The input itself is saved for the backward pass, not a float32 copy."""
    kept: list[Tensor] = []
    z = unit(64, 32, seed=0, dtype=torch.bfloat16).requires_grad_()
    with use_backend("native"), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        self_lse(z, scale=1.0)
    assert sorted((x.dtype, x.numel()) for x in kept if x.numel() > 64) == [(torch.bfloat16, 64 * 32)]


@pytest.mark.parametrize("layout", ["transposed", "gaps", "expanded"])
def test_strides(little_blocks: None, layout: str) -> None:
    z = unit(60, 8, seed=0, dtype=torch.float64)
    strided = {
        "transposed": z.T.contiguous().T,
        "gaps": torch.stack([z, z], -1).flatten(1)[:, ::2],
        "expanded": z[:1].expand(60, -1),
    }[layout]
    assert not strided.is_contiguous()
    assert max(errors((strided,), scale=3.0)) < 1e-13
    assert max(errors((strided, strided), scale=3.0, self_offset=0)) < 1e-13


def test_operators_of_half_types_are_registered_as_torch_wants_them() -> None:
    ops = torch.ops.contrastive_core_native
    z = unit(9, 4, seed=0, dtype=torch.bfloat16).requires_grad_()
    torch.library.opcheck(ops.self_lse.default, (z, 2.0, 3, None, "all", None))
    torch.library.opcheck(ops.row_lse.default, (z, z.detach(), 2.0, -1, None, None, "all"))


def test_compiled_with_a_number_of_rows_that_varies(little_blocks: None) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # other tests have compiled, too

    def f(z: Tensor) -> Tensor:
        return self_lse(z, scale=2.0, skip=len(z) // 2).sum()

    with use_backend("native"):
        compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
        for n in (10, 60, 130):
            z = randn(n, 6, seed=n).requires_grad_()
            (grad,) = torch.autograd.grad(compiled(z), z)
            torch.testing.assert_close(grad, torch.autograd.grad(f(z), z)[0])
    counters = torch._dynamo.utils.counters["stats"]
    assert counters["unique_graphs"] == 1


def test_another_processor_gets_no_kernels() -> None:
    with pytest.raises(library.NotLoadedError, match="lacks AVX-1024"):
        library.set_up(instructions="AVX-1024")


def test_headers_for_one_processor_bring_no_code_of_the_standard_library() -> None:
    """The linker might keep an inline function compiled with AVX-512 as the copy for all."""
    seen, todo = set(), ["avx512.cpp", "avx2.cpp"]
    while todo:
        name = todo.pop()
        seen.add(name)
        includes = re.findall(r"#include ([<\"])(.+)[>\"]", Path(SOURCES, name).read_text())
        todo += [file for kind, file in includes if kind == '"' and file not in seen]
        assert {file for kind, file in includes if kind == "<"} <= {"cstdint", "immintrin.h"}, name


def test_library_is_the_one_that_was_built() -> None:
    loaded = library.load()
    assert loaded.instructions in INSTRUCTIONS
    assert str(loaded.path).startswith((os.environ["CONTRASTIVE_CORE_CACHE"], str(library.INSTALLED)))
