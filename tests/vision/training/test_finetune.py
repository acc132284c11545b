"""Fine-tuning: the papers' numbers, all weights trained, unlisted labels never used, several processes."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.optim import scaled_lr
from contrastive_core.training import Batches, InferenceOptions, RunOptions
from ssl_vision.cli import main
from ssl_vision.commands.distill import distill
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.few_labels import few_labels
from ssl_vision.commands.knn import knn
from ssl_vision.commands.linear import linear
from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.transfer import transfer
from ssl_vision.data import open_images
from ssl_vision.evaluation.features import evaluation_batches
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.labels.files import read_labelled
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_classifier, load_pretrained, open_start
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.loading import Crops
from ssl_vision.training.options import (
    DistillationOptions,
    FinetuningOptions,
    HeadOptions,
    OptimizerOptions,
    PretrainingOptions,
    ValidationOptions,
    build_optimizer,
)
from ssl_vision.training.setup import plan_budget
from tests.vision.killed_runs import outcome, run_killed
from tests.vision.two_processes import losses_alone_and_together, metrics, over_processes, run_alone_and_together

CPU = InferenceOptions(device="cpu")

TINY = EncoderOptions(width_multiplier=0.125)
QUIET = RunOptions(threads=1, log_every=1, device="cpu", progress=False)
FAST = OptimizerOptions(name="sgd", lr=0.2, warmup_epochs=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pre") / "run"
    pretrain(
        "digits",
        run,
        training=PretrainingOptions(epochs=2, batch_size=128, image_size=8),
        temperature=0.2,
        encoder=TINY,
        head=HeadOptions(layers=3, out_features=32),
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=0),
        run=QUIET,
    )
    return run


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_splits("digits", folder, draw=LabelDrawOptions(fractions=(0.1,), draws=1, validation_fraction=0.1))
    return folder


@pytest.mark.parametrize(
    ("recipe", "batch", "peak", "settings"),
    [
        ("finetune-simclr", 4096, 0.8, ("sgd", 0, 0)),
        ("finetune-simclrv2", 1024, 0.16, ("lars", 0, 1)),
        ("finetune-suncet", 4096, 0.8, ("sgd", 0, 0)),
        ("supervised", 256, 0.1, ("sgd", 1e-4, 0)),
    ],
)
def test_recipes_are_the_papers(recipe: str, batch: int, peak: float, settings: tuple[str, float, int]) -> None:
    content = yaml.safe_load((importlib.resources.files("ssl_vision.configs") / f"{recipe}.yaml").read_text())
    options = OptimizerOptions(**content["optimizer"])
    assert content["training"]["batch_size"] == batch
    assert scaled_lr(options.lr, batch, rule=options.scaling) == pytest.approx(peak)
    assert (options.name, options.weight_decay, content["from_layer"]) == settings
    assert (options.momentum, options.warmup_epochs) == (0.9, 0)
    assert main(["finetune", "runs/a", "photos", "runs/b", "--config", recipe, "--print_config"]) == 0


def test_lars_adapts_all_weights_but_those_of_the_linear_layer() -> None:
    """Against the rule of the released code: trust ratio also at weight decay 0; the linear layer has none."""
    start = open_start("none", encoder=TINY, from_layer=0, image_size=8)
    model = start.build(10)
    optimizer = build_optimizer(model, OptimizerOptions(name="lars", weight_decay=0.0), lr=0.16, unadapted=("fc",))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.rand(parameter.shape, generator=generator)
    nn.init.ones_(model.fc.weight)
    before = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    optimizer.step()
    adapted = 0
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.double()
        step = 0.16 * gradient
        if parameter.ndim == 4:
            step *= 0.001 * before[name].norm() / gradient.norm()
            adapted += 1
        torch.testing.assert_close(parameter.detach().double(), before[name] - step, rtol=1e-6, atol=1e-7)
    assert adapted == 21  # convolutions
    decayed = build_optimizer(model, OptimizerOptions(name="lars", weight_decay=0.5), lr=0.1, unadapted=("fc",))
    by_parameter = {id(p): group for group in decayed.param_groups for p in group["params"]}
    assert len(by_parameter) == len(list(model.parameters()))
    assert by_parameter[id(model.fc.weight)]["weight_decay"] == 0.5
    assert by_parameter[id(model.fc.bias)]["weight_decay"] == 0.0


def test_everything_is_trained_from_the_pretrained_weights(pretrained: Path, labels: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = labels / "10percent-draw0.json"
    assert (
        finetune(
            str(pretrained),
            "digits",
            run,
            labels=file,
            validation=ValidationOptions(validate_on=str(labels / "validation.json"), validate_every=2),
            from_layer=1,
            training=FinetuningOptions(epochs=4, batch_size=32),
            optimizer=FAST,
            run=QUIET,
        )
        == run / "model"
    )
    records = metrics(run)
    assert len(records) == 4 * 129 // 32
    for step, record in enumerate(records):
        assert record["lr"] == pytest.approx(0.2 * 32 / 256 * 0.5 * (1 + math.cos(math.pi * step / len(records))))
    assert records[0]["loss"] == pytest.approx(math.log(10))
    assert records[-1]["epoch"] == pytest.approx(4, abs=0.25)
    card = json.loads((run / "model" / "model.json").read_text())["metadata"]
    assert card["labelled"] == {"images": 129, "sha256": json.loads(file.read_text())["sha256"]}
    scored = [record for record in records if "validation_accuracy" in record]
    assert len(scored) == 2
    before = open_start(str(pretrained), encoder=None, from_layer=1, image_size=None).build(10)
    found = load_pretrained(str(pretrained))
    assert found.head is not None
    torch.testing.assert_close(before.encoder.state_dict(), found.encoder.state_dict())
    torch.testing.assert_close(before.neck.state_dict(), found.head.first_layers(1).state_dict())
    after = load_classifier(str(run), device="cpu")
    assert after.classes == [str(digit) for digit in range(10)]
    changed = dict(after.model.named_parameters())
    assert [name for name, parameter in before.named_parameters() if torch.equal(parameter, changed[name])] == []
    images = open_images("digits")
    held_out = read_labelled(labels / "validation.json", images)
    with torch.no_grad():
        logits = torch.cat([after.model(batch) for batch in evaluation_batches(images, size=8, batch_size=512)])
    right = (logits.argmax(1) == images.labels())[held_out].double().mean()
    assert scored[-1]["validation_accuracy"] == pytest.approx(right.item())


@pytest.mark.parametrize("layer", [0, 1])
def test_the_linear_layer_can_start_as_the_logistic_regression(
    pretrained: Path, labels: Path, tmp_path: Path, layer: int
) -> None:
    file = labels / "10percent-draw0.json"
    still = OptimizerOptions(name="sgd", lr=1e-30, weight_decay=0.0, warmup_epochs=0.0)
    run = finetune(
        str(pretrained),
        "digits",
        tmp_path,
        labels=file,
        from_layer=layer,
        classifier_init="linear",
        training=FinetuningOptions(epochs=1),
        optimizer=still,
        run=QUIET,
    )
    images = open_images("digits")
    chosen = read_labelled(file, images)
    pictures = torch.stack([images.read(i) for i in chosen.tolist()]).float() / 255
    found = load_pretrained(str(pretrained))
    assert found.head is not None
    with torch.no_grad():
        x = found.head.eval().first_layers(layer)(found.encoder.eval()(pictures)).double()
    fc = load_classifier(str(run.parent), device="cpu").model.fc.double()
    y = F.one_hot(images.labels()[chosen], 10).double()
    error = (fc(x).softmax(dim=1) - y).detach()
    # The optimum of an l2-regularised logistic regression: the gradient of the cross-entropy is -l2 W, and 0 for b.
    gradient, weight = error.T @ x, fc.weight.detach()
    l2 = -(gradient * weight).sum() / weight.square().sum()
    assert l2 > 0
    # Where the classes are separable, the gradient itself is of the size of the solver's tolerance.
    assert (gradient + l2 * weight).norm() < max(1e-2 * gradient.norm().item(), 1e-5 * len(x))
    assert error.sum(dim=0).abs().max() < 1e-2
    assert (fc(x).argmax(dim=1) == y.argmax(dim=1)).double().mean() > 0.5


def test_training_from_scratch_learns(tmp_path: Path, labels: Path) -> None:
    finetune(
        "none",
        "digits",
        tmp_path / "run",
        validation=ValidationOptions(validate_on=str(labels / "validation.json"), validate_every=6),
        training=FinetuningOptions(epochs=6, batch_size=64, image_size=8),
        encoder=TINY,
        optimizer=OptimizerOptions(name="sgd", lr=0.4, warmup_epochs=0),
        run=QUIET,
    )
    records = metrics(tmp_path / "run")
    assert records[-1]["validation_accuracy"] > 0.5
    # The images held out are not trained on.
    assert len(records) == 6 * (1433 - 143) // 64


def write_manifest(folder: Path, *, others: str | None = None) -> Path:
    """Write forty digits as files, the first twenty labelled; `others` decides the labels of the rest."""
    images = open_images("digits")
    rows = []
    for index in range(40):
        Image.fromarray(images.read(index).permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
        label = str(images.label(index))
        rows.append([f"{index:02}.png", label if index < 20 or others is None else others])
    manifest = folder / "digits.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return manifest


def test_labels_of_other_images_change_nothing(tmp_path: Path) -> None:
    results = []
    for name, others in (("a", None), ("b", "7")):
        folder = tmp_path / name
        folder.mkdir()
        listed = folder / "labelled.txt"
        listed.write_text("".join(f"{index:02}.png\n" for index in range(20)))
        finetune(
            "none",
            str(write_manifest(folder, others=others)),
            folder / "run",
            labels=listed,
            training=FinetuningOptions(epochs=2, batch_size=10, image_size=8),
            encoder=TINY,
            run=QUIET,
        )
        files = ("model/model.safetensors", "model/model.json", "metrics.jsonl")
        results.append([(folder / "run" / name).read_bytes() for name in files])
    assert results[0] == results[1]


COMMAND = [
    *(sys.executable, "-m", "ssl_vision", "finetune"),
    *("--epochs", "4", "--batch_size", "64", "--image_size", "8", "--device", "cpu", "--threads", "1", "--seed", "3"),
    *("--log_every", "3", "--checkpoint_every", "5", "--validate_every", "1", "--encoder.width_multiplier", "0.125"),
]


def test_a_run_that_breaks_off_goes_on_in_the_same_bytes(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(out: Path, *, resume: bool = False) -> Path:
        options = dataclasses.replace(QUIET, checkpoint_every=4, log_every=3, resume=resume)
        return finetune(
            "none",
            "digits",
            out,
            labels=labels / "10percent-draw0.json",
            validation=ValidationOptions(validate_on=str(labels / "validation.json"), validate_every=1),
            training=FinetuningOptions(epochs=3, batch_size=32, image_size=8),
            encoder=TINY,
            run=options,
        )

    start(tmp_path / "untouched")
    whole = Crops.batch
    for broken in (3, 7, 10):
        monkeypatch.setattr(Crops, "batch", lambda *args, at=broken: whole(*args) if args[1] != at else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(tmp_path / "run", resume=broken > 3)
    monkeypatch.setattr(Crops, "batch", whole)
    start(tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "untouched")


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bytes(tmp_path: Path, labels: Path) -> None:
    def command(out: Path, *more: str) -> list[str]:
        validation = ["--validate-on", str(labels / "validation.json")]
        return [*COMMAND, "none", "digits", str(out), *validation, *more]

    subprocess.run(command(tmp_path / "untouched"), check=True, capture_output=True)
    run_killed(command, tmp_path / "run", seed=0)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "untouched")


def train_in_float64(rank: int, world_size: int) -> list[Tensor]:
    """Return the losses of twenty steps of `finetune` on this process's share of each batch."""
    torch.manual_seed(0)
    network = open_start("none", encoder=TINY, from_layer=0, image_size=8).build(10).double()
    model = over_processes(network)
    optimizer = build_optimizer(network, OptimizerOptions(weight_decay=1e-4), lr=0.1, unadapted=("fc",))
    images = open_images("digits")
    labels = images.labels()
    batches = Batches(
        len(images), batch_size=32 // world_size, seed=1, rank=rank, world_size=world_size, total_steps=20
    )
    crops = Crops(images, batches, size=8, seed=2, load="auto", workers=0)
    losses = []
    for step in range(20):
        logits = model(crops.batch(step, torch.device("cpu")).double())
        loss = F.cross_entropy(logits, labels[batches.at(step)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone, together = losses_alone_and_together(train_in_float64, tmp_path)
    assert alone.std() > 0.01
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_the_command_runs_on_two_processes(tmp_path: Path, labels: Path) -> None:
    arguments = [
        *("finetune", "none", "digits", "--labels", str(labels / "10percent-draw0.json"), "--epochs", "2"),
        *("--validate-on", str(labels / "validation.json"), "--batch_size", "500", "--image_size", "8"),
        *(
            "--log_every",
            "1",
            "--encoder.width_multiplier",
            "0.125",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--no-progress",
        ),
    ]
    alone, together = run_alone_and_together(arguments, tmp_path)
    # 129 labelled images make one batch, or two of 64.
    assert [record["lr"] for record in together] == pytest.approx([0.05 * 128 / 256, 0.05 * 64 / 256])
    assert len(alone) == len(together) == 2
    assert together[1]["loss"] == pytest.approx(alone[1]["loss"], abs=0.05)
    # Both have scored all of the 143 images.
    for records in (alone, together):
        right = records[-1]["validation_accuracy"] * 143
        assert right == pytest.approx(round(right), abs=1e-4)


def test_few_images_are_shown_as_often_as_many() -> None:
    for images in (500, 5000, 50_000):
        for batch in (128, 256, 1024):
            budget = plan_budget(images, epochs=60, batch_size=batch, world_size=1)
            assert 0 <= 60 * images - budget.total_steps * budget.batch_size < budget.batch_size
            assert budget.batch_size == min(batch, images)
            ends = [step for step in range(budget.total_steps) if budget.ends_epoch(step, every=10)]
            assert len(ends) == 6
            assert ends[-1] == budget.total_steps - 1
    assert plan_budget(501, epochs=1, batch_size=1024, world_size=2).batch_size == 500


def test_a_run_of_one_step_is_not_all_warm_up(labels: Path, tmp_path: Path) -> None:
    finetune(
        "none",
        "digits",
        tmp_path / "run",
        labels=labels / "10percent-draw0.json",
        training=FinetuningOptions(epochs=1, image_size=8),
        encoder=TINY,
        optimizer=OptimizerOptions(name="sgd", lr=0.1, warmup_epochs=0.9),
        run=QUIET,
    )
    assert [record["lr"] for record in metrics(tmp_path / "run")] == pytest.approx([0.1 * 129 / 256])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"training": FinetuningOptions()},
            "finetune from scratch needs a length: expected --epochs, or --config .*\n  --config supervised ",
        ),
        ({"training": FinetuningOptions(-1)}, "epochs is -1"),
        ({"label_smoothing": 1.0}, "0 <= label_smoothing < 1"),
        ({"from_layer": 1}, "without a pre-trained model there is no head"),
        ({"training": FinetuningOptions(1, image_size=0)}, "image_size is 0"),
        ({"training": FinetuningOptions(1, batch_size=1)}, "at least two images"),
        ({"init": "no-such-run"}, "not a folder"),
        ({"validation": ValidationOptions("test")}, "cannot be used for validation"),
        ({"validation": ValidationOptions("Testing")}, "cannot be used for validation"),
        (
            {"validation": ValidationOptions("train")},
            "1433 images of split 'train' are also training images",
        ),
        ({"validation": ValidationOptions("held_out.json")}, "cannot be read"),
        ({"labels": Path("no-such-file")}, "no-such-file: cannot be read"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "init": "none",
        "data": "digits",
        "encoder": TINY,
        "training": FinetuningOptions(1),
        **arguments,
    }
    with pytest.raises(UserError, match=message):
        finetune(out=tmp_path / "run", run=QUIET, **settings)


