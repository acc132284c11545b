"""Measure augmentation speed on one core, compared with lightly, torchvision v2 and AlbumentationsX.

    python -m tools.bench.augment --images CIFAR10/train --out docs/results/bench_augment.json

The result is the number of images per second with two views each. Images are decoded beforehand, as PIL images for
lightly, as uint8 tensors for torchvision v2, as arrays for AlbumentationsX, and as one uint8 tensor for ssl-vision; for
views of 224 pixels they are first enlarged to 256. All methods apply the same kinds of operations: crop, flip, colour
jitter, greyscale, and blur at 96 and 224 px, without normalisation. Libraries that are not installed are omitted.
Methods alternate in rounds, and processor time is measured, so that other work on the machine affects all methods
equally. "one by one" passes single images to our module instead of whole batches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_vision.augment import SimCLRAugment
from tools.results import provenance, write_result

Work = Callable[[int], None]
LIGHTLY = "lightly"
CASES = {  # size: (side of the images, images, strength of the jitter, blur, rounds)
    32: (32, 256, 0.5, False, 15),
    96: (128, 64, 1.0, True, 9),
    224: (256, 32, 1.0, True, 7),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images, searched recursively; noise by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], choices=CASES)
    parser.add_argument("--rounds", type=int, help="number of rounds; by default 7 to 15")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # As in every training process, glibc then keeps freed memory instead of returning it to the system after every use.
    # Otherwise a fresh process would measure page faults.
    torch.ones(7 << 20)
    cells = [cell for size in arguments.sizes for cell in measure(size, arguments.images, arguments.rounds)]
    print("| size | method | images/s, two views | ratio to lightly |\n|---|---|---|---|")
    for cell in cells:
        ratio = f"{cell['ratio']:.1f}x" if "ratio" in cell else ""
        print(f"| {cell['size']} | {cell['method']} | {cell['images_per_s']:.0f} | {ratio} |")
    if arguments.out:
        config = {"images": "noise" if arguments.images is None else arguments.images.name, "threads": 1, "views": 2}
        rows = [
            [cell["size"], cell["method"], round(float(cell["images_per_s"])), round(float(cell.get("ratio", 1)), 2)]
            for cell in cells
        ]
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": config,
                "table": {"columns": ["view, px", "method", "images/s, 2 views", "ratio to lightly"], "rows": rows},
                "notes": [
                    "Decoded images, one thread, processor time: medians over rounds in which the methods alternate. "
                    "The transforms are crop, flip, colour jitter and greyscale, with blur at 224 px and without "
                    'normalisation. Training augments whole batches, from memory and from files; with "one by one", '
                    "our module receives single images."
                ],
                "cells": cells,
            },
        )
    return 0


def measure(size: int, folder: Path | None, rounds: int | None) -> list[dict[str, float | str]]:
    """Measure images per CPU second of every method at one size, as medians over alternating rounds."""
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
            cell["ratio"] = statistics.median(peer / ours for peer, ours in pairs)
        cells.append(cell)
    return cells


def make_methods(size: int, pictures: Sequence[Image.Image], *, strength: float, blur: bool) -> dict[str, Work]:
    """Return the methods to compare; each call computes two views of every picture."""
    batch = torch.stack([as_tensor(picture) for picture in pictures])
    ids = torch.arange(len(batch))
    methods: dict[str, Work] = {}
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
    peers = {
        LIGHTLY: _lightly(size, pictures, strength=strength, blur=blur),
        "torchvision v2": _torchvision(size, batch, strength=strength, blur=blur),
        "AlbumentationsX": _albumentations(size, pictures, strength=strength, blur=blur),
    }
    return {**{name: work for name, work in peers.items() if work is not None}, **methods}


def _lightly(size: int, pictures: Sequence[Image.Image], *, strength: float, blur: bool) -> Work | None:
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        print("lightly is not installed and is omitted", file=sys.stderr)
        return None
    transform = SimCLRTransform(
        input_size=size, cj_strength=strength, gaussian_blur=0.5 if blur else 0.0, normalize=None
    )

    def work(number: int) -> None:
        for picture in pictures:
            transform(picture)

    return work


def _taps(size: int) -> int:
    """Return an odd kernel size of the blur, about a tenth of the side."""
    return 2 * (size // 10 // 2) + 1


def _torchvision(size: int, batch: Tensor, *, strength: float, blur: bool) -> Work:
    from torchvision.transforms import v2

    s = strength
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(_taps(size), (0.1, 2.0))], p=0.5))
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])

    def work(number: int) -> None:
        for image in batch:
            for _ in (0, 1):
                transform(image)

    return work


def _albumentations(size: int, pictures: Sequence[Image.Image], *, strength: float, blur: bool) -> Work | None:
    try:
        import albumentations
    except ImportError:
        print("AlbumentationsX is not installed and is omitted", file=sys.stderr)
        return None
    s = 0.8 * strength
    transform = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((size, size), scale=(0.08, 1.0), interpolation=2),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(
                (1 - s, 1 + s), (1 - s, 1 + s), (1 - s, 1 + s), (-0.2 * strength, 0.2 * strength), p=0.8
            ),
            albumentations.ToGray(p=0.2),
            *([albumentations.GaussianBlur((_taps(size), _taps(size)), (0.1, 2.0), p=0.5)] if blur else []),
        ]
    )
    arrays = [np.array(picture) for picture in pictures]

    def work(number: int) -> None:
        for array in arrays:
            for _ in (0, 1):
                view = np.ascontiguousarray(transform(image=array)["image"])
                torch.from_numpy(view).permute(2, 0, 1).float().div_(255)

    return work


def read(folder: Path | None, count: int, side: int) -> list[Image.Image]:
    """Read `count` RGB pictures of side x side pixels, selected evenly from the folder."""
    if folder is None:
        noise = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        return [Image.fromarray(image.numpy()) for image in noise]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(paths) < count:
        raise SystemExit(f"{folder}: found {len(paths)} .jpg and .png images, expected at least {count}")
    selection = paths[:: len(paths) // count][:count]
    return [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for path in selection]


def as_tensor(picture: Image.Image) -> Tensor:
    """Convert a picture to a uint8 tensor [3, H, W]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


if __name__ == "__main__":
    sys.exit(main())
