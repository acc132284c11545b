"""Rows of other processes passed round in a ring: the values, gradients and errors are those of gathered rows."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from contrastive_core import SuNCEtLoss, info_nce, nt_xent, suncet, supcon
from contrastive_core.similarity.api import row_lse_gradient
from tests.core.losses import gather_worker, gloo
from tests.core.similarity import ring_worker as worker

Found = list[gloo.Found]
CASES = [
    f"{name}, {kind}"
    for name, _ in gather_worker.cases()
    for kind in gather_worker.labels(2)
    if name not in worker.SKIPPED and (kind == "random" or gather_worker.has_labels(name))
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    """`run(2)` returns what each of two processes found; they are started once."""
    return functools.cache(
        lambda world: gloo.found_by("tests.core.similarity.ring_worker", world, tmp_path_factory.mktemp("ring"))
    )


@pytest.fixture(params=[2, 3])
def found(request: pytest.FixtureRequest, run: Callable[[int], Found]) -> Found:
    return run(request.param)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_gathered_rows(found: Found, case: str) -> None:
    for own in found:
        (value, grads), (expected, expected_grads) = own[case]["ring"], own[case]["all"]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
        largest = max(1.0, *(grad.abs().max().item() for grad in expected_grads))
        for ours, theirs in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * largest)
    trivial = "no positives" in case or "one class" in case
    assert trivial or max(grad.abs().max() for own in found for grad in own[case]["all"][1]) > 1e-4


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "suncet", "supcon"])
def test_union_of_the_batches(found: Found, name: str) -> None:
    """Compared directly, not through the gathered version."""
    world, net = len(found), gather_worker.model()
    y = gather_worker.labels(world)["random"].flatten()
    loss = dict(gather_worker.cases())[name](net(gather_worker.inputs(world).flatten(0, 1)), y, False)
    expected = gather_worker.gradients(loss, net)
    values, grads = zip(*(own[f"{name}, random"]["ring"] for own in found), strict=True)
    torch.testing.assert_close(sum(values) / world, loss.detach(), rtol=1e-12, atol=0)
    for ours, union in zip(zip(*grads, strict=True), expected, strict=True):
        torch.testing.assert_close(sum(ours) / world, union, rtol=1e-10, atol=1e-12)


def test_float32_is_within_a_millionth(found: Found) -> None:
    for own in found:
        for ours, exact in zip(own["float32"]["ring"], own["float32"]["all"], strict=True):
            assert ours.dtype == torch.float32
            assert (ours.double() - exact).norm() < 1e-6 * exact.norm()


def test_compiles_without_a_graph_break(run: Callable[[int], Found]) -> None:
    for own in run(2):
        for compiled, plain in zip(*own["compiled"], strict=True):
            torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


def test_the_ring_is_chosen_from_a_size_on(found: Found) -> None:
    for own in found:
        assert own["choice"] == {"default": 0, "above": 0, "at": len(found) - 1}


def test_nothing_is_as_large_as_the_rows_of_all(found: Found) -> None:
    n, d = worker.BIG
    rows = n * d * 4
    for own in found:
        assert own["memory"]["ring"][0] <= rows
        assert own["memory"]["all"][0] >= len(found) * rows  # what the measure sees when rows are gathered


def test_memory_does_not_grow_with_the_processes(run: Callable[[int], Found]) -> None:
    """With as many rows on each of three and of four processes, the peak of each process is the same."""
    (few, many), (gathered_few, gathered_many) = (
        [max(own["memory"][way][1] for own in run(world)) for world in (3, 4)] for way in ("ring", "all")
    )
    assert many <= 1.02 * few
    assert gathered_many >= 1.2 * gathered_few  # what the measure sees when rows are gathered


def test_second_derivatives_are_refused_in_words(found: Found) -> None:
    for own in found:
        for text in own["twice"]:
            assert 'contrastive_core: a loss with gather="ring" can be differentiated once' in text
            assert 'gather="all"' in text


def test_uneven_rows_are_refused_on_every_process(found: Found) -> None:
    n = gather_worker.ROWS
    for own in found:
        refused = own["uneven"]
        for name in ("suncet", "supcon", "info_nce"):
            counts = ", ".join(f"rank {i}: {n - 2 * i}" for i in range(len(found)))
            assert f"different numbers of rows ({counts}), expected the same on each" in refused[name]
        for name in ("nt_xent", "one takes the other way"):
            assert f"rank 0: {2 * n}, rank 1: {2 * (n - 2)}" in refused[name]
        assert "rank 0: 3 x torch.float64, rank 1: 4 x torch.float64" in refused["widths"]
        assert "rank 0: 7 x torch.float64, rank 1: 7 x torch.float32" in refused["types"]
        assert "got 0 sample(s)" in own["no rows"]


def test_alone_nothing_is_exchanged() -> None:
    a, b = torch.randn(2, 6, 4).double()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for gather in (True, "all", "ring"):
        assert torch.equal(nt_xent(a, b, gather=gather), nt_xent(a, b))
        assert torch.equal(info_nce(a, b, gather=gather), info_nce(a, b))
        assert torch.equal(supcon(a, labels, gather=gather), supcon(a, labels))
        assert torch.equal(suncet(a, labels, gather=gather), suncet(a, labels))


def test_other_words_are_refused() -> None:
    a, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: nt_xent(a, a, gather="rings"),  # type: ignore[arg-type]
        lambda: info_nce(a, a, gather="rings"),  # type: ignore[arg-type]
        lambda: supcon(a, labels, gather="rings"),  # type: ignore[arg-type]
        lambda: suncet(a, labels, gather="rings"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match='gather is \'rings\', expected False, True, "all" or "ring"'):
            call()
    with pytest.raises(ValueError, match="with label_smoothing, which gathers all rows"):
        suncet(a, labels, label_smoothing=0.1, gather="ring")
    assert (
        repr(SuNCEtLoss(gather="ring"))
        == "SuNCEtLoss(temperature=0.1, label_smoothing=0.0, ignore_index=None, gather=ring)"
    )


def test_gradient_of_a_part_of_the_keys(backend: str) -> None:
    """For every backend, against autograd over all keys; in one row, this part hardly counts."""
    generator = torch.Generator().manual_seed(0)
    q, part, rest = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (9, 13, 4))
    q.requires_grad_(), part.requires_grad_()
    rest = torch.cat([rest, 30 * q[:1].detach()])
    for among, classes in (("all", None), ("same", torch.arange(9) // 3), ("other", torch.arange(9) // 3)):
        logits, part_classes, rest_classes = 0.7 * q @ torch.cat([part, rest]).T, torch.arange(13) // 5, torch.arange(5)
        if classes is not None:
            same = classes[:, None] == torch.cat([part_classes, rest_classes])
            logits = logits.masked_fill(same if among == "other" else ~same, -torch.inf)
        lse = logits.logsumexp(1)
        grad = torch.randn(9, generator=generator, dtype=torch.float64)
        # Of the queries' gradient, what comes by way of this part.
        dq, dk = torch.autograd.grad(
            (logits[:, :13] * (grad[:, None] * (logits - lse[:, None]).exp()[:, :13]).detach())
            .masked_fill(logits[:, :13] == -torch.inf, 0.0)
            .sum(),
            (q, part),
        )
        pair = None if classes is None else (classes, part_classes)
        ours = row_lse_gradient(grad, lse.detach(), q.detach(), part.detach(), scale=0.7, classes=pair, among=among)
        torch.testing.assert_close(ours, (dq, dk), rtol=1e-10, atol=1e-13)
        only_k = row_lse_gradient(
            grad, lse.detach(), q.detach(), part.detach(), scale=0.7, classes=pair, among=among, needs=(False, True)
        )
        assert only_k[0].numel() == 0
        torch.testing.assert_close(only_k[1], dk, rtol=1e-10, atol=1e-13)
