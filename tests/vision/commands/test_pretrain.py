"""Pre-training on real images: by command, as a function, and on several processes."""

from __future__ import annotations

import importlib.resources
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contrastive_core import LARS, lars_param_groups, nt_xent, suncet
from contrastive_core.errors import UserError
from contrastive_core.training import Batches, ClassBatches, RunOptions
from ssl_vision.augment import SimCLRAugment
from ssl_vision.commands.knn import knn
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import in_memory, open_images
from ssl_vision.methods import MomentumMemory, SimCLR
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.model_folder import load_encoder
from ssl_vision.training.options import MemoryOptions, OptimizerOptions, PretrainingOptions
from tests.vision.two_processes import losses_alone_and_together, metrics, over_processes, run_alone_and_together

TINY = EncoderOptions(width_multiplier=0.125)


def test_training_learns_and_leaves_a_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = pretrain(
        "digits",
        run,
        training=PretrainingOptions(epochs=8, batch_size=128, image_size=16, save_every=4),
        encoder=TINY,
        temperature=0.2,
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=1),
        run=RunOptions(threads=1, log_every=4, device="cpu"),
    )
    assert model == run / "model"
    records = metrics(run)
    assert records[0]["lr"] == 0.0
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert records[-1]["contrastive_accuracy"] > records[0]["contrastive_accuracy"]
    assert records[-1]["epoch"] == 8
    assert sorted(folder.name for folder in (run / "models").iterdir()) == ["epoch-0000", "epoch-0004"]
    untrained, trained = (load_encoder(str(folder)).encoder for folder in (run / "models" / "epoch-0000", run))
    assert not torch.equal(untrained.conv1.weight, trained.conv1.weight)
    assert knn(str(run), "digits", k=20).images == 364
    assert (run / "evaluation" / "knn.json").is_file()


@pytest.mark.slow
def test_features_of_real_images_get_better(tmp_path: Path, shared_data: Path) -> None:
    photos = tmp_path / "photos"
    with tarfile.open(shared_data / "cifar10.tar.xz") as archive:
        for member in archive:
            number = Path(member.name).stem
            if member.isfile() and number.isdigit() and int(number) < (256 if member.name.startswith("train") else 64):
                content = archive.extractfile(member)
                assert content is not None
                (photos / member.name).parent.mkdir(parents=True, exist_ok=True)
                (photos / member.name).write_bytes(content.read())
    run = tmp_path / "run"
    pretrain(
        str(photos),
        run,
        training=PretrainingOptions(epochs=12, batch_size=128, save_every=12),
        encoder=EncoderOptions(width_multiplier=0.25),
        temperature=0.2,
        optimizer=OptimizerOptions(lr=1.0, warmup_epochs=2),
        run=RunOptions(precision="auto", device="cpu"),
    )
    before, after = (knn(str(folder), str(photos), k=20).top1 for folder in (run / "models" / "epoch-0000", run))
    assert after > before + 3


METHODS = ("simclr", "suncet", "memory")


def train_in_float64(rank: int, world_size: int) -> list[Tensor]:
    """Run twenty steps of `pretrain` with every method on this process's share of each batch."""
    return [loss for method in METHODS for loss in twenty_steps(method, rank, world_size)]


def twenty_steps(method: str, rank: int, world_size: int) -> Iterator[Tensor]:
    torch.manual_seed(0)
    network = SimCLR(resnet(18, width=0.125, stem="cifar"), projection_dim=16).double()
    model = over_processes(network)
    optimizer = LARS(lars_param_groups(model, 1e-4), 1.0)
    memory = MomentumMemory(network, size=100, decay=0.9)
    digits, gather = open_images("digits"), world_size > 1
    images, labels = in_memory(digits), digits.labels()
    augment = SimCLRAugment(8, strength=0.5, blur=False)
    place = {"seed": 1, "rank": rank, "world_size": world_size}
    batches = Batches(len(images), batch_size=32 // world_size, total_steps=20, **place)
    labelled = ClassBatches(labels, classes_per_batch=4, samples_per_class=4, **place)
    for step in range(20):
        ids, few = batches.at(step), labelled.at(step).samples
        views = [augment(images[ids], seed=2 * step + view, ids=ids).double() for view in (0, 1)]
        if method == "suncet" and step < 12:
            views.append(augment(images[few], seed=step, ids=few).double())
        z = model(*views)
        bank = memory.negatives if method == "memory" else None
        loss = nt_xent(z[0], z[1], bank, temperature=0.5, gather=gather)
        if len(z) > 2:
            loss = loss + suncet(z[2], labels[few], temperature=0.2, gather=gather)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method == "memory":
            memory.update(network, views[1], gather=gather)
        yield loss.detach()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Joint batch, LARS, batch norm, negatives, labelled images and memory bank give the same losses.

    In float64, because training from zero-initialised branches magnifies rounding tenfold per step at the start.
    """
    alone, together = losses_alone_and_together(train_in_float64, tmp_path)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)
    assert len(alone[19::20].unique()) == len(METHODS)


def test_the_command_runs_on_two_processes(tmp_path: Path) -> None:
    arguments = [
        *("pretrain", "digits", "--epochs", "1", "--batch_size", "128", "--image_size", "8", "--log_every", "1"),
        *(
            "--encoder.width_multiplier",
            "0.125",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--no-progress",
            "--memory.projections",
            "200",
        ),
        *("--classes_per_batch", "3", "--images_per_class", "4", "--suncet.until-epoch", "0.5"),
    ]
    alone, together = run_alone_and_together(arguments, tmp_path)
    assert len(alone) == len(together) == 1433 // 128
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours["lr"], ours["inputs"], "suncet" in ours) == (theirs["lr"], theirs["inputs"], "suncet" in theirs)
    # The first update runs at learning rate 0, so two steps see the same weights.
    for step in (0, 1):
        for name in ("loss", "nt_xent", "suncet"):
            assert together[step][name] == pytest.approx(alone[step][name], rel=1e-5)
        assert together[step]["contrastive_accuracy"] == pytest.approx(alone[step]["contrastive_accuracy"], abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": PretrainingOptions(-1)}, "epochs >= 1"),
        ({"training": PretrainingOptions()}, "needs a length"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"training": PretrainingOptions(1, batch_size=5000)}, "1433"),
        (
            {"memory": MemoryOptions(projections=5), "training": PretrainingOptions(1, batch_size=0)},
            "batch_size is 0",
        ),
        ({"data": "no-such-folder"}, "no such folder"),
        ({"part": "valid"}, "split 'valid'"),
        ({"optimizer": OptimizerOptions(warmup_epochs=10)}, "warmup_epochs is 10 in a run of 1 epochs"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"data": "digits", "encoder": TINY, "training": PretrainingOptions(1), **arguments}
    with pytest.raises(UserError, match=message):
        pretrain(out=tmp_path / "run", **settings)  # type: ignore[arg-type]


def test_without_a_length_the_recipes_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a length: expected --epochs, or --config") as caught:
        pretrain("digits", tmp_path / "run")
    listed = {line.split()[0] for line in str(caught.value).splitlines()[1:]}
    ready = {file.name.removesuffix(".yaml") for file in importlib.resources.files("ssl_vision.configs").iterdir()}
    assert listed == {name for name in ready if name.startswith(("simclr", "suncet"))}
    assert not (tmp_path / "run").exists()
