"""A segmenter is restored from its folder with labels and preprocessing; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from contrastive_core.training.model_file import save_model, write_card
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.models.model_folder import FORMAT, load_segmenter, save_segmenter
from ssl_medseg.models.pretraining import load_trunk
from ssl_medseg.preprocessing import Preprocessing

OPTIONS = NetworkOptions("unet", 2)
LABELS = LabelMap(("background", "left", "right"), (0, 500, 600))
PREPROCESSING = Preprocessing(size=(64, 32), spacing=(1.5, 1.25), slice_axis=1, orientation="LPS")


def test_a_run_leaves_a_segmenter_that_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(OPTIONS, 3)
    x = torch.randn(3, 1, 64, 32)
    network(x)  # the running averages move
    with Run(tmp_path / "run", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:
        save_segmenter(run, network, options=OPTIONS, labels=LABELS, preprocessing=PREPROCESSING, details={"steps": 7})
    found = load_segmenter(tmp_path / "run", device="cpu")
    assert (found.options, found.labels, found.preprocessing) == (OPTIONS, LABELS, PREPROCESSING)
    assert found.details == {"steps": 7}
    assert not found.network.training
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), network.eval()(x))


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    network = build_network(OPTIONS, 3)
    folder = save_segmenter(tmp_path / "m", network, options=OPTIONS, labels=LABELS, preprocessing=PREPROCESSING)
    assert load_segmenter(str(folder), device="cpu").labels == LABELS


def test_other_models_and_changed_cards_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "other", {}, {"format": "ssl-vision encoder 1"})
    with pytest.raises(UserError, match=r"found a model of format 'ssl-vision encoder 1'.*`ssl-medseg train`"):
        load_segmenter(tmp_path / "other")
    network = build_network(OPTIONS, 3)
    folder = save_segmenter(tmp_path / "m", network, options=OPTIONS, labels=LABELS, preprocessing=PREPROCESSING)
    card = json.loads((folder / "model.json").read_text())
    good = json.dumps(card)
    for key, value, said in (
        (
            "labels",
            {"names": ["a", "b"], "values": [0, 1]},
            r"head.classify.weight is \[2, 2, 3, 3\] according to model.json",
        ),
        ("network", {"nme": "unet"}, "does not describe a segmenter"),
    ):
        changed = json.loads(good)
        changed["metadata"][key] = value
        write_card(folder / "model.json", changed)
        with pytest.raises(UserError, match=said):
            load_segmenter(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("monai:HoVerNet", {"pretrained_url": "https://example.org/weights.pth"}),
        ("monai:Transchex", {"path_or_repo_id": "somebody/model", "filename": "x.bin"}),
    ],
)
@pytest.mark.parametrize("load", [load_segmenter, load_trunk])
def test_opening_a_model_fetches_no_weights(
    name: str, arguments: dict[str, str], load: Callable[[Path], object], tmp_path: Path
) -> None:
    card = {"format": FORMAT, "network": {"name": name, "width": 8, "arguments": arguments}}
    card |= {"labels": LABELS.to_json(), "preprocessing": PREPROCESSING.to_json(), "details": {}}
    save_model(tmp_path / "m", {}, card)
    with pytest.raises(UserError, match=rf"would run monai\.networks\.nets\.{name[6:]}\(.*--trust-model-code"):
        load(tmp_path / "m")


def test_weights_that_a_training_began_with_are_not_needed_again(tmp_path: Path) -> None:
    """They would be downloaded, or, as here, cannot be had for slices."""
    network = build_network(NetworkOptions("monai:FlexibleUNet", 4), 3)
    began = NetworkOptions("monai:FlexibleUNet", 4, {"pretrained": True})
    with pytest.raises(UserError, match="Pretrained"):
        build_network(began, 3)
    folder = save_segmenter(tmp_path / "m", network, options=began, labels=LABELS, preprocessing=PREPROCESSING)
    found = load_segmenter(folder, device="cpu").network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_a_device_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'nowhere' cannot be used here"):
        load_segmenter(tmp_path, device="nowhere")
