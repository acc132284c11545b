"""Losses with `gather=True` on real processes: values and gradients equal those of one process with all rows."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from contrastive_core import MemoryBank
from contrastive_core.distributed import gather_rows, is_distributed, rank, world_size
from tests.core.losses import gather_worker as worker
from tests.core.losses import gloo

CASES = [
    (name, kind)
    for name, _ in worker.cases()
    for kind in worker.labels(2)
    if kind == "random" or worker.has_labels(name)
]
Found = list[gloo.Found]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    """`run(2)` returns what each of two processes found; they are started once."""
    return functools.cache(
        lambda world: gloo.found_by("tests.core.losses.gather_worker", world, tmp_path_factory.mktemp("gather"))
    )


@pytest.fixture(params=[2, 3])
def found(request: pytest.FixtureRequest, run: Callable[[int], Found]) -> Found:
    return run(request.param)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_union_of_the_batches(found: Found, name: str, kind: str) -> None:
    world, net = len(found), worker.model()
    loss = dict(worker.cases())[name](
        net(worker.inputs(world).flatten(0, 1)), worker.labels(world)[kind].flatten(), False
    )
    expected = worker.gradients(loss, net)
    values, grads = zip(*(own[f"{name}, {kind}"] for own in found), strict=True)
    assert abs(sum(values) / world - loss.item()) <= 1e-12 * max(1.0, loss.item())
    for own in grads:
        for ours, union in zip(own, expected, strict=True):
            torch.testing.assert_close(ours, union, rtol=1e-12, atol=1e-12 * max(1.0, union.abs().max().item()))
    if kind == "no positives" and name.removesuffix(" with unlabelled samples") in ("suncet", "supcon"):
        assert all(value == 0 for value in values)
        assert all((grad == 0).all() for own in grads for grad in own)
    else:
        assert loss != 0 or kind == "one class"


@pytest.mark.parametrize("name", [name for name, _ in worker.cases() if "paws" not in name])
def test_second_derivatives_are_those_of_the_union(found: Found, name: str) -> None:
    world, net = len(found), worker.model()
    loss = dict(worker.cases())[name]
    expected = worker.penalty(
        lambda z, y, gather: world * loss(z.flatten(0, 1), y.flatten(), gather),
        net, worker.inputs(world), worker.labels(world)["random"], False,
    )  # fmt: skip
    for own in found:
        for ours, union in zip(own["penalty"][name], expected, strict=True):
            torch.testing.assert_close(ours, union, rtol=1e-9, atol=1e-10 * max(1.0, union.abs().max().item()))


def test_the_cases_are_not_trivial(found: Found) -> None:
    """Gradients are not zero and depend on the rows of other processes."""
    world, net = len(found), worker.model()
    _, grads = found[0]["suncet, random"]
    assert max(grad.abs().max() for grad in grads) > 1e-3
    suncet = dict(worker.cases())["suncet"]
    alone = (
        sum(suncet(net(worker.inputs(world)[i]), worker.labels(world)["random"][i], False) for i in range(world))
        / world
    )
    assert (worker.gradients(alone, net)[0] - grads[0]).abs().max() > 1e-3


def test_distributed_data_parallel_takes_that_mean(run: Callable[[int], Found]) -> None:
    net, half = worker.model(), worker.ROWS // 2
    z = net(worker.inputs(2))
    loss = worker.nt_xent(z[:, :half].flatten(0, 1), z[:, half:].flatten(0, 1), temperature=0.3)
    expected = worker.gradients(loss, net)
    for own in run(2):
        for ours, union in zip(own["DDP"], expected, strict=True):
            torch.testing.assert_close(ours, union, rtol=1e-12, atol=1e-12)


def test_gathering_compiles_without_a_graph_break(run: Callable[[int], Found]) -> None:
    for own in run(2):
        for compiled, plain in zip(own["compiled"], own["plain"], strict=True):
            torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


def test_skipped_anchors_are_those_of_all_processes(found: Found) -> None:
    n = len(found) * worker.ROWS
    for own in found:
        assert own["skipped"]["interleaved"] == 0
        assert own["skipped"]["no positives"] == n
        assert own["skipped"]["one positive pair across processes"] == n - 2
        assert own["skipped"]["positives on the first process only"] == n - worker.ROWS + 1


def test_uneven_rows_are_refused_on_every_process(found: Found) -> None:
    counts = ", ".join(f"rank {i}: {worker.ROWS - 2 * i}" for i in range(len(found)))
    doubled = ", ".join(f"rank {i}: {2 * (worker.ROWS - 2 * i)}" for i in range(len(found)))
    for own in found:
        for name in ("gather_rows", "gather_labels", "suncet", "supcon"):
            assert f"different numbers of rows ({counts}), expected the same on each" in own["uneven"][name]
            assert "drop the uneven last batch (drop_last=True" in own["uneven"][name]
        for name in ("nt_xent", "paws"):
            assert f"different numbers of rows ({doubled})" in own["uneven"][name]
        assert "rank 0: 3 x torch.float64, rank 1: 4 x torch.float64" in own["uneven"]["widths"]
        assert "rank 0: 7 x torch.float64, rank 1: 7 x torch.float32" in own["uneven"]["types"]


def test_alone_gathering_is_the_identity() -> None:
    alone = worker.inputs(2)[0]
    assert gather_rows(alone) is alone
    assert (is_distributed(), rank(), world_size()) == (False, 0, 1)


def test_gathering(found: Found) -> None:
    world = len(found)
    for number, own in enumerate(found):
        assert own["identity"] == (True, number, world)
        assert own["one row each"] > 0
        assert torch.equal(own["gathered"], worker.inputs(world).flatten(0, 1))
        alone = MemoryBank(world * worker.ROWS - 1, 7, dtype=torch.float64)
        alone.add(worker.inputs(world).flatten(0, 1))
        # The last rounding of a norm depends on how many rows are normalised at once.
        torch.testing.assert_close(own["remembered"], alone.rows, rtol=1e-14, atol=1e-14)
        # Every process added its own d(sum of squares): the local part of the sum over processes.
        torch.testing.assert_close(own["gathered's gradient"], 2 * world * worker.inputs(world)[number])
