"""Initial weights: files as other libraries write them give the same features."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.networks import check_clip, last_layer
from ssl_video.models.pretrained import begin_from


def random_statistics(network: nn.Module) -> nn.Module:
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
    return network.eval()


def features(network: nn.Module, layer: nn.Module, clips: Tensor) -> Tensor:
    """Return the inputs of the last layer."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        network.eval()(clips)
    handle.remove()
    return seen[0].flatten(1)


def saved(network: nn.Module, file: Path, *, under: str | None = None, prefix: str = "") -> Path:
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({under: state} if under else state, file)
    return file


def theirs(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name in ("r3d_18", "r2plus1d_18"):
        from torchvision.models import video

        return random_statistics(getattr(video, name)(weights=None, num_classes=400))
    if name == "slow_r50":
        from pytorchvideo.models.hub import slow_r50

        return random_statistics(slow_r50(pretrained=False))
    from pytorchvideo.models.hub import x3d_xs

    return random_statistics(x3d_xs(pretrained=False))


CLIPS = {
    "r3d_18": (1, 3, 4, 32, 32),
    "r2plus1d_18": (1, 3, 4, 32, 32),
    "slow_r50": (1, 3, 8, 224, 224),
    "x3d_xs": (1, 3, 4, 160, 160),
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("form", [None, "state_dict", "model_state"])
def test_weights_of_the_libraries_give_their_features(name: str, form: str | None, tmp_path: Path) -> None:
    if form is not None and name != "x3d_xs":
        pytest.skip("one network is enough")
    source = theirs(name)
    file = saved(source, tmp_path / "kinetics.pyth", under=form, prefix="module." if form == "state_dict" else "")
    ours = build_network(NetworkOptions(name), 5)  # type: ignore[arg-type]
    told = begin_from(ours, file)
    assert "the last layer is new" in told
    x = torch.rand(*CLIPS[name])
    layers = [dict(network.named_modules())[last_layer(network).rstrip(".")] for network in (source, ours)]
    assert torch.allclose(features(source, layers[0], x), features(ours, layers[1], x), rtol=1e-4, atol=1e-5)


class _HeadReachedError(Exception):
    """Ends a forward pass before the head, whose pooling fits only one clip size."""


def before_the_head(network: nn.Module, given: Tensor | list[Tensor]) -> list[Tensor]:
    """Return the output of the last stage; for SlowFast, of both pathways."""
    seen: list[Tensor] = []
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    pools = type(blocks[-2]).__name__ == "PoolConcatPathway"

    def stop(_: nn.Module, inputs: tuple[Tensor | list[Tensor], ...]) -> None:
        seen.extend(inputs[0] if isinstance(inputs[0], list) else [inputs[0]])
        raise _HeadReachedError

    handle = blocks[-2 if pools else -1].register_forward_pre_hook(stop)
    with torch.no_grad(), pytest.raises(_HeadReachedError):
        network.eval()(given)
    handle.remove()
    return seen


BUILT_BY_PYTORCHVIDEO = ["slowfast_r50", "r2plus1d_r50", "csn_r101"]


@pytest.mark.parametrize("name", BUILT_BY_PYTORCHVIDEO)
def test_networks_of_pytorchvideo_are_theirs_to_the_bit(name: str, tmp_path: Path) -> None:
    from pytorchvideo.models import hub

    torch.manual_seed(1)
    source = random_statistics(getattr(hub, name)(pretrained=False))
    ours = build_network(NetworkOptions(name), 5)
    assert "the last layer is new" in begin_from(ours, saved(source, tmp_path / "kinetics.pyth", under="model_state"))
    clip = torch.rand(1, 3, 8, 32, 32)
    given = [clip[:, :, ::4].clone(), clip.clone()] if name == "slowfast_r50" else clip
    expected, found = before_the_head(source, given), before_the_head(ours, clip)
    assert len(expected) == len(found) == (2 if name == "slowfast_r50" else 1)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert ours.train()(torch.rand(2, 3, 9, 40, 32)).shape == (2, 5)  # of any length and size


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("slowfast_r50", 32), ("r2plus1d_r50", 16), ("csn_r101", 32)])
def test_all_classes_of_kinetics_give_the_logits_of_pytorchvideo(name: str, frames: int, tmp_path: Path) -> None:
    from pytorchvideo.models import hub

    torch.manual_seed(1)
    source = random_statistics(getattr(hub, name)(pretrained=False))
    ours = build_network(NetworkOptions(name), 400)
    begin_from(ours, saved(source, tmp_path / "kinetics.pyth"))
    clip = torch.rand(1, 3, frames, 224, 224)
    given = [clip[:, :, ::4].clone(), clip.clone()] if name == "slowfast_r50" else clip
    with torch.no_grad():
        assert torch.allclose(source(given), ours.eval()(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["torchvision", "pytorchvideo"])
def test_mvit_of_both_libraries(library: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    if library == "torchvision":
        from torchvision.models.video import mvit_v1_b

        source = mvit_v1_b(weights=None).eval()
    else:
        from pytorchvideo.models.hub import mvit_base_16x4

        source = mvit_base_16x4(pretrained=False).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # what starts at 0 or 1 is told apart too
    ours = build_network(NetworkOptions("mvit_b"), 5)
    assert "the last layer is new" in begin_from(ours, saved(source, tmp_path / "mvit.pth"))
    layers = [dict(network.named_modules())[last_layer(network).rstrip(".")] for network in (source, ours)]
    clip = torch.rand(1, 3, 16, 224, 224)
    expected, found = features(source, layers[0], clip), features(ours, layers[1], clip)
    # The norms of pooled queries and keys add 1e-6 to the variance in one library, 1e-5 in the other.
    tolerance = 1e-3 if library == "torchvision" else 1e-6
    assert (expected - found).abs().max() < tolerance * expected.abs().max()


def test_mvit_names_the_clips_it_takes() -> None:
    with pytest.raises(UserError, match=r"8 frames at 112 pixels.*set clip\.frames to 16 and image_size to 224"):
        check_clip(NetworkOptions("mvit_b"), frames=8, size=112)
    check_clip(NetworkOptions("mvit_b"), frames=16, size=224)
    check_clip(NetworkOptions("slow_r50"), frames=8, size=112)


def test_an_image_network_sees_a_still_clip_as_its_picture(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    source = random_statistics(resnet50(weights=None))
    ours = build_network(NetworkOptions("slow_r50"), 5)
    begin_from(ours, saved(source, tmp_path / "resnet50.pth"))
    picture = torch.rand(1, 3, 64, 64)
    still = picture[:, :, None].expand(-1, -1, 4, -1, -1)
    layer = dict(ours.named_modules())[last_layer(ours).rstrip(".")]
    assert torch.allclose(features(ours, layer, still), features(source, source.fc, picture), rtol=1e-3, atol=1e-4)


def test_names_of_mmaction2_are_understood(tmp_path: Path) -> None:
    """SlowOnly: backbone.conv1.conv, layer1.0.conv1.bn, layer1.0.downsample.conv; the head is cls_head.fc_cls."""
    torch.manual_seed(0)
    source = random_statistics(build_network(NetworkOptions("slow_r50", width=8), 7))
    parts = {"conv_a": "conv1.conv", "norm_a": "conv1.bn", "conv_b": "conv2.conv", "norm_b": "conv2.bn"}
    parts |= {"conv_c": "conv3.conv", "norm_c": "conv3.bn"}
    state = {}
    for name, tensor in source.state_dict().items():
        new = name.replace("blocks.0.conv.", "conv1.conv.").replace("blocks.0.norm.", "conv1.bn.")
        for number in range(1, 5):
            new = new.replace(f"blocks.{number}.res_blocks.", f"layer{number}.")
        for a, b in parts.items():
            new = new.replace(f"branch2.{a}.", f"{b}.")
        new = new.replace("branch1_conv.", "downsample.conv.").replace("branch1_norm.", "downsample.bn.")
        state["cls_head.fc_cls." + name.rpartition(".")[2] if "proj" in name else f"backbone.{new}"] = tensor
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "slowonly.pth")
    ours = build_network(NetworkOptions("slow_r50", width=8), 5)
    begin_from(ours, tmp_path / "slowonly.pth")
    before, after = source.state_dict(), ours.state_dict()
    assert all(
        torch.equal(after[name], tensor) for name, tensor in before.items() if not name.startswith(last_layer(ours))
    )


def mmaction_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of torchvision's ResNet as mmaction2 does, which wraps every convolution with its batch norm."""
    found = {}
    for name, tensor in state.items():
        new = re.sub(r"(^|\.)conv(\d)\.", r"\1conv\2.conv.", name)
        new = re.sub(r"(^|\.)bn(\d)\.", r"\1conv\2.bn.", new)
        new = new.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        found[f"cls_head.fc_cls.{new[3:]}" if new.startswith("fc.") else f"backbone.{new}"] = tensor
    return found


def test_tsn_of_mmaction2_is_the_2d_network_that_it_contains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    flat = random_statistics(torchvision.models.resnet50(num_classes=7))
    torch.save(flat.state_dict(), tmp_path / "resnet50.pth")
    torch.save({"meta": {}, "state_dict": mmaction_names(flat.state_dict())}, tmp_path / "tsn.pth")
    both = []
    for name in ("resnet50.pth", "tsn.pth"):
        torch.manual_seed(1)
        network = build_network(NetworkOptions("slow_r50"), 5)
        assert "not used" not in begin_from(network, tmp_path / name)
        both.append(network.state_dict())
    assert both[0].keys() == both[1].keys()
    assert all(torch.equal(both[0][name], tensor) for name, tensor in both[1].items())


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    ours = build_network(NetworkOptions("small_slow", width=4), 5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for options in (NetworkOptions("small_slow", width=8), NetworkOptions("slow_r50", width=8)):
        file = saved(build_network(options, 5), tmp_path / f"{options.name}.pth")
        with pytest.raises(UserError, match=r"tensors of the network are missing from it or have another shape"):
            begin_from(ours, file)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())
    told = begin_from(ours, saved(build_network(NetworkOptions("small_slow", width=4), 5), tmp_path / "same.pth"))
    assert "last layer" not in told
