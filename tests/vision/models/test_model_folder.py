"""Model folders restore what was saved, and refuse anything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.heads import ProjectionHead
from contrastive_core.training import Run, RunOptions
from contrastive_core.training.model_file import save_model, write_card
from ssl_vision.methods import SimCLR
from ssl_vision.models import Classifier, EncoderOptions, build_encoder
from ssl_vision.models.model_folder import (
    Architecture,
    classifier_card,
    encoder_card,
    load_architecture,
    load_classifier,
    load_encoder,
    load_pretrained,
    load_simclr,
    save_classifier,
    save_encoder,
)

TINY = EncoderOptions(width_multiplier=0.125)
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CLASSES = ["cat", "dog", "emu"]


def restless(module: nn.Module) -> nn.Module:
    """Move every parameter and statistic off its initial value, so that a missing one is noticed."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            moved = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.copy_(moved * tensor if tensor.ndim > 1 and tensor.any() else moved)
    return module.eval()


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, SimCLR]:
    model = restless(SimCLR(build_encoder(TINY), projection_dim=24, layers=3))
    with Run(tmp_path / "pre", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:
        save_encoder(run, model, encoder=TINY, image_size=16, epoch=2)
    return tmp_path / "pre", model


@pytest.fixture(params=[0, 1, 3])
def finetuned(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Classifier, Architecture]:
    architecture = Architecture(TINY, 16, (3, 24), request.param)
    model = restless(architecture.build(3))
    with Run(tmp_path / "fine", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:
        save_classifier(run, model, architecture=architecture, classes=CLASSES, epoch=2)
    return tmp_path / "fine", model, architecture


def test_encoder_and_head_come_back(pretrained: tuple[Path, SimCLR]) -> None:
    folder, model = pretrained
    card = json.loads((folder / "model" / "model.json").read_text())["metadata"]
    assert card["format"] == "ssl-vision encoder 1"
    assert card["head"] == {"layers": 3, "out_features": 24}
    loaded = load_simclr(str(folder)).eval()
    with torch.no_grad():
        for ours, theirs in zip(loaded(IMAGES, IMAGES), model(IMAGES, IMAGES), strict=True):
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(load_encoder(str(folder), device="cpu").encoder(IMAGES), model.encoder(IMAGES))
    found = load_pretrained(str(folder / "model"))
    assert (found.options, found.image_size) == (TINY, 16)


def test_a_card_without_a_head_is_read(pretrained: tuple[Path, SimCLR]) -> None:
    """As the first runs wrote it."""
    folder, model = pretrained
    path = folder / "model" / "model.json"
    card = json.loads(path.read_text())
    del card["metadata"]["head"]
    write_card(path, card)
    with torch.no_grad():
        assert torch.equal(load_simclr(str(folder)).eval()(IMAGES, IMAGES)[0], model(IMAGES, IMAGES)[0])


def test_classifier_comes_back(finetuned: tuple[Path, Classifier, Architecture]) -> None:
    folder, model, architecture = finetuned
    loaded = load_classifier(str(folder), device="cpu")
    assert (loaded.classes, loaded.image_size) == (CLASSES, 16)
    assert not loaded.model.training
    with torch.no_grad():
        assert loaded.model(IMAGES).std(dim=0).min() > 0
        torch.testing.assert_close(loaded.model(IMAGES), model(IMAGES))
        torch.testing.assert_close(load_encoder(str(folder), device="cpu").encoder(IMAGES), model.encoder(IMAGES))
    assert load_architecture(str(folder)) == architecture
    assert load_pretrained(str(folder)).head is None


def test_the_neck_is_the_first_layers_of_the_head() -> None:
    simclr = restless(SimCLR(build_encoder(TINY), projection_dim=24, layers=3))
    model = Classifier(simclr.encoder, simclr.head.first_layers(1), 4).eval()
    nn.init.normal_(model.fc.weight)
    hidden = simclr.head.layers[0]
    with torch.no_grad():
        expected = model.fc(hidden(simclr.encoder(IMAGES)))
        assert torch.equal(model(IMAGES), expected)
    assert model.fc.in_features == simclr.head.hidden_features


def test_layers_beyond_the_neck_are_not_built() -> None:
    """A changed model.json may state any size for them."""
    encoder = EncoderOptions("resnet18", width_multiplier=0.0625)
    states = []
    for layers, features in ((3, 4), (1 << 40, 1 << 40)):
        torch.manual_seed(0)
        states.append(Architecture(encoder, 16, (layers, features), from_layer=1).build(2).state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_the_linear_layer_starts_at_zero() -> None:
    model = Classifier(build_encoder(TINY), nn.Sequential(), 4)
    assert not model(IMAGES).any()
    assert Classifier(model.encoder, ProjectionHead(64, 24, layers=2).first_layers(2), 4).fc.in_features == 24


def test_logits_are_not_rounded_to_bfloat16() -> None:
    model = Classifier(build_encoder(TINY), nn.Sequential(), 4).eval()
    nn.init.normal_(model.fc.weight, std=10)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits, features = model(IMAGES), model.encoder(IMAGES)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(logits, model.fc(features.float()))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_other_models_are_refused(
    pretrained: tuple[Path, SimCLR], finetuned: tuple[Path, Classifier, Architecture]
) -> None:
    with pytest.raises(UserError, match=r"found a model of format 'ssl-vision encoder 1'.*fine-tune it first"):
        load_classifier(str(pretrained[0]))
    with pytest.raises(UserError, match="without a projection head"):
        load_simclr(str(finetuned[0]))
    path = finetuned[0] / "model" / "model.json"
    card = json.loads(path.read_text())
    del card["metadata"]["from_layer"]
    write_card(path, card)
    with pytest.raises(UserError, match="does not describe a classifier"):
        load_classifier(str(finetuned[0]))
    card["metadata"]["encoder"] = {"depth": 3}
    write_card(path, card)
    with pytest.raises(UserError, match="does not describe an encoder"):
        load_encoder(str(finetuned[0]))
    card["metadata"]["format"] = "ssl-vision classifier 2"
    write_card(path, card)
    with pytest.raises(UserError, match="found a model of format 'ssl-vision classifier 2', expected"):
        load_encoder(str(finetuned[0]))


def test_opening_a_model_runs_no_code_that_it_names(tmp_path: Path) -> None:
    metadata = {"format": "ssl-vision encoder 1", "encoder": {"name": "os:abort"}, "image_size": 32, "head": None}
    save_model(tmp_path / "model", {}, metadata)
    for opened in (load_encoder, load_pretrained):
        with pytest.raises(UserError, match=r"os:abort, which is not part of this package.*--trust-model-code"):
            opened(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": {"name": 3}}, "encoder.name is 3; expected str"),
        (
            {"encoder": {"name": "resnet18", "width_multiplier": 4096}},
            r"according to model\.json and .* in the weights",
        ),
        ({"encoder": {"name": "resnet18", "layers": 3}}, "unknown entry 'layers'"),
        ({"image_size": 1 << 31}, "image_size is 2147483648"),
        ({"image_size": True}, "image_size is True; expected int"),
    ],
)
def test_a_changed_description_is_refused_before_memory_is_taken(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    options = EncoderOptions("resnet18", width_multiplier=0.0625)
    network = SimCLR(build_encoder(options, image_size=16), projection_dim=4, layers=2)
    card = encoder_card(options, image_size=16, head=network.head)
    save_model(tmp_path / "model", dict(network.state_dict()), {**card, **change})
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("names", [0.5, [1], "cat", {"n01": 3}, {"n01": "cat\x1b[2J"}])
def test_class_names_of_another_type_are_refused(names: object, tmp_path: Path) -> None:
    architecture = Architecture(EncoderOptions("resnet18", width_multiplier=0.0625), image_size=16)
    tensors = dict(architecture.build(2).state_dict())
    save_model(tmp_path / "model", tensors, {**classifier_card(architecture, ["a", "b"]), "class_names": names})
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "model"))):
        load_classifier(str(tmp_path), device="cpu")
