"""Train our encoder with lightly's own transform, head, loss, optimiser and loop: the peer of `results/cifar10`.

    python -m tools.peer_lightly --data cifar10/train --out runs/peer --epochs 20

The recipe is the one of lightly's CIFAR-10 benchmark: SGD 0.06 per 128 images, momentum 0.9, weight decay 5e-4, cosine,
temperature 0.5, jitter strength 0.5, no blur. `--precision bf16` runs the network in bfloat16 and channels-last as our
own run does; the default is what lightly's examples do. The encoder is saved at every fifth epoch.
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


class SimCLR(nn.Module):
    """Backbone and head, as in lightly's examples."""

    def __init__(self, width: float) -> None:
        super().__init__()
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone = resnet(18, width=width, stem="cifar")
        dim = self.backbone.feature_dim
        self.head = SimCLRProjectionHead(dim, dim, 128)

    def forward(self, images: Tensor) -> Tensor:
        projection: Tensor = self.head(self.backbone(images))
        return projection


def main() -> None:
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps (0: all): for timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    loader = DataLoader(
        ImageFolder(arguments.data, transform=transform),
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    model = SimCLR(arguments.width)
    bf16 = arguments.precision == "bf16"
    if bf16:
        model = model.to(memory_format=torch.channels_last)
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.06 * arguments.batch_size / 128, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)
    steps, seconds, losses, durations = 0, 0.0, [], []
    for epoch in range(arguments.epochs + 1):
        if epoch % 5 == 0 or epoch == arguments.epochs:
            tensors = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
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
            loss = criterion(z_first.float(), z_second.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            steps += 1
            durations.append(time.perf_counter() - mark)
            mark = time.perf_counter()
            if steps == arguments.steps:
                break
        seconds += time.perf_counter() - start
        schedule.step()
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


if __name__ == "__main__":
    main()
