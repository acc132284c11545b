"""Start real processes for distributed tests; a worker module reports what each of them found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]
Found = dict[str, Any]


def found_by(worker: str, world: int, folder: Path) -> list[Found]:
    """Return what each of `world` processes of a worker module found, by rank."""
    command = [sys.executable, "-m", worker]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def be_a_worker(find: Callable[[int, int], Found]) -> None:
    """Main function of a worker module: pass the result of `find(rank, world)` to the test."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    torch.save(find(rank, world), folder / f"{rank}.pt")
    dist.barrier()  # nobody leaves while another still talks to it
    dist.destroy_process_group()
    # Gloo's threads may still be ending, which now and then aborts a process that leaves in the ordinary way.
    os._exit(0)
