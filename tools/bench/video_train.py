"""Measure the training speed of `ssl-video train` in clips per second, with and without loading of clips.

    python -m tools.bench.video_train --videos data/ucf101_10/train --out docs/results/video_train_speed.json

The views are frames alone (FixMatch), frames and temporal gradient (the default), and frames, flow and gradient. Rounds
alternate between a fixed batch, batches that are read and augmented as in the command, the same with `--cache`, and,
where flow is a view, with `--flow-cache` in addition. The caches are filled and the videos indexed before, as after the
first epoch of a run. Medians over rounds are printed; the ratio is the share of the speed that remains with loading.

Wall time is measured, and no other programs should run on the machine: clips are loaded in a thread of the training
process, or in loader processes with `--workers`, while a core trains. The first steps of a round use up the batches
that were loaded in the meantime and are not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from contrastive_core.training import Run, RunOptions
from ssl_video import ClipAugment, MultiviewPseudoLabel, flow
from ssl_video.data import ClipDataset, ClipSpec, VideoSet, open_videos
from ssl_video.data.frame_cache import FrameCache
from ssl_video.models import NetworkOptions
from ssl_video.models.networks import build_network
from ssl_video.optical_flow.cache import FlowCache
from ssl_video.training.loader import Feed
from ssl_video.training.options import OptimizerOptions, build_optimizer
from ssl_video.views import needs_following
from tools.results import provenance, write_result

VIEWS = {"frames": ("rgb",), "frames, gradient": ("rgb", "tg"), "frames, flow, gradient": ("rgb", "flow", "tg")}
FIXED, LOADED, CACHED, FLOW_CACHED = "a fixed batch", "with loading", "with --cache", "with --cache, --flow-cache"
LOADING = (LOADED, CACHED, FLOW_CACHED)
_QUEUED = 2  # batches that each loader process holds ready; a thread holds one
_STEPS = 10  # counted steps of a round


def contestant(
    run: Run, data: ClipDataset, views: tuple[str, ...], arguments: argparse.Namespace, *, loading: bool
) -> Callable[[int], None]:
    """Return a function that executes one training step, on a fixed batch or on the batches of the command."""
    feed = Feed(
        run, data, data, ClipAugment(arguments.size, views=views),
        batch_size=arguments.batch_size, mu=arguments.mu, total_steps=100_000, first_unlabelled=0,
    )  # fmt: skip
    classes = len(data.videos.classes)
    network = build_network(NetworkOptions("small_slow", width=arguments.width, dropout=0.0), classes)
    method = MultiviewPseudoLabel(network, classes=classes, views=views, threshold=0.6, bn="split")
    model, optimizer = run.setup(method, build_optimizer(network, OptimizerOptions(), lr=1e-3))
    fixed = None if loading else feed.batch(0)

    def step(number: int) -> None:
        batch = fixed or feed.batch(number)
        losses = model(batch.labelled, batch.labels, batch.weak, batch.strong, step=number)
        optimizer.zero_grad()
        run.fabric.backward(losses.loss)
        optimizer.step()
        losses.loss.item()  # waits for an accelerator

    return step


def contestants(
    videos: VideoSet, views: tuple[str, ...], arguments: argparse.Namespace, folder: Path
) -> dict[str, Callable[[int], None]]:
    """Return the training steps that are compared for some views, with filled caches."""
    spec = ClipSpec(frames=arguments.frames, stride=64 / arguments.frames)
    frames, steps = FrameCache(folder / "frames"), {}
    for name in (FIXED, *LOADING):
        if name == FLOW_CACHED and "flow" not in views:
            continue
        flow_cache = FlowCache.open(folder / "flow", method="dis") if name == FLOW_CACHED else None
        data = ClipDataset(
            videos, spec, following=needs_following(views, flow_cache), flow=flow_cache,
            frames=frames if name in (CACHED, FLOW_CACHED) else None,
        )  # fmt: skip
        for place in range(len(videos)):  # fills the cache, and indexes the videos
            data.clip(place, seed=0)
        workers = 0 if name == FIXED else arguments.workers
        options = RunOptions(device=arguments.device, threads=arguments.threads, workers=workers, progress=False)
        with Run(folder / f"{len(views)}-{name}", config={}, command="bench", options=options) as run:
            steps[name] = contestant(run, data, views, arguments, loading=name != FIXED)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    return steps


def measure(steps: dict[str, Callable[[int], None]], videos: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the clips per second of each contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    workers = arguments.workers
    clips = arguments.batch_size * (1 + arguments.mu)
    first = 3 * max(1, workers) * videos // clips if workers else 1  # until every process has indexed most videos
    number = dict.fromkeys(steps, 0)
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            _advance(step, number, name, max(1, _QUEUED * workers) + 1 if turn else first)
            if turn:
                begun = time.perf_counter()
                _advance(step, number, name, _STEPS)
                seconds[name].append((time.perf_counter() - begun) / _STEPS)
    return {name: clips / statistics.median(times) for name, times in seconds.items()}


def _advance(step: Callable[[int], None], number: dict[str, int], name: str, times: int) -> None:
    for _ in range(times):
        step(number[name])
        number[name] += 1


def table(speeds: Iterable[tuple[str, dict[str, float]]]) -> list[list[object]]:
    """Return the rows of the published table: views, way of loading, clips per second, share of the fixed batch."""
    return [
        [views, name, round(speed, 1), round(speed / by_loading[FIXED], 2)]
        for views, by_loading in speeds
        for name, speed in by_loading.items()
    ]


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
    parser.add_argument("--count", type=int, default=0, help="number of videos; 0 for all")
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=list(VIEWS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    videos = open_videos(arguments.videos)
    if arguments.count:
        videos = videos.subset(range(0, len(videos), max(1, len(videos) // arguments.count)))
    speeds: list[tuple[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        flow(str(arguments.videos), Path(scratch) / "flow", short_side=round(arguments.size * 256 / 224), workers=1)
        for views in arguments.views:
            steps = contestants(videos, VIEWS[views], arguments, Path(scratch))
            speeds.append((views, measure(steps, len(videos), arguments)))
            for row in table(speeds[-1:]):
                print(*row, sep="\t", flush=True)
    if arguments.out:
        place = f"in {arguments.workers} loader processes" if arguments.workers else "in a thread"
        names = ("frames", "size", "width", "batch_size", "mu", "threads", "workers", "count", "rounds", "device")
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem, **provenance(), "seeds": [0],
                "config": {name: getattr(arguments, name) for name in names},
                "table": {"columns": ["views", "batches", "clips/s", "ratio"], "rows": table(speeds)},
                "notes": [
                    "Labelled and unlabelled clips per second of the median step of MvPL: `small_slow` of width "
                    f"{arguments.width}, clips of {arguments.frames} frames at {arguments.size} pixels, read and "
                    f"augmented {place}; {arguments.threads or 'all'} thread(s).",
                    f"{len(videos)} videos, whose frames and flow are in the caches. The load average of the machine "
                    f"was {os.getloadavg()[1]:.1f} during the measurement.",
                ],
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
