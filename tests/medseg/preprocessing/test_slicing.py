"""A single plane and orientation for all volumes of a data set, however they are stored."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_medseg.io import Grid, ImageFile, Volume
from ssl_medseg.preprocessing import Preprocessing, PreprocessingOptions, prepare, restore
from ssl_medseg.preprocessing.plan import check_sizes, choose_slicing
from ssl_medseg.preprocessing.prepare import slice_geometry
from tests.medseg.volumes_on_disk import affine, dice, phantom

AUTO = PreprocessingOptions()
STORAGES = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*axes)
]  # fmt: skip


def stored(array: np.ndarray, matrix: np.ndarray, letters: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the same volume with axes in the order and direction of the letters."""
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(matrix), nibabel.orientations.axcodes2ornt(letters)
    )
    turned = nibabel.orientations.apply_orientation(array, turn)
    return np.asarray(turned), matrix @ nibabel.orientations.inv_ornt_aff(turn, array.shape)


def volume(array: np.ndarray, matrix: np.ndarray) -> Volume:
    x, y, z = array.shape
    return Volume(array.astype(np.float32), Grid((x, y, z), matrix), ImageFile(Path("image.nii.gz")))


def grids(*volumes: tuple[tuple[int, int, int], np.ndarray]) -> dict[str, Grid]:
    return {f"case{number}": Grid(shape, matrix) for number, (shape, matrix) in enumerate(volumes)}


@pytest.mark.parametrize(
    ("sides", "angles"),
    [((1.0, 1.0, 1.0), (0, 0, 0)), ((0.9, 1.1, 5.0), (12, -8, 20)), ((1.3, 1.3, 8.0), (40, 35, 10))],
    ids=["isotropic", "tilted", "oblique"],
)
def test_all_48_ways_of_storing_a_volume_give_the_same_slices_and_mask(
    sides: tuple[float, float, float], angles: tuple[float, float, float]
) -> None:
    image, classes = phantom((34, 40, 26))
    matrix = affine(sides, angles=angles, letters="LPS")
    found = {}
    for letters in STORAGES:
        array, moved = stored(image, matrix, letters)
        slicing, _ = choose_slicing({"case": Grid(array.shape, moved)}, AUTO)  # type: ignore[arg-type]
        p = Preprocessing(size=(64, 64), spacing=(1.2, 1.2), **slicing.settings)
        prepared = prepare(volume(array, moved), p)
        pseudo = torch.stack([1 - prepared.slices[:, 0], prepared.slices[:, 0]], 1)
        native = restore(pseudo, prepared.geometry)[1]
        back, _ = stored(native, moved, "LPS")
        found[letters] = prepared.slices, back
    slices, mask = found["LPS"]
    for letters, (others, other) in found.items():
        np.testing.assert_allclose(others, slices, atol=2e-5, err_msg=letters)
        np.testing.assert_allclose(other, mask, atol=2e-5, err_msg=letters)
    assert dice(mask > 0.5, classes > 0)[0] > 0.8


def test_volumes_stored_otherwise_change_nothing_for_the_others() -> None:
    shape, matrix = (60, 50, 40), affine((1.0, 1.0, 1.0), letters="LPS")
    uniform = grids(*[(shape, matrix)] * 4)
    mixed = {}
    for (name, grid), letters in zip(uniform.items(), ("RAS", "SRA", "PIL", "LPS"), strict=True):
        array, moved = stored(np.zeros(grid.shape), matrix, letters)
        mixed[name] = Grid(array.shape, moved)  # type: ignore[arg-type]
    assert choose_slicing(mixed, AUTO)[0] == choose_slicing(uniform, AUTO)[0]


@pytest.mark.parametrize(
    ("sides", "plane"),
    [
        ([(1.0, 1.0, 1.0), (1.0, 1.0, 1.0)], "axial"),
        ([(2.5, 2.5, 2.4), (2.5, 2.5, 2.7)], "axial"),
        ([(1.0, 1.0, 1.2), (1.0, 1.2, 1.0)], "axial"),
        ([(1.2, 1.0, 1.0), (1.3, 1.0, 1.0)], "sagittal"),
        ([(1.0, 5.0, 1.0), (1.0, 1.0, 1.0)], "coronal"),
        ([(0.6, 0.6, 3.6), (0.6, 0.6, 4.0)], "axial"),
    ],
)
def test_spacing_decides_the_plane_and_the_number_of_voxels_does_not(
    sides: list[tuple[float, float, float]], plane: str
) -> None:
    for shape in itertools.permutations((20, 200, 256)):
        slicing, reasons = choose_slicing(grids(*[(shape, affine(s, letters="LPS")) for s in sides]), AUTO)
        assert Preprocessing(size=(32, 32), **slicing.settings).plane == plane
        assert plane in reasons[0]