def test_what_does_not_fit_the_model_is_refused(pretrained: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="projection head of 3 layers"):
        finetune(str(pretrained), "digits", tmp_path / "run", from_layer=4, run=QUIET)
    with pytest.raises(UserError, match=r"its encoder\.\w+ is \S+, not .*; leave out the encoder"):
        finetune(str(pretrained), "digits", tmp_path / "run", encoder=EncoderOptions(), run=QUIET)
    overlapping = tmp_path / "some.txt"
    overlapping.write_text("digits/train#3\n" + open_images("digits").key(int(read_labelled(
        labels / "10percent-draw0.json", open_images("digits"))[0])))  # fmt: skip
    with pytest.raises(UserError, match="of the images held out for validation"):
        finetune(
            "none",
            "digits",
            tmp_path / "run",
            labels=labels / "10percent-draw0.json",
            validation=ValidationOptions(validate_on=str(overlapping)),
            training=FinetuningOptions(epochs=1),
            run=QUIET,
        )


@pytest.mark.parametrize("listed", [False, True])
def test_a_single_class_is_refused(write, noise, tmp_path: Path, listed: bool) -> None:
    names = ["cat/0.png", "cat/1.png", *(["dog/0.png"] if listed else [])]
    data = write({f"photos/{name}": noise(number) for number, name in enumerate(names)}) / "photos"
    (tmp_path / "list.txt").write_text("cat/0.png\ncat/1.png\n")
    labels = tmp_path / "list.txt" if listed else None
    with pytest.raises(UserError, match=r"labelled images of one class only \(cat\), expected at least two"):
        finetune(
            "none",
            str(data),
            tmp_path / "run",
            labels=labels,
            encoder=TINY,
            training=FinetuningOptions(epochs=1),
            run=QUIET,
        )
    with pytest.raises(UserError, match=r"labelled images of one class only \(cat\), expected at least two"):
        linear("pixels", str(data), probe=ProbeOptions(test_part="train", labels=labels))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("held_out", ["split", "file"])
