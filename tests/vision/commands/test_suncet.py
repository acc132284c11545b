"""Pre-training with SuNCEt: which labelled images it uses, when, and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_vision.augment import SimCLRAugment
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import ImageSet, open_images
from ssl_vision.data.dataset import UnlabelledReadOptions
from ssl_vision.models import EncoderOptions
from ssl_vision.training.loading import Feed, open_labelled
from ssl_vision.training.options import (
    AugmentOptions,
    MemoryOptions,
    OptimizerOptions,
    PretrainingOptions,
    SuNCEtOptions,
)
from tests.vision.two_processes import metrics

TINY = EncoderOptions(width_multiplier=0.125)
ONE_THREAD = RunOptions(threads=1, log_every=1, device="cpu", progress=False)


class Watched(ImageSet):
    """Images that record which of them have been read."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__("watched", labels=images.labels().tolist(), classes=images.classes)
        self.images, self.seen = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        self.seen.append(index)
        return self.images.read(index)

    def path(self, index: int) -> str:
        return self.images.path(index)


def feed(tmp_path: Path, labelled: ImageSet, suncet: SuNCEtOptions) -> Feed:
    with Run(tmp_path / "run", config={}, command="test", options=ONE_THREAD) as run:
        return Feed(
            run, open_images("digits"), labelled, suncet, epochs=4, batch_size=700,
            augment=SimCLRAugment(8), read=UnlabelledReadOptions(load="files", max_bad=0.0),
        )  # fmt: skip


@pytest.mark.parametrize(("code", "labelled_steps"), [("release", 3), ("today", 8)])
def test_labelled_images_are_read_while_suncet_is_on(tmp_path: Path, code: str, labelled_steps: int) -> None:
    images = Watched(open_images("digits"))
    options = SuNCEtOptions(classes_per_batch=4, images_per_class=5, until_epoch=1.5, code=code)  # type: ignore[arg-type]
    source = feed(tmp_path, images, options)
    assert (source.total_steps, source.suncet_steps, source.labelled_steps) == (8, 3, labelled_steps)
    for step in range(8):
        batch = source.batch(step)
        assert [len(view) for view in batch.pair] == [700, 700]
        if step >= labelled_steps:
            assert (batch.labelled, len(batch.classes)) == ([], 0)
            continue
        assert batch.labelled[0].shape == (20, 3, 8, 8)
        seen = images.seen[20 * step : 20 * (step + 1)]  # the next ones are perhaps being read
        assert batch.classes.tolist() == images.labels()[seen].tolist()
        assert len(set(batch.classes.tolist())) == 4
    assert len(images.seen) == 20 * labelled_steps
    assert [source.inputs(step) for step in (0, 2, 7)] == [1420, 1420, 1420 if code == "today" else 1400]
    assert source.inputs_until(8) == sum(source.inputs(step) for step in range(8))


def test_a_run_shorter_than_suncet_is_said(tmp_path: Path) -> None:
    options = SuNCEtOptions(classes_per_batch=4, images_per_class=5, until_epoch=100)
    summary = feed(tmp_path, open_images("digits"), options).summary
    assert summary.endswith("; SuNCEt in all 4 epochs, because the run is shorter than suncet.until_epoch (100)")


def test_a_repeated_image_comes_in_another_view(tmp_path: Path) -> None:
    """A class with fewer images than requested: the positive must be another view."""
    digits = open_images("digits")
    few = torch.cat([torch.nonzero(digits.labels() == c).flatten()[:3] for c in range(10)])
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{digits.key(i)}\n" for i in few.tolist()))
    options = SuNCEtOptions(classes_per_batch=10, images_per_class=6, labels=file)
    labelled = open_labelled(options, "digits", split="train")
    assert len(labelled) == 30
    batch = feed(tmp_path, labelled, options).batch(0)
    views = batch.labelled[0].flatten(1)
    assert torch.cdist(views, views).fill_diagonal_(1.0).min() > 1e-3
    assert torch.bincount(batch.classes).tolist() == [6] * 10


