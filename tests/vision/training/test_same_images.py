"""A run resumes only with the images and classes that it was started with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_vision import (
    DistillationOptions,
    EncoderOptions,
    FinetuningOptions,
    OptimizerOptions,
    PretrainingOptions,
    distill,
    finetune,
    pretrain,
)

QUIET = RunOptions(device="cpu", threads=1, progress=False)
TINY = EncoderOptions(width_multiplier=0.0625)
PLAIN = OptimizerOptions(name="sgd", lr=0.01, warmup_epochs=0.0)


def rename_class(photos: Path) -> None:
    (photos / "train/cat").rename(photos / "train/elk")


def add_image(photos: Path) -> None:
    (photos / "train/cat/9.png").write_bytes((photos / "train/cat/0.png").read_bytes())


def move_image(photos: Path) -> None:
    (photos / "train/cat/0.png").rename(photos / "train/dog/9.png")


@pytest.mark.parametrize(
    ("command", "change"),
    [("pretrain", add_image), ("finetune", rename_class), ("finetune", move_image), ("distill", rename_class)],
)
def test_a_run_does_not_go_on_with_other_images(
    command: str,
    change: Callable[[Path], None],
    write: Callable[..., Path],
    noise: Callable[[int], Image.Image],
    tmp_path: Path,
) -> None:
    photos = write({f"photos/train/{c}/{n}.png": noise(n) for c in ("cat", "dog") for n in range(4)}) / "photos"
    teacher, out = tmp_path / "teacher", tmp_path / "run"

    def fine(out: Path, run: RunOptions) -> None:
        training = FinetuningOptions(epochs=1, batch_size=4, image_size=8)
        finetune("none", str(photos), out, training=training, encoder=TINY, optimizer=PLAIN, run=run)

    def start(run: RunOptions) -> None:
        if command == "pretrain":
            pretraining = PretrainingOptions(epochs=1, batch_size=4, image_size=8)
            pretrain(str(photos), out, training=pretraining, encoder=TINY, optimizer=PLAIN, run=run)
        elif command == "finetune":
            fine(out, run)
        else:
            training = DistillationOptions(epochs=1, batch_size=4)
            distill(str(teacher), str(photos), out, training=training, encoder=TINY, optimizer=PLAIN, run=run)

    if command == "distill":
        fine(teacher, QUIET)
    start(QUIET)
    again = replace(QUIET, resume=True)
    start(again)
    change(photos)
    with pytest.raises(UserError, match="the run was started with other images, labels or classes"):
        start(again)
