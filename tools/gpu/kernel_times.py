"""Measure the time of the kernels of a large NT-Xent and of a training step of SimCLR on a device.

    python -m tools.gpu.kernel_times --device cuda --out kernels.json

The file lists the kernels by their total time in one run, in microseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from contrastive_core import nt_xent
from tools.gpu.network_speed import network_step

LISTED = 25


def kernels(run: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Return the kernels with the longest total time in the third of three runs."""
    run(), run()
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    on_cuda = device.type == "cuda"
    events = [
        (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
    ]
    events.sort(key=lambda pair: -pair[0])
    total = sum(time for time, _ in events)
    return [{"kernel": "all", "us": total, "calls": sum(event.count for _, event in events)}] + [
        {"kernel": event.key[:120], "us": time, "calls": event.count} for time, event in events[:LISTED]
    ]


def loss_step(device: torch.device, *, rows: int, features: int) -> Callable[[], None]:
    """Return a function that computes value and gradient of NT-Xent for `rows` embeddings in bfloat16."""
    a, b = (torch.randn(rows // 2, features, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    return lambda: nt_xent(a, b, temperature=0.1).backward()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=65536, help="number of embeddings of the loss")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--batch", type=int, default=512, help="number of images per step, with two views each")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier of the network")
    parser.add_argument("--only", choices=["nt_xent", "simclr"], nargs="+", default=["nt_xent", "simclr"])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    runs: dict[str, Callable[[], Callable[[], object]]] = {
        "nt_xent": lambda: loss_step(device, rows=arguments.rows, features=arguments.features),
        "simclr": lambda: network_step(device, batch=arguments.batch, width=arguments.width),
    }
    record = {name: kernels(runs[name](), device) for name in arguments.only}
    arguments.out.write_text(json.dumps(record, indent=1))
    for name, entries in record.items():
        print(name, *(f"{entry['us']:9.0f} us {entry['calls']:4d}  {entry['kernel']}" for entry in entries), sep="\n")


if __name__ == "__main__":
    main()
