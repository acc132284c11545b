"""Training with several channels: augmentation, preparation, CRF, and two-channel runs from pre-training to masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_medseg.commands.pretrain import pretrain
from ssl_medseg.datasets import DataOptions, Split, open_dataset, write_split
from ssl_medseg.io import Grid, ImageFile, Volume, join_channels
from ssl_medseg.models import NetworkOptions
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.models.pretraining import load_trunk
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import Preprocessing, PreprocessingOptions, prepare
from ssl_medseg.pretraining.stages import PretrainingOptions
from ssl_medseg.reports.evaluation import evaluate
from ssl_medseg.selftraining.crf import SETTINGS, dense_crf
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.recipe import TrainingOptions
from ssl_medseg.training.slices import AugmentOptions, change_intensity, deform
from ssl_medseg.training.supervised import train
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

RUN = RunOptions(device="cpu", threads=1, log_every=1, checkpoint_every=50, progress=False)


@pytest.mark.parametrize("kind", ["strong", "paper"])
def test_channels_move_alike_and_change_their_intensity_apart(kind: Any) -> None:
    options = AugmentOptions(kind=kind)
    one = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    ids, classes = torch.arange(8) + 5, (one[:, 0] > 0.5).to(torch.uint8)
    alone, shares = deform(one, classes, num_classes=2, seed=3, ids=ids, options=options)
    both, same = deform(one.repeat(1, 2, 1, 1), classes, num_classes=2, seed=3, ids=ids, options=options)
    torch.testing.assert_close(both, alone.repeat(1, 2, 1, 1))
    torch.testing.assert_close(same, shares)
    changed = change_intensity(one, seed=3, ids=ids, options=options)
    apart = change_intensity(one.repeat(1, 2, 1, 1), seed=3, ids=ids, options=options)
    torch.testing.assert_close(apart[:, :1], changed)
    assert not any(torch.allclose(first, second, atol=1e-3) for first, second in apart)


def test_each_channel_is_prepared_on_its_own() -> None:
    arrays = [phantom((40, 36, 4), seed=n)[0] * scale for n, scale in enumerate((1, 30))]
    grid = Grid((40, 36, 4), affine((1.3, 1.3, 6)))
    files = [ImageFile(Path(f"{name}.nii"), name=name) for name in ("T2", "ADC")]
    p = Preprocessing(size=(32, 32), spacing=(1.5, 1.5), channels=("T2", "ADC"))
    both = prepare(Volume(arrays[0], grid, join_channels(files), others=(arrays[1],)), p).slices
    for number, array in enumerate(arrays):
        single = Preprocessing(size=(32, 32), spacing=(1.5, 1.5), channels=("x",))
        torch.testing.assert_close(both[:, number : number + 1], prepare(Volume(array, grid, files[0]), single).slices)
    with pytest.raises(UserError, match=r"T2\.nii has 1 channel \(T2\); expected 2 \(T2, ADC\)"):
        prepare(Volume(arrays[0], grid, files[0]), p)
    bad = arrays[1].copy()
    bad[3, 3, 3] = np.nan
    with pytest.raises(UserError, match=r"ADC\.nii: channel ADC: 1 of 5,760 voxels are not finite"):
        prepare(Volume(arrays[0], grid, join_channels(files), others=(bad,)), p)


def test_a_channel_that_is_there_twice_changes_no_crf() -> None:
    generator = torch.Generator().manual_seed(1)
    images, scores = torch.rand(1, 1, 16, 16, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)
    single = dense_crf(images, scores.softmax(1), SETTINGS["mild"])
    torch.testing.assert_close(dense_crf(images.repeat(1, 2, 1, 1), scores.softmax(1), SETTINGS["mild"]), single)


def study(root: Path, names: tuple[str, ...]) -> Path:
    """Cases whose structures are visible only in the second channel, which has a coarser grid."""
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    fine, coarse = affine((2, 2, 6), letters="LPS"), affine((4, 4, 6), letters="LPS")
    coarse[:3, 3] = (fine @ [0.5, 0.5, 0, 1])[:3]
    for number, name in enumerate(names):
        image, classes = phantom((32, 32, 4), seed=number)
        noise = np.random.default_rng(number).normal(100, 20, image.shape).astype(np.float32)
        small = image.reshape(16, 2, 16, 2, 4).mean((1, 3))
        write_nifti(root / "imagesTr" / f"{name}_0000.nii.gz", noise, fine)
        write_nifti(root / "imagesTr" / f"{name}_0001.nii.gz", small, coarse)
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", (classes > 1).astype(np.uint8), fine)
    content = {"channel_names": {"0": "noise", "1": "signal"}, "labels": {"background": 0, "core": 1}}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_two_channels_from_pre_training_to_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = study(tmp_path / "data", ("a", "b", "c", "d"))
    split = tmp_path / "split.json"
    write_split(split, Split(("a",), (), ("d",), ("b", "c")), open_dataset(data))
    small: dict[str, Any] = {"preprocessing": PreprocessingOptions(image_size=32), "run": RUN}
    pretrain(
        str(data), tmp_path / "trunk", split=split,
        pretraining=PretrainingOptions(
            global_steps=1, local_steps=1, partitions=2, global_volumes=2, local_volumes=2
        ),
        network=NetworkOptions("unet", 4), **small,
    )  # fmt: skip
    assert load_trunk(tmp_path / "trunk").preprocessing.channels == ("noise", "signal")
    train(str(data), tmp_path / "begun", split=split, init=str(tmp_path / "trunk"),
          training=TrainingOptions("paper", steps=1, batch_size=2), run=RUN)  # fmt: skip
    train(
        str(data), tmp_path / "base", split=split,
        training=TrainingOptions(effort="minutes", steps=60, batch_size=4),
        network=NetworkOptions("plain-unet", 8), augment=AugmentOptions(affine=False, elastic=0), **small,
    )  # fmt: skip
    model = json.loads((tmp_path / "base" / "model" / "model.json").read_text())
    assert model["metadata"]["preprocessing"]["channels"] == ["noise", "signal"]
    said = capsys.readouterr().err
    assert "2 channels (noise, signal), each scaled by its own percentiles and resampled to the grid of noise" in said
    assert "a: channel signal lies on a different grid from noise and is resampled to it" in said
    # The first channel says nothing: a mask is right because the second is seen.
    done = evaluate(str(tmp_path / "base"), str(data), pictures=False, inference=InferenceOptions(device="cpu"))
    (dice,) = [score.dice for case in done.evaluation.cases for score in case.structures]
    assert dice > 0.6
    few = TrainingOptions(effort="minutes", steps=2, batch_size=2)
    selftrain(str(tmp_path / "base"), str(data), tmp_path / "self", split=split, training=few, run=RUN)
    assert load_segmenter(tmp_path / "self").preprocessing.channels == ("noise", "signal")
    with pytest.raises(UserError, match=r"has the channel noise; the model was trained with noise, signal"):
        selftrain(
            str(tmp_path / "base"), str(data), tmp_path / "x", split=split, training=few,
            opening=DataOptions(channels=("noise",)), run=RUN,
        )  # fmt: skip
