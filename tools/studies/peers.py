"""Train our encoder with the transform, head, loss and optimiser of lightly or solo-learn, for comparison.

    python -m tools.studies.peers lightly --data cifar10/train --out runs/lightly --epochs 10
    python -m tools.studies.peers solo-learn --source solo-learn --data cifar10/train --out runs/solo --epochs 10

The recipes are those of the libraries for CIFAR-10, and the loop is that of their examples. `--precision bf16` uses
bfloat16 and channels-last, as our own run does; the default is that of the examples. The encoder is saved after every
fifth epoch and after the last one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ssl_vision.models import resnet

CIFAR = 32  # px
SMALL = 64  # px: smaller images have the stem of CIFAR-10, and no blur
Scheduled = tuple[torch.optim.Optimizer, LRScheduler]


@dataclass(frozen=True)
class Recipe:
    """Parts of a library that the loop uses.

    Args:
        transform: Function from a PIL image to two views.
        head: Function from the number of features to a projection head.
        loss: Function of the projections of both views.
        optimizer: Function from model, batch size, epochs and steps per epoch to an optimiser and a schedule, which is
            stepped after every step.
    """

    transform: Callable[[Any], Any]
    head: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module, int, int, int], Scheduled]


def lightly(_: Path | None, size: int) -> Recipe:
    """Return the recipe of lightly's CIFAR-10 benchmark.

    It uses SGD with a learning rate of 0.06 per 128 images, weight decay 5e-4, a cosine schedule by epochs and
    temperature 0.5. Images of more than 64 px are blurred, as by default in lightly's transform.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    def optimizer(model: nn.Module, batch_size: int, epochs: int, steps_per_epoch: int) -> Scheduled:
        sgd = torch.optim.SGD(model.parameters(), lr=0.06 * batch_size / 128, momentum=0.9, weight_decay=5e-4)
        return sgd, LambdaLR(sgd, lambda step: (1 + math.cos(math.pi * (step // steps_per_epoch) / epochs)) / 2)

    return Recipe(
        transform=SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.5 if size > SMALL else 0.0),
        head=lambda features: SimCLRProjectionHead(features, features, 128),
        loss=NTXentLoss(temperature=0.5),
        optimizer=optimizer,
    )


def solo_learn(source: Path | None, size: int) -> Recipe:
    """Return the recipe of solo-learn's scripts/pretrain/cifar/simclr.yaml with symmetric.yaml.

    It uses LARS with clipped learning rates and temperature 0.2. The warm-up of 10 epochs is shortened to a tenth of
    the run, as in our recipe.
    """
    if size != CIFAR:
        raise SystemExit(f"solo-learn: its recipe is for images of {CIFAR} px, not {size}")
    if source is None:
        raise SystemExit("solo-learn has no usable package; name a checkout by --source")
    modules = _open_solo_learn(source)
    transforms, loss, lars = modules["data.pretrain_dataloader"], modules["losses.simclr"], modules["utils.lars"]
    from omegaconf import OmegaConf

    settings = OmegaConf.load(source / "scripts/pretrain/cifar/augmentations/symmetric.yaml")[0]
    view = transforms.build_transform_pipeline("cifar10", settings)

    def optimizer(model: nn.Module, batch_size: int, epochs: int, steps_per_epoch: int) -> Scheduled:
        lars_optimizer = lars.LARS(
            model.parameters(), lr=0.4 * batch_size / 256, momentum=0.9, weight_decay=1e-4, eta=0.02, clip_lr=True,
            exclude_bias_n_norm=True,
        )  # fmt: skip
        total, warm = epochs * steps_per_epoch, max(1, epochs * steps_per_epoch // 10)
        return lars_optimizer, LambdaLR(
            lars_optimizer,
            lambda step: step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2,
        )

    def nt_xent(first: Tensor, second: Tensor) -> Tensor:
        value: Tensor = loss.simclr_loss_func(torch.cat([first, second]), torch.arange(len(first)).repeat(2), 0.2)
        return value

    return Recipe(
        transform=lambda image: [view(image), view(image)],
        head=lambda features: nn.Sequential(nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, 256)),
        loss=nt_xent,
        optimizer=optimizer,
    )


def _open_solo_learn(source: Path) -> dict[str, Any]:
    """Import only the required files of solo-learn (with timm < 1), because not all of them work with current torch."""
    for name in ("solo", "solo.data", "solo.losses", "solo.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["torch.optim.optimizer"].required = object()  # type: ignore[attr-defined]
    names = ("data.pretrain_dataloader", "losses.simclr", "utils.lars")
    return {name: importlib.import_module(f"solo.{name}") for name in names}


RECIPES: dict[str, Callable[[Path | None, int], Recipe]] = {"lightly": lightly, "solo-learn": solo_learn}


class SimCLR(nn.Module):
    """Our encoder with the projection head of the library."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        projection: Tensor = self.head(self.backbone(images))
        return projection


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES[arguments.library](arguments.source, arguments.image_size)
    loader = DataLoader(
        ImageFolder(arguments.data, transform=recipe.transform),
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    backbone = resnet(18, width=arguments.width, stem="cifar" if arguments.image_size <= SMALL else "imagenet")
    model = SimCLR(backbone, recipe.head(backbone.feature_dim))
    bf16 = arguments.precision == "bf16"
    if bf16:
        model = model.to(memory_format=torch.channels_last)
    optimizer, schedule = recipe.optimizer(model, arguments.batch_size, arguments.epochs, len(loader))
    steps, seconds = 0, 0.0
    losses: list[float] = []
    durations: list[float] = []
    for epoch in range(arguments.epochs + 1):
        if epoch % 5 == 0 or epoch == arguments.epochs:
            tensors = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
            save_file(tensors, arguments.out / f"encoder-epoch-{epoch:03d}.safetensors")
        if epoch == arguments.epochs:
            break
        start = mark = time.perf_counter()
        for (first, second), _ in loader:
            if bf16:
                first = first.to(memory_format=torch.channels_last)  # noqa: PLW2901
                second = second.to(memory_format=torch.channels_last)  # noqa: PLW2901
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                z_first, z_second = model(first), model(second)
            loss = recipe.loss(z_first.float(), z_second.float())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            steps += 1
            durations.append(time.perf_counter() - mark)
            mark = time.perf_counter()
            if steps == arguments.steps:
                break
        seconds += time.perf_counter() - start
        record = {
            "epoch": epoch + 1,
            "steps": steps,
            "loss": sum(losses[-100:]) / len(losses[-100:]),
            "images_per_second": steps * arguments.batch_size / seconds,
            "median_step_seconds": statistics.median(durations),
        }
        print(json.dumps(record), flush=True)
        with (arguments.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if steps == arguments.steps:
            break


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=list(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder with a subfolder of images for each class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="checkout of solo-learn, which can no longer be installed")
    parser.add_argument("--image-size", type=int, default=CIFAR)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--steps", type=int, default=0, help="number of steps after which to stop, for timing; 0 for no limit"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
