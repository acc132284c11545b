"""Two augmented views per image and second, on one core: `SimCLRAugment` beside lightly's PIL pipeline, in one run.

    python -m tools.bench.augment --images CIFAR10/train --out docs/results/bench_augment.json

Images are decoded beforehand, as PIL images for lightly and as one uint8 tensor for ours; for views of 224 pixels they
are first enlarged to 256. Methods take turns, round by round, and the time is that of the processor, so that a machine
busy with something else slows all of them. lightly's normalisation is left out, ours has none. "one by one" gives our
module single images instead of whole batches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ssl_vision.augment import SimCLRAugment
from tools.results import provenance, write_result

LIGHTLY = "lightly"
CASES = {  # size: (side of the images, images, strength of the jitter, blur, rounds)
    32: (32, 256, 0.5, False, 15),
    96: (128, 64, 1.0, True, 9),
    224: (256, 32, 1.0, True, 7),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images (found recursively); noise if left out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], choices=CASES)
    parser.add_argument("--rounds", type=int, help="how often every method takes its turn; by default 15 to 7 times")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # What every training process does sooner or later; glibc then keeps freed memory instead of returning it to the
    # system after every use, and a measurement in a fresh process is not one of page faults.
    torch.ones(7 << 20)
    cells = [cell for size in arguments.sizes for cell in measure(size, arguments.images, arguments.rounds)]
    print("| size | method | images/s, two views | ratio to lightly |\n|---|---|---|---|")
    for cell in cells:
        ratio = f"{cell['ratio']:.1f}x" if "ratio" in cell else ""
        print(f"| {cell['size']} | {cell['method']} | {cell['images_per_s']:.0f} | {ratio} |")
    if arguments.out:
        config = {"images": "noise" if arguments.images is None else arguments.images.name, "threads": 1, "views": 2}
        write_result(arguments.out, {**provenance(), "config": config, "cells": cells})
    return 0


def measure(size: int, folder: Path | None, rounds: int | None) -> list[dict[str, float | str]]:
    """CPU seconds of every method at one size, as medians over rounds in which each takes its turn."""
    side, count, strength, blur, usual = CASES[size]
    pictures = read(folder, count, side)
    methods = make_methods(size, pictures, strength=strength, blur=blur)
    for work in methods.values():
        work(-1)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds or usual):
        for name, work in methods.items():
            start = time.process_time()
            work(number)
            seconds[name].append(time.process_time() - start)
    cells: list[dict[str, float | str]] = []
    for name, times in seconds.items():
        cell: dict[str, float | str] = {"size": size, "method": name, "images": count}
        cell["images_per_s"] = count / statistics.median(times)
        cell["images_per_s_best"] = count / min(times)
        if LIGHTLY in seconds and name != LIGHTLY:
            pairs = zip(seconds[LIGHTLY], times, strict=True)
            cell["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
        cells.append(cell)
    return cells


def make_methods(
    size: int, pictures: Sequence[Image.Image], *, strength: float, blur: bool
) -> dict[str, Callable[[int], None]]:
    """What takes turns: each call makes two views of every picture."""
    batch = torch.stack([as_tensor(picture) for picture in pictures])
    ids = torch.arange(len(batch))
    methods: dict[str, Callable[[int], None]] = {}
    for ops in ("simclr", "torchvision"):
        augment = SimCLRAugment(size, strength=strength, blur=blur, ops="simclr" if ops == "simclr" else "torchvision")

        def ours(number: int, augment: SimCLRAugment = augment) -> None:
            for view in (0, 1):
                augment(batch, seed=2 * number + view, ids=ids)

        def single(number: int, augment: SimCLRAugment = augment) -> None:
            for i in range(len(batch)):
                for view in (0, 1):
                    augment(batch[i : i + 1], seed=2 * number + view, ids=ids[i : i + 1])

        methods[f"ours, ops={ops}"] = ours
        methods[f"ours, ops={ops}, one by one"] = single
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        print("lightly is not installed: left out", file=sys.stderr)
        return methods
    transform = SimCLRTransform(
        input_size=size, cj_strength=strength, gaussian_blur=0.5 if blur else 0.0, normalize=None
    )

    def theirs(number: int) -> None:
        for picture in pictures:
            transform(picture)

    return {LIGHTLY: theirs, **methods}


def read(folder: Path | None, count: int, side: int) -> list[Image.Image]:
    """`count` RGB pictures of side x side pixels, spread over the folder."""
    if folder is None:
        noise = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        return [Image.fromarray(image.numpy()) for image in noise]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(paths) < count:
        raise SystemExit(f"{folder}: found {len(paths)} .jpg and .png images, {count} are needed")
    chosen = paths[:: len(paths) // count][:count]
    return [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for path in chosen]


def as_tensor(picture: Image.Image) -> Tensor:
    """A picture as uint8 [3, H, W]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


if __name__ == "__main__":
    sys.exit(main())
