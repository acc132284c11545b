"""Imported ResNets of PyTorch programs give the features of the original networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_vision import import_checkpoint
from ssl_vision.models.encoder import STATISTICS
from ssl_vision.models.model_folder import load_classifier, load_encoder, load_pretrained
from ssl_vision.models.pretrained import match_names

IMAGES = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
SMALL = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


def narrow(depth: int = 18, *, classes: int = 4, small: bool = False, padding: int = 1) -> nn.Module:
    """A torchvision ResNet with an eighth of the width; every weight and statistic differs from its initial value."""
    block, repeats = {
        18: (torchvision.models.resnet.BasicBlock, [2, 2, 2, 2]),
        50: (torchvision.models.resnet.Bottleneck, [3, 4, 6, 3]),
    }[depth]

    class Narrow(torchvision.models.ResNet):
        def _make_layer(self, kind: Any, planes: int, *args: Any, **more: Any) -> nn.Sequential:
            if planes == 64 and self.conv1.out_channels == 64:  # the stem is made before
                self.inplanes = 8
                self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
                self.bn1 = nn.BatchNorm2d(8)
            return super()._make_layer(kind, planes // 8, *args, **more)

    torch.manual_seed(depth)
    net = Narrow(block, repeats)
    net.fc = nn.Linear(64 * block.expansion, classes)
    if small:
        net.conv1, net.maxpool = nn.Conv2d(3, 8, 3, 1, padding, bias=False), nn.Identity()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim < 2:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net.eval()


def features(net: nn.Module, images: Tensor, statistics: str = "imagenet") -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS[statistics])
    classifier, net.fc = net.fc, nn.Identity()
    with torch.no_grad():
        out: Tensor = net((images - mean) / std)
    net.fc = classifier
    return out


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def bare(net: nn.Module) -> State:
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}


def sequential(net: nn.Module) -> State:
    return nn.Sequential(*list(net.children())[:-1]).state_dict()


LAYOUTS: dict[str, Callable[[nn.Module], object]] = {
    "ddp": lambda net: prefixed(bare(net), "module."),
    "moco": lambda net: {
        "state_dict": prefixed(net.state_dict(), "module.encoder_q.")
        | prefixed(narrow(18).state_dict(), "module.encoder_k.")
        | {"module.queue": torch.zeros(3, 3)},
        "arch": "resnet50",
    },
    "lightly": lambda net: {"state_dict": prefixed(sequential(net), "backbone."), "optimizer_states": [{"state": {}}]},
    "vissl": lambda net: {
        "classy_state_dict": {"base_model": {"model": {"trunk": prefixed(bare(net), "_feature_blocks."), "heads": {}}}}
    },
    "paws": lambda net: {
        "encoder": prefixed(bare(net), "module.") | {f"module.fc.fc{i}.weight": torch.zeros(3, 3) for i in (1, 2, 3)},
        "opt": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
    },
    "no-counters": lambda net: {n: t for n, t in bare(net).items() if "num_batches" not in n},
    "checkpointed": lambda net: {
        n.replace("layer1.0.", "layer1.0._checkpoint_wrapped_module."): t for n, t in bare(net).items()
    },
    "half": lambda net: {n: t.half() if t.is_floating_point() else t for n, t in bare(net).items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_the_source_s(tmp_path: Path, layout: str) -> None:
    net = narrow(50 if layout == "moco" else 18)
    if layout == "half":
        net.half().float()
    torch.save(LAYOUTS[layout](net), tmp_path / "source.pth")
    said = import_checkpoint(tmp_path / "source.pth", tmp_path / "out")
    loaded = load_encoder(str(tmp_path / "out"), device="cpu")
    assert loaded.image_size == 224
    expected = features(net, IMAGES)
    torch.testing.assert_close(loaded.encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert "width 0.125, imagenet stem" in said
    assert load_pretrained(str(tmp_path / "out")).head is None


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_classifier_comes_with_its_layer(tmp_path: Path, ending: str) -> None:
    net = narrow()
    source = tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save(net.state_dict(), source)
    else:
        safetensors.torch.save_file(net.state_dict(), source)
    import_checkpoint(source, tmp_path / "out", normalize="none")
    loaded = load_classifier(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(loaded.model(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-4)
    assert len(loaded.classes) == 4


def test_release_of_suncet_did_not_normalise(tmp_path: Path) -> None:
    net = narrow()
    state = prefixed(bare(net), "module.") | {f"module.fc.fc{i}.weight": torch.zeros(3, 3) for i in (1, 2)}
    torch.save({"encoder": state, "epoch": 4}, tmp_path / "suncet.pth.tar")
    import_checkpoint(tmp_path / "suncet.pth.tar", tmp_path / "out")
    got = load_encoder(str(tmp_path / "out"), device="cpu").encoder(IMAGES)
    torch.testing.assert_close(got, features(net, IMAGES, "none"), rtol=1e-4, atol=1e-4)
    card = json.loads((tmp_path / "out" / "import.json").read_text())
    assert card["left_out"] == ["encoder.fc.fc1.weight", "encoder.fc.fc2.weight"]


def test_a_teacher_and_its_student_are_chosen_by_prefix(tmp_path: Path) -> None:
    student, teacher = narrow(), prefixed(bare(narrow()), "backbone.")
    state = {"student": prefixed(bare(student), "module.backbone.") | {"module.head.mlp.0.bias": torch.zeros(3)}}
    torch.save(state | {"teacher": teacher}, tmp_path / "dino.pth")
    with pytest.raises(UserError, match=r"choose one with --prefix; DINO and similar methods evaluate the teacher"):
        import_checkpoint(tmp_path / "dino.pth", tmp_path / "out")
    said = import_checkpoint(tmp_path / "dino.pth", tmp_path / "out", prefix="student.module.backbone")
    got = load_encoder(str(tmp_path / "out"), device="cpu").encoder(IMAGES)
    torch.testing.assert_close(got, features(student, IMAGES), rtol=1e-4, atol=1e-4)
    assert "left out 121 tensors: teacher (120), student (1)" in said


@pytest.mark.parametrize(("program", "stem"), [("solo", "cifar-pad2"), ("lightly", "cifar-no-relu"), ("own", "cifar")])
def test_small_stems_are_as_in_the_program_they_come_from(tmp_path: Path, program: str, stem: str) -> None:
    net = narrow(small=True, padding=2 if program == "solo" else 1)
    state = prefixed(bare(net), "backbone.")
    if program == "solo":
        state["projector.0.weight"] = torch.zeros(3, 3)
        state |= {"classifier.weight": torch.rand(4, 64), "classifier.bias": torch.rand(4)}
    if program == "lightly":
        # Its own network has ReLU and pool as functions, which a Sequential of its children leaves out.
        net.relu, first = nn.Identity(), [net.conv1, net.bn1, net.layer1, net.layer2, net.layer3, net.layer4]
        state = prefixed(nn.Sequential(*first).state_dict(), "backbone.")
        state = {name.replace(".downsample.", ".shortcut."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="set --normalize none"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", normalize="cifar10")
    loaded = load_encoder(str(tmp_path / "out"), device="cpu")
    assert json.loads((tmp_path / "out" / "import.json").read_text())["encoder"]["stem"] == stem
    torch.testing.assert_close(loaded.encoder(SMALL), features(net, SMALL, "cifar10"), rtol=1e-4, atol=1e-4)
    if program == "solo":
        logits = load_classifier(str(tmp_path / "out"), device="cpu").model(SMALL)
        expected = features(net, SMALL, "cifar10") @ state["classifier.weight"].T + state["classifier.bias"]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_one_of_several_networks_is_chosen_by_prefix(tmp_path: Path) -> None:
    first, second = narrow(), narrow(50)
    torch.save({"a": bare(first), "b": bare(second)}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"several networks, under 'a\.', 'b\.'"):
        import_checkpoint(tmp_path / "two.pt", tmp_path / "out")
    with pytest.raises(UserError, match="no network under --prefix 'c'"):
        import_checkpoint(tmp_path / "two.pt", tmp_path / "out", prefix="c")
    import_checkpoint(tmp_path / "two.pt", tmp_path / "out", prefix="b")
    got = load_encoder(str(tmp_path / "out"), device="cpu").encoder(IMAGES)
    torch.testing.assert_close(got, features(second, IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["", "torchvision:resnet18"])
def test_the_choice_between_a_network_and_its_average_is_stated(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    net, average = torchvision.models.resnet18().eval(), torchvision.models.resnet18().eval()
    torch.save({"model_ema": average.state_dict(), "model": net.state_dict()}, tmp_path / "both.pth")
    for prefix, expected in (("", net), ("model_ema", average)):
        out = tmp_path / f"out{prefix}"
        said = import_checkpoint(tmp_path / "both.pth", out, architecture=architecture, prefix=prefix)
        got = load_encoder(str(out), device="cpu").encoder(IMAGES)
        torch.testing.assert_close(got, features(expected, IMAGES), rtol=1e-4, atol=1e-4)
        assert ("the one under 'model.' is used, and not the one under 'model_ema.'" in said) == (not prefix)
        assert (len(json.loads((out / "import.json").read_text())["assumed"]) > 1) == (not prefix)
    torch.save({"student": average.state_dict(), "teacher": net.state_dict()}, tmp_path / "both.pth")
    with pytest.raises(UserError, match=r"several networks.*, under 'student\.', 'teacher\.'.*--prefix"):
        import_checkpoint(tmp_path / "both.pth", tmp_path / "no", architecture=architecture)


def test_flags_that_a_named_architecture_does_not_use_are_refused(tmp_path: Path) -> None:
    torch.save(narrow().state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="--stem, --classifier-layer: not used with --architecture"):
        import_checkpoint(
            tmp_path / "net.pth", tmp_path / "out", architecture="torchvision:resnet18", stem="cifar",
            classifier_layer=0,
        )  # fmt: skip
    with pytest.raises(UserError, match="no tensor has the prefix 'b'; names begin with bn1, conv1"):
        import_checkpoint(tmp_path / "net.pth", tmp_path / "out", architecture="torchvision:resnet18", prefix="b")


class Stranger:
    """An object that `torch.save` pickles together with the weights, as many programs do."""


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": bare(narrow()), "config": Stranger()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"(?s)Stranger.*could run code.*torch\.save\(model\.state_dict\(\)"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "cannot be read as weights"),
        (b"\x00" * 50, "cannot be read as weights"),
        ({"epoch": 3}, "contains a dict without tensors"),
        ({"weight": torch.zeros(2)}, "found no ResNet"),
        ({"vit.encoder.layer.0.attention.weight": torch.zeros(2)}, r"found no ResNet .*--architecture timm:"),
        (prefixed(torchvision.models.resnet18().state_dict(), "net.") | {"net.conv1.weight": torch.zeros(64, 1, 7, 7)},
         r"a network for images of 1 channels, whose weights do not show .* set --normalize none"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "a.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out")


@pytest.mark.parametrize("architecture", ["", "torchvision:resnet18"])
def test_networks_for_other_than_three_channels(tmp_path: Path, architecture: str) -> None:
    """Multispectral networks, for example, take images in [0, 1] as they are."""
    net = torchvision.models.resnet18() if architecture else narrow()
    net.conv1 = nn.Conv2d(13, net.conv1.out_channels, 7, 2, 3, bias=False)
    torch.save({"state_dict": prefixed(bare(net.eval()), "module.encoder_q.")}, tmp_path / "satellite.pth")
    with pytest.raises(UserError, match="--normalize imagenet is for 3 channels"):
        import_checkpoint(tmp_path / "satellite.pth", tmp_path / "out", architecture=architecture, normalize="imagenet")
    said = import_checkpoint(tmp_path / "satellite.pth", tmp_path / "out", architecture=architecture, normalize="none")
    assert "13 channels" in said
    loaded = load_encoder(str(tmp_path / "out"), device="cpu")
    images = torch.rand(2, 13, 48, 48, generator=torch.Generator().manual_seed(0))
    net.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(images), net(images), rtol=1e-4, atol=1e-4)
    assert loaded.channels == 13


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(UserError, match="damaged or not a safetensors"):
        import_checkpoint(tmp_path / "a.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.weight"), r"layer2\.0\.bn1\.weight is missing"),
        (lambda s: s.update({"layer1.0.se.weight": torch.zeros(1)}), r"layer1\.0\.se\.weight is unexpected"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("layer4.1.")], "2-2-2-1 basic blocks"),
    ],
)
def test_other_networks_say_how_they_differ(tmp_path: Path, change: Callable[[State], object], message: str) -> None:
    state = bare(narrow())
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out")


@pytest.mark.parametrize(("small", "stem", "message"), [(True, "imagenet", "3x3, not 7x7"), (False, "cifar", "is 7x7")])
def test_a_stem_that_cannot_be_is_refused(tmp_path: Path, small: bool, stem: Any, message: str) -> None:
    torch.save(bare(narrow(small=small)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out", stem=stem)


def test_weights_quantised_to_integers_are_refused(tmp_path: Path) -> None:
    state = narrow().state_dict()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(torch.int8)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight is torch\.int8, expected floating-point numbers"):
        import_checkpoint(tmp_path / "net.pth", tmp_path / "out")
    net = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"weight is torch\.int8, expected floating-point numbers"):
        match_names({"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.ones(2)}, net, tmp_path / "net.pth")
