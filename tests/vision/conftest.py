"""Fixtures of the vision tests: small real image files."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive_core.training import Run, RunOptions
from ssl_vision.data import in_memory, open_images
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import Architecture, save_classifier


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """`noise(3)` is an RGB image of random pixels that depend only on the number."""

    def draw(number: int, *, size: tuple[int, int] = (12, 10)) -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return draw


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, Image.Image | bytes | str]], Path]:
    """`write({"train/cat/1.png": image, "a.txt": "text", "cat/2.jpg": b"bytes"})` gives the folder they lie in.

    Images are written in the format that their name says.
    """

    def into(files: Mapping[str, Image.Image | bytes | str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Image.Image):
                content.save(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return into


@pytest.fixture(scope="session")
def cifar_files(shared_data: Path) -> dict[str, bytes]:
    """The first 40 files of CIFAR-10: path in the archive -> bytes of a JPEG."""
    path = shared_data / "cifar10.tar.xz"
    if not path.is_file():
        pytest.skip(f"CIFAR-10 not found: {path}")
    files: dict[str, bytes] = {}
    with tarfile.open(path, mode="r|xz") as archive:
        for member in archive:
            if member.isfile():
                files[member.name] = archive.extractfile(member).read()
            if len(files) == 40:
                break
    return files


@pytest.fixture(scope="session")
def digit_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small digit classifier that is right about nine times in ten."""
    architecture = Architecture(EncoderOptions(width_multiplier=0.125), image_size=8)
    images = open_images("digits")
    pictures, labels = in_memory(images).float() / 255, images.labels()
    out = tmp_path_factory.mktemp("classifier") / "run"
    with Run(out, config={}, command="test", options=RunOptions(device="cpu", threads=1, progress=False)) as run:
        torch.manual_seed(0)
        model = architecture.build(10)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(40):
            batch = torch.arange(step * 128, (step + 1) * 128) % len(pictures)
            loss = torch.nn.functional.cross_entropy(model(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save_classifier(run, model, architecture=architecture, classes=images.classes, epoch=3)
    return out
