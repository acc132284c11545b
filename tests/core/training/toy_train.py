"""A small training program, run by the tests as users run theirs: a convolutional net with batch norm and dropout."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from contrastive_core.app.cli import Verb, run
from contrastive_core.rng import derive, uniform
from contrastive_core.training import Run, RunOptions, make_loader


@dataclass(frozen=True)
class NetOptions:
    """The network.

    Args:
        width: Channels.
        dropout: Share of dropped features.
        ballast: Numbers in an unused buffer, which make checkpoints slow to write.
    """

    width: int = 8
    dropout: float = 0.2
    ballast: int = 0


class Net(nn.Module):
    def __init__(self, options: NetOptions) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, options.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(options.width),
            nn.ReLU(),
            nn.Conv2d(options.width, options.width, 3, stride=2, bias=False),
            nn.BatchNorm2d(options.width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(options.dropout),
            nn.Linear(options.width, 4),
        )
        self.register_buffer("ballast", torch.zeros(options.ballast))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """Item i is a function of i alone."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        ids = torch.tensor([i])
        return uniform(1, ids, 3 * 8 * 8)[0].view(3, 8, 8) + 0.1 * (i % 4), i % 4, i


def train(
    out: Path,
    *,
    steps: int = 24,
    batch_size: int = 8,
    lr: float = 0.05,
    pause: float = 0.0,
    note: str = "",
    net: NetOptions = NetOptions(),
    run: RunOptions = RunOptions(),  # noqa: B008
) -> None:
    """Train the toy.

    Args:
        out: Run folder.
        steps: Steps.
        batch_size: Samples per step over all processes.
        lr: Learning rate.
        pause: Seconds to sleep in each step.
        note: Any text.
        net: The network.
        run: The run.
    """
    config = dict(locals())
    with Run(out, config=config, command=f"{sys.executable} {__file__} train", options=run) as r:
        print(f"process {r.rank} has pid {os.getpid()}", file=sys.stderr, flush=True)
        model, optimizer = r.setup(
            network := Net(net), torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        r.track(model=model, optimizer=optimizer, schedule=schedule)
        data = Pictures()
        batches = r.batches(len(data), batch_size=batch_size // r.world_size, total_steps=steps)
        loader = make_loader(data, batches, workers=run.workers)
        for step, (x, y, ids) in zip(r.steps(steps, samples_per_step=batch_size), loader, strict=False):
            noise = uniform(derive(r.seed("noise"), step), ids, 3 * 8 * 8).view_as(x)
            loss = nn.functional.cross_entropy(model(x.to(r.device) + 0.1 * noise.to(r.device)), y.to(r.device))
            optimizer.zero_grad()
            r.fabric.backward(loss)
            optimizer.step()
            schedule.step()
            r.log(loss=loss, lr=schedule.get_last_lr()[0])
            if step % 7 == 3:
                r.record(norm=sum(p.detach().square().sum() for p in network.parameters()))
            time.sleep(pause)
        r.record(final=float(steps))
        r.save_model(network.state_dict(), {"net": {"width": net.width}})


if __name__ == "__main__":
    sys.exit(run("toy", {"train": Verb("toy_train:train", "train the toy")}, None, version="1.0"))
