"""Train our encoder with another library's transform, head, loss and optimiser: the peers of `results/`.

    python -m tools.peer_simclr lightly --data cifar10/train --out runs/lightly --epochs 10
    python -m tools.peer_simclr solo-learn --source solo-learn --data cifar10/train --out runs/solo --epochs 10

The recipes are those that the libraries give for CIFAR-10 (`tools/peer_recipes.py`), the loop is that of their
examples. `--precision bf16` runs the network in bfloat16 and channels-last as our own run does; the default is what the
examples do. The encoder is saved at every fifth epoch and the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ssl_vision.models import resnet
from tools.peer_recipes import RECIPES


class SimCLR(nn.Module):
    """Our encoder under the library's head."""

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
    recipe = RECIPES[arguments.library](arguments.source)
    loader = DataLoader(
        ImageFolder(arguments.data, transform=recipe.transform),
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    backbone = resnet(18, width=arguments.width, stem="cifar")
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
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="a checkout of solo-learn, which is not installable any more")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps (0: all): for timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
