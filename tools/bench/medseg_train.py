"""Measure the training speed of `ssl-medseg train` in slices per second, beside a MONAI script and nnU-Net's trainer.

    python -m tools.bench.medseg_train --threads 1 --out docs/results/medseg_train.json
    python -m tools.bench.medseg_train --threads 1 --nnunet runs/nnunet/preprocessed/Dataset001_Few

All programs train the same network on labelled slices with their whole loop: drawing, augmentation, loss, gradients and
optimiser. ssl-medseg uses the strong recipe with its moving average; the MONAI script dictionary transforms of the same
kinds, DiceCELoss and AdamW; nnU-Net its own trainer, loader, augmentation, loss and optimiser, without deep
supervision, which this network lacks. All run in one process and one thread pool. The peers compute in float32, as they
are made to on a CPU, and in addition under bfloat16 autocast. `--nnunet` takes a folder of preprocessed data that
`tools.studies.nnunet --pixels 96` has written; its patches are used for all programs.

Slices are generated, except for nnU-Net; speed does not depend on the content. Rounds of a few steps alternate between
the programs, and medians are printed. A fixed batch shows what remains of the speed with loading. Ratios are also valid
on a busy machine; the slices per second are not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.training import Run, RunOptions
from contrastive_core.training.config import FixedPrecision
from ssl_medseg.losses.segmentation import segmentation_loss
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.training.optim import adam, moving_average
from ssl_medseg.training.recipe import RECIPES
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatch, SegmentationBatches, SliceSet
from tools.results import provenance, write_result

CLASSES = 4
OURS: tuple[tuple[str, FixedPrecision], ...] = (("ssl-medseg", "bf16-mixed"), ("ssl-medseg, float32", "32-true"))
Step = Callable[[int], None]


def random_slices(count: int, size: tuple[int, int]) -> SliceSet:
    """Generate noise with labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, *size, generator=generator)
    labels = torch.randint(0, CLASSES, (count, *size), generator=generator, dtype=torch.uint8)
    return SliceSet(images, labels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ("noise",))


def network_of(width: int) -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkOptions("plain-unet", width), CLASSES)


class Mixed(nn.Module):
    """Network whose forward pass computes under bfloat16 autocast if `mixed` is set."""

    def __init__(self, network: nn.Module, mixed: bool) -> None:
        super().__init__()
        self.network, self.mixed = network, mixed

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            output: Tensor = self.network(x)
        return output.float()


def ours(run: Run, slices: SliceSet, *, width: int, batch_size: int, loading: bool) -> Step:
    """Return a function that executes one step of `train`, on a fixed batch or on the batches of the command."""
    recipe = RECIPES["strong"]
    batches = SegmentationBatches(
        run, slices, classes=CLASSES, pool=torch.arange(len(slices)), batch_size=batch_size,
        augment=AugmentOptions(kind=recipe.augment), rare_share=recipe.rare_share,
    )  # fmt: skip
    network = network_of(width)
    model, optimizer = run.setup(network, adam(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay))
    average, criterion = moving_average(network, recipe.ema), segmentation_loss(recipe.loss, classes=CLASSES)
    fixed: SegmentationBatch = batches.at(0)

    def step(number: int) -> None:
        batch = batches.at(number) if loading else fixed
        loss = criterion(model(batch.images), batch.shares)
        optimizer.zero_grad()
        run.fabric.backward(loss)
        optimizer.step()
        average.update_parameters(network)
        loss.item()

    return step


def monai_script(slices: SliceSet, *, width: int, batch_size: int, mixed: bool) -> Step:
    """Return a function that executes one step of a script with MONAI's transforms, loader and loss."""
    t: Any = importlib.import_module("monai.transforms")  # its names are not exported for type checkers
    data: Any = importlib.import_module("monai.data")
    both = ["image", "label"]
    augment = t.Compose(
        [
            t.RandAffined(
                both, prob=1.0, rotate_range=0.5236, scale_range=(0.25, 0.25), translate_range=(9.0, 9.0),
                mode=("bilinear", "nearest"),
            ),
            t.Rand2DElasticd(both, (24, 24), (0, 2), prob=0.3, mode=("bilinear", "nearest")),
            t.RandFlipd(both, prob=0.5, spatial_axis=0),
            t.RandFlipd(both, prob=0.5, spatial_axis=1),
            t.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            t.RandScaleIntensityd("image", factors=0.25, prob=0.3),
            t.RandShiftIntensityd("image", offsets=0.1, prob=0.3),
            t.RandGaussianNoised("image", prob=0.2, std=0.1),
            t.RandGaussianSmoothd("image", prob=0.2),
        ]
    )  # fmt: skip
    cases = [
        {"image": image, "label": label[None].float()} for image, label in zip(slices.images, slices.truth, strict=True)
    ]
    loader = data.DataLoader(data.CacheDataset(cases, augment, progress=False), batch_size=batch_size, shuffle=True)
    criterion = importlib.import_module("monai.losses").DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    network = Mixed(network_of(width), mixed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)

    def batches() -> Any:
        while True:
            yield from loader

    stream = batches()

    def step(number: int) -> None:
        batch = next(stream)
        loss: Tensor = criterion(network(batch["image"].as_tensor()), batch["label"].as_tensor())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    return step


