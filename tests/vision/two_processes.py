"""The same training on one process and on two must give the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from contrastive_core.training import convert_sync_batchnorm

Records = list[dict[str, float]]


def metrics(run: Path) -> Records:
    """Return the recorded metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_alone_and_together(arguments: Sequence[str], folder: Path) -> tuple[Records, Records]:
    """Return the records of a command line without `--out`, on one process and by torchrun on two."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, "-m", "ssl_vision", *arguments, "--out", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    return metrics(folder / "one"), metrics(folder / "two")


def over_processes(model: nn.Module) -> nn.Module:
    """Return the model with batch norm and gradients over all processes."""
    if dist.is_initialized():
        return nn.parallel.DistributedDataParallel(convert_sync_batchnorm(model))
    return model


def losses_alone_and_together(train: Callable[[int, int], list[Tensor]], folder: Path) -> tuple[Tensor, Tensor]:
    """Return the losses of ``train(rank, world_size)``, a module's function, alone and as the mean over two."""
    _train(0, 1, train, str(folder))
    mp.spawn(_train, (2, train, str(folder)), nprocs=2)
    alone, together = (torch.load(folder / f"{count}.pt", weights_only=True) for count in (1, 2))
    return alone, together


def _train(rank: int, world_size: int, train: Callable[[int, int], list[Tensor]], folder: str) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    curve = torch.stack(train(rank, world_size))
    if world_size > 1:
        dist.all_reduce(curve)
        curve /= world_size
    if rank == 0:
        torch.save(curve, Path(folder) / f"{world_size}.pt")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
