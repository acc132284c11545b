"""Exported files, opened by their target programs, give the output of the model; no other file is left behind."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import trust_model_code
from contrastive_core.training.model_file import save_model
from ssl_vision import export, exports, import_checkpoint
from ssl_vision.cli import main
from ssl_vision.exports import Exportable, open_exportable
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.models.encoder import STATISTICS
from ssl_vision.models.model_folder import Architecture, classifier_card, encoder_card, load_encoder

CLASSES = ["cat", "dog", "emu"]
SMALL = EncoderOptions(width_multiplier=0.125)
TORCHVISION = EncoderOptions(name="resnet18", stem="imagenet", variant="torchvision", normalize="imagenet")


def restless(module: nn.Module) -> nn.Module:
    """Move every weight and statistic off its initial value."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and (tensor.ndim < 2 or not tensor.any()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) / 2 + 0.5)
    return module.eval()


def encoder_folder(folder: Path, options: EncoderOptions, *, size: int = 16) -> Path:
    torch.manual_seed(0)
    encoder = restless(build_encoder(options, image_size=size))
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    return save_model(folder, state, encoder_card(options, image_size=size, head=None))


def classifier_folder(folder: Path, options: EncoderOptions, *, size: int = 16, layer: int = 0) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(options, size, (2, 8) if layer else None, layer)
    model = restless(architecture.build(len(CLASSES)))
    return save_model(folder, dict(model.state_dict()), classifier_card(architecture, CLASSES))


def card(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.with_name(f"{file.name}.json").read_text())
    return found


def test_onnx_gives_the_model_s_logits(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = EncoderOptions(width_multiplier=0.125, stem="imagenet", normalize="imagenet", variant="simclr")
    folder = classifier_folder(tmp_path / "model", options, size=33, layer=1)
    said = export(str(folder), tmp_path / "out" / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "net.onnx", providers=["CPUExecutionProvider"])
    opened = open_exportable(str(folder))
    for count in (1, 4):
        images = torch.rand(count, 3, 33, 33)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), opened.module(images), rtol=1e-4, atol=1e-4)
    inside = json.loads(session.get_modelmeta().custom_metadata_map["ssl_vision"])
    beside = card(tmp_path / "out" / "net.onnx")
    assert beside.pop("checked")["largest_difference"] < 1e-4
    assert inside == beside
    assert beside["classes"] == CLASSES
    assert beside["input"]["shape"] == ["batch", 3, 33, 33]
    assert beside["input"]["range"] == [0, 1]
    assert beside["input"]["normalisation"] == "inside the model"
    assert beside["output"] == {"name": "logits", "shape": ["batch", 3]}
    assert "onnxruntime" in said
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["net.onnx", "net.onnx.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        EncoderOptions(name="resnet50", width_multiplier=0.125, stem="imagenet", sk_ratio=0.0625),
        EncoderOptions(name="resnet34", width_multiplier=0.125, stem="cifar", sk_ratio=0.0625),
        EncoderOptions(width_multiplier=0.125, stem="cifar-no-relu", variant="torchvision", normalize="cifar10"),
        EncoderOptions(name="torchvision:mobilenet_v3_small"),
    ],
    ids=lambda options: f"{options.name}-{options.stem}",
)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_every_kind_of_encoder_is_exported(tmp_path: Path, options: EncoderOptions, ending: str) -> None:
    folder = encoder_folder(tmp_path / "model", options, size=32)
    export(str(folder), tmp_path / f"net.{ending}")
    assert card(tmp_path / f"net.{ending}")["checked"]["largest_difference"] < 1e-3


def test_exported_program_gives_the_model_s_features(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "model", SMALL)
    assert main(["export", str(folder), str(tmp_path / "net.pt2"), "--image_size", "24"]) == 0
    inside = {"ssl_vision.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=inside).module()
    images = torch.rand(5, 3, 24, 24)
    expected = load_encoder(str(folder), device="cpu").encoder(images)
    torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-4)
    beside = card(tmp_path / "net.pt2")
    assert json.loads(inside["ssl_vision.json"]) == {k: v for k, v in beside.items() if k != "checked"}
    assert beside["output"] == {"name": "features", "shape": ["batch", 64]}
    assert beside["classes"] is None


def loaded(file: Path, name: str, classes: int) -> nn.Module:
    net = torchvision.models.get_model(name, num_classes=classes or 1)
    if not classes:
        net.fc = nn.Identity()
    net.load_state_dict(safetensors.torch.load_file(file), strict=True)
    return net.eval()


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["imagenet"])
    return (images - mean) / std


