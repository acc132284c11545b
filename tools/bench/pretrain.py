"""Training speed of `ssl-vision pretrain` beside lightly's and solo-learn's on the same encoder, images and batch.

    python -m tools.bench.pretrain --data cifar10/train --threads 2 --out docs/results/pretrain_speed.json

Run it with a Python that has lightly; `--source` names a checkout of solo-learn, which is left out otherwise. Each
round runs every contestant once, as a process of its own; the median over rounds of the median step counts, loading and
augmentation included. Nothing else should run on the machine.
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
CONTESTANTS = ("lightly fp32", "lightly bf16", "solo-learn fp32", "ssl-vision fp32", "ssl-vision bf16")


def peer(library: str, precision: str, images: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Seconds per step of a library's recipe in the usual loop."""
    command = [
        *(sys.executable, "-m", "tools.studies.peers", library),
        *("--data", images / "train", "--out", out, "--epochs", 1),
        *("--width", arguments.width, "--batch-size", arguments.batch_size, "--threads", arguments.threads),
        *("--precision", precision, *(("--source", arguments.source) if library == "solo-learn" else ())),
    ]
    _run(command, arguments.threads)
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return float(record["median_step_seconds"])


def ours(precision: str, images: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Seconds per step of our command."""
    command = [
        *(sys.executable, "-m", "ssl_vision", "pretrain", images, "--out", out, "--epochs", 1, "--temperature", 0.5),
        *(
            "--encoder.width_multiplier",
            arguments.width,
            "--batch_size",
            arguments.batch_size,
            "--threads",
            arguments.threads,
        ),
        *("--log_every", 1, "--precision", {"fp32": "32-true", "bf16": "bf16-mixed"}[precision], "--no-progress"),
    ]
    _run(command, arguments.threads)
    records = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    return statistics.median(
        1 / float(record["steps_per_second"]) for record in records if "steps_per_second" in record
    )


def _run(command: list[object], threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([str(part) for part in command], check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of 32 px images per class")
    parser.add_argument("--source", type=Path, help="a checkout of solo-learn")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        per_class = STEPS * arguments.batch_size // 10 + 1
        for label in sorted(path for path in arguments.data.resolve().iterdir() if path.is_dir()):
            (place / "images" / "train" / label.name).mkdir(parents=True)
            for image in sorted(label.iterdir())[:per_class]:
                (place / "images" / "train" / label.name / image.name).symlink_to(image)
        contestants = [name for name in CONTESTANTS if arguments.source or not name.startswith("solo-learn")]
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number, name in itertools.product(range(arguments.rounds), contestants):
            library, precision = name.split()
            images, out = place / "images", place / f"{library}-{precision}-{number}"
            if library == "ssl-vision":
                seconds[name].append(ours(precision, images, out, arguments))
            else:
                seconds[name].append(peer(library, precision, images, out, arguments))
            print(f"{name}: {arguments.batch_size / seconds[name][-1]:.1f} images/s", flush=True)
    speed = {name: arguments.batch_size / statistics.median(times) for name, times in seconds.items()}
    rows = [[name, round(value, 1), round(value / speed["lightly fp32"], 2)] for name, value in speed.items()]
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
                "config": {**config, "steps": STEPS, "image_size": 32, "encoder": "resnet18, CIFAR stem"},
                "table": {"columns": ["loop", "images/s", "ratio"], "rows": rows},
                "notes": [
                    "Images per second (two views each) of the median step, loading and augmentation included; median "
                    "of the rounds. fp32 is the libraries' example loop; bf16 adds autocast and channels-last.",
                ],
                "seconds_per_step": seconds,
            },
        )


if __name__ == "__main__":
    main()
