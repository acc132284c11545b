"""Distillation: the papers' numbers, a separate loop, labels never used, resumption, several processes."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.optim import scaled_lr
from contrastive_core.rng import derive
from contrastive_core.training import Batches, RunOptions
from ssl_vision.cli import main
from ssl_vision.commands.distill import distill
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import Subset, open_images
from ssl_vision.data.dataset import UnlabelledReadOptions
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_classifier, open_start
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.loading import Crops
from ssl_vision.training.options import (
    DistillationOptions,
    FinetuningOptions,
    HeadOptions,
    OptimizerOptions,
    PretrainingOptions,
    ValidationOptions,
)
from tests.vision.killed_runs import outcome
from tests.vision.two_processes import metrics, run_alone_and_together

TINY, WIDER = EncoderOptions(width_multiplier=0.125), EncoderOptions(width_multiplier=0.25)
CPU = torch.device("cpu")
QUIET = RunOptions(threads=1, log_every=1, device="cpu", progress=False)
SGD = OptimizerOptions(name="sgd", lr=0.2, warmup_epochs=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_splits("digits", folder, draw=LabelDrawOptions(fractions=(0.2,), draws=1, validation_fraction=0.1))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, labels: Path) -> Path:
    """Pre-trained without labels, and fine-tuned from the first layer of its head with a fifth of them."""
    folder = tmp_path_factory.mktemp("teacher")
    pretrain(
        "digits",
        folder / "pre",
        training=PretrainingOptions(epochs=2, batch_size=128, image_size=8),
        temperature=0.2,
        encoder=WIDER,
        head=HeadOptions(layers=3),
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=0),
        run=QUIET,
    )
    finetune(
        str(folder / "pre"),
        "digits",
        folder / "run",
        labels=labels / "20percent-draw0.json",
        from_layer=1,
        training=FinetuningOptions(epochs=12, batch_size=64),
        optimizer=dataclasses.replace(SGD, lr=0.4),
        run=QUIET,
    )
    return folder / "run"


@pytest.mark.parametrize(
    ("recipe", "temperature", "student"),
    [("distill-simclrv2", 1.0, "none"), ("self-distill-simclrv2", 0.1, "teacher")],
)
def test_recipes_are_the_papers(recipe: str, temperature: float, student: str) -> None:
    content = yaml.safe_load((importlib.resources.files("ssl_vision.configs") / f"{recipe}.yaml").read_text())
    options = OptimizerOptions(**content["optimizer"])
    assert (content["temperature"], content["init"], content["training"]["epochs"]) == (temperature, student, 400)
    assert content["alpha"] == 1
    # The released notebook's factor where the gradient would else grow with 1 / temperature and diverge.
    assert content["scale_by_temperature"] == (temperature < 1)
    # As pre-training, section 3.5: 6.4 at 4096, warm-up over 5 % of the epochs, weight decay 1e-4.
    assert scaled_lr(options.lr, content["training"]["batch_size"], rule=options.scaling) == pytest.approx(6.4)
    assert (options.name, options.weight_decay, options.warmup_epochs) == ("lars", 1e-4, 0.05 * 400)
    assert main(["distill", "runs/a", "photos", "runs/b", "--config", recipe, "--print_config"]) == 0


def test_a_student_learns_what_its_teacher_says(teacher: Path, labels: Path, tmp_path: Path) -> None:
    """The whole chain: make-splits, pretrain, finetune, distill, evaluate."""
    run = tmp_path / "run"
    assert (
        distill(
            str(teacher),
            "digits",
            run,
            encoder=TINY,
            validation=ValidationOptions(validate_on=str(labels / "validation.json")),
            training=DistillationOptions(epochs=8, batch_size=64),
            optimizer=dataclasses.replace(SGD, lr=0.4),
            run=QUIET,
        )
        == run / "model"
    )
    records = metrics(run)
    assert len(records) == 8 * (1433 - 143) // 64
    assert records[0]["loss"] == pytest.approx(math.log(10))
    assert sum(record["agreement"] for record in records[-10:]) / 10 > 0.6
    assert records[-1]["validation_accuracy"] > 0.35  # chance is 0.1; rounding on other processors changes it by 0.1
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["encoder"]["width_multiplier"] == 0.125
    assert config["training"]["image_size"] == 8
    student = load_classifier(str(run), device="cpu")
    assert student.classes == load_classifier(str(teacher), device="cpu").classes
    assert student.model.fc.in_features == 64
    assert evaluate(str(run), "digits").score.top1 > 50


@pytest.mark.parametrize("scale_by_temperature", [False, True])
def test_the_loop_is_what_it_says(teacher: Path, tmp_path: Path, scale_by_temperature: bool) -> None:
    """Five steps of mixed distillation beside a loop in plain torch, on the same images.

    The steps are small: at a large rate, rounding, which depends on the number of threads, grows tenfold per step.
    """
    tau, alpha = 0.5, 0.75
    listed = tmp_path / "labelled.txt"
    images = open_images("digits")
    listed.write_text("".join(f"{images.key(i)}\n" for i in range(0, 60, 3)))
    distill(
        str(teacher),
        "digits",
        tmp_path / "run",
        init="teacher",
        temperature=tau,
        alpha=alpha,
        labels=listed,
        scale_by_temperature=scale_by_temperature,
        labelled_batch_size=20,
        training=DistillationOptions(epochs=1, batch_size=280),
        optimizer=dataclasses.replace(SGD, lr=0.02),
        run=dataclasses.replace(QUIET, seed=4),
    )
    master = load_classifier(str(teacher), device="cpu").model
    torch.manual_seed(derive(4, "weights"))
    student = open_start("none", encoder=WIDER, from_layer=0, image_size=8).build(10)
    student.to(memory_format=torch.channels_last)
    peak = 0.02 * 280 / 256
    optimizer = torch.optim.SGD(student.parameters(), lr=peak, momentum=0.9, nesterov=True)
    batches = Batches(1433, batch_size=280, seed=derive(4, "order"), total_steps=5)
    order = Batches(20, batch_size=20, seed=derive(4, "labelled order"), total_steps=5)
    crops = Crops(images, batches, size=8, seed=derive(4, "crops"), load="auto", workers=0)
    few = Subset(images, range(0, 60, 3))
    few_crops = Crops(few, order, size=8, seed=derive(4, "labelled crops"), load="auto", workers=0)
    for step, record in enumerate(metrics(tmp_path / "run")):
        pictures, more = crops.batch(step, CPU), few_crops.batch(step, CPU)
        with torch.no_grad():
            wanted = F.softmax(master(pictures) / tau, dim=1)
        logits = student(torch.cat([pictures, more]))
        given = F.log_softmax(logits[:280] / tau, dim=1)
        soft = -(wanted * given).sum(1).mean() * (tau**2 if scale_by_temperature else 1)
        hard = F.cross_entropy(logits[280:], few.labels()[order.at(step)])
        loss = alpha * soft + (1 - alpha) * hard
        assert record["loss"] == pytest.approx(loss.item(), rel=2e-4)
        assert record["cross_entropy"] == pytest.approx(hard.item(), rel=2e-4)
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_labels_change_nothing(teacher: Path, tmp_path: Path) -> None:
    """Without labels, with those of a manifest, and with nonsense instead, the bytes are the same."""
    images = open_images("digits")
    results = []
    for name in ("none", "true", "nonsense"):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for index in range(30):
            Image.fromarray(images.read(index).permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
            label = {"none": [], "true": [str(images.label(index))], "nonsense": [f"class {index}"]}[name]
            rows.append([f"{index:02}.png", *label])
        with (folder / "digits.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path"] if name == "none" else ["path", "label"], *rows])
        distill(
            str(teacher),
            str(folder / "digits.csv"),
            folder / "run",
            encoder=TINY,
            training=DistillationOptions(epochs=2, batch_size=10),
            run=QUIET,
        )
        results.append([(folder / "run" / name).read_bytes() for name in ("model/model.safetensors", "metrics.jsonl")])
    assert results[0] == results[1] == results[2]


def test_a_run_that_breaks_off_goes_on_in_the_same_bytes(
    teacher: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(out: Path, *, resume: bool = False) -> Path:
        options = dataclasses.replace(QUIET, checkpoint_every=3, log_every=2, resume=resume)
        return distill(
            str(teacher),
            "digits",
            out,
            encoder=TINY,
            alpha=0.5,
            labels=labels / "20percent-draw0.json",
            training=DistillationOptions(epochs=1, batch_size=128),
            labelled_batch_size=32,
            run=options,
        )

    start(tmp_path / "untouched")
    whole = Crops.batches
    monkeypatch.setattr(Crops, "batches", lambda *args: whole(*args) if args[1] != 7 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(tmp_path / "run")
    monkeypatch.setattr(Crops, "batches", whole)
    start(tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "untouched")


def test_a_student_may_be_pretrained(teacher: Path, tmp_path: Path) -> None:
    student = teacher.parent / "pre"
    distill(
        str(teacher),
        "digits",
        tmp_path / "run",
        init=str(student),
        from_layer=2,
        training=DistillationOptions(epochs=1),
        run=QUIET,
    )
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["metadata"]
    assert (card["from_layer"], card["encoder"]["width_multiplier"], card["labelled"]) == (2, 0.25, None)


@pytest.mark.parametrize("load", ["memory", "files"])
def test_a_teacher_sees_the_crops_at_its_own_size(
    teacher: Path, tmp_path: Path, load: Literal["memory", "files"], write, noise
) -> None:
    """Four steps of a student at 16 px and a teacher at 8 px beside a loop in plain torch."""
    photos = write({f"photos/{i}.png": noise(i, size=(24, 20)) for i in range(12)}) / "photos"
    run, settings = tmp_path / "run", dataclasses.replace(SGD, lr=0.5)
    distill(
        str(teacher),
        str(photos),
        run,
        encoder=TINY,
        training=DistillationOptions(image_size=16, epochs=2, batch_size=6),
        read=UnlabelledReadOptions(load=load),
        optimizer=settings,
        run=dataclasses.replace(QUIET, seed=4),
    )
    assert load_classifier(str(run), device="cpu").image_size == 16
    master = load_classifier(str(teacher), device="cpu").model
    batches = Batches(12, batch_size=6, seed=derive(4, "order"), total_steps=4)
    small, large = (
        Crops(open_images(photos), batches, size=size, seed=derive(4, "crops"), load="auto", workers=0)
        for size in (8, 16)
    )
    torch.manual_seed(derive(4, "weights"))
    student = open_start("none", encoder=TINY, from_layer=0, image_size=16).build(10)
    student.to(memory_format=torch.channels_last)
    peak = settings.lr * 6 / 256
    optimizer = torch.optim.SGD(student.parameters(), lr=peak, momentum=0.9, nesterov=True)
    for step, record in enumerate(metrics(run)):
        with torch.no_grad():
            wanted = F.softmax(master(small.batch(step, CPU)), dim=1)
        loss = -(wanted * F.log_softmax(student(large.batch(step, CPU)), dim=1)).sum(1).mean()
        assert record["loss"] == pytest.approx(loss.item(), rel=2e-4)
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert record["loss"] != pytest.approx(math.log(10), rel=1e-3)


def test_a_pretrained_student_keeps_the_size_of_its_images(teacher: Path, tmp_path: Path) -> None:
    pretrain(
        "digits",
        tmp_path / "pre",
        training=PretrainingOptions(epochs=1, batch_size=512, image_size=12),
        encoder=TINY,
        run=QUIET,
    )
    distill(
        str(teacher),
        "digits",
        tmp_path / "run",
        init=str(tmp_path / "pre"),
        training=DistillationOptions(epochs=1, batch_size=512),
        run=QUIET,
    )
    assert load_classifier(str(tmp_path / "run"), device="cpu").image_size == 12


@pytest.mark.slow
def test_two_processes_see_what_one_sees(teacher: Path, labels: Path, tmp_path: Path) -> None:
    arguments = [
        *(
            "distill",
            str(teacher),
            "digits",
            "--encoder.width_multiplier",
            "0.125",
            "--epochs",
            "1",
            "--batch_size",
            "256",
        ),
        *("--alpha", "0.5", "--labels", str(labels / "20percent-draw0.json"), "--labelled_batch_size", "64"),
        *("--optimizer.warmup_epochs", "0.2", "--log_every", "1", "--device", "cpu", "--threads", "1", "--no-progress"),
    ]
    alone, together = run_alone_and_together(arguments, tmp_path)
    assert len(alone) == len(together) == 5
    # The first update runs at learning rate 0; the third loss has seen the first gradient, of all images together.
    for step, tolerance in ((0, 1e-6), (1, 1e-6), (2, 1e-4)):
        assert together[step]["loss"] == pytest.approx(alone[step]["loss"], rel=tolerance)
    assert alone[2]["loss"] != pytest.approx(alone[1]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, "from 0 to 1; got 1.5"),
        ({"labels": Path("few.json")}, "at alpha 1 none is used"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"from_layer": 1}, "without a pre-trained model there is no head"),
        ({"init": "no-such-run"}, "not a folder"),
        ({"teacher": "no-such-run"}, "not a folder"),
        (
            {"training": DistillationOptions()},
            "distill needs a length: expected --epochs, or --config with a recipe\n  --config distill-simclrv2",
        ),
        ({"training": DistillationOptions(-1)}, "epochs is -1"),
        ({"init": "teacher", "encoder": TINY}, "has the architecture of the teacher"),
    ],
)
def test_bad_arguments_are_refused(teacher: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "data": "digits",
        "training": DistillationOptions(1),
        **arguments,
    }
    with pytest.raises(UserError, match=message):
        distill(out=tmp_path / "run", run=QUIET, **settings)


def test_labels_of_a_single_class_are_refused(teacher: Path, tmp_path: Path) -> None:
    images, labels = open_images("digits"), tmp_path / "threes.txt"
    labels.write_text("".join(f"{images.key(i)}\n" for i in range(100) if images.classes[images.labels()[i]] == "3"))
    with pytest.raises(UserError, match=r"threes.txt: found labelled images of one class only \(3\)"):
        distill(
            str(teacher), "digits", tmp_path / "run", alpha=0.5, labels=labels,
            training=DistillationOptions(epochs=1), run=QUIET,
        )  # fmt: skip


def test_labels_of_other_classes_are_refused(teacher: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    manifest = tmp_path / "cats.csv"
    manifest.write_text("path,label\na.png,cat\na.png,dog\n")
    with pytest.raises(
        UserError,
        match=r"cats.csv: its classes differ from those of .*: cat, dog only here; 0, 1, 2, 3, 4 and 5 more only there",
    ):
        distill(
            str(teacher), str(manifest), tmp_path / "run", alpha=0.5, training=DistillationOptions(epochs=1), run=QUIET
        )
    with pytest.raises(UserError, match="expected 'ssl-vision classifier 1'; fine-tune it first"):
        distill(
            str(teacher.parent / "pre"), "digits", tmp_path / "run", training=DistillationOptions(epochs=1), run=QUIET
        )
