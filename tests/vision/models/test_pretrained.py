"""Networks of torchvision, timm and users, started from files: their features in every command."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions, RunOptions
from contrastive_core.training.weights import read_tensors
from ssl_vision.augment import EvalTransform
from ssl_vision.cli import main
from ssl_vision.commands.distill import distill
from ssl_vision.commands.embed import embed
from ssl_vision.commands.few_labels import few_labels
from ssl_vision.commands.import_checkpoint import import_checkpoint
from ssl_vision.commands.knn import knn
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.data import open_images
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.models.encoder import Normalized, core_network
from ssl_vision.models.model_folder import load_classifier, load_encoder, load_pretrained, open_start
from ssl_vision.models.pretrained import load_weights
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.options import (
    AugmentOptions,
    DistillationOptions,
    FinetuningOptions,
    OptimizerOptions,
    PretrainingOptions,
    build_optimizer,
    layer_depths,
)

QUIET = RunOptions(threads=1, log_every=1, device="cpu", progress=False)
IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def source(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """A library's network with random weights, and the same without classifier; batch norm has run on images."""
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    if library == "torchvision":
        whole = torchvision.models.get_model(model, weights=None, num_classes=7)
    else:
        sized = {"img_size": size} if "vit" in model else {}
        whole = timm.create_model(model, pretrained=False, num_classes=7, **sized)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.9, 1.1)
    whole.eval()
    features = whole
    if library == "torchvision":
        features = torchvision.models.get_model(model, weights=None, num_classes=7).eval()
        features.load_state_dict(whole.state_dict())
        for part in ("fc", "classifier", "heads"):
            if hasattr(features, part):
                setattr(features, part, nn.Identity())
                break
    else:
        features = timm.create_model(model, pretrained=False, num_classes=0, **sized).eval()
        features.load_state_dict(whole.state_dict(), strict=False)
    return whole, features


