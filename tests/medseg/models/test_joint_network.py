"""Inputs of batch norm in joint training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_medseg.models import JointNetwork, NetworkOptions, SegmentationNetwork, build_network


def parts(norm: Any) -> tuple[SegmentationNetwork, JointNetwork, Tensor]:
    torch.manual_seed(0)
    network = build_network(NetworkOptions("unet", 2), 3)
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    images[4:] = 3 * images[4:] + 1
    return network, JointNetwork(network, embedding=4, norm=norm), images


def averages(network: SegmentationNetwork, part: str) -> Tensor:
    return torch.cat(
        [b.float().flatten() for name, b in network.named_buffers() if name.startswith(part) and "running" in name]
    )


@pytest.mark.parametrize("norm", ["joint", "trunk", "apart"])
def test_segmented_images_and_running_averages(norm: Any) -> None:
    network, joint, images = parts(norm)
    logits, embedding = joint(images, 4)
    assert embedding is not None
    assert (logits.shape, embedding.shape) == ((4, 3, 32, 32), (2, 4, 32, 32))
    reference, _, _ = parts(norm)
    features = reference.features(images if norm != "apart" else images[:4])
    expected = reference.segment(features if norm == "joint" else features[:4])[:4]
    torch.testing.assert_close(logits, expected)
    for part in ("trunk", "head"):
        torch.testing.assert_close(averages(network, part), averages(reference, part))
    embedding.square().sum().backward()
    assert all(p.grad is not None for p in network.trunk.parameters())


def test_apart_the_contrastive_images_have_statistics_of_their_own() -> None:
    network, joint, images = parts("apart")
    _, embedding = joint(images, 4)
    momenta = {part.momentum for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)}
    assert momenta == {0.01}, "put back"
    other, alone, _ = parts("apart")
    torch.testing.assert_close(embedding, alone.contrast(other.features(images[4:])))  # type: ignore[misc]
