"""Channels on other grids: resampled values stay at their place; missing ones are filled or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.io import Grid, ImageFile, join_channels, read_volume
from ssl_medseg.io.channels import resample, share_covered
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

T2 = Grid((20, 24, 6), affine((1.0, 1.0, 4.0), letters="LPS"))
RAMP = np.array([0.7, -0.3, 0.2])


def ramp(grid: Grid) -> np.ndarray:
    """A value that grows linearly in mm, which linear interpolation reproduces everywhere."""
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    mm = np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], voxels) + grid.affine[:3, 3][:, None, None, None]
    return (np.einsum("i,ixyz->xyz", RAMP, mm) + 50).astype(np.float32)


def around(grid: Grid, spacing: tuple[float, float, float], shape: tuple[int, int, int], **how: object) -> Grid:
    """A grid with other voxels around the same centre."""
    matrix = affine(spacing, **how)  # type: ignore[arg-type]
    centre = grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1]
    matrix[:3, 3] += centre[:3] - (matrix @ [*((np.array(shape) - 1) / 2), 1])[:3]
    return Grid(shape, matrix)


@pytest.mark.parametrize(
    ("spacing", "shape", "how"),
    [
        ((2.0, 2.0, 4.0), (30, 32, 16), {"letters": "LPS"}),
        ((1.7, 2.2, 3.0), (40, 36, 24), {"letters": "RAI", "angles": (8, -5, 20)}),
        ((3.0, 1.5, 1.5), (24, 60, 60), {"letters": "SPL"}),
    ],
    ids=["coarser", "oblique and flipped", "other axes"],
)
def test_values_stay_where_they_are(spacing, shape, how) -> None:  # type: ignore[no-untyped-def]
    other = around(T2, spacing, shape, **how)
    assert share_covered(other, T2) == 1
    np.testing.assert_allclose(resample(ramp(other), other, T2), ramp(T2), atol=2e-3)


def test_finer_voxels_are_averaged() -> None:
    other = around(T2, (0.25, 0.25, 4.0), (100, 120, 8), letters="LPS")
    noise = np.random.default_rng(0).normal(size=other.shape).astype(np.float32)
    # Picked voxels would keep a standard deviation of 1.
    assert resample(noise, other, T2).std() < 0.35
    inner = np.s_[3:-3, 3:-3, 1:-1]
    np.testing.assert_allclose(resample(ramp(other), other, T2)[inner], ramp(T2)[inner], atol=0.05)


def test_beyond_its_field_of_view_a_channel_has_its_smallest_value(tmp_path: Path) -> None:
    half = Grid((10, 24, 6), T2.affine)
    write_nifti(tmp_path / "t2.nii", ramp(T2), T2.affine)
    adc = ramp(half) + 7
    write_nifti(tmp_path / "adc.nii", adc, half.affine)
    volume = read_volume(
        join_channels([ImageFile(tmp_path / "t2.nii", name="T2"), ImageFile(tmp_path / "adc.nii", name="ADC")])
    )
    assert list(volume.channels) == ["T2", "ADC"]
    np.testing.assert_array_equal(volume.array, ramp(T2))
    np.testing.assert_allclose(volume.channels["ADC"][:10], adc, atol=1e-3)
    np.testing.assert_array_equal(volume.channels["ADC"][11:], adc.min())
    assert volume.warnings == (
        "channel ADC lies on a different grid from T2 and is resampled to it",
        "channel ADC covers 50% of T2; the rest is filled with its smallest value",
    )


def test_one_grid_is_not_touched_and_what_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    array, _ = phantom(T2.shape)
    write_nifti(tmp_path / "t2.nii.gz", array, T2.affine)
    for name, values, matrix, codes in (
        ("same", array * 2, T2.affine, 1),
        ("far", array, affine((1.0, 1.0, 4.0), letters="LPS", origin=(500.0, 0.0, 0.0)), 1),
        ("nowhere", array[::2], T2.affine, 0),
    ):
        write_nifti(tmp_path / f"{name}.nii.gz", values, matrix, sform=codes, qform=codes)

    def read(name: str) -> np.ndarray:
        channels = [ImageFile(tmp_path / "t2.nii.gz", name="T2"), ImageFile(tmp_path / f"{name}.nii.gz", name="ADC")]
        volume = read_volume(join_channels(channels))
        assert volume.warnings == ()
        return volume.channels["ADC"]

    np.testing.assert_array_equal(read("same"), array * 2)
    with pytest.raises(UserError, match=r"far\.nii\.gz: the fields of view of the channels ADC and T2 do not overlap"):
        read("far")
    with pytest.raises(UserError, match=r"nowhere\.nii\.gz: channel ADC lies on a different grid from T2 \(10 x"):
        read("nowhere")


def test_volumes_of_a_vector_image(tmp_path: Path) -> None:
    array = np.stack([phantom((8, 9, 4), seed=n)[0] for n in range(3)], -1)
    write_nifti(tmp_path / "v.nii.gz", array[:, :, :, None], affine((1, 1, 2)))
    for number in range(3):
        found = read_volume(ImageFile(tmp_path / "v.nii.gz", channel=number)).array
        np.testing.assert_array_equal(found, array[..., number])