NETWORKS = [
    ("torchvision:resnet18", 64), ("timm:resnet18d", 64), ("timm:vit_tiny_patch16_224", 64), ("timm:convnext_atto", 64),
    ("timm:efficientnet_lite0", 64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_features_are_the_source_s_through_every_command(name: str, size: int, tmp_path: Path, write, noise) -> None:
    whole, features = source(name, size)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.backbone._orig_mod.{k}": v for k, v in whole.state_dict().items()}}, file)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    config = None if name.startswith("torchvision") else timm.get_pretrained_cfg(name.partition(":")[2])
    mean, std = IMAGENET if config is None else (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))

    def expected(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return features((pictures - mean) / std)

    options = EncoderOptions(name=name, weights=file)
    loaded = load_encoder("none", device="cpu", image_size=size, encoder=options)  # knn, linear, transfer, embed
    started = open_start("none", encoder=options, from_layer=0, image_size=size).build(7).eval()  # finetune, distill
    import_checkpoint(file, tmp_path / "imported", architecture=name, image_size=size)
    imported = load_pretrained(str(tmp_path / "imported"))
    assert imported.image_size == size
    with torch.no_grad():
        for encoder in (loaded.encoder, started.encoder, imported.encoder.eval()):
            torch.testing.assert_close(encoder(images), expected(images), atol=1e-5, rtol=1e-4)
    data = write({f"photos/{i}.png": noise(i, size=(size + 8, size)) for i in range(3)}) / "photos"
    embed(str(tmp_path / "imported"), str(data), tmp_path / "b.npz", inference=InferenceOptions(device="cpu"))
    images_there = open_images(data)
    pictures = EvalTransform(size)([images_there.read(i) for i in range(3)])
    np.testing.assert_allclose(np.load(tmp_path / "b.npz")["features"], expected(pictures), atol=1e-5, rtol=1e-3)


def test_pre_training_goes_on_from_a_file_and_begins_with_its_features(tmp_path: Path, write, noise) -> None:
    name, size = "timm:vit_tiny_patch16_224", 32
    whole, features = source(name, size)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    encoder = EncoderOptions(name=name, weights=tmp_path / "vit.safetensors")
    run = tmp_path / "run"
    data = str(write({f"photos/{i}.png": noise(i, size=(40, 36)) for i in range(4)}) / "photos")
    pretrain(
        data, run, training=PretrainingOptions(epochs=1, batch_size=4, image_size=size, save_every=1), encoder=encoder,
        augment=AugmentOptions(flip=False),
        optimizer=OptimizerOptions(name="adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.75), run=QUIET,
    )  # fmt: skip
    images = torch.rand(2, 3, size, size)
    config = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    with torch.no_grad():
        before = load_encoder(str(run / "models" / "epoch-0000"), device="cpu").encoder(images)
        after = load_encoder(str(run), device="cpu").encoder(images)
        normalised = (images - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
        torch.testing.assert_close(before, features(normalised), atol=1e-5, rtol=1e-4)
    assert (after - before).abs().max() > 1e-4
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(str(again), device="cpu").encoder(images), after)


def test_a_classifier_and_a_student_start_from_a_file(tmp_path: Path, write, noise) -> None:
    whole, _ = source("torchvision:resnet18", 32)
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    encoder = EncoderOptions(name="torchvision:resnet18", weights=tmp_path / "net.pth")
    places = [f"photos/{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in "12"]
    data = str(write({place: noise(number) for number, place in enumerate(places)}) / "photos")
    finetune(
        "none",
        data,
        tmp_path / "tuned",
        training=FinetuningOptions(1, batch_size=4, image_size=8),
        encoder=encoder,
        optimizer=OptimizerOptions(name="sgd", lr=1e-6, warmup_epochs=0),
        run=QUIET,
    )
    distill(
        str(tmp_path / "tuned"),
        data,
        tmp_path / "student",
        training=DistillationOptions(1, batch_size=4, image_size=8),
        encoder=encoder,
        optimizer=OptimizerOptions(name="sgd", lr=1e-6),
        run=QUIET,
    )
    for run in ("tuned", "student"):
        found = load_classifier(str(tmp_path / run), device="cpu").model.encoder.state_dict()
        torch.testing.assert_close(found["net.module.conv1.weight"], whole.conv1.weight, atol=1e-3, rtol=0)
    assert (
        knn("none", data, k=1, encoder=encoder, probe=ProbeOptions(device="cpu", out=tmp_path / "knn.json")).images == 4
    )


def test_few_labels_compares_classifiers_on_a_network_from_a_file(tmp_path: Path, write, noise) -> None:
    whole, _ = source("torchvision:resnet18", 32)
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    encoder = EncoderOptions(name="torchvision:resnet18", weights=tmp_path / "net.pth")
    places = [f"photos/{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in "123"]
    data = str(write({place: noise(number, size=(32, 32)) for number, place in enumerate(places)}) / "photos")
    result = few_labels(
        "none", data, tmp_path / "few", encoder=encoder, epochs=1, inference=InferenceOptions(device="cpu")
    )
    assert [c.method for c in result.candidates] == ["linear", "knn", "finetune"]
    found = load_classifier(str(tmp_path / "few" / "linear"), device="cpu").model.encoder.state_dict()
    assert torch.equal(found["net.module.conv1.weight"], whole.conv1.weight)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_low_rank_updates_are_all_that_is_trained(name: str, tmp_path: Path, write, noise) -> None:
    size = 64 if name.startswith("timm") else 32
    torch.manual_seed(0)
    if name.startswith("timm"):
        whole = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=7)
    else:  # two narrow layers in place of twelve wide ones, by the same class
        whole = torchvision.models.VisionTransformer(size, 16, 2, 2, 32, 64)
    encoder = EncoderOptions(name=name, weights=tmp_path / "vit.pth")
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    places = [f"photos/train/{kind}/{i}.png" for kind in "ab" for i in "12"]
    data = str(write({place: noise(number, size=(size, size)) for number, place in enumerate(places)}) / "photos")
    with pytest.MonkeyPatch.context() as patch:
        small = lambda *_, **__: torchvision.models.VisionTransformer(size, 16, 2, 2, 32, 64)  # noqa: E731
        patch.setattr(torchvision.models, "get_model", small)
        finetune(
            "none",
            data,
            tmp_path / "run",
            encoder=encoder,
            training=FinetuningOptions(image_size=size, epochs=3, batch_size=4),
            lora_rank=2,
            optimizer=OptimizerOptions(name="adamw", lr=0.05, warmup_epochs=0),
            run=QUIET,
        )
        found = load_classifier(str(tmp_path / "run"), device="cpu").model
    after = {key.removeprefix("net.module."): value for key, value in found.encoder.state_dict().items()}
    before = {key: value for key, value in whole.state_dict().items() if key in after}
    linear = {
        key
        for key in before
        if re.search(r"(qkv|proj|fc\d|in_proj_|out_proj|mlp\.\d|linear_\d)\.?weight$", key) and "patch" not in key
        and "conv" not in key
    }  # fmt: skip
    assert len(linear) >= 8
    for key, tensor in before.items():
        difference = after[key] - tensor
        if key in linear:
            singular = torch.linalg.svdvals(difference)
            assert singular[1] > 1e-4
            assert singular[2] < 1e-4 * singular[0]
        else:
            assert torch.equal(after[key], tensor), key
    assert found.fc.weight.abs().max() > 0


def test_low_rank_updates_of_convolutions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lora_rank needs an encoder with linear layers"):
        finetune(
            "none",
            "digits",
            tmp_path,
            encoder=EncoderOptions(width_multiplier=0.125),
            lora_rank=4,
            training=FinetuningOptions(epochs=1),
            run=QUIET,
        )


def test_a_learning_rate_of_lars_is_refused_for_adamw() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr is 1 with adamw.*expected at most 0\.1"):
        OptimizerOptions(name="adamw")


def test_position_embeddings_are_resampled_by_timm(tmp_path: Path) -> None:
    whole, _ = source("timm:vit_tiny_patch16_224", 64)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    options = EncoderOptions(name="timm:vit_tiny_patch16_224", weights=tmp_path / "vit.pth")
    encoder, resolved, size, notes = load_weights(options, image_size=96)
    assert (size, resolved.weights, notes) == (96, None, [])
    assert encoder(torch.rand(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_numbers_of_chunks_in_names_of_blocks_do_not_matter(prefix: str, tmp_path: Path) -> None:
    """DINOv2's training program numbers chunks of blocks: blocks.0.3.norm1.weight."""
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    names = {name: re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", name) for name in net.state_dict()}
    torch.save({f"{prefix}{names[name]}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "a.pth")
    options = EncoderOptions(name="timm:vit_tiny_patch16_224", weights=tmp_path / "a.pth")
    encoder, _, _, notes = load_weights(options, image_size=32)
    for name, tensor in core_network(encoder).state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])
    assert notes == []


def test_assumptions_about_a_named_network_are_stated(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    said = import_checkpoint(tmp_path / "a.pth", tmp_path / "out", architecture="timm:vit_tiny_patch16_224")
    assert "pos_embed was resampled from [1, 5, 192] to [1, 197, 192]: the file is for another image size" in said
    assert "normalised with mean (0.5, 0.5, 0.5) and deviation (0.5, 0.5, 0.5), as in the configuration of timm" in said
    torch.save({"vit.embeddings.cls_token": torch.zeros(1, 1, 192)}, tmp_path / "hf.pth")
    with pytest.raises(UserError, match="names of Hugging Face transformers; most of these models are also published"):
        load_weights(EncoderOptions(name="timm:vit_tiny_patch16_224", weights=tmp_path / "hf.pth"), image_size=32)


def test_other_weights_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    for name, message in (
        (
            "torchvision:resnet34",
            r"r18\.pth: does not contain the weights of ResNet .*layer1\.2\.conv1\.weight is missing",
        ),
        ("timm:convnext_atto", r"does not contain the weights of ConvNeXt"),
        ("timm:resnet18_of_mine", r"timm has no model named 'resnet18_of_mine'; did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            load_weights(EncoderOptions(name=name, weights=tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"expected a network and its weights \(--encoder\.name"):
        load_encoder("none", device="cpu")
    with pytest.raises(UserError, match="a model includes its encoder"):
        load_encoder("runs/a", device="cpu", encoder=EncoderOptions())


WRAPPERS = {
    "layers": lambda name: re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name),
    "blocks": lambda name: re.sub(r"^(layer\d\.\d)\.", r"\1._orig_mod.", name),
    "stem": lambda name: name.replace("conv1.weight", "conv1._orig_mod.weight") if name == "conv1.weight" else name,
    "processes inside": lambda name: re.sub(r"^(layer\d)\.", r"\1.module.", name),
    "both": lambda name: f"module._orig_mod.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_parts_that_wrappers_put_into_names_do_not_matter(wrapper: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    renamed = {WRAPPERS[wrapper](name): tensor for name, tensor in net.state_dict().items()}
    torch.save(
        {"state_dict": renamed, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "epoch": 3},
        tmp_path / "a.ckpt",
    )
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "imported", classifier_layer=0)
    encoder = load_classifier(str(tmp_path / "imported"), device="cpu").model.encoder
    net.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), net((images - IMAGENET[0]) / IMAGENET[1]), atol=1e-5, rtol=1e-4)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_what_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.ones(1), "other": _Runs()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="could run code"):
        read_tensors(tmp_path / "bad.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:convnext_tiny", "resnet18"])
def test_learning_rates_fall_from_the_last_block_to_the_first(name: str) -> None:
    encoder = build_encoder(EncoderOptions(name=name), image_size=32)
    depths = layer_depths(encoder)
    deepest = max(depths.values())
    assert min(depths.values()) in (0, 1)
    assert deepest >= 5
    optimizer = build_optimizer(encoder, OptimizerOptions(name="adamw", lr=1e-3, layer_decay=0.5), lr=1.0)
    names = {id(p): n for n, p in encoder.named_parameters()}
    for group in optimizer.param_groups:
        assert {0.5 ** (deepest - depths[names[id(p)]]) for p in group["params"]} == {group["lr_scale"]}
        # Biases, gains, layer scales [C, 1, 1], class tokens and position embeddings are not decayed.
        plain = {
            sum(side > 1 for side in p.shape) < 2 or "embed" in names[id(p)].split(".")[-1] for p in group["params"]
        }
        assert plain == {group["weight_decay"] == 0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_a_network_from_a_file_teaches_a_small_student_from_few_labels(tmp_path: Path, write, noise) -> None:
    """The three commands of docs/ssl-vision/few-labels.md, "A teacher that is better in kind"."""
    whole, _ = source("timm:vit_tiny_patch16_224", 32)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    places = [f"photos/{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in "1234"]
    data = str(write({place: noise(number, size=(32, 32)) for number, place in enumerate(places)}) / "photos")
    listed = tmp_path / "labels.txt"
    listed.write_text("a/1.png\na/2.png\nb/1.png\nb/2.png\n")
    network = ["--encoder.name", "timm:vit_tiny_patch16_224", "--encoder.weights", str(tmp_path / "vit.safetensors")]
    few, student = tmp_path / "few", tmp_path / "student"
    words = ["few-labels", "none", data, str(few), "--labels", str(listed), *network, "--methods", "[linear]"]
    assert main(words) == 0
    words = ["distill", str(few / "linear"), data, str(student), "--encoder.width_multiplier", "0.125", "--epochs", "1"]
    assert main([*words, "--batch_size", "4", "--image_size", "224"]) == 0
    taught = load_classifier(str(student), device="cpu")
    assert taught.classes == ["a", "b"]
    assert main(["evaluate", str(student), data]) == 0


class _FirstPasses:
    """Records what encoders with normalised input return in their first pass, beside the source's features.

    The source runs in the mode of the encoder, training or inference, so that batch norm gets the same batch.
    """

    def __init__(self, features: nn.Module) -> None:
        self._features, self._seen = features, set[int]()
        self.errors: list[float] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, Normalized) or id(module) in self._seen:
            return
        self._seen.add(id(module))
        twin = copy.deepcopy(self._features).train(module.training)
        with torch.no_grad():
            expected = twin((inputs[0] - module.mean) / module.std)
        self.errors.append(float((output.detach() - expected).abs().max() / expected.abs().max()))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_every_command_starts_with_the_source_s_features(name: str, tmp_path: Path, write, noise) -> None:
    size = 32
    whole, features = source(name, size)
    file, folder = tmp_path / "weights.pth", str(tmp_path / "imported")
    torch.save(whole.state_dict(), file)
    places = [f"photos/{split}/{kind}/{i}.png" for split in ("train", "test") for kind in "ab" for i in "123"]
    data = str(write({place: noise(number, size=(40, 36)) for number, place in enumerate(places)}) / "photos")
    import_checkpoint(file, Path(folder), architecture=name, image_size=size)
    network = ["--encoder.name", name, "--encoder.weights", str(file)]
    sized, short = ["--image_size", str(size)], ["--epochs", "1", "--batch_size", "4", "--device", "cpu"]
    adamw = ["--optimizer.name", "adamw", "--optimizer.lr", "1e-4"]
    here = lambda place: str(tmp_path / place)  # noqa: E731
    commands = [
        ["knn", folder, data, "--k", "2"],
        ["linear", folder, data, "--epochs", "1", "--augment", "none"],
        ["linear", folder, data, "--epochs", "1", "--out", here("cropped.json")],
        ["transfer", folder, data],
        ["embed", folder, data, here("features.npz")],
        ["few-labels", folder, data, here("few"), "--methods", "[linear,knn]"],
        ["predict", here("few/linear"), data, here("classes.csv")],
        ["evaluate", here("few/linear"), data],
        ["finetune", folder, data, here("tuned"), *short, *adamw],
        ["finetune", "none", data, here("tuned-file"), *network, *sized, *short, *adamw],
        ["distill", here("few/linear"), data, here("taught"), "--init", folder, *short, *adamw],
        ["distill", here("few/linear"), data, here("taught-file"), *network, *sized, *short, *adamw],
        ["pretrain", data, here("on"), "--init", folder, *sized, *short, *adamw],
        ["pretrain", data, here("on-file"), *network, *sized, *short, *adamw],
    ]
    if "resnet" in name:  # without a folder, a transformer takes images of the size that it was published for
        commands += [
            ["knn", "none", data, *network, "--k", "2"],
            ["embed", "none", data, here("file.npz"), *network],
            ["few-labels", "none", data, here("few-file"), *network, "--methods", "[linear,knn]"],
        ]
    for command in commands:
        passes = _FirstPasses(features)
        hook = torch.nn.modules.module.register_module_forward_hook(passes)
        try:
            assert main(command) == 0, command
        finally:
            hook.remove()
        # Scored or continued: at least one pass of the encoder, and of a distillation one of each network.
        assert len(passes.errors) >= (2 if command[0] == "distill" else 1), command
        first = passes.errors[: 2 if command[0] == "distill" else 1]
        assert max(first) < 1e-5, (command, first)