def nnunet_trainer(folder: Path, scratch: Path, *, width: int, batch_size: int, mixed: bool) -> Step:
    """Return a function that executes one step of nnU-Net's trainer with our network."""
    os.environ |= {
        "nnUNet_raw": str(scratch), "nnUNet_preprocessed": str(folder.parent), "nnUNet_results": str(scratch),
        "nnUNet_n_proc_DA": "0",
    }  # fmt: skip
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    plans["configurations"]["2d"]["batch_size"] = batch_size
    dataset = json.loads((folder / "dataset.json").read_text())
    trainers: Any = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = trainers.nnUNetTrainer(plans, "2d", 0, dataset, device=torch.device("cpu"))
        trainer.enable_deep_supervision = False
        trainer.set_deep_supervision_enabled = lambda enabled: None  # a method of nnU-Net's own networks
        trainer.plot_network_architecture = lambda: None
        trainer.initialize()
        trainer.network = Mixed(network_of(width), mixed)
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        trainer.on_train_start()

    def step(number: int) -> None:
        trainer.train_step(next(trainer.dataloader_train))

    return step


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the slices per second of every program."""
    size = (arguments.size, arguments.size)
    if arguments.nnunet is not None:
        plans = json.loads((arguments.nnunet / "nnUNetPlans.json").read_text())
        size = tuple(plans["configurations"]["2d"]["patch_size"])
    slices = random_slices(8 * arguments.batch_size, size)
    same = {"width": arguments.width, "batch_size": arguments.batch_size}
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in OURS:
            for loading in (True, False):
                options = RunOptions(device="cpu", precision=precision, threads=arguments.threads, progress=False)
                program = name if loading else f"{name}, one fixed batch"
                with Run(Path(folder) / program, config={}, command="bench", options=options) as run:
                    steps[program] = ours(run, slices, loading=loading, **same)
        for end, mixed in (("", False), (", bfloat16", True)):
            steps[f"MONAI script{end}"] = monai_script(copy.deepcopy(slices), mixed=mixed, **same)
            if arguments.nnunet is not None:
                preprocessed = arguments.nnunet.resolve()
                steps[f"nnU-Net's trainer{end}"] = nnunet_trainer(preprocessed, Path(folder), mixed=mixed, **same)
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        number = 0
        for turn in range(arguments.rounds + 1):
            for name, step in steps.items():
                begun = time.perf_counter()
                for _ in range(arguments.steps):
                    step(number)
                    number += 1
                if turn:  # the first round prepares kernels
                    seconds[name].append(time.perf_counter() - begun)
    slices_seen = arguments.steps * arguments.batch_size
    return {name: slices_seen / statistics.median(times) for name, times in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--nnunet", type=Path, help="also measure nnU-Net's trainer, on this preprocessed data set")
    parser.add_argument("--out", type=Path, help="results file")
    arguments = parser.parse_args(argv)
    speeds = measure(arguments)
    ratios = {name: speeds[OURS[0][0]] / speed for name, speed in speeds.items()}
    for name, speed in speeds.items():
        print(f"{name:38} {speed:9.1f} slices/s; ssl-medseg is {ratios[name]:5.2f} times as fast")
    if arguments.out is not None:
        names = ("size", "width", "batch_size", "threads", "rounds", "steps")
        pixels = "patches of the plan" if arguments.nnunet else f"{arguments.size} x {arguments.size} pixels"
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": {name: getattr(arguments, name) for name in names} | {"nnunet": arguments.nnunet is not None},
                "table": {
                    "columns": ["program", "slices/s", "ssl-medseg is faster by"],
                    "rows": [[name, round(speed, 1), round(ratios[name], 2)] for name, speed in speeds.items()],
                },
                "notes": [
                    f"Training steps with {arguments.batch_size} labelled slices, {pixels}, of the same U-Net of width "
                    f"{arguments.width} on a CPU with {arguments.threads or 'all'} thread(s): drawing, augmentation, "
                    f"loss, gradients and optimiser. Medians of {arguments.rounds} alternating rounds of "
                    f"{arguments.steps} steps. The peers compute in float32 unless the row states otherwise."
                ],
            },
        )


if __name__ == "__main__":
    main()