def test_volumes_acquired_in_different_planes_are_refused_with_the_remedy() -> None:
    mix = grids(((64, 64, 20), affine((1, 1, 5))), ((20, 64, 64), affine((5, 1, 1))))
    with pytest.raises(
        UserError, match=r"axial: 1, case0; sagittal: 1, case1.*--slice-axis axial, coronal or sagittal"
    ):
        choose_slicing(mix, AUTO)
    slicing, _ = choose_slicing(mix, PreprocessingOptions(slice_axis="axial"))
    assert {name: slicing.axes(grid)[0] for name, grid in mix.items()} == {"case0": 2, "case1": 2}
    _, notes = slice_geometry(mix["case1"], Preprocessing(size=(64, 64), **slicing.settings))
    assert "5 mm apart along a different axis" in notes[0]
    stored_mix = {name: Grid(grid.shape, grid.affine, True, False) for name, grid in mix.items()}
    with pytest.raises(UserError, match=r"axis 0: 1, case1; axis 2: 1, case0.*--slice-axis 0, 1 or 2"):
        choose_slicing(stored_mix, AUTO)


def test_a_single_slice_is_never_cut_along_its_plane() -> None:
    axial = Preprocessing(size=(64, 64), orientation="LPS")
    for matrix in (affine((5.0, 0.5, 0.5), letters="LPS"), affine((0.001, 9.0, 9.0), letters="LPS")):
        flat = volume(phantom((1, 60, 50))[0], matrix)
        prepared = prepare(flat, axial)
        assert prepared.slices.shape == (1, 1, 64, 64)
        assert "single slice in a different plane" in prepared.notes[0]
        assert choose_slicing({"flat": flat.grid}, AUTO)[0].slice_axis == 0
    assert prepare(volume(phantom((60, 50, 1))[0], affine((1, 1, 0.1), letters="LPS")), axial).notes == ()


def test_unknown_sides_or_sizes_are_not_mixed_with_known_ones() -> None:
    known, lost = Grid((60, 50, 40), affine((1, 1, 3))), Grid((60, 50, 40), np.eye(4), False, False)
    with pytest.raises(
        UserError, match=r"left and right are known in 1 volume and unknown in 1 \(b:.*--orientation stored"
    ):
        choose_slicing({"a": known, "b": lost}, AUTO)
    slicing, reasons = choose_slicing({"a": known, "b": lost}, PreprocessingOptions(orientation="stored"))
    assert (slicing.slice_axis, slicing.orientation, slicing.frame) == (2, "", None)
    with pytest.raises(UserError, match=r"unknown in 1 \(b:.*--voxel-size"):
        check_sizes({"a": known, "b": lost}, AUTO)
    assert not check_sizes({"b": lost}, AUTO)
    assert choose_slicing({"b": lost}, AUTO)[0].slice_axis == 2
    assert "as stored" in reasons[1]
    with pytest.raises(UserError, match=r"does not state the voxel size.*--voxel-size"):
        prepare(
            Volume(np.zeros((60, 50, 40), np.float32), lost, ImageFile(Path("image.nii.gz"))),
            Preprocessing(size=(64, 64), spacing=(1.0, 1.0)),
        )


def test_a_given_axis_must_be_the_same_direction_in_all_files() -> None:
    mix = grids(((64, 64, 64), affine((1, 1, 1), letters="LPS")), ((64, 64, 64), affine((1, 1, 1), letters="SRA")))
    with pytest.raises(UserError, match="axis 0 has a different direction in 1 volume"):
        choose_slicing(mix, PreprocessingOptions(slice_axis="0"))
    for plane in ("axial", "coronal", "sagittal"):
        slicing, _ = choose_slicing(mix, PreprocessingOptions(slice_axis=plane))  # type: ignore[arg-type]
        assert Preprocessing(size=(32, 32), **slicing.settings).plane == plane


def test_oblique_volumes_share_a_frame_that_few_others_do_not_bend() -> None:
    """Short-axis slices of hearts lie between all planes, and differ by tens of degrees between patients."""
    rng = np.random.default_rng(0)
    hearts = {
        f"heart{n}": Grid((60, 50, 9), affine((1.4, 1.4, 8.0), angles=(40 + a, 35 + b, 10 + c), letters="LPS"))
        for n, (a, b, c) in enumerate(rng.normal(0, 8, (12, 3)))
    }
    slicing, reasons = choose_slicing(hearts, AUTO)
    assert slicing.frame is not None
    assert "oblique" in reasons[1]
    assert {slicing.axes(grid) for grid in hearts.values()} == {slicing.axes(hearts["heart0"])}
    assert slicing.axes(hearts["heart0"])[0] == 2
