"""Evaluate linear classifiers of mean frames and flow histograms on ten classes of UCF-101 with all labels.

    python -m tools.studies.ucf101_linear --data data/ucf101_10 --split SPLIT --out docs/results/ucf101_10_linear.json

This is the reference for `tools.studies.ucf101`. It uses the same training, validation and test videos, but the labels
of all training videos. Weight decay is chosen on the validation part.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_video.data import open_videos
from ssl_video.data.reader import every_frame
from ssl_video.data.splits import read_split, select
from ssl_video.data.videos import VideoSet
from ssl_video.views import displacement
from tools.results import provenance, write_result

DECAYS = (1e-3, 1e-4, 1e-5, 1e-6)
SPEEDS = (0.25, 1.0, 2.5)
"""Boundaries between the bins of the speed, in pixels per frame."""
DIRECTIONS, CELLS = 8, 4


class Features(NamedTuple):
    """Features and labels of N videos."""

    mean_frame: Tensor
    """Mean over time at 16 x 16 pixels: ``[N, 768]``."""
    flow: Tensor
    """Square roots of the flow histogram over position, speed and direction: ``[N, 4 * 4 * 4 * 8]``."""
    labels: Tensor
    """Classes: int64 ``[N]``."""


def flow_histogram(flow: Tensor) -> Tensor:
    """Compute the histogram of displacements ``[P, 2, H, W]`` over 4 x 4 cells, 4 speeds and 8 directions, of sum 1."""
    u, v = flow[:, 0], flow[:, 1]
    direction = (torch.atan2(v, u) / (2 * torch.pi) % 1 * DIRECTIONS).long().clamp(max=DIRECTIONS - 1)
    speed = torch.bucketize((u.square() + v.square()).sqrt(), torch.tensor(SPEEDS))
    rows, columns = (torch.arange(side) * CELLS // side for side in flow.shape[-2:])
    cell = rows[:, None] * CELLS + columns
    bins = len(SPEEDS) + 1
    code = (cell * bins + speed) * DIRECTIONS + direction
    counts = torch.bincount(code.flatten(), minlength=CELLS * CELLS * bins * DIRECTIONS).float()
    return counts / counts.sum()


def features(videos: VideoSet) -> Features:
    """Compute the features of all videos, from every second pair of frames."""
    means, histograms = [], []
    for video in videos.videos:
        frames = torch.from_numpy(np.stack(list(every_frame(video.path)))).permute(0, 3, 1, 2).contiguous()
        means.append(F.adaptive_avg_pool2d(frames.float().mean(0), 16).flatten() / 255)
        pairs = len(frames) // 2
        flow = displacement(frames[: 2 * pairs : 2], frames[1 : 2 * pairs : 2])
        histograms.append(flow_histogram(flow).sqrt())
    return Features(torch.stack(means), torch.stack(histograms), videos.labels())


def predict(train: Tensor, labels: Tensor, queries: Sequence[Tensor], *, classes: int, decay: float) -> list[Tensor]:
    """Predict the classes of other videos by logistic regression on standardised features."""
    mean, spread = train.mean(0), train.std(0).clamp(min=1e-4) * train.shape[1] ** 0.5
    weight, bias = (torch.zeros(*shape, requires_grad=True) for shape in ((train.shape[1], classes), (classes,)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")
    samples = (train - mean) / spread

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(samples @ weight + bias, labels) + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return [((x - mean) / spread @ weight + bias).argmax(dim=1) for x in queries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of ucf101_10")
    parser.add_argument("--split", type=Path, required=True, help="split file of tools.studies.ucf101")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split, videos = read_split(arguments.split), open_videos(arguments.data)
    keys_of_parts = (split.train, [key for key, _ in split.validation], [key for key, _ in split.test])
    parts = [features(videos.subset(select(videos, keys, file=arguments.split))) for keys in keys_of_parts]
    rows: list[list[object]] = []
    for name, of in (
        ("mean frame", lambda part: part.mean_frame),
        ("flow histogram", lambda part: part.flow),
        ("both", lambda part: torch.cat([part.mean_frame, part.flow], dim=1)),
    ):
        train, validation, test = map(of, parts)
        scores = []
        for decay in DECAYS:
            predictions = predict(train, parts[0].labels, (validation, test), classes=len(videos.classes), decay=decay)
            scores.append(
                [100 * float((x == p.labels).float().mean()) for x, p in zip(predictions, parts[1:], strict=True)]
            )
        rows.append([name, round(max(scores)[1], 1)])
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem, **provenance(), "seeds": [0],
            "config": {"decays": DECAYS, "speeds": SPEEDS, "directions": DIRECTIONS, "cells": CELLS},
            "table": {"columns": ["features", "top-1 %, all labels"], "rows": rows},
            "notes": [
                f"Logistic regression on the {len(split.train)} training videos, tested on {len(split.test)} videos; "
                "weight decay chosen on the validation part."
            ],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
