"""SimCLR for CIFAR-10 as lightly and solo-learn do it: their transform, head, loss and optimiser, by their own code."""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Scheduled = tuple[torch.optim.Optimizer, LRScheduler]


@dataclass(frozen=True)
class Recipe:
    """What a library brings to the loop.

    Args:
        transform: PIL image -> two views.
        head: number of features -> projection head.
        loss: of the projections of both views.
        optimizer: (model, batch size, epochs, steps per epoch) -> optimiser, and schedule that is stepped every step.
    """

    transform: Callable[[Any], Any]
    head: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module, int, int, int], Scheduled]


def lightly(_: Path | None) -> Recipe:
    """The CIFAR-10 benchmark of lightly: SGD 0.06 per 128 images, weight decay 5e-4, cosine by epochs, tau 0.5."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    def optimizer(model: nn.Module, batch_size: int, epochs: int, steps_per_epoch: int) -> Scheduled:
        sgd = torch.optim.SGD(model.parameters(), lr=0.06 * batch_size / 128, momentum=0.9, weight_decay=5e-4)
        return sgd, LambdaLR(sgd, lambda step: (1 + math.cos(math.pi * (step // steps_per_epoch) / epochs)) / 2)

    return Recipe(
        transform=SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0),
        head=lambda features: SimCLRProjectionHead(features, features, 128),
        loss=NTXentLoss(temperature=0.5),
        optimizer=optimizer,
    )


def solo_learn(source: Path | None) -> Recipe:
    """solo-learn's scripts/pretrain/cifar/simclr.yaml with symmetric.yaml: LARS with clipped rates, temperature 0.2.

    Its warm-up of 10 epochs becomes a tenth of the run, as ours does.
    """
    if source is None:
        raise SystemExit("solo-learn: its released package is years old; name a checkout by --source")
    modules = _open_solo_learn(source)
    transforms, loss, lars = modules["data.pretrain_dataloader"], modules["losses.simclr"], modules["utils.lars"]
    from omegaconf import OmegaConf

    settings = OmegaConf.load(source / "scripts/pretrain/cifar/augmentations/symmetric.yaml")[0]
    view = transforms.build_transform_pipeline("cifar10", settings)

    def optimizer(model: nn.Module, batch_size: int, epochs: int, steps_per_epoch: int) -> Scheduled:
        made = lars.LARS(
            model.parameters(), lr=0.4 * batch_size / 256, momentum=0.9, weight_decay=1e-4, eta=0.02, clip_lr=True,
            exclude_bias_n_norm=True,
        )  # fmt: skip
        total, warm = epochs * steps_per_epoch, max(1, epochs * steps_per_epoch // 10)
        return made, LambdaLR(
            made,
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
    """The files of solo-learn that are needed, with timm < 1; all of it does not import beside current torch."""
    for name in ("solo", "solo.data", "solo.losses", "solo.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["torch.optim.optimizer"].required = object()  # type: ignore[attr-defined]
    names = ("data.pretrain_dataloader", "losses.simclr", "utils.lars")
    return {name: importlib.import_module(f"solo.{name}") for name in names}


RECIPES: dict[str, Callable[[Path | None], Recipe]] = {"lightly": lightly, "solo-learn": solo_learn}
