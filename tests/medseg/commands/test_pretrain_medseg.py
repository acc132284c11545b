"""The parent method: slices in its batches, what its stages train, and the whole command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_medseg.commands.pretrain import pretrain
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.models import NetworkOptions, UNet
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.models.pretraining import GlobalNetwork, LocalNetwork, load_trunk
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.pretraining.stages import PretrainingOptions, VolumeBatches, crop_and_resize
from ssl_medseg.training.optim import DurationEstimate
from ssl_medseg.training.supervised import train
from tests.medseg.grouped import grouped

RUN = RunOptions(device="cpu", threads=1, log_every=1, checkpoint_every=2, progress=False)
SHORT: dict[str, Any] = {
    "pretraining": PretrainingOptions(
        global_steps=3, local_steps=3, partitions=3, global_volumes=2, local_volumes=2
    ),
    "network": NetworkOptions(width=2), "preprocessing": PreprocessingOptions(image_size=64), "run": RUN,
}  # fmt: skip


def parts(counts: list[int], partitions: int) -> tuple[Tensor, Tensor]:
    case = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return case, torch.cat([torch.arange(n) * partitions // n for n in counts])


def test_batches_take_a_slice_of_every_part_of_the_volumes() -> None:
    case, part = parts([8, 9, 2, 12, 6], 4)
    batches = VolumeBatches(case, part, partitions=4, volumes=2, seed=0)
    assert batches.left_out == 1
    seen = set()
    for step in range(40):
        batch = batches.at(step)
        volumes = case[batch.slices].view(2, 4)
        assert (volumes == volumes[:, :1]).all()
        assert volumes[0, 0] != volumes[1, 0]
        assert torch.equal(part[batch.slices], batch.partition)
        assert torch.equal(batch.partition[batch.partner], batch.partition)
        assert (volumes.flatten()[batch.partner] != volumes.flatten()).all()
        seen |= set(batch.slices.tolist())
    assert seen == set(torch.nonzero(case != 2).flatten().tolist())
    shared = [VolumeBatches(case, part, partitions=4, volumes=1 + 1, seed=0, rank=r, world_size=2) for r in range(2)]
    assert len(set(case[torch.cat([b.at(3).slices for b in shared])].tolist())) == 4
    with pytest.raises(UserError, match="found 4 volumes with at least 4 slices, but 5 volumes per step"):
        VolumeBatches(case, part, partitions=4, volumes=5, seed=0)


def test_a_box_is_enlarged() -> None:
    ramp = torch.linspace(0, 1, 32).expand(4, 1, 32, 32).contiguous()
    views = crop_and_resize(ramp, share=0.5, seed=0, ids=torch.arange(4))
    steps = views[:, 0, 16].diff(dim=1)
    torch.testing.assert_close(steps[:, 2:-2], torch.full_like(steps[:, 2:-2], 0.5 / 31))
    assert len(views[:, 0, 0, 0].unique()) == 4
    torch.testing.assert_close(crop_and_resize(ramp, share=1.0, seed=0, ids=torch.arange(4)), ramp)


def test_stages_train_their_own_part() -> None:
    trunk = UNet(width=2)
    x = torch.rand(3, 1, 64, 96)
    encoder, decoder = GlobalNetwork(trunk, (64, 96)), LocalNetwork(trunk, blocks=3)
    assert encoder(x).shape == (3, 128)
    before = [b.clone() for b in trunk.down.buffers()]
    features = decoder(x)
    assert features.shape == (3, 8, 16, 24)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.down.buffers(), strict=True)), "the encoder is held"
    assert trunk.down.training
    features.sum().backward()
    touched = {id(p) for p in trunk.parameters() if p.grad is not None}
    assert touched == {id(p) for p in decoder.trained} & {id(p) for p in trunk.parameters()}
    with pytest.raises(UserError, match="blocks is 6"):
        LocalNetwork(trunk, blocks=6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "data", patients=5, frames=1, size=64)
    dataset = open_dataset(folder / "data")
    write_split(folder / "split.json", Split(dataset.names[:1], (), dataset.names[1:2], dataset.names[2:]), dataset)
    return folder / "data", folder / "split.json"


def losses(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("kinds", [("GD", "LR"), ("GD-", "LD"), ("GR", "LR")])
def test_trained_without_labels_and_gone_on_with(place: tuple[Path, Path], tmp_path: Path, kinds: Any) -> None:
    data, split = place
    out = tmp_path / "pre"
    stages = replace(SHORT["pretraining"], global_loss=kinds[0], local_loss=kinds[1])
    folder = pretrain(str(data), out, split=split, **{**SHORT, "pretraining": stages})
    assert len(losses(out, "global_loss")) == len(losses(out, "local_loss")) == 3
    trunk = load_trunk(folder)
    assert trunk.options == NetworkOptions("unet", 2)
    model = train(
        str(data), tmp_path / "train", split=split, **grouped(init=str(out), steps=1, batch_size=2, lr=1e-12, run=RUN)
    )
    segmenter = load_segmenter(model, device="cpu")
    assert segmenter.preprocessing == trunk.preprocessing
    for name, weight in segmenter.network.trunk.named_parameters():
        torch.testing.assert_close(weight, trunk.weights[name], atol=1e-9, rtol=0)
    assert load_trunk(model).options == trunk.options, "a segmenter's trunk will do as well"


def test_options_that_given_weights_would_ignore_are_refused(place: tuple[Path, Path], tmp_path: Path) -> None:
    data, split = place
    pretrain(str(data), tmp_path / "pre", split=split, **SHORT)
    own = load_trunk(tmp_path / "pre").preprocessing
    assert own.spacing is not None
    begun = grouped(init=str(tmp_path / "pre"), steps=1, batch_size=2, run=RUN)
    same = PreprocessingOptions(image_size=own.size[0], spacing=own.spacing[0], slice_axis="sagittal")
    train(str(data), tmp_path / "same", split=split, network=NetworkOptions("unet", 2), preprocessing=same, **begun)
    for changes, said in (
        ({"network": NetworkOptions("plain-unet", 2)}, r"network.name plain-unet \(the weights have unet\)"),
        ({"network": NetworkOptions("auto", 8)}, r"network.width 8 \(the weights have 2\)"),
        ({"preprocessing": PreprocessingOptions(spacing=9.5)}, r"preprocessing.spacing 9.5 \(the weights have "),
        (
            {"preprocessing": PreprocessingOptions(slice_axis="coronal")},
            r"slice_axis coronal \(the weights have oblique sagittal",
        ),
        ({"preprocessing": PreprocessingOptions(low=2, n4=True)}, r"low 2 .*n4 True .*remove these options, or train "),
    ):
        with pytest.raises(UserError, match=said):
            train(str(data), tmp_path / "other", split=split, **changes, **begun)
    assert not (tmp_path / "other").exists()


def test_a_killed_run_ends_in_the_same_bytes(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, split = place
    whole = pretrain(str(data), tmp_path / "whole", split=split, **SHORT)

    def die(self: DurationEstimate, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DurationEstimate, "after", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(str(data), tmp_path / "part", split=split, **SHORT)
    resumed = RunOptions(**{**vars(RUN), "resume": True})
    part = pretrain(str(data), tmp_path / "part", split=split, **{**SHORT, "run": resumed})
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_global_loss_falls(place: tuple[Path, Path], tmp_path: Path) -> None:
    data, split = place
    longer = {
        **SHORT,
        "pretraining": PretrainingOptions(global_steps=24, local_steps=0, partitions=3, global_volumes=4),
        "run": RunOptions(**{**vars(RUN), "checkpoint_every": 99}),
        "network": NetworkOptions("unet", 4),
    }
    pretrain(str(data), tmp_path / "run", split=split, **longer)
    curve = losses(tmp_path / "run", "global_loss")
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_steps": 0, "local_steps": 0}, "expected steps in at least one of the stages"),
        ({"global_steps": -1}, "global_steps is -1; expected a whole number of at least 0"),
        ({"partitions": 0}, "partitions is 0; expected a whole number of at least 1"),
        ({"crop": 1.5}, "crop is 1.5; expected a fraction above 0 and up to 1"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a finite number above 0"),
        ({"lr": -1.0}, "lr is -1.0; expected a finite number above 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainingOptions(**settings)


def test_only_the_unet_is_pretrained(place: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="supports only unet"):
        pretrain(
            str(place[0]), tmp_path / "run", split=place[1], **{**SHORT, "network": NetworkOptions("monai:DynUNet")}
        )
