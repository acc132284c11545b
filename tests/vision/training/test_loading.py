"""Views are a function of seed, step, image and view: not of file locations, workers, or restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.training import Batches
from ssl_vision.augment import SimCLRAugment
from ssl_vision.data import open_images
from ssl_vision.training.loading import LoadedViews, MemoryViews, Views, open_views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02d}.png")
    return folder


def views(photos: Path, load: Literal["memory", "files"], workers: int) -> MemoryViews | LoadedViews:
    images = open_images(str(photos))
    batches = Batches(len(images), batch_size=4, seed=1, total_steps=9)
    augment = SimCLRAugment(16, strength=1.0, blur=True)
    return open_views(images, Views(batches, seed=2), augment, load=load, workers=workers)


def test_memory_and_files_give_the_same_views(photos: Path) -> None:
    memory, files, workers = (views(photos, *how) for how in (("memory", 0), ("files", 0), ("files", 2)))
    assert isinstance(memory, MemoryViews)
    assert isinstance(files, LoadedViews)
    for step in (0, 1, 2, 3, 4):
        expected = memory.batch(step, CPU)
        for source in (files, workers):
            for ours, theirs in zip(source.batch(step, CPU), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_restart_gives_the_views_of_that_step(photos: Path) -> None:
    unbroken, restarted = views(photos, "files", 0), views(photos, "files", 0)
    wanted: list[Tensor] = []
    for step in range(6):
        wanted = unbroken.batch(step, CPU)
    for ours, theirs in zip(restarted.batch(5, CPU), wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_views_differ_between_views_epochs_and_images(photos: Path) -> None:
    source = views(photos, "memory", 0)
    first, second = source.batch(0, CPU)
    assert not torch.equal(first, second)
    seen = {}
    for step in range(6):
        ids = source.plan.at(step).images.tolist()
        for image, view in zip(ids, source.batch(step, CPU)[0], strict=True):
            assert not any(torch.equal(view, other) for other in seen.get(image, []))
            seen.setdefault(image, []).append(view)
    assert sorted(seen) == list(range(12))
    assert all(len(found) == 2 for found in seen.values())
