"""Masks of images with several channels in every form of storage: data sets, files, volumes, series of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import DataOptions
from ssl_medseg.io import ImageFile, join_channels, read_label, read_volume
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.prediction import InferenceOptions, segment
from ssl_medseg.preprocessing import Preprocessing
from tests.medseg.dicom_series import write_series
from tests.medseg.small_models import LABELS, random_segmenter
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

CPU = InferenceOptions(device="cpu", precision="32-true")

SHAPE, MATRIX = (40, 36, 4), affine((1.2, 1.2, 6.0), letters="LPS")
P = Preprocessing(size=(32, 32), spacing=(1.5, 1.5), orientation="LPS", channels=("T2", "ADC"))
T2, ADC = ((phantom(SHAPE, seed=seed)[0] * 4).astype(np.int16) for seed in (0, 1))
NAMED = DataOptions(channels=("T2", "ADC"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_segmenter(tmp_path_factory.mktemp("model") / "model", P)


@pytest.fixture(scope="module")
def right(model: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return the mask of the two channels in the order of training."""
    folder = tmp_path_factory.mktemp("right")
    write_nifti(folder / "a.nii", T2, MATRIX)
    write_nifti(folder / "b.nii", ADC, MATRIX)
    channels = [ImageFile(folder / "a.nii", name="T2"), ImageFile(folder / "b.nii", name="ADC")]
    segmenter = load_segmenter(model, device="cpu")
    mask = segment(read_volume(join_channels(channels)), segmenter.network, segmenter.preprocessing).classes
    turned = segment(read_volume(join_channels(channels[::-1])), segmenter.network, segmenter.preprocessing).classes
    assert len(np.unique(mask)) > 2
    assert (mask != turned).mean() > 0.05
    return mask


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, array, MATRIX)


def by_ending(root: Path) -> None:
    put(root / "x_t2.nii.gz", T2)
    put(root / "x_ADC.nii.gz", ADC)


def by_folder(root: Path) -> None:
    put(root / "x" / "ADC.nii.gz", ADC)
    put(root / "x" / "T2.nii.gz", T2)


def by_number(root: Path) -> None:
    put(root / "x_0000.nii.gz", T2)
    put(root / "x_0001.nii.gz", ADC)


def by_volume(root: Path) -> None:
    put(root / "x.nii.gz", np.stack([T2, ADC], -1))