def test_a_validation_part_is_no_test_score(write, noise, tmp_path: Path, held_out: str) -> None:
    """Without a test split, val takes its place, but not if training was validated on it."""
    places = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(3)]
    data = write({f"photos/{place}": noise(number) for number, place in enumerate(places)}) / "photos"
    labels, validation = None, "val"
    if held_out == "file":
        make_splits(
            str(data), tmp_path / "labels", draw=LabelDrawOptions(fractions=(1.0,), draws=1, validation_fraction=0.4)
        )
        labels, validation = tmp_path / "labels" / "100percent-draw0.json", str(tmp_path / "labels/validation.json")
    model = tmp_path / "run"
    finetune(
        "none",
        str(data),
        model,
        labels=labels,
        training=FinetuningOptions(1, image_size=8),
        validation=ValidationOptions(validation, validate_every=1),
        encoder=TINY,
        optimizer=FAST,
        run=QUIET,
    )
    if held_out == "file":
        score = evaluate(str(model), str(data), inference=CPU).score
        assert (score.split, score.validation_share) == ("val", 0)
        score = evaluate(str(model), str(data), part="train", inference=CPU).score
        assert score.validation_share == pytest.approx(2 / 6)
    else:
        with pytest.raises(
            UserError, match=r"validated on \(100 %\); the data have no test split, and val is used in its"
        ):
            evaluate(str(model), str(data), inference=CPU)
        (data / "val").rename(data / "test")  # the same images under another name
        with pytest.raises(UserError, match=r"images that training was validated on \(100 %\)"):
            evaluate(str(model), str(data), inference=CPU)
        for probe in (knn, linear, transfer):
            with pytest.raises(UserError, match=r"images that training was validated on \(100 %\)"):
                probe(str(model), str(data), probe=ProbeOptions(device="cpu"))
        (data / "test").rename(data / "val")
        score = evaluate(str(model), str(data), part="val", inference=CPU).score
        assert score.validation_share == 1
        # Models that start from this one record its validation images, too.
        again, student = tmp_path / "again", tmp_path / "student"
        finetune(str(model), str(data), again, training=FinetuningOptions(epochs=1), run=QUIET)
        distill(str(again), str(data), student, init="teacher", training=DistillationOptions(epochs=1), run=QUIET)
        encoder = tmp_path / "encoder"
        pretrain(
            str(data),
            encoder,
            init=str(again),
            training=PretrainingOptions(epochs=1, batch_size=6, image_size=8),
            run=QUIET,
        )
        val = ProbeOptions(test_part="val", device="cpu", batch_size=6)
        for start in (again, student, encoder):
            assert "100 % of these images were used for validation" in str(knn(str(start), str(data), probe=val))
        assert linear(str(again), str(data), epochs=1, probe=val).validation_share == 1
        few = few_labels(
            str(again),
            str(data),
            tmp_path / "few",
            test_part="val",
            methods=("linear",),
            inference=InferenceOptions(device="cpu"),
        )
        assert "the score is not a test score" in str(few)
        assert (
            load_classifier(str(tmp_path / "few" / "linear")).validated_on == load_classifier(str(model)).validated_on
        )
    assert "the score is not a test score" in str(score)