def test_torchvision_takes_its_names_and_they_come_back(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model", TORCHVISION, size=40)
    export(str(folder), tmp_path / "net.safetensors")
    opened, images = open_exportable(str(folder)), torch.rand(2, 3, 40, 40)
    net = loaded(tmp_path / "net.safetensors", "resnet18", 3)
    torch.testing.assert_close(net(normalised(images)), opened.module(images), rtol=1e-4, atol=1e-4)
    beside = card(tmp_path / "net.safetensors")
    assert beside["load"]["timm"] == "timm.create_model('resnet18', num_classes=3).load_state_dict(state)"
    assert beside["input"]["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ssl_vision"])["classes"] == CLASSES

    import_checkpoint(tmp_path / "net.safetensors", tmp_path / "back")
    torch.testing.assert_close(open_exportable(str(tmp_path / "back")).module(images), opened.module(images))


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_features_without_a_classifier(tmp_path: Path, name: str) -> None:
    options = EncoderOptions(name=name, stem="imagenet", variant="torchvision")
    folder = encoder_folder(tmp_path / "model", options, size=40)
    export(str(folder), tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 40, 40)
    expected = load_encoder(str(folder), device="cpu").encoder(images)
    torch.testing.assert_close(loaded(tmp_path / "net.safetensors", "resnet18", 0)(images), expected)


@pytest.mark.slow
def test_official_resnet50_is_approximate_and_says_by_how_much(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "model", EncoderOptions(name="resnet50", stem="imagenet"), size=64)
    with pytest.raises(UserError, match="pads its max pooling as PyTorch"):
        export(str(folder), tmp_path / "net.safetensors")
    assert list(tmp_path.glob("net*")) == []
    export(str(folder), tmp_path / "net.safetensors", approximate=True)
    stated = card(tmp_path / "net.safetensors")["checked"]
    images = open_exportable(str(folder)).images(8)
    with torch.no_grad():
        ours = load_encoder(str(folder), device="cpu").encoder(images)
        theirs = loaded(tmp_path / "net.safetensors", "resnet50", 0)(images)
    assert stated["relative_difference"] == pytest.approx(((theirs - ours).norm() / ours.norm()).item(), rel=1e-3)
    assert stated["relative_difference"] > 1e-4
    # On odd sizes the two paddings are the same: then nothing differs.
    odd = torch.rand(2, 3, 65, 65)
    with torch.no_grad():
        ours, theirs = (
            load_encoder(str(folder), device="cpu").encoder(odd),
            loaded(tmp_path / "net.safetensors", "resnet50", 0)(odd),
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "layer", "reason"),
    [
        (EncoderOptions(width_multiplier=0.125, stem="imagenet", variant="torchvision"), 0, r"its width is 0\.125"),
        (EncoderOptions(), 0, "stem 'cifar'; group 1 of the official"),
        (
            EncoderOptions(name="resnet50", stem="imagenet", sk_ratio=0.0625, width_multiplier=0.125),
            0,
            "selective kernels",
        ),
        (EncoderOptions(name="torchvision:mobilenet_v3_small"), 0, "is not one of ResNet-18"),
        (EncoderOptions(name="resnet18", stem="imagenet", variant="torchvision"), 1, "layer 1 of a projection head"),
    ],
)
def test_networks_that_torchvision_lacks_are_refused(
    tmp_path: Path, options: EncoderOptions, layer: int, reason: str
) -> None:
    folder = classifier_folder(tmp_path / "model", options, size=32, layer=layer)
    with pytest.raises(UserError, match=f"{reason}.*support every network"):
        export(str(folder), tmp_path / "net.safetensors", approximate=True)


def test_a_file_that_gives_something_else_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = encoder_folder(tmp_path / "model", TORCHVISION, size=40)
    state = exports._state

    def other(model: Exportable) -> dict[str, Tensor]:
        return {name: tensor + 0.01 if name == "conv1.weight" else tensor for name, tensor in state(model).items()}

    monkeypatch.setattr(exports, "_state", other)
    (tmp_path / "net.safetensors").write_text("older")
    with pytest.raises(
        UserError, match=r"the features of torchvision's resnet18 differ from those of .*nothing was written"
    ):
        export(str(folder), tmp_path / "net.safetensors", overwrite=True)
    assert (tmp_path / "net.safetensors").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "net.safetensors"]


class Moody(nn.Module):
    """Treats bright and dark images differently, which an exported program cannot."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))


def test_networks_that_cannot_be_exported_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("moody_nets")
    module.moody = Moody  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moody_nets", module)
    folder = encoder_folder(tmp_path / "model", EncoderOptions(name="moody_nets:moody"))
    with trust_model_code(), pytest.raises(UserError, match=r"torch\.export cannot export moody_nets:moody"):
        export(str(folder), tmp_path / "net.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = encoder_folder(tmp_path / "model", SMALL)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"needs onnxscript, which cannot be found; pip install 'ssl-vision\[export\]'"):
        export(str(folder), tmp_path / "net.onnx")


def test_other_endings_and_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found the suffix '\.h5', expected one of \.onnx, \.pt2, \.safetensors"):
        export("pixels", tmp_path / "net.h5")
    with pytest.raises(UserError, match="no weights to export"):
        export("pixels", tmp_path / "net.onnx")
