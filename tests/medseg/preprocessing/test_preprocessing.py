"""Slices of volumes: the official numbers, MONAI's transforms, and the way back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_medseg.io import Grid, Volume
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.preprocessing import Geometry, Preprocessing, prepare, prepare_label, restore, slice_geometry
from ssl_medseg.preprocessing.prepare import to_pixels
from tests.medseg.volumes_on_disk import affine, dice, phantom

SHAPES = {
    "oblique": ((150, 180, 9), affine((1.5625, 1.5625, 10.0), angles=(20, -12, 33))),
    "odd sizes": ((101, 77, 7), affine((0.9, 1.7, 6.0))),
    "flipped": ((96, 120, 8), affine((1.2, 1.2, 8.0), letters="LPI")),
    "slices first": ((8, 96, 120), affine((8.0, 1.2, 1.2), letters="SRA")),
    "slices in the middle": ((96, 8, 121), affine((1.2, 7.5, 1.3), angles=(5, 8, -20))),
    "sagittal": ((9, 110, 90), affine((5.0, 1.1, 1.1), letters="RAS")),
}
P = Preprocessing(size=(256, 288), spacing=(1.0, 1.0))


def volume(array: np.ndarray, matrix: np.ndarray) -> Volume:
    x, y, z = array.shape
    return Volume(np.asarray(array, dtype=np.float32), Grid((x, y, z), matrix), ImageFile(Path("image.nii.gz")))


def labelled(classes: np.ndarray, matrix: np.ndarray, p: Preprocessing) -> tuple[torch.Tensor, np.ndarray]:
    return prepare_label(classes, slice_geometry(volume(classes, matrix).grid, p)[0])


def along_the_slices(shape: tuple[int, int, int], p: Preprocessing) -> Preprocessing:
    return replace(p, slice_axis=int(np.argmin(shape)))


def one_hot(label: torch.Tensor, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(label.long(), classes).permute(0, 3, 1, 2).float()


def test_intensities_are_scaled_as_the_official_code_does(golden) -> None:
    official = golden("medseg")
    image = official["norm/in"]
    p = Preprocessing(size=(32, 32), antialias=False)
    prepared = prepare(volume(image, np.diag([1.0, 1.0, 5.0, 1.0])), p)
    inside = prepared.slices[:, 0, 6:26, 3:29].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(inside, official["norm/out"], atol=1e-6)
    assert inside.max() > 1.01  # nothing is clipped


def test_intensities_are_scaled_as_monai_does() -> None:
    from monai.transforms import ScaleIntensityRangePercentiles

    image, _ = phantom((40, 50, 6))
    expected = ScaleIntensityRangePercentiles(5, 95, 0, 1, clip=False)(image)
    p = Preprocessing(size=(64, 64), percentiles=(5, 95))
    inside = prepare(volume(image, np.diag([1.0, 1.0, 5.0, 1.0])), p).slices[:, 0, 12:52, 7:57]
    np.testing.assert_allclose(inside.permute(1, 2, 0).numpy(), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding_around_the_circle_of_ct_counts_as_air(padding: int) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 40), indexing="ij")
    inside = (np.hypot(x, y) < 1)[..., None].repeat(5, axis=2)
    scanned = np.where(np.hypot(x, y)[..., None] < 0.8, 40.0, -1000.0)
    scanned = np.maximum(scanned + np.random.default_rng(0).normal(0, 30, inside.shape), -1024)
    matrix, p = np.diag([1.0, 1.0, 5.0, 1.0]), Preprocessing(size=(64, 64))
    air, padded = (prepare(volume(np.where(inside, scanned, v), matrix), p) for v in (-1024, padding))
    assert padded.slices.equal(air.slices)
    assert air.notes == ()
    assert padded.notes == (f"voxels of {padding}, padding around the scanned region, count as -1024",)
    # Phase images have values as low, which are no padding.
    phase = np.random.default_rng(1).integers(-4096, 4096, inside.shape)
    assert prepare(volume(np.where(inside, phase, -4096), matrix), p).notes == ()


@pytest.mark.parametrize("padding", [-32768, -1e30, np.finfo(np.float32).min])
@pytest.mark.filterwarnings("error")
def test_padding_of_registered_mri_counts_as_its_smallest_value(padding: float) -> None:
    image = phantom((40, 50, 6))[0].astype(np.float32)
    image += 7 - image.min()
    inside = np.arange(40)[:, None, None] >= 5
    matrix, p = np.diag([1.0, 1.0, 5.0, 1.0]), Preprocessing(size=(64, 64))
    dark, padded = (prepare(volume(np.where(inside, image, v), matrix), p) for v in (7, padding))
    assert padded.slices.equal(dark.slices)
    assert padded.notes == (f"voxels of {padding:g}, padding around the scanned region, count as 7",)


@pytest.mark.parametrize("name", ["big", "small", "tall", "wide"])
def test_crop_and_pad_take_the_official_pixels(golden, name: str) -> None:
    official = golden("medseg")
    source, expected = official[f"croppad/{name}_in"], official[f"croppad/{name}_out"]
    geometry, _ = slice_geometry(
        volume(source[:, :, None], np.diag([1.0, 1.0, 5.0, 1.0])).grid, Preprocessing(size=(32, 32))
    )
    # The official sizes here are no multiple of 32: of the plan only its rule is used.
    geometry = Geometry(**{**vars(geometry), "size": expected.shape})
    found = to_pixels(torch.from_numpy(source)[None], geometry)
    np.testing.assert_array_equal(found[0].numpy(), expected)


def test_resampling_is_near_the_official(golden) -> None:
    official = golden("medseg")
    image, mask = official["prep/in_img"], official["prep/in_mask"].astype(np.uint8)
    matrix = np.diag([1.9, 1.9, 8.0, 1.0])
    p = Preprocessing(size=(32, 32), spacing=(1.36719, 1.36719))
    middle = slice(8, 24)
    label, lost = labelled(mask, matrix, p)
    ours = label[:, middle, middle].permute(1, 2, 0).numpy()
    # Grids of resamplers differ by up to half a pixel: overlap, not pixels, is compared.
    assert min(dice(ours, official["prep_up/mask"])) > 0.85
    slices = prepare(volume(image, matrix), p).slices[:, 0, middle, middle].permute(1, 2, 0).numpy()
    assert np.corrcoef(slices.ravel(), official["prep_up/img"].ravel())[0, 1] > 0.85
    assert lost[1:].tolist() == [0.0] * 3
    # Its way there and back loses more than ours, which shows all of the image.
    native = restore(one_hot(label), slice_geometry(volume(image, matrix).grid, p)[0]).argmax(0)
    assert min(dice(native, mask)) > official["prep_up/native_f1"][1:].min()


@pytest.mark.parametrize("name", SHAPES)
def test_labels_come_back_onto_their_voxels(name: str) -> None:
    shape, matrix = SHAPES[name]
    _, classes = phantom(shape)
    p = along_the_slices(shape, P)
    slices, lost = labelled(classes, matrix, p)
    geometry, _ = slice_geometry(volume(classes, matrix).grid, p)
    assert slices.shape == (min(shape), 256, 288)
    native = restore(one_hot(slices), geometry)
    assert native.shape == (4, *shape)
    np.testing.assert_allclose(native.sum(0), 1, atol=1e-5)
    assert min(dice(native.argmax(0), classes)) > 0.99
    assert max(lost) == 0
    np.testing.assert_allclose(geometry.grid.affine, matrix, atol=1e-12)


@pytest.mark.parametrize("name", ["oblique", "odd sizes", "slices first"])
def test_both_ways_equal_monais_transforms(name: str) -> None:
    from monai.data import MetaTensor
    from monai.transforms import ResizeWithPadOrCrop, Spacing

    shape, matrix = SHAPES[name]
    image, classes = phantom(shape)
    p = along_the_slices(shape, Preprocessing(size=(96, 128), spacing=(1.1, 1.4), antialias=False))
    geometry, _ = slice_geometry(volume(image, matrix).grid, p)
    along = geometry.axes[0]
    pixdim, size = [1.1, 1.4], [96, 128]
    pixdim.insert(along, -1)
    size.insert(along, -1)
    spacing, fit = Spacing(pixdim, padding_mode="border"), ResizeWithPadOrCrop(size)

    def monai(array: np.ndarray, mode: str) -> MetaTensor:
        source = MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(matrix))
        return fit(spacing(source, mode=mode))

    def slices(array: torch.Tensor) -> np.ndarray:
        return array.movedim(along + 1, 1)[0].numpy()

    low, high = np.percentile(image, (1, 99))
    expected = slices(monai((image - low) / (high - low), "bilinear"))
    np.testing.assert_allclose(prepare(volume(image, matrix), p).slices[:, 0], expected, atol=5e-5)
    # Between two voxels at the same distance rounding decides.
    assert (labelled(classes, matrix, p)[0].numpy() != slices(monai(classes, "nearest"))).mean() < 1e-3

    forward = monai(image, "bilinear")
    foreground = torch.rand(forward.shape, generator=torch.Generator().manual_seed(1))
    answer = torch.cat([1 - foreground, foreground])
    answer = MetaTensor(answer, meta=forward.meta, applied_operations=forward.applied_operations)
    background, inverted = spacing.inverse(fit.inverse(answer)).numpy()
    foreground = torch.from_numpy(slices(foreground))
    ours = restore(torch.stack([1 - foreground, foreground], dim=1), geometry)
    shown = background + inverted
    assert (shown == 0).any() == (name != "odd sizes")
    np.testing.assert_allclose(ours[1], inverted / np.where(shown == 0, 1, shown), atol=5e-4)
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)


def test_images_stored_otherwise_give_the_same_slices() -> None:
    import nibabel

    shape, matrix = SHAPES["flipped"]
    image, classes = phantom(shape)
    p = Preprocessing(size=(160, 160), spacing=(1.0, 1.0), orientation="LPI")
    expected = prepare(volume(image, matrix), p)
    for letters in ("RAS", "SRA", "AIL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(matrix), nibabel.orientations.axcodes2ornt(letters)
        )
        turned = nibabel.orientations.apply_orientation(image, turn)
        moved = matrix @ nibabel.orientations.inv_ornt_aff(turn, shape)
        prepared = prepare(volume(turned, moved), p)
        np.testing.assert_allclose(prepared.slices, expected.slices, atol=1e-5)
        label, _ = labelled(nibabel.orientations.apply_orientation(classes, turn).astype(np.uint8), moved, p)
        np.testing.assert_array_equal(label, labelled(classes, matrix, p)[0])
        back = restore(one_hot(label), prepared.geometry).argmax(0)
        assert back.shape == turned.shape
        assert min(dice(back, nibabel.orientations.apply_orientation(classes, turn))) > 0.99


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0)])
@pytest.mark.parametrize("angle", [30, 45])
def test_a_volume_tilted_by_any_angle_has_the_same_slices_however_it_is_stored(
    spacing: tuple[float, float, float], angle: float
) -> None:
    p = Preprocessing(size=(64, 64), orientation="LPS")
    image, _ = phantom((40, 44, 20))
    matrix = affine(spacing, angles=(angle, 0, 0))
    expected = prepare(volume(image, matrix), p)
    if spacing[2] > 1:
        assert expected.geometry.axes[0] == 2  # the slices that were acquired
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], dtype=float)
            turned = nibabel.orientations.apply_orientation(image, turn)
            moved = matrix @ nibabel.orientations.inv_ornt_aff(turn, image.shape)
            np.testing.assert_allclose(prepare(volume(turned, moved), p).slices, expected.slices, atol=1e-5)


def test_a_volume_halfway_between_two_ways_of_turning_is_said() -> None:
    image, _ = phantom((64, 64, 5))
    for angle, notes in ((44, 1), (20, 0)):
        matrix = affine((1.0, 1.0, 8.0), angles=(0, 0, angle))
        prepared = prepare(volume(image, matrix), Preprocessing(size=(64, 64), orientation="LPS"))
        assert len(prepared.notes) == notes
    assert (
        "halfway"
        in prepare(
            volume(image, affine((1.0, 1.0, 8.0), angles=(0, 0, 44))), Preprocessing(size=(64, 64), orientation="LPS")
        ).notes[0]
    )


def test_what_cropping_loses_is_counted() -> None:
    classes = np.zeros((80, 64, 3), dtype=np.uint8)
    classes[4:8] = 1  # wholly outside of the middle 32
    classes[20:28, 16:48] = 2  # half of it
    classes[40] = 3
    classes[40, 16:48] = 0
    matrix, p = np.diag([1.0, 1.0, 5.0, 1.0]), Preprocessing(size=(32, 32))
    label, lost = labelled(classes, matrix, p)
    np.testing.assert_allclose(lost[1:], [1.0, 0.5, 1.0])
    assert label.unique().tolist() == [0, 2]
    outside = restore(
        one_hot(label), slice_geometry(volume(classes, np.diag([1.0, 1.0, 5.0, 1.0])).grid, Preprocessing((32, 32)))[0]
    )
    assert (outside[0, :24] == 1).all()


def test_a_volume_without_numbers_or_range_is_refused_by_name() -> None:
    p = Preprocessing(size=(32, 32))
    image, _ = phantom((32, 32, 4))
    image[3, 4, 2] = np.nan
    with pytest.raises(UserError, match=r"image\.nii\.gz: 1 of 4,096 voxels"):
        prepare(volume(image, np.eye(4)), p)
    filled = prepare(volume(image, np.eye(4)), Preprocessing(size=(32, 32), fill_nan=True))
    assert filled.slices.isfinite().all()
    assert "non-finite voxels filled (1)" in filled.notes[0]
    with pytest.raises(UserError, match=r"image\.nii\.gz: percentiles 1 and 99"):
        prepare(volume(np.full((32, 32, 4), 7.0), np.eye(4)), p)
    # The range does not matter, unless float32 distinguishes few values of it.
    image[3, 4, 2] = 100
    expected = prepare(volume(image, np.eye(4)), p).slices
    for scale, offset, error in ((1e-9, 0, 1e-5), (1e-4, -1, 1e-4), (0.1, 1e6, 0.01)):
        found = prepare(volume((image.astype(np.float64) * scale + offset).astype(np.float32), np.eye(4)), p).slices
        assert (found - expected).abs().max() < error
    with pytest.raises(UserError, match=r"between 1000\d+ and 1000\d+, where float32 distinguishes fewer than 50"):
        prepare(volume((image.astype(np.float64) / 100 + 1e7).astype(np.float32), np.eye(4)), p)


def test_noise_is_smoothed_before_pixels_grow() -> None:
    noise = np.random.default_rng(0).normal(size=(128, 128, 3))
    matrix = np.diag([1.0, 1.0, 8.0, 1.0])
    smooth, rough = (
        prepare(volume(noise, matrix), Preprocessing((32, 32), spacing=(4.0, 4.0), antialias=on)).slices
        for on in (True, False)
    )
    assert smooth.std() < 0.4 * rough.std()


def test_the_longer_side_can_be_fitted() -> None:
    image, _ = phantom((120, 60, 4))
    geometry = prepare(volume(image, np.eye(4)), Preprocessing((96, 96), fit=80)).geometry
    assert geometry.resampled == (80, 40)
    assert geometry.step == (1.5, 1.5)


def test_settings_and_geometry_survive_json() -> None:
    import json

    p = Preprocessing(size=(96, 128), spacing=(1.1, 1.4), slice_axis=2, orientation="LPS", percentiles=(2, 98), n4=True)
    oblique = Preprocessing(size=(96, 128), frame=((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (-1.0, 0.0, 0.0)))
    for each in (p, oblique):
        assert Preprocessing.from_json(json.loads(json.dumps(each.to_json()))) == each
    geometry, _ = slice_geometry(volume(np.zeros((20, 30, 4)), affine((1, 2, 5), angles=(3, 4, 5))).grid, p)
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry
    with pytest.raises(UserError, match="preprocessing"):
        Preprocessing.from_json({"size": [32]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (33, 32)},
        {"spacing": (0, 1)},
        {"fit": 5, "spacing": (1, 1)},
        {"slice_axis": 3},
        {"orientation": "LRS"},
        {"orientation": "LPS", "frame": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="preprocessing has"):
        Preprocessing(**{"size": (32, 32), **wrong})


def test_n4_takes_out_a_bias_field() -> None:
    pytest.importorskip("SimpleITK")
    image, classes = phantom((64, 64, 16))
    x = np.linspace(-1, 1, 64)[:, None, None]
    matrix = np.diag([1.0, 1.0, 4.0, 1.0])
    spread = []
    for n4 in (False, True):
        prepared = prepare(volume(image * np.exp(0.6 * x), matrix), Preprocessing((64, 64), n4=n4, n4_shrink=4))
        inside = prepared.slices[:, 0].permute(1, 2, 0).numpy()[classes == 1]
        spread.append(inside.std() / inside.mean())
    assert spread[1] < 0.6 * spread[0]
