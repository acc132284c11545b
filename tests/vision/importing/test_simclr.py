"""Imported official SimCLR checkpoints give the values that the official code computed with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_vision import export, finetune, import_checkpoint, knn
from ssl_vision.cli import main
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.importing.simclr import _architecture, _in_order, by_name, by_objects, read_simclr
from ssl_vision.importing.tensorflow import Node, ObjectGraph
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.model_folder import load_classifier, load_encoder, load_simclr
from ssl_vision.training.options import FinetuningOptions

FILES = Path(__file__).parent / "tensorflow_files"


def pictures(size: int) -> Tensor:
    """The two images that the official code was given."""
    i = np.arange(2 * size * size * 3, dtype=np.int64)
    images = ((i * i * 7 + i * 31) % 251 / 250).reshape(2, size, size, 3).astype(np.float32)
    images[0, : size // 2] *= 0.25
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def official(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = getattr(request, "param", "tf1_r18_cifar")
    shutil.unpack_archive(FILES / f"{name}.tar.xz", tmp_path)
    return tmp_path / name


def close(ours: Tensor, theirs: np.ndarray) -> bool:
    """Equal to 1e-4 of the largest value, which must not be zero."""
    assert np.abs(theirs).max() > 0.1
    return (ours - torch.from_numpy(theirs)).abs().max().item() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("official", "inside", "size", "layer", "depth", "sk_ratio", "layers"),
    [
        ("tf1_r18_cifar", "", 32, 0, 18, 0.0, 3),
        ("tf1_r50_sk_imagenet", "model.ckpt-12", 64, 1, 50, 0.0625, 3),
        ("tf2_r18_cifar", "ckpt-12", 32, 0, 18, 0.0, 2),
        ("tf2_r18_cifar", "saved", 32, 0, 18, 0.0, 2),
        ("tf2_r50_sk_imagenet", "ckpt-12.index", 64, 0, 50, 0.0625, 3),
    ],
    indirect=["official"],
)
def test_features_projections_and_logits_are_the_official_code_s(
    official: Path, inside: str, size: int, layer: int, depth: int, sk_ratio: float, layers: int, tmp_path: Path
) -> None:
    expected = np.load(official / "outputs.npz")
    images = pictures(size)
    import_checkpoint(official / inside, tmp_path / "encoder")
    simclr = load_simclr(str(tmp_path / "encoder")).eval()
    with torch.no_grad():
        features = simclr.encoder(images)
        assert close(features, expected["features"])
        assert close(simclr.head(features), expected["projection"])
    assert len(simclr.head.layers) == layers
    card = json.loads((tmp_path / "encoder" / "import.json").read_text())
    assert EncoderOptions(**card["encoder"]) == EncoderOptions(
        name=f"resnet{depth}", width_multiplier=1 / 32, stem="cifar" if size == 32 else "imagenet", sk_ratio=sk_ratio
    )

    import_checkpoint(official / inside, tmp_path / "classifier", classifier_layer=layer)
    loaded = load_classifier(str(tmp_path / "classifier"), device="cpu")
    with torch.no_grad():
        assert close(loaded.model(images), expected["logits"])
    assert loaded.classes == ["0", "1", "2"]


def test_everything_left_out_is_said(official: Path, tmp_path: Path) -> None:
    said = import_checkpoint(official, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "import.json").read_text())["left_out"] == [
        "base_model/conv2d/kernel/Momentum",
        "global_step",
        "head_supervised/linear_layer/dense/bias",
        "head_supervised/linear_layer/dense/kernel",
    ]
    assert "left out 4 tensors" in said
    assert "--classifier-layer 0 or 1" in said
    assert "3 layers, 8 outputs" in said


def test_imported_folders_are_evaluated(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-checkpoint", str(official), str(tmp_path / "out"), "--image_size", "16"]) == 0
    assert "resnet18, width 0.03125, cifar stem" in capsys.readouterr().out
    assert load_encoder(str(tmp_path / "out"), device="cpu").image_size == 16
    assert knn(str(tmp_path / "out"), "digits", k=5, probe=ProbeOptions(device="cpu")).images == 364


def test_imported_models_are_fine_tuned_from_their_head_and_exported(official: Path, tmp_path: Path) -> None:
    import_checkpoint(official, tmp_path / "imported", image_size=16)
    before = load_simclr(str(tmp_path / "imported"))
    finetune(
        str(tmp_path / "imported"),
        "digits",
        tmp_path / "tuned",
        from_layer=1,
        training=FinetuningOptions(epochs=1, batch_size=512),
        run=RunOptions(device="cpu", progress=False),
    )
    tuned = load_classifier(str(tmp_path / "tuned"), device="cpu").model
    kept = tuned.neck[0].get_submodule("linear").weight
    start = before.head.layers[0].get_submodule("linear").weight
    assert not torch.equal(kept, start)
    torch.testing.assert_close(kept, start, rtol=0, atol=0.1)
    export(str(tmp_path / "tuned"), tmp_path / "tuned.pt2")
    program = torch.export.load(tmp_path / "tuned.pt2").module()
    images = pictures(16)
    torch.testing.assert_close(program(images), tuned(images), rtol=1e-4, atol=1e-4)


def test_class_names_come_from_a_file(official: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    import_checkpoint(official, tmp_path / "out", classifier_layer=0, classes=tmp_path / "names.txt")
    assert load_classifier(str(tmp_path / "out"), device="cpu").classes == ["cat", "dog", "emu"]
    (tmp_path / "two.txt").write_text("cat\ndog\ndog\n")
    with pytest.raises(UserError, match="2 different names; the classifier has 3"):
        import_checkpoint(official, tmp_path / "b", classifier_layer=0, classes=tmp_path / "two.txt")
    with pytest.raises(UserError, match="set --classifier-layer"):
        import_checkpoint(official, tmp_path / "b", classes=tmp_path / "names.txt")
    assert not (tmp_path / "b").exists()


def test_a_classifier_goes_where_its_width_fits(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes 16 features, but layer 3 of the projection head has 8"):
        import_checkpoint(official, tmp_path / "out", classifier_layer=3)
    with pytest.raises(UserError, match="layer 4 of a projection head that has 3"):
        import_checkpoint(official, tmp_path / "out", classifier_layer=4)


@pytest.mark.parametrize("official", ["tf2_r18_cifar"], indirect=True)
def test_flags_without_a_meaning_are_refused(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="by objects, not by prefixes"):
        import_checkpoint(official, tmp_path / "out", prefix="ema_model/")
    with pytest.raises(UserError, match="are for PyTorch checkpoints"):
        import_checkpoint(official, tmp_path / "out", normalize="imagenet")


def test_nothing_is_overwritten(official: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "import.json"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    with pytest.raises(
        UserError,
        match=r"import\.json is an input of `ssl-vision import-checkpoint` and would be replaced",
    ):
        import_checkpoint(official, tmp_path / "out")
    assert [path.name for path in theirs.parent.iterdir()] == ["import.json"]
    assert theirs.read_text() == "theirs"


def shapes(**more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    norm = {f"base_model/batch_normalization/{n}": (4,) for n in ("gamma", "beta", "moving_mean", "moving_variance")}
    return {"base_model/conv2d/kernel": (3, 3, 3, 4), **norm, **more}


def test_names_of_a_moving_average_have_a_prefix() -> None:
    both = shapes() | {f"ema_model/{name}": shape for name, shape in shapes().items()}
    assert by_name(both, "", "x").kernels == ["base_model/conv2d/kernel"]
    found = by_name(both, "ema_model/", "x")
    assert found.names() == {name for name in both if name.startswith("ema_model/")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"other/kernel": (1,)}, "found 1 that begin with other"),
        (shapes(**{"base_model/conv2d_2/kernel": (1,)}), "before base_model/conv2d_2/kernel is missing"),
        ({n: s for n, s in shapes().items() if not n.endswith("mean")}, "has no moving_mean"),
        (shapes(**{"head_contrastive/nl_0/dense/kernel": (4, 4)}), "has no batch norm beside it"),
    ],
)
def test_incomplete_checkpoints_say_what_is_missing(names: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        by_name(names, "", "x")


def test_a_tree_that_leads_back_to_itself_ends() -> None:
    graph = ObjectGraph.__new__(ObjectGraph)
    graph.nodes = [Node({"resnet_model": 1}), Node({"layers": 1, "0": 1, "conv2d": 0})]
    assert by_objects(graph, "x").kernels == []


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200])
@pytest.mark.parametrize(
    ("stem", "sk_ratio", "width"),
    [("imagenet", 0.0, 1), ("cifar", 0.0, 2), ("imagenet", 0.0625, 3), ("cifar", 0.0625, 1), ("imagenet", 0.125, 2)],
)
def test_every_architecture_shows_in_its_shapes(depth: int, stem: Any, sk_ratio: float, width: int) -> None:
    with torch.device("meta"):
        net = resnet(depth, width=width, stem=stem, sk_ratio=sk_ratio)
    kernels = [
        (*layer.kernel_size, layer.in_channels, layer.out_channels)
        for _, layer in _in_order(net)
        if isinstance(layer, nn.Conv2d)
    ]
    # Basic blocks have no selective kernels, and with the small stem nothing tells ResNet-D.
    shown = sk_ratio if depth >= 50 else 0.0 if stem == "cifar" or not sk_ratio else 0.0625
    expected = EncoderOptions(name=f"resnet{depth}", width_multiplier=width, stem=stem, sk_ratio=shown)
    assert _architecture(kernels, Path("x")) == expected


def test_basic_blocks_with_resnet_d_of_tensorflow_1_are_refused(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = EncoderOptions(name="resnet18", width_multiplier=1 / 32, stem="imagenet", sk_ratio=0.0625)
    monkeypatch.setattr("ssl_vision.importing.simclr._architecture", lambda *_: found)
    with pytest.raises(UserError, match="also pool the main branch"):
        read_simclr(official)


def test_another_network_is_refused(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_vision.importing.simclr.LAYOUTS", {})
    with pytest.raises(UserError, match="an encoder of 21 convolutions"):
        read_simclr(official)
