"""Measure the training speed of `ssl-medseg train` in slices per second, with and without loading of batches.

    python -m tools.bench.medseg_train --size 64 --width 16 --batch-size 20 --out docs/results/medseg_train.json

Slices are generated, so that no data are needed. Rounds alternate between a fixed batch and batches that are drawn and
augmented as in the command, in float32 and in bfloat16, and medians over rounds are printed. The ratio is the share of
the speed that remains with loading. The ratio is also valid on a busy machine; the slices per second are not.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from contrastive_core.training import Run, RunOptions
from ssl_medseg.losses.segmentation import dice_loss
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.training.optim import adam
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatch, SegmentationBatches, SliceSet
from tools.results import provenance, write_result

CLASSES = 4
PRECISIONS: tuple[Literal["32-true", "bf16-mixed"], ...] = ("32-true", "bf16-mixed")


def random_slices(count: int, size: int) -> SliceSet:
    """Generate noise with labels; speed does not depend on the content."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    labels = torch.randint(0, CLASSES, (count, size, size), generator=generator, dtype=torch.uint8)
    return SliceSet(images, labels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ("noise",))


def contestant(run: Run, slices: SliceSet, *, width: int, batch_size: int, loading: bool) -> Callable[[int], None]:
    """Return a function that executes one training step, on a fixed batch or on the batches of the command."""
    batches = SegmentationBatches(
        run, slices, classes=CLASSES, pool=torch.arange(len(slices)), batch_size=batch_size, augment=AugmentOptions()
    )
    network = build_network(NetworkOptions(width=width), CLASSES).to(memory_format=torch.channels_last)
    model, optimizer = run.setup(network, adam(network.parameters(), lr=1e-3))
    fixed: SegmentationBatch = batches.at(0)

    def step(number: int) -> None:
        batch = batches.at(number) if loading else fixed
        loss = dice_loss(model(batch.images), batch.shares)
        optimizer.zero_grad()
        run.fabric.backward(loss)
        optimizer.step()
        loss.item()  # waits for an accelerator

    return step


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the slices per second of every variant."""
    slices = random_slices(4 * arguments.batch_size, arguments.size)
    steps: dict[str, Callable[[int], None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, loading in itertools.product(PRECISIONS, (False, True)):
            name = f"{precision}, {'drawn and augmented' if loading else 'one fixed batch'}"
            options = RunOptions(
                device=arguments.device, precision=precision, threads=arguments.threads, progress=False
            )
            with Run(Path(folder) / name, config={}, command="bench", options=options) as run:
                steps[name] = contestant(
                    run, slices, width=arguments.width, batch_size=arguments.batch_size, loading=loading
                )
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(arguments.rounds + 1):
            for name, step in steps.items():
                begun = time.perf_counter()
                step(number)
                if number:  # the first round prepares kernels
                    seconds[name].append(time.perf_counter() - begun)
    return {name: arguments.batch_size / statistics.median(found) for name, found in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path, help="results file")
    arguments = parser.parse_args(argv)
    speeds = measure(arguments)
    for name, speed in speeds.items():
        print(f"{name:34} {speed:9.1f} slices/s")
    rows: list[list[object]] = []
    for precision in PRECISIONS:
        fixed, loaded = (speeds[f"{precision}, {kind}"] for kind in ("one fixed batch", "drawn and augmented"))
        print(f"{precision}: with loading / without {loaded / fixed:.3f}")
        rows.append([precision, round(fixed, 1), round(loaded, 1), round(loaded / fixed, 3)])
    if arguments.out is not None:
        size = arguments.size
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": {
                    name: getattr(arguments, name)
                    for name in ("size", "width", "batch_size", "threads", "rounds", "device")
                },
                "table": {
                    "columns": ["precision", "slices/s, one fixed batch", "slices/s, drawn and augmented", "ratio"],
                    "rows": rows,
                },
                "notes": [
                    f"A training step with {arguments.batch_size} slices of {size} x {size} pixels, U-Net of width "
                    f"{arguments.width}, {arguments.threads or 'all'} thread(s), {arguments.device}: median of "
                    f"{arguments.rounds} alternating rounds."
                ],
            },
        )


if __name__ == "__main__":
    main()
