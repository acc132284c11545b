"""Measure the images per second of SimCLR's network alone, without loading and augmentation.

    python -m tools.gpu.network_speed --device cuda --run runs/simclr --out network.json

All steps use the same images. A training run also needs time for loading, augmentation and logging. With `--run`, a run
of `ssl-vision pretrain` with the same network and batch size on this device, the share of this time is computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from contrastive_core import LARS, lars_param_groups, nt_xent
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, build_encoder


def network_step(device: torch.device, *, batch: int, width: float) -> Callable[[], None]:
    """Return a training step of SimCLR with a ResNet-18 in bfloat16, on the same random views of `batch` images."""
    options = EncoderOptions(name="resnet18", stem="cifar", width_multiplier=width)
    network = SimCLR(build_encoder(options, image_size=32), projection_dim=128, layers=2)
    network = network.to(device).to(memory_format=torch.channels_last)
    optim = LARS(lars_param_groups(network, weight_decay=1e-6), lr=0.1)
    views = [
        torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)
    ]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            z = network(*views)
        loss = nt_xent(z[0].float(), z[1].float(), temperature=0.5)
        optim.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optim.step()

    return step


def steps_per_second(run: Path) -> float:
    """Return the median speed over the records of a run, without the first record, which includes the start."""
    records = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    speeds = [record["steps_per_second"] for record in records if "steps_per_second" in record]
    return float(statistics.median(speeds[1:] or speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512, help="number of images, with two views each")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--run", type=Path, help="folder of a training run to compare with")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    step = network_step(device, batch=arguments.batch, width=arguments.width)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(min(10, arguments.steps)):
        step()
    begun = wait()
    for _ in range(arguments.steps):
        step()
    seconds = (wait() - begun) / arguments.steps
    record = {"seconds_per_step": seconds, "images_per_second": arguments.batch / seconds, "batch": arguments.batch}
    if arguments.run is not None:
        speed = steps_per_second(arguments.run)
        record |= {"run_images_per_second": arguments.batch * speed, "share_outside_network": 1 - seconds * speed}
    arguments.out.write_text(json.dumps(record))
    print(record)


if __name__ == "__main__":
    main()
