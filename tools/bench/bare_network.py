"""Measure the training step of a SimCLR network on a fixed batch, without image loading and augmentation.

    python -m tools.bench.bare_network --image-size 32 --width 0.25 --batch-size 256 --steps 12
    python -m tools.bench.bare_network --image-size 32 --width 0.25 --batch-size 256 --compile

The step equals that of `ssl-vision pretrain`: encoder and head on both views, NT-Xent, gradient and LARS. The script
prints one JSON line with the seconds of the median step. `--compile` compares the network alone in eager mode and
compiled by `torch.compile`, in alternating steps. It records the seconds for compiling, the seconds per step of both,
the fraction of the time spent in convolutions, and the number of steps after which compiling saves time overall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from contrastive_core import nt_xent
from contrastive_core.optim import LARS, lars_param_groups
from ssl_vision.models.encoder import EncoderOptions
from ssl_vision.models.model_folder import build_simclr
from tools.results import provenance, write_result


def network_and_views(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    small = arguments.image_size < 64
    options = EncoderOptions(width_multiplier=arguments.width, stem="cifar" if small else "imagenet")
    network = build_simclr(options, image_size=arguments.image_size, layers=2, out_features=128)
    views = torch.rand(2 * arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    return network, views.to(memory_format=torch.channels_last)


def autocast(arguments: argparse.Namespace) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16")


def training_step(arguments: argparse.Namespace) -> Callable[[], None]:
    network, views = network_and_views(arguments)
    optimizer = LARS(lars_param_groups(network, 1e-6), lr=0.1, momentum=0.9)

    def step() -> None:
        with autocast(arguments):
            first, second = network(*views.chunk(2))
        nt_xent(first.float(), second.float(), temperature=0.5).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare_compiled(arguments: argparse.Namespace) -> dict[str, float | None]:
    network, views = network_and_views(arguments)

    def step(run: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        with autocast(arguments):
            (output,) = run(views)
        output.float().square().mean().backward()  # type: ignore[no-untyped-call]
        network.zero_grad()

    eager, compiled = partial(step, network), partial(step, torch.compile(network))
    compile_seconds = seconds_of(compiled)
    eager()
    pairs = [(seconds_of(eager), seconds_of(compiled)) for _ in range(arguments.steps)]
    before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        eager()
    events = profiler.key_averages()
    convolutions = sum(event.self_cpu_time_total for event in events if "convolution" in event.key)
    return {
        "compile_seconds": compile_seconds,
        "eager_step_seconds": before,
        "compiled_step_seconds": after,
        "speedup": statistics.median(first / second for first, second in pairs),
        "share_of_convolutions": convolutions / sum(event.self_cpu_time_total for event in events),
        "steps_to_pay_back": compile_seconds / (before - after) if before > after else None,
    }


def write(out: Path, measurement: dict[str, float | None], arguments: argparse.Namespace) -> None:
    """Add the measurement for this size to the file."""
    rows = json.loads(out.read_text())["table"]["rows"] if out.exists() else []
    pays = measurement["steps_to_pay_back"]
    channels = "all channels" if arguments.width == 1 else f"{arguments.width:.0%} of the channels"
    row = [
        f"{arguments.image_size} px, {channels}, batch {arguments.batch_size}",
        round(measurement["eager_step_seconds"] or 0, 3),
        round(measurement["compiled_step_seconds"] or 0, 3),
        round(measurement["speedup"] or 0, 2),
        round(measurement["compile_seconds"] or 0),
        "never" if pays is None else round(pays),
        round(100 * (measurement["share_of_convolutions"] or 0)),
    ]
    columns = ["network", "eager, s", "compiled, s", "speed-up", "compiling, s", "pays after, steps", "convolutions, %"]
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            "seeds": [0],
            "config": {"threads": arguments.threads, "precision": arguments.precision, "steps": arguments.steps},
            "table": {"columns": columns, "rows": [*(each for each in rows if each[0] != row[0]), row]},
            "notes": [
                "Median time of the forward and backward pass of ResNet-18 with its projection head on a fixed batch "
                "of two views per image; eager and compiled steps alternate. The last column is the percentage of the "
                "time of the eager step spent in convolutions, which compiling does not change."
            ],
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="results file of --compile, to which this size is added")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.compile:
        measurement = compare_compiled(arguments)
        print(json.dumps(measurement))
        if arguments.out:
            write(arguments.out, measurement, arguments)
        return
    step = training_step(arguments)
    step()
    print(json.dumps({"median_step_seconds": statistics.median(seconds_of(step) for _ in range(arguments.steps))}))


if __name__ == "__main__":
    main()
