"""A pre-training step reads nothing from the device, whose tensors have no values here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_core import nt_xent, suncet, synchronization
from contrastive_core.similarity import use_backend
from contrastive_core.training import Batches, ClassBatches
from ssl_vision.augment import CropFlip, SimCLRAugment
from ssl_vision.data.dataset import ArrayImages
from ssl_vision.methods import SimCLR
from ssl_vision.methods.simclr import MomentumMemory
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.training.loading import Labelled, LoadedViews, MemoryViews, Views
from tests.host_waits import DEVICE, Waits

AUGMENTATIONS = {
    "simclr": SimCLRAugment(24),
    "torchvision": SimCLRAugment(24, ops="torchvision"),
    "additive": SimCLRAugment(24, brightness="additive", strength=0.5),
    "crop and flip": CropFlip(24),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_of_images_on_the_device(name: str) -> None:
    batches = Batches(20, batch_size=8, seed=0, total_steps=10)
    images = torch.zeros(20, 3, 32, 40, dtype=torch.uint8, device=DEVICE)
    views = MemoryViews(images, Views(batches, seed=1), AUGMENTATIONS[name])
    views._device = DEVICE  # they are there already
    with Waits(on_host=False) as waits:
        for step in range(3):
            a, b = views.batch(step, DEVICE)
            assert (a.shape, b.device) == ((8, 3, 24, 24), DEVICE)
    assert not waits.found


def test_views_of_images_from_files() -> None:
    batches = Batches(6, batch_size=4, seed=0, total_steps=3)
    images = ArrayImages("six", torch.zeros(6, 3, 32, 40, dtype=torch.uint8), labels=[0] * 6, classes=["a"])
    views = LoadedViews(images, Views(batches, seed=1), AUGMENTATIONS["simclr"], workers=0)
    with Waits(on_host=False) as waits:
        a, _ = views.batch(0, DEVICE)
    assert a.device == DEVICE
    assert not waits.found


def test_a_step_with_suncet_and_a_memory() -> None:
    labels = torch.arange(20) % 5
    batches = ClassBatches(labels, classes_per_batch=3, samples_per_class=4, seed=0)
    plan = Labelled(batches, labels, seed=1, total_steps=5)
    images = torch.zeros(20, 3, 24, 24, dtype=torch.uint8, device=DEVICE)
    views = MemoryViews(images, plan, AUGMENTATIONS["simclr"])
    views._device = DEVICE
    options = EncoderOptions(name="resnet18", stem="cifar", width_multiplier=0.125)
    network = SimCLR(build_encoder(options, image_size=24), projection_dim=16, layers=2).to(DEVICE)
    memory = MomentumMemory(network, size=64)
    with use_backend("torch"), Waits(on_host=False) as waits:
        for step in range(2):
            batch, classes = views.batch(step, DEVICE), plan.labels_at(step).to(DEVICE, non_blocking=True)
            pair = [torch.zeros(6, 3, 24, 24, device=DEVICE) for _ in range(2)]
            z = network(*pair, *batch)
            loss = nt_xent(z[0], z[1], memory.negatives, temperature=0.5)
            (loss + suncet(z[2], classes)).backward()
            memory.update(network, pair[1])
    assert not waits.found


@pytest.mark.parametrize("ops", ["simclr", "torchvision"])
def test_more_taps_than_needed_change_no_bit(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = SimCLRAugment(16, ops=ops)
    images = (255 * torch.rand(6, 3, 50, 60, generator=torch.Generator().manual_seed(0))).to(torch.uint8)

    def views() -> Tensor:
        return augment(images, seed=1, ids=torch.arange(6))

    expected = views()
    monkeypatch.setattr(synchronization, "_FREE", set())
    assert torch.equal(views(), expected)
