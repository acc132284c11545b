"""Chunks of a batch over real processes: with DDP the gradient is that of one process with all rows."""

from __future__ import annotations

import pytest
import torch

from tests.core import grad_cache_worker as worker
from tests.core.losses.gloo import Found, found_by


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return found_by("tests.core.grad_cache_worker", 2, tmp_path_factory.mktemp("grad_cache"))


def test_gradient_is_that_of_the_union_batch(found: list[Found]) -> None:
    net, x = worker.Net(), worker.inputs(2)
    half = worker.ROWS // 2
    views = torch.cat([x[:, :half].flatten(0, 1), x[:, half:].flatten(0, 1)])
    loss = worker.loss_of(net(views), gather=False)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    assert min(grad.abs().max() for grad in expected) > 1e-4
    cases = [name for name in found[0] if "step" in name]
    assert len(cases) == 10
    for name in cases:
        values, grads = zip(*(own[name] for own in found), strict=True)
        assert abs(sum(values) / 2 - loss.item()) < 1e-12
        for own in grads:
            for ours, union in zip(own, expected, strict=True):
                torch.testing.assert_close(ours, union, rtol=1e-10, atol=1e-12, msg=name)


def test_gradients_travel_once_a_step(found: list[Found]) -> None:
    for own in found:
        whole = own["messages, chunks of None"]
        assert whole >= 2
        assert own["messages, chunks of 5"] == own["messages, chunks of 4"] == whole


def test_synchronised_batch_norm_is_refused_too(found: list[Found]) -> None:
    for own in found:
        assert "batch norm in training mode (head.1)" in own["synchronised batch norm in chunks"]
