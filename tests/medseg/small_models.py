"""Segmenters small enough for tests: random ones, and one that segments by brightness, so its mask is known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.models.model_folder import save_segmenter
from ssl_medseg.preprocessing import Preprocessing

LABELS = LabelMap(("background", "outer", "middle", "inner"), (0, 500, 600, 205))


def random_segmenter(folder: Path, p: Preprocessing, *, labels: LabelMap = LABELS, width: int = 2) -> Path:
    """Save an untrained U-Net whose batch statistics differ from their initial values."""
    torch.manual_seed(3)
    options = NetworkOptions("unet", width)
    network = build_network(options, len(labels), channels=len(p.channels))
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, len(p.channels), 64, 64))
        network.head.classify.weight *= 3
    return save_segmenter(folder, network, options=options, labels=labels, preprocessing=p)


class Thresholds(nn.Module):
    """Logits by the range, of four, in which the brightness of a pixel lies."""

    def __init__(self, *edges: float) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.tensor(edges))

    def forward(self, x: Tensor) -> Tensor:
        classes = (x > self.edges[:, None, None]).sum(dim=1)
        return 20 * nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float()
