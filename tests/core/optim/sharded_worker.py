"""A process of the tests in test_sharded.py: training with parameters that `fully_shard` shards."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from contrastive_core import LARS, ProjectionHead, lars_param_groups, nt_xent
from contrastive_core.optim.average import MovingAverage
from contrastive_core.training import convert_sync_batchnorm
from tests.core.losses.gloo import Found, be_a_worker

ROWS, STEPS = 8, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 7), nn.LayerNorm(7), ProjectionHead(7, 5)).double()


def train(
    network: nn.Module, average: MovingAverage, *, rank: int, world: int, foreach: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return network and average after some steps on the rows of this process."""
    optimizer = LARS(lars_param_groups(network, 1e-2), 0.5, nesterov=foreach, foreach=foreach)
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    for step in range(STEPS):
        views = torch.randn(2, ROWS, 12, generator=torch.Generator().manual_seed(step)).double()[:, own]
        loss = nt_xent(*network(views.flatten(0, 1)).chunk(2), gather=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
    return whole(network), whole(average.module)


def whole(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
        for name, value in module.state_dict().items()
    }


def find(rank: int, world: int) -> Found:
    found: Found = {}
    for foreach in (False, True):
        sharded = convert_sync_batchnorm(network())
        average = MovingAverage(sharded, 0.5)
        for module in (sharded, average.module):
            fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
        found[f"foreach {foreach}"] = train(sharded, average, rank=rank, world=world, foreach=foreach)
    return found


if __name__ == "__main__":
    be_a_worker(find)