def test_suncet_beside_simclr(tmp_path: Path) -> None:
    """In bfloat16, with losses in float32; runs with equal work per step have equal learning rates."""
    kinds = {"simclr": SuNCEtOptions(), "suncet": SuNCEtOptions(classes_per_batch=10, images_per_class=16)}
    runs = {}
    for name, suncet in kinds.items():
        pretrain(
            "digits",
            tmp_path / name,
            training=PretrainingOptions(epochs=1, batch_size=256 - suncet.batch_size // 2, image_size=8),
            encoder=TINY,
            optimizer=OptimizerOptions(warmup_epochs=0.5),
            suncet=suncet,
            run=RunOptions(threads=1, log_every=1, device="cpu", progress=False, precision="bf16-mixed"),
        )
        runs[name] = metrics(tmp_path / name)
    with_labels, without = runs["suncet"], runs["simclr"]
    assert (len(with_labels), len(without)) == (1433 // 176, 1433 // 256)
    assert "suncet" not in without[0]
    assert [record["inputs"] for record in without[:2]] == [512, 1024] == [r["inputs"] for r in with_labels[:2]]
    assert max(r["lr"] for r in without) == max(r["lr"] for r in with_labels) == 1.0
    for record in with_labels:
        assert record["loss"] == pytest.approx(record["nt_xent"] + record["suncet"], rel=1e-6)
        assert 0 < record["suncet"] < 4


def test_suncet_alone_learns_the_classes(tmp_path: Path) -> None:
    pretrain(
        "digits", tmp_path / "run", training=PretrainingOptions(epochs=2, batch_size=0, image_size=8), encoder=TINY,
        augment=AugmentOptions(jitter=0.0, gray=0.0, flip=False), temperature=0.2,
        suncet=SuNCEtOptions(classes_per_batch=5, images_per_class=8, weight=2.0, label_smoothing=0.1), run=ONE_THREAD,
    )  # fmt: skip
    records = metrics(tmp_path / "run")
    assert len(records) == 2 * (1433 // 40)
    assert records[-1]["inputs"] == 40 * len(records)
    assert sum(r["suncet"] for r in records[-5:]) < sum(r["suncet"] for r in records[:5]) - 0.5
    for record in records:
        assert "nt_xent" not in record
        assert "contrastive_accuracy" not in record
        assert record["loss"] == pytest.approx(2 * record["suncet"], rel=1e-6)


def test_labels_that_are_not_listed_change_nothing(tmp_path: Path) -> None:
    """Not even a class that comes first in the alphabet and shifts the numbers of all others."""
    digits = open_images("digits")
    for i in range(64):
        Image.fromarray(digits.read(i).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    listed = set(range(0, 64, 2))
    (tmp_path / "labels.txt").write_text("".join(f"{i}.png\n" for i in sorted(listed)))
    outcomes = []
    for name, other in (("true", None), ("all alike", "5"), ("a new class", "00"), ("none but five", "")):
        labels = [str(digits.label(i)) if i in listed or other is None else other for i in range(64)]
        rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
        (tmp_path / "data.csv").write_text(f"path,label\n{rows}")
        if other == "":
            with pytest.raises(UserError, match="32 rows without a label"):
                open_labelled(SuNCEtOptions(labels=tmp_path / "labels.txt"), str(tmp_path / "data.csv"), split="train")
            continue
        pretrain(
            str(tmp_path / "data.csv"),
            tmp_path / name,
            training=PretrainingOptions(epochs=2, batch_size=16, image_size=8),
            encoder=TINY,
            suncet=SuNCEtOptions(classes_per_batch=3, images_per_class=2, labels=tmp_path / "labels.txt"),
            run=ONE_THREAD,
        )
        outcomes.append(
            [(tmp_path / name / file).read_bytes() for file in ("metrics.jsonl", "model/model.safetensors")]
        )
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_labelled_images_may_lie_elsewhere(tmp_path: Path) -> None:
    suncet = SuNCEtOptions(classes_per_batch=4, images_per_class=4, data="digits")

    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "photos" / f"{i}.png")
    pretrain(
        str(tmp_path / "photos"),
        tmp_path / "run",
        training=PretrainingOptions(epochs=1, batch_size=20, image_size=8),
        encoder=TINY,
        suncet=suncet,
        run=ONE_THREAD,
    )
    assert [record["inputs"] for record in metrics(tmp_path / "run")] == [56, 112]
    with pytest.raises(UserError, match="found images without"):
        open_labelled(SuNCEtOptions(classes_per_batch=2), str(tmp_path / "photos"), split="train")


def test_labels_of_a_single_class_are_refused(tmp_path: Path) -> None:
    images, labels = open_images("digits"), tmp_path / "threes.txt"
    labels.write_text("".join(f"{images.key(i)}\n" for i in range(100) if images.classes[images.labels()[i]] == "3"))
    with pytest.raises(UserError, match=r"threes.txt: found labelled images of one class only \(3\)"):
        open_labelled(SuNCEtOptions(labels=labels), "digits", split="train")


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({"classes_per_batch": 1}, "classes_per_batch is 1"),
        ({"images_per_class": 1}, "images_per_class 1"),
        ({"weight": -1.0}, "weight is -1.0; expected at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"until_epoch": -1.0}, "until_epoch is -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ):
        with pytest.raises(UserError, match=message):
            SuNCEtOptions(**settings)  # type: ignore[arg-type]
    for settings, batch_size, message in (
        ({"classes_per_batch": 11}, 16, "suncet.classes_per_batch .* of 10 classes, but batches of 11"),
        ({"classes_per_batch": 10, "images_per_class": 200}, 0, "found 1433 images, but a step takes 2000"),
        ({"classes_per_batch": 10, "until_epoch": 1.0}, 0, "0 with suncet in all epochs"),
        ({}, 0, "batch_size is 0"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(
                "digits",
                tmp_path / "run",
                training=PretrainingOptions(epochs=2, batch_size=batch_size),
                suncet=SuNCEtOptions(**settings),  # type: ignore[arg-type]
                run=ONE_THREAD,
            )
    with pytest.raises(UserError, match="is 5 with SuNCEt alone"):
        pretrain(
            "digits",
            tmp_path / "run",
            training=PretrainingOptions(epochs=2, batch_size=0),
            suncet=SuNCEtOptions(10),
            memory=MemoryOptions(5),
        )
    with pytest.raises(UserError, match="of at least 0 and less than 1"):
        MemoryOptions(5, decay=1.0)
