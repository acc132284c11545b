"""LARS and moving averages with parameters that `fully_shard` shards over two processes."""

from __future__ import annotations

from pathlib import Path

import torch

from contrastive_core.optim.average import MovingAverage
from tests.core.losses.gloo import found_by
from tests.core.optim.sharded_worker import network, train


def test_sharded_parameters_are_trained_as_whole_ones(tmp_path: Path) -> None:
    found = found_by("tests.core.optim.sharded_worker", 2, tmp_path)
    for foreach in (False, True):
        alone = network()
        expected = train(alone, MovingAverage(alone, 0.5), rank=0, world=1, foreach=foreach)
        assert not torch.equal(expected[0]["0.weight"], network().state_dict()["0.weight"])
        for own in found:
            for ours, union in zip(own[f"foreach {foreach}"], expected, strict=True):
                torch.testing.assert_close(ours, union, rtol=1e-9, atol=1e-12)
