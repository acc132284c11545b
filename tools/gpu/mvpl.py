"""Train MvPL with R3D-18 on packed clips, without a video decoder, and score it on the test clips during training.

    python -m tools.gpu.mvpl clips run --device cuda --steps 400 --out mvpl.json

The loop is a small version of `ssl-video train`, with its loader, augmentation, method, optimiser and schedule. Clips
are written by `tools.gpu.pack`. A clip is one JPEG image with its frames one below the other, and `clips.csv` states
its class, part (labelled, unlabelled or test), number of frames and frames per second. All frames are decoded into
memory once, which takes 220 MB for 600 clips of 30 frames with 64 x 64 pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.metrics import top_k_accuracy
from contrastive_core.optim import WarmupCosine
from contrastive_core.training import Run, RunOptions
from ssl_video.augment import ClipAugment, WeakOptions
from ssl_video.data.clip import Clips, ClipSpec, Sample, clip_start
from ssl_video.data.videos import Video, VideoSet
from ssl_video.models import NetworkOptions
from ssl_video.models.model_folder import Recipe, Recognizer
from ssl_video.models.networks import build_network
from ssl_video.mvpl.method import MultiviewPseudoLabel
from ssl_video.training.inference_model import make_tested
from ssl_video.training.loader import Feed
from ssl_video.training.options import OptimizerOptions, build_optimizer

VIEWS = ("rgb", "tg")


class PackedClips:
    """`ClipSource` for the clips of some parts of a packed folder, decoded into memory as uint8 [T, 3, H, W]."""

    def __init__(self, folder: Path, parts: Collection[str], spec: ClipSpec) -> None:
        with (folder / "clips.csv").open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
        classes = sorted({row["class"] for row in rows})
        rows_of_parts = [row for row in rows if row["part"] in parts]
        self.videos = VideoSet(
            folder.name,
            (Video(row["file"], folder / row["file"], row["class"]) for row in rows_of_parts),
            classes=classes,
        )
        self.spec, self._rates = spec, [float(row["fps"]) for row in rows_of_parts]
        with ThreadPoolExecutor() as pool:
            self._frames = list(
                pool.map(lambda row: read_frames(folder / row["file"], int(row["frames"])), rows_of_parts)
            )

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, index: int, *, seed: int) -> Sample:
        """Return a random clip of a video, and the frame after each of its frames."""
        duration = len(self._frames[index]) / self._rates[index]
        return Sample(self._at(index, clip_start(duration, self.spec, seed=seed, id=index)), index)

    def middle(self, index: int) -> Clips:
        """Return the clip in the middle of a video."""
        duration = len(self._frames[index]) / self._rates[index]
        return self._at(index, max(0.0, duration - self.spec.duration) / 2)

    def _at(self, index: int, start: float) -> Clips:
        frames, rate = self._frames[index], self._rates[index]
        frame_numbers = (torch.tensor(self.spec.times(start)) * rate + 1e-6).long().clamp(max=max(0, len(frames) - 2))
        return Clips(frames[frame_numbers][None], frames[(frame_numbers + 1).clamp(max=len(frames) - 1)][None])


def read_frames(file: Path, count: int) -> Tensor:
    """Decode the frames of a packed clip: uint8 [count, 3, H, W]."""
    with Image.open(file) as image:
        strip = np.asarray(image.convert("RGB"))
    return torch.from_numpy(strip.reshape(count, -1, *strip.shape[1:]).transpose(0, 3, 1, 2).copy())


def accuracy(recognizer: Recognizer, clips: PackedClips, augment: ClipAugment) -> float:
    """Compute top-1 in percent on the frames of the centre crop of the middle clip of each test video."""
    probabilities = []
    for first in range(0, len(clips), 32):
        middles = [clips.middle(index) for index in range(first, min(first + 32, len(clips)))]
        probabilities.append(recognizer.probabilities(augment.plain(middles)[0]["rgb"], "rgb"))
    return 100 * top_k_accuracy(torch.cat(probabilities), clips.videos.labels(), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of packed clips")
    parser.add_argument("run", type=Path, help="new folder of the run")
    parser.add_argument("--method", choices=["mvpl", "supervised"], default="mvpl")
    parser.add_argument("--network", default="r3d_18")
    parser.add_argument("--width", type=int, default=0, help="of a network that has one")
    parser.add_argument("--size", type=int, default=56, help="side of the crops")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=50, help="number of steps between two scores")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mu", type=int, default=4)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="bf16-mixed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = ClipSpec()
    labelled = PackedClips(arguments.data, {"labelled"}, spec)
    unlabelled = PackedClips(arguments.data, {"labelled", "unlabelled"}, spec)
    test = PackedClips(arguments.data, {"test"}, spec)
    network, weak = NetworkOptions(arguments.network, width=arguments.width), WeakOptions()
    recipe = Recipe(network, labelled.videos.classes, spec, arguments.size, VIEWS, "dis", 1.0)
    augment = ClipAugment(arguments.size, views=VIEWS, weak=weak)
    options = RunOptions(
        device=arguments.device, precision=arguments.precision, workers=arguments.workers, log_every=25,
        checkpoint_every=arguments.steps, progress=False,
    )  # fmt: skip
    record: dict[str, Any] = {
        "clips": {"labelled": len(labelled), "unlabelled": len(unlabelled), "test": len(test)}, "curve": []
    }  # fmt: skip
    with Run(arguments.run, config=vars(arguments), command="python -m tools.gpu.mvpl", options=options) as r:
        torch.manual_seed(r.seed("weights"))
        warmup = arguments.steps if arguments.method == "supervised" else round(0.4 * arguments.steps)
        mvpl = MultiviewPseudoLabel(
            build_network(network, len(labelled.videos.classes)), classes=len(labelled.videos.classes), views=VIEWS,
            warmup_steps=warmup, seed=r.seed("targets"),
        )  # fmt: skip
        feed = Feed(
            r, labelled, None if arguments.method == "supervised" else unlabelled, augment,
            batch_size=arguments.batch_size, mu=arguments.mu, total_steps=arguments.steps, first_unlabelled=warmup,
        )  # fmt: skip
        rates = OptimizerOptions()
        peak = rates.peak(feed.clips)
        model, optimizer = r.setup(mvpl, build_optimizer(mvpl.network, rates, lr=peak))
        schedule = WarmupCosine(
            optimizer, peak_lr=peak, start_lr=peak / 10, warmup_steps=arguments.steps // 8, total_steps=arguments.steps
        )
        r.track(model=mvpl, optimizer=optimizer, schedule=schedule)
        begun = time.monotonic()
        for step in r.steps(arguments.steps, samples_per_step=feed.clips):
            batch = feed.batch(step)
            losses = model(batch.labelled, batch.labels, batch.weak or None, batch.strong or None, step=step)
            optimizer.zero_grad()
            r.fabric.backward(losses.loss)
            r.fabric.clip_gradients(model, optimizer, max_norm=rates.clip_gradients)
            optimizer.step()
            schedule.step()
            mvpl.update()
            r.log(loss=losses.loss, supervised=losses.supervised, unlabelled=losses.unlabelled)
            if losses.diagnostics is not None:
                r.log(**losses.diagnostics.scalars())
            if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
                seconds = time.monotonic() - begun
                inference_network = make_tested(
                    mvpl.tested, recipe, unlabelled, weak=weak, count=64, batch_size=16, seed=0, device=r.device
                )
                top1 = accuracy(Recognizer(inference_network, recipe, r.device, {}), test, augment)
                record["curve"].append({"steps": step + 1, "seconds": round(seconds, 1), "top1": round(top1, 2)})
                record["clips_per_second"] = round((step + 1) * feed.clips / seconds, 1)
                arguments.out.write_text(json.dumps(record, indent=1))
                print(record["curve"][-1], flush=True)


if __name__ == "__main__":
    main()
