"""Measure the training speed of `ssl-video train` in clips per second, with and without loading of clips.

    python -m tools.bench.video_train --videos data/ucf101_10/train --out docs/results/video_train_speed.json

The views are frames alone (FixMatch), frames and temporal gradient (the default), and frames, flow and gradient. Rounds
alternate between a fixed batch and batches that are read and augmented as in the command. The first round is not
counted, and medians are printed. The ratio is the share of the speed that remains with loading.

On a CPU without loader processes, CPU time is measured, so that the ratio is also valid on a busy machine. With
`--workers`, wall time is measured, and no other programs should run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from contrastive_core.training import Run, RunOptions
from ssl_video import ClipAugment, MultiviewPseudoLabel
from ssl_video.data import ClipDataset, ClipSpec, VideoSet, open_videos
from ssl_video.models import NetworkOptions
from ssl_video.models.networks import build_network
from ssl_video.training.loader import Feed
from ssl_video.training.options import OptimizerOptions, build_optimizer
from tools.results import provenance, write_result

VIEWS = {"frames": ("rgb",), "frames, gradient": ("rgb", "tg"), "frames, flow, gradient": ("rgb", "flow", "tg")}


def contestant(
    run: Run, videos: VideoSet, views: tuple[str, ...], arguments: argparse.Namespace, *, loading: bool
) -> Callable[[int], None]:
    """Return a function that executes one training step, on a fixed batch or on the batches of the command."""
    data = ClipDataset(videos, ClipSpec(frames=arguments.frames, stride=64 / arguments.frames), following=True)
    feed = Feed(
        run, data, data, ClipAugment(arguments.size, views=views),
        batch_size=arguments.batch_size, mu=arguments.mu, total_steps=10_000, first_unlabelled=0,
    )  # fmt: skip
    classes = len(videos.classes)
    network = build_network(NetworkOptions("small_slow", width=arguments.width, dropout=0.0), classes)
    method = MultiviewPseudoLabel(network, classes=classes, views=views, threshold=0.6, bn="split")
    wrapped, optimizer = run.setup(method, build_optimizer(network, OptimizerOptions(), lr=1e-3))
    fixed = feed.batch(0)

    def step(number: int) -> None:
        batch = feed.batch(number) if loading else fixed
        losses = wrapped(batch.labelled, batch.labels, batch.weak, batch.strong, step=number)
        optimizer.zero_grad()
        run.fabric.backward(losses.loss)
        optimizer.step()
        losses.loss.item()  # waits for an accelerator

    return step


def measure(videos: VideoSet, arguments: argparse.Namespace) -> dict[tuple[str, bool], float]:
    """Measure the clips per second for all views, with and without loading."""
    steps: dict[tuple[str, bool], Callable[[int], None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for (name, views), loading in itertools.product(VIEWS.items(), (False, True)):
            options = RunOptions(
                device=arguments.device, threads=arguments.threads, workers=arguments.workers, progress=False
            )
            with Run(Path(folder) / f"{name}-{loading}", config={}, command="bench", options=options) as run:
                steps[name, loading] = contestant(run, videos, views, arguments, loading=loading)
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        seconds: dict[tuple[str, bool], list[float]] = {name: [] for name in steps}
        clock = time.perf_counter if arguments.workers or arguments.device != "cpu" else time.process_time
        for number in range(1, arguments.rounds + 2):
            for which, step in steps.items():
                begun = clock()
                step(number)
                if number > 1:  # the first round prepares kernels
                    seconds[which].append(clock() - begun)
    clips = arguments.batch_size * (1 + arguments.mu)
    return {name: clips / statistics.median(found) for name, found in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder with a subfolder for each class")
    parser.add_argument("--frames", type=int, default=8, help="number of frames per clip, from a window of 64")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mu", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    speeds = measure(open_videos(arguments.videos), arguments)
    rows: list[list[object]] = []
    for views in VIEWS:
        fixed, loaded = speeds[views, False], speeds[views, True]
        rows.append([views, round(fixed, 1), round(loaded, 1), round(loaded / fixed, 2)])
        print(f"{views}: {fixed:.1f} clips/s without loading, {loaded:.1f} with: {loaded / fixed:.3f}", flush=True)
    if arguments.out:
        place = (
            f"in {arguments.workers} loader processes" if arguments.workers else "in the training process (CPU time)"
        )
        names = ("frames", "size", "width", "batch_size", "mu", "threads", "workers", "rounds", "device")
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem, **provenance(), "seeds": [0],
                "config": {name: getattr(arguments, name) for name in names},
                "table": {"columns": ["views", "clips/s, a fixed batch", "with loading", "ratio"], "rows": rows},
                "notes": [
                    "Labelled and unlabelled clips per second of the median step of MvPL: `small_slow` of width "
                    f"{arguments.width}, clips of {arguments.frames} frames at {arguments.size} pixels, read and "
                    f"augmented {place}; {arguments.threads or 'all'} thread(s).",
                ],
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
