"""A process of the tests in test_grad_cache_processes.py: gradients of a batch encoded in chunks over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from contrastive_core import encode_in_chunks, nt_xent
from contrastive_core.training import convert_sync_batchnorm
from tests.core.losses.gloo import Found, be_a_worker

ROWS = 12  # of one process


class Masked(nn.Module):
    """Dropout whose mask is a function of the sample, so that chunks and processes do not change it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.sin(1e4 * x.detach()[:, :1] + torch.arange(x.shape[1])) > -0.4) / 0.6


class Net(nn.Module):
    """Encoder and head; the head's batch norm sees the batch of all processes."""

    def __init__(self, chunk_size: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), Masked(), nn.Linear(9, 6, bias=False)).double()
        self.head = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)).double()
        self.chunk_size = chunk_size

    def forward(self, x: Tensor) -> Tensor:
        features = encode_in_chunks(self.encoder, x, chunk_size=self.chunk_size) if self.chunk_size else self.encoder(x)
        return self.head(features)


def inputs(world: int) -> Tensor:
    """Inputs of all processes, [world, ROWS, 7]; the second half of the rows are the second views of the first."""
    return torch.randn(world, ROWS, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(z: Tensor, *, gather: bool) -> Tensor:
    return nt_xent(*z.chunk(2), temperature=0.3, gather=gather)


def count_messages(model: DistributedDataParallel) -> list[int]:
    """Return a list that grows by one element for every bucket of gradients that is averaged."""
    counted: list[int] = []

    def hook(group, bucket):  # type: ignore[no-untyped-def]  # DDP wants its own annotations or none
        counted.append(bucket.index())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, hook)
    return counted


def find(rank: int, world: int) -> Found:
    x, found = inputs(world)[rank], {}
    for chunk_size in (None, 5, 4):
        model = DistributedDataParallel(convert_sync_batchnorm(Net(chunk_size)))
        messages = count_messages(model)
        for step in range(2):  # the second time DDP has arranged its buckets anew
            model.zero_grad()
            loss = loss_of(model(x), gather=True)
            loss.backward()
            found[f"inside DDP, chunks of {chunk_size}, step {step}"] = (
                loss.item(),
                [p.grad for p in model.parameters()],
            )
        found[f"messages, chunks of {chunk_size}"] = len(messages)
    for unused in (False, True):
        net = convert_sync_batchnorm(Net())
        encoder = DistributedDataParallel(net.encoder, find_unused_parameters=unused)
        head = DistributedDataParallel(net.head)
        for step in range(2):
            net.zero_grad()
            loss = loss_of(head(encode_in_chunks(encoder, x, chunk_size=5)), gather=True)
            loss.backward()
            found[f"around DDP, unused {unused}, step {step}"] = (loss.item(), [p.grad for p in net.parameters()])
    try:
        encode_in_chunks(convert_sync_batchnorm(Net()), x, chunk_size=5)
    except ValueError as error:
        found["synchronised batch norm in chunks"] = str(error)
    return found


if __name__ == "__main__":
    be_a_worker(find)
