"""Exported segmenters, opened by their target programs, give the results of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from contrastive_core.errors import UserError
from ssl_medseg.cli import main
from ssl_medseg.commands.export import export
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import DataOptions
from ssl_medseg.exports import monai_bundle
from ssl_medseg.io import read_label
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.models.model_folder import load_segmenter, save_segmenter
from ssl_medseg.models.network import Refinement
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.preprocessing.prepare import raise_padding
from tests.medseg.small_models import LABELS, random_segmenter
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

CPU = InferenceOptions(device="cpu", precision="32-true")

P = Preprocessing(size=(96, 64), spacing=(1.3, 1.3), orientation="LPS", usual_spacing=(1.2, 1.2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_segmenter(tmp_path_factory.mktemp("model") / "model", P)


def run_bundle(folder: Path, images: Path, masks: Path) -> None:
    """Do what `python -m monai.bundle run` does, whose command line needs the package fire."""
    words = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json", "bundle_root": "."}
    words |= {"dataset_dir": str(images), "output_dir": str(masks)}
    code = f"from monai.bundle import run; run(**{words!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_onnx_gives_the_model_s_logits(tmp_path: Path, model: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    said = export(str(model), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    network = load_segmenter(model, device="cpu").network
    for count in (1, 5):
        slices = torch.randn(count, 1, 96, 64)
        (got,) = session.run(["logits"], {"slices": slices.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), network(slices), rtol=1e-4, atol=1e-4)
    beside = json.loads((tmp_path / "net.onnx.json").read_text())
    assert beside.pop("checked")["largest_difference"] < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["ssl_medseg"]) == beside
    assert Preprocessing.from_json(beside["input"]["preprocessing"]) == P
    assert "orientation" in beside["input"]["preparation"]
    assert "antialias" in beside["input"]["preparation"]
    assert "average the probabilities" in beside["output"].pop("inversion")
    assert beside["output"] == {
        "name": "logits", "shape": ["batch", 4, 96, 64], "classes": LABELS.to_json(),
        "refinement": {"mirror": False, "largest": []},
    }  # fmt: skip
    assert "onnxruntime" in said


def test_an_exported_program_gives_the_model_s_logits(tmp_path: Path, model: Path) -> None:
    assert main(["export", str(model), str(tmp_path / "net.pt2")]) == 0
    program = torch.export.load(tmp_path / "net.pt2").module()
    slices = torch.randn(7, 1, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            program(slices), load_segmenter(model, device="cpu").network(slices), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_a_bundle_runs_alone_and_gives_the_same_masks(tmp_path: Path, model: Path) -> None:
    said = export(str(model), tmp_path / "bundle")
    assert "agree with the model" in said
    images = tmp_path / "images"
    images.mkdir()
    geometries = {
        "usual": ((70, 60, 5), affine((1.2, 1.2, 8), letters="LPS")),
        "flipped": ((70, 61, 5), affine((1.2, 1.2, 6), letters="RPI")),
        "oblique": ((64, 90, 4), affine((1.2, 1.2, 7), angles=(10, 15, -20), letters="LPS")),
    }
    for name, (shape, matrix) in geometries.items():
        write_nifti(images / f"{name}.nii.gz", phantom(shape)[0], matrix)
    run_bundle(tmp_path / "bundle", images, tmp_path / "theirs")
    predict(str(tmp_path / "bundle"), str(images), tmp_path / "from_bundle", inference=CPU)
    predict(str(model), str(images), tmp_path / "ours", inference=CPU)
    for name, (_, matrix) in geometries.items():
        ours, _ = read_label(tmp_path / "ours" / f"{name}.nii.gz", LABELS)
        same, _ = read_label(tmp_path / "from_bundle" / f"{name}.nii.gz", LABELS)
        np.testing.assert_array_equal(same, ours)
        theirs, found = read_label(tmp_path / "theirs" / f"{name}.nii.gz", LABELS)
        np.testing.assert_allclose(found.affine, matrix, atol=1e-4)
        # Where float32 affines are oblique MONAI's Spacing falls back on centring, half a pixel off; an untrained
        # network amplifies that.
        assert (theirs == ours).mean() > (0.95 if name == "oblique" else 0.999)
        assert len(np.unique(ours)) == 4
    checked = json.loads((tmp_path / "bundle" / "docs" / "checked.json").read_text())
    assert checked["network"]["largest_difference"] < 1e-4
    assert checked["bundle"]["share_of_equal_voxels"] > 0.995


@pytest.mark.parametrize(
    "p",
    [
        replace(P, spacing=None, fit=80),
        replace(P, orientation="SRA", slice_axis=0, spacing=(2.0, 2.0)),
        replace(P, orientation="", spacing=None, fill_nan=True),
    ],
    ids=["fit", "slices first, smoothed", "as stored"],
)
def test_every_kind_of_preprocessing_can_be_a_bundle(tmp_path: Path, p: Preprocessing) -> None:
    model = random_segmenter(tmp_path / "model", p)
    export(str(model), tmp_path / "bundle")
    checked = json.loads((tmp_path / "bundle" / "docs" / "checked.json").read_text())
    assert checked["bundle"]["share_of_equal_voxels"] > 0.99
    assert torch.is_grad_enabled()  # running the bundle leaves no mark on this process
    assert not [place for place in sys.path if str(tmp_path) in place]


def test_a_bundle_raises_padding_as_prepare_does() -> None:
    raised = eval(monai_bundle._RAISE_PADDING.removeprefix("$"))
    noise = np.random.default_rng(0).normal(0, 300, (1, 30, 20, 4)).astype(np.float32)
    for scanned, padding in ((noise, -3024), (noise, -1024), (10 * noise, -4096), (np.abs(noise) + 7, -32768)):
        image = np.where(np.arange(20)[:, None] < 3, np.float32(padding), scanned)
        np.testing.assert_array_equal(raised(torch.from_numpy(image))[0], raise_padding(image[0])[0])


def test_a_bundle_mirrors_and_keeps_largest_components_as_the_model_does(tmp_path: Path, model: Path) -> None:
    plain = load_segmenter(model, device="cpu")
    save_segmenter(
        tmp_path / "model", plain.network, options=plain.options, labels=plain.labels,
        preprocessing=plain.preprocessing, refinement=Refinement(mirror=True, largest=(1, 3)),
    )  # fmt: skip
    export(str(tmp_path / "model"), tmp_path / "bundle")
    images = tmp_path / "images"
    images.mkdir()
    write_nifti(images / "a.nii.gz", phantom((70, 60, 5))[0], affine((1.2, 1.2, 8), letters="LPS"))
    run_bundle(tmp_path / "bundle", images, tmp_path / "theirs")
    masks = {"theirs": read_label(tmp_path / "theirs" / "a.nii.gz", LABELS)[0]}
    for name, folder in {"ours": tmp_path / "model", "from_bundle": tmp_path / "bundle", "plain": model}.items():
        predict(str(folder), str(images), tmp_path / name, inference=CPU)
        masks[name] = read_label(tmp_path / name / "a.nii.gz", LABELS)[0]
    np.testing.assert_array_equal(masks["from_bundle"], masks["ours"])
    assert (masks["theirs"] == masks["ours"]).mean() > 0.999
    assert (masks["plain"] == masks["ours"]).mean() < 0.99  # the refinement changes this mask
    for number in (1, 3):
        assert label(masks["theirs"] == number)[1] == 1


def test_a_bundle_that_gives_other_masks_is_not_put_in_place(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = monai_bundle.inference_config
    monkeypatch.setattr(
        monai_bundle,
        "inference_config",
        lambda p, labels, refinement: right(replace(p, orientation="RAS"), labels, refinement),
    )
    with pytest.raises(UserError, match=r"the masks of the bundle .* and of the model differ"):
        export(str(model), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["$__import__('os').abort()", "@run", "%configs/inference.json"])
def test_names_that_monai_would_evaluate_are_refused(name: str) -> None:
    versions = dict.fromkeys(("monai", "torch", "numpy", "nibabel", "scipy"), "1")
    channels = Preprocessing(size=(96, 64), channels=("T2", name))
    for p, labels in ((P, LabelMap(("background", name), (0, 1))), (channels, LABELS)):
        with pytest.raises(UserError, match=rf"begins with \{name[0]}, and MONAI evaluates"):
            monai_bundle.metadata(p, labels, versions=versions)
    assert monai_bundle.metadata(P, LABELS, versions=versions)["monai_version"] == "1"


def test_what_is_there_is_not_overwritten_by_a_bundle(tmp_path: Path, model: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    with pytest.raises(UserError, match="something other than a MONAI bundle"):
        export(str(model), tmp_path / "thesis")
    with pytest.raises(UserError, match=r"found the extension '\.pkl'"):
        export(str(model), tmp_path / "net.pkl")
    assert (tmp_path / "thesis" / "chapter").read_text() == "one"


def test_exports_of_several_channels_give_the_same(tmp_path: Path) -> None:
    p = replace(P, size=(64, 64), channels=("T2", "ADC"))
    model = random_segmenter(tmp_path / "model", p)
    assert main(["export", str(model), str(tmp_path / "net.pt2")]) == 0
    beside = json.loads((tmp_path / "net.pt2.json").read_text())
    assert (beside["input"]["shape"], beside["input"]["channels"]) == (["batch", 2, 64, 64], ["T2", "ADC"])
    slices = torch.randn(3, 2, 64, 64)
    with torch.no_grad():
        wanted = load_segmenter(model, device="cpu").network(slices)
        torch.testing.assert_close(
            torch.export.load(tmp_path / "net.pt2").module()(slices), wanted, rtol=1e-4, atol=1e-4
        )
    # The bundle is run by MONAI, which compares its mask with ours; then on a channel of another grid.
    export(str(model), tmp_path / "bundle")
    meta = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert meta["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "T2", "1": "ADC"}
    fine, coarse = affine((1.2, 1.2, 8), letters="LPS"), affine((1.8, 1.8, 8), letters="LPS")
    (tmp_path / "images").mkdir()
    write_nifti(tmp_path / "images" / "x_0000.nii.gz", phantom((60, 60, 3))[0], fine)
    write_nifti(tmp_path / "images" / "x_0001.nii.gz", phantom((42, 42, 3), seed=1)[0], coarse)
    monai_bundle._run_quietly(
        config_file=str(tmp_path / "bundle" / "configs" / "inference.json"), bundle_root=str(tmp_path / "bundle"),
        meta_file=str(tmp_path / "bundle" / "configs" / "metadata.json"), dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "theirs"), device="cpu",
    )  # fmt: skip
    opening = DataOptions(channels=("T2", "ADC"))
    predict(str(tmp_path / "bundle"), tmp_path / "images", tmp_path / "ours", opening=opening, inference=CPU)
    ours, _ = read_label(tmp_path / "ours" / "x.nii.gz", LABELS)
    theirs, _ = read_label(tmp_path / "theirs" / "x.nii.gz", LABELS)
    assert (ours == theirs).mean() > 0.98