def by_list(root: Path) -> None:
    """A data set that lists the channels in the other order."""
    put(root / "imagesTs" / "x_0000.nii.gz", ADC)
    put(root / "imagesTs" / "x_0001.nii.gz", T2)
    labels = dict(zip(LABELS.names, LABELS.values, strict=True))
    content = {"channel_names": {"0": "ADC", "1": "T2"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("store", "opening"),
    [
        (by_ending, DataOptions()),
        (by_folder, DataOptions()),
        (by_number, NAMED),
        (by_number, DataOptions(channels=("ADC=1", "T2=0"))),
        (by_volume, NAMED),
        (by_list, DataOptions()),
    ],
    ids=["ending", "folder", "number", "number by number", "volume", "list"],
)
def test_channels_are_put_together_in_the_model_s_order(store, opening, model, right, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store(tmp_path / "images")
    result = predict(str(model), tmp_path / "images", tmp_path / "masks", opening=opening, inference=CPU)
    assert [(case.image, case.mask) for case in result.cases] == [("x", "x.nii.gz")]
    np.testing.assert_array_equal(read_label(tmp_path / "masks" / "x.nii.gz", LABELS)[0], right)


@pytest.mark.parametrize("store", [by_number, by_volume])
def test_without_names_the_order_is_asked_for(store, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store(tmp_path / "images")
    words = r"x: .*has 2 unnamed channels; .*trained with T2, ADC\. State their order, for example --channels T2,ADC"
    with pytest.raises(UserError, match=words):
        predict(str(model), tmp_path / "images", tmp_path / "masks", inference=CPU)


@pytest.mark.parametrize("store", [by_number, by_volume])
def test_numbers_mean_what_they_meant_in_training(store, model: Path, right: np.ndarray, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store(tmp_path / "images")
    found = load_segmenter(model, device="cpu")
    numbered = replace(found.preprocessing, channel_numbers=(0, 1))
    random_segmenter(tmp_path / "model", numbered)
    result = predict(str(tmp_path / "model"), tmp_path / "images", tmp_path / "masks", inference=CPU)
    assert [case.image for case in result.cases] == ["x"]
    np.testing.assert_array_equal(read_label(tmp_path / "masks" / "x.nii.gz", LABELS)[0], right)


def test_a_case_that_lacks_a_channel_stops_no_other(model: Path, right: np.ndarray, tmp_path: Path) -> None:
    by_ending(tmp_path / "images")
    put(tmp_path / "images" / "y_T2.nii.gz", T2)
    put(tmp_path / "images" / "z.nii.gz", T2)
    with pytest.raises(UserError) as caught:
        predict(str(model), tmp_path / "images", tmp_path / "masks", inference=CPU)
    assert "2 of 3 images could not be segmented" in str(caught.value)
    assert "y: has no file for channel ADC, only y_T2.nii.gz" in str(caught.value)
    assert "z: has 1 unnamed channel; the model was trained with T2, ADC. Name the files" in str(caught.value)
    assert str(tmp_path / "images") not in str(caught.value)
    np.testing.assert_array_equal(read_label(tmp_path / "masks" / "x.nii.gz", LABELS)[0], right)


def test_series_of_studies_are_chosen_by_description(model: Path, right: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    for patient in ("one", "two"):
        for description, array in (("t2_tse_tra", T2), ("dADC map", ADC), ("localizer", T2)):
            write_series(
                tmp_path / "scans" / patient / description, array, MATRIX, study=f"1.2.3.{ord(patient[0])}",
                description=description,
            )  # fmt: skip
    words = r"no series matches 'ADC'|Select the series with --channels NAME=DESCRIPTION"
    # ADC is part of dADC, which is enough where it is the only one.
    masks = tmp_path / "masks"
    result = predict(str(model), tmp_path / "scans", masks, mask_format="nifti", inference=CPU)
    assert [case.mask for case in result.cases] == ["one.nii.gz", "two.nii.gz"]
    # DICOM stores slices against their normal, and its mask lies on them.
    found, grid = read_label(masks / "one.nii.gz", LABELS)
    np.testing.assert_array_equal(found[:, :, ::-1] if grid.affine[2, 2] < 0 else found, right)
    with pytest.raises(UserError, match=words):
        predict(
            str(model), tmp_path / "scans", masks, mask_format="nifti", inference=CPU,
            opening=DataOptions(channels=("T2", "ADC=b1000")),
        )  # fmt: skip


def test_a_model_of_one_channel_takes_images_as_before(tmp_path: Path) -> None:
    single = random_segmenter(tmp_path / "model", Preprocessing(size=(32, 32), spacing=(1.5, 1.5)))
    by_number(tmp_path / "images")
    result = predict(str(single), tmp_path / "images", tmp_path / "masks", inference=CPU)
    assert [case.image for case in result.cases] == ["x_0000", "x_0001"]
    # Of a data set with several channels it takes the one with its name, or asks.
    named = random_segmenter(tmp_path / "adc", replace(P, channels=("ADC",)))
    by_list(tmp_path / "data")
    of_adc = predict(str(named), tmp_path / "data", tmp_path / "of_adc", inference=CPU)
    assert of_adc.cases[0].notes == ()
    # The only channel of a data set is taken, and a note says that it has another name.
    of_t2 = predict(
        str(named), tmp_path / "data", tmp_path / "of_t2", opening=DataOptions(channels=("T2",)), inference=CPU
    )
    assert of_t2.cases[0].notes == (
        "its channel is named T2, and that of the training images ADC: a mask needs the same one",
    )
    with pytest.raises(
        UserError,
        match=r"2 channels \(ADC, T2\); the model was trained with one channel\. Choose one, as in --channels",
    ):
        predict(str(single), tmp_path / "data", tmp_path / "x", inference=CPU)
