"""Measure the training speed of `ssl-vision pretrain`, compared with lightly and solo-learn.

    python -m tools.bench.pretrain --data cifar10/train --threads 1 --out docs/results/pretrain_speed.json
    python -m tools.bench.pretrain --data photos --image-size 224 --batch-size 32 --threads 1 --out ...

All programs use the same encoder, images and batch size. Run this script with a Python that has lightly; `--source`
names a checkout of solo-learn, which is omitted otherwise. Each round runs every program once in a separate process.
The result is the median over rounds of the median step, including loading and augmentation. "network" is the training
step of our network on a fixed batch (tools.bench.bare_network); the difference between ssl-vision and "network" is the
time spent outside the network. Run no other programs on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.results import provenance, write_result

STEPS = 12
SMALL = 64  # px: smaller images have the stem of CIFAR-10, and no blur
CONTESTANTS = (
    "lightly fp32", "lightly bf16", "solo-learn fp32", "ssl-vision fp32", "ssl-vision bf16", "network bf16",
)  # fmt: skip


def peer(library: str, precision: str, images: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Measure seconds per step of a library's recipe in the loop of its examples."""
    command = [
        *(sys.executable, "-m", "tools.studies.peers", library),
        *("--data", images / "train", "--out", out, "--epochs", 1),
        *("--width", arguments.width, "--batch-size", arguments.batch_size, "--threads", arguments.threads),
        *("--image-size", arguments.image_size, "--precision", precision),
        *(("--source", arguments.source) if library == "solo-learn" else ()),
    ]
    _run(command, arguments.threads)
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return float(record["median_step_seconds"])


def ours(precision: str, images: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Measure seconds per step of `ssl-vision pretrain`."""
    size = arguments.image_size
    command = [
        *(sys.executable, "-m", "ssl_vision", "pretrain", images, out, "--epochs", 1, "--temperature", 0.5),
        *("--encoder.width-multiplier", arguments.width, "--batch-size", arguments.batch_size),
        *("--image-size", size, *(("--stem", "imagenet", "--augment.blur") if size > SMALL else ()), "--load", "files"),
        *("--threads", arguments.threads, "--log-every", 1, "--no-progress"),
        *("--precision", {"fp32": "32-true", "bf16": "bf16-mixed"}[precision]),
    ]
    _run(command, arguments.threads)
    records = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    return statistics.median(
        1 / float(record["steps_per_second"]) for record in records if "steps_per_second" in record
    )


def network(precision: str, arguments: argparse.Namespace) -> float:
    """Measure seconds per step of our network on a fixed batch."""
    command = [
        *(sys.executable, "-m", "tools.bench.bare_network", "--image-size", arguments.image_size),
        *("--width", arguments.width, "--batch-size", arguments.batch_size, "--threads", arguments.threads),
        *("--precision", precision, "--steps", STEPS),
    ]
    return float(json.loads(_run(command, arguments.threads))["median_step_seconds"])


def _run(command: list[object], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    arguments = [str(argument) for argument in command]
    return subprocess.run(arguments, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a subfolder of images for each class")
    parser.add_argument("--source", type=Path, help="checkout of solo-learn")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--only", help="programs to run, separated by commas")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        labels = sorted(path for path in arguments.data.resolve().iterdir() if path.is_dir())
        per_class = STEPS * arguments.batch_size // len(labels) + 1
        for label in labels:
            (place / "images" / "train" / label.name).mkdir(parents=True)
            for image in sorted(label.iterdir())[:per_class]:
                (place / "images" / "train" / label.name / image.name).symlink_to(image)
        names = arguments.only.split(",") if arguments.only else CONTESTANTS
        contestants = [name for name in names if arguments.source or not name.startswith("solo-learn")]
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number, name in itertools.product(range(arguments.rounds), contestants):
            library, precision = name.split()
            images, out = place / "images", place / f"{library}-{precision}-{number}"
            if library == "network":
                seconds[name].append(network(precision, arguments))
            elif library == "ssl-vision":
                seconds[name].append(ours(precision, images, out, arguments))
            else:
                seconds[name].append(peer(library, precision, images, out, arguments))
            print(f"{name}: {arguments.batch_size / seconds[name][-1]:.1f} images/s", flush=True)
    speed = {name: arguments.batch_size / statistics.median(times) for name, times in seconds.items()}
    rows = [[name, round(value, 1), round(value / speed[contestants[0]], 2)] for name, value in speed.items()]
    for row in rows:
        print(*row, sep="\t")
    if arguments.out:
        config = {name: getattr(arguments, name) for name in ("width", "batch_size", "threads", "rounds")}
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": {**config, "steps": STEPS, "image_size": arguments.image_size, "encoder": "resnet18"},
                "table": {"columns": ["loop", "images/s", "ratio"], "rows": rows},
                "notes": [
                    "Images per second (two views each) of the median step, including loading and augmentation; median "
                    "over rounds. fp32 is the example loop of each library; bf16 adds autocast and channels-last.",
                ],
                "seconds_per_step": seconds,
            },
        )


if __name__ == "__main__":
    main()
