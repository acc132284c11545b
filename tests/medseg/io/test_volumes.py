"""Reading volumes with their geometry, and masks that lie on them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.io import Grid, grid_difference, read_grid, read_label, read_volume, write_mask
from ssl_medseg.io.itk import read_itk
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

LABELS = LabelMap(("background", "LV", "RV", "MYO"), (0, 500, 600, 205))
OBLIQUE = affine((1.25, 1.4, 8.0), angles=(20, -35, 50), letters="LPS")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_nifti(
        tmp_path / "image.nii.gz", phantom((21, 34, 7))[0], OBLIQUE, sform=2, qform=1, units=("mm", "msec")
    )


def header_of(path: Path):
    return nibabel.load(path).header


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_mask_keeps_every_field_that_places_it(tmp_path: Path, image: Path, ending: str) -> None:
    volume = read_volume(ImageFile(image))
    _, classes = phantom((21, 34, 7))
    out = tmp_path / "masks" / f"mask{ending}"
    write_mask(classes, volume, out, LABELS)
    before, after = header_of(image), header_of(out)
    for field in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b"):
        np.testing.assert_array_equal(after[field], before[field], err_msg=field)
    assert (int(after["sform_code"]), int(after["qform_code"]), after.get_xyzt_units()) == (2, 1, ("mm", "msec"))
    written = nibabel.load(out)
    assert written.shape == volume.array.shape
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(written.dataobj), LABELS.lookup[classes])
    found, grid = read_label(out, LABELS)
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


def test_a_mask_repeats_no_names_and_no_scaling(tmp_path: Path) -> None:
    source = nibabel.Nifti1Image(phantom((8, 9, 5))[0].astype(np.int16), OBLIQUE)
    source.header["descrip"], source.header["db_name"] = b"Jane Doe 1970", b"jane"
    source.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Jane Doe"))
    source.header.set_slope_inter(2.5, 10)
    nibabel.save(source, tmp_path / "image.nii.gz")
    volume = read_volume(ImageFile(tmp_path / "image.nii.gz"))
    classes = np.ones((8, 9, 5), dtype=np.uint8)
    write_mask(classes, volume, tmp_path / "mask.nii", LABELS)
    assert b"Jane" not in (tmp_path / "mask.nii").read_bytes()
    assert b"jane" not in (tmp_path / "mask.nii").read_bytes()
    assert np.unique(nibabel.load(tmp_path / "mask.nii").get_fdata()).tolist() == [500]


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (1, 0), (0, 0), (3, 4)])
def test_codes_decide_which_affine_holds_and_are_kept(tmp_path: Path, sform: int, qform: int) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", phantom((12, 13, 4))[0], OBLIQUE, sform=sform, qform=qform)
    volume = read_volume(ImageFile(path))
    if sform or qform:
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
        assert volume.warnings == ()
    else:
        assert "unknown" in volume.warnings[0]
    write_mask(np.zeros((12, 13, 4), np.uint8), volume, tmp_path / "mask.nii.gz", LABELS)
    after = header_of(tmp_path / "mask.nii.gz")
    assert (int(after["sform_code"]), int(after["qform_code"])) == (sform, qform)
    np.testing.assert_allclose(nibabel.load(tmp_path / "mask.nii.gz").affine, nibabel.load(path).affine, atol=1e-5)


def test_a_sform_without_a_code_is_not_looked_at(tmp_path: Path) -> None:
    opened = nibabel.Nifti1Image(phantom((12, 13, 4))[0], OBLIQUE)
    opened.set_qform(OBLIQUE, code=1)
    opened.set_sform(affine((3, 3, 3), letters="RAS"), code=0)
    nibabel.save(opened, tmp_path / "image.nii.gz")
    volume = read_volume(ImageFile(tmp_path / "image.nii.gz"))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
    assert volume.warnings == ()


def test_contradicting_affines_are_said_and_the_sform_holds(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", phantom((12, 13, 4))[0], OBLIQUE)
    opened = nibabel.load(path)
    mirrored = OBLIQUE @ np.diag([-1.0, 1, 1, 1])
    opened.set_qform(mirrored, code=1)
    nibabel.save(opened, tmp_path / "both.nii.gz")
    volume = read_volume(ImageFile(tmp_path / "both.nii.gz"))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
    assert "contradict" in volume.warnings[0]
    assert "27.5 mm" in volume.warnings[0]  # 11 voxels of 1.25 mm to either side
    write_mask(np.zeros((12, 13, 4), np.uint8), volume, tmp_path / "mask.nii.gz", LABELS)
    np.testing.assert_allclose(header_of(tmp_path / "mask.nii.gz").get_qform(), mirrored, atol=1e-4)


def test_bytes_behind_the_voxels_are_told_of_and_padding_is_not(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", phantom((10, 11, 4))[0], OBLIQUE)
    plain = path.read_bytes()
    path.write_bytes(plain + bytes(512))
    assert not [text for text in read_volume(ImageFile(path)).warnings if "after the voxels" in text]
    path.write_bytes(plain + b"more")
    assert "4 bytes after the voxels stated in the header are not read" in read_volume(ImageFile(path)).warnings


def test_of_several_volumes_one_must_be_chosen(tmp_path: Path) -> None:
    array = np.stack([phantom((10, 11, 4), seed=s)[0] for s in range(3)], axis=-1)
    path = write_nifti(tmp_path / "cine.nii.gz", array, OBLIQUE)
    with pytest.raises(UserError, match=r"10 x 11 x 4 x 3.*--frame or --channels"):
        read_volume(ImageFile(path))
    for chosen in (ImageFile(path, frame=2), ImageFile(path, channel=2)):
        np.testing.assert_array_equal(read_volume(chosen).array, array[..., 2])
        assert read_grid(chosen).shape == (10, 11, 4)
    with pytest.raises(UserError, match="no frame 3; it has 3"):
        read_volume(ImageFile(path, frame=3))
    with pytest.raises(UserError, match="frame 0 and channel 1 cannot be chosen"):
        read_volume(ImageFile(path, frame=0, channel=1))
    write_mask(np.zeros((10, 11, 4), np.uint8), read_volume(ImageFile(path, frame=1)), tmp_path / "mask.nii.gz", LABELS)
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == (10, 11, 4)
    five = write_nifti(tmp_path / "five.nii.gz", np.stack([array, array + 1], axis=-1), OBLIQUE)
    np.testing.assert_array_equal(read_volume(ImageFile(five, frame=1, channel=1)).array, array[..., 1] + 1)
    single = write_nifti(tmp_path / "single.nii.gz", array[..., :1], OBLIQUE)
    assert read_volume(ImageFile(single)).array.shape == (10, 11, 4)
    first = write_nifti(tmp_path / "first.nii.gz", array[None, ..., 0], OBLIQUE)
    with pytest.raises(UserError, match=r"1 x 10 x 11 x 4, whose first axis has length 1.*with the shape 10 x 11 x 4"):
        read_volume(ImageFile(first))
    flat = write_nifti(tmp_path / "flat.nii.gz", array[:, :, 0, 0], OBLIQUE)
    assert read_volume(ImageFile(flat)).array.shape == (10, 11, 1)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, image: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read_volume(ImageFile(tmp_path / "nowhere.nii.gz"))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(image.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut\.nii\.gz.*damaged"):
        read_volume(ImageFile(cut))
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(UserError, match=r"text\.nii\.gz: is not gzip-compressed; it is of an unknown format"):
        read_volume(ImageFile(tmp_path / "text.nii.gz"))
    flat = OBLIQUE.copy()
    flat[:, 2] = 0
    opened = nibabel.load(image)
    opened.header["srow_x"][:3] = opened.header["srow_y"][:3] = opened.header["srow_z"][:3] = 0
    broken = nibabel.Nifti1Image(np.asarray(opened.dataobj), None, opened.header)
    nibabel.save(broken, tmp_path / "place.nii.gz")
    with pytest.raises(UserError, match="is not invertible"):
        read_volume(ImageFile(tmp_path / "place.nii.gz"))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_nrrd_and_metaimage_lie_where_the_nifti_file_does(tmp_path: Path, image: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"image{ending}"
    sitk.WriteImage(sitk.ReadImage(str(image)), str(path))
    volume, expected = read_volume(ImageFile(path)), read_volume(ImageFile(image))
    np.testing.assert_array_equal(volume.array, expected.array)
    assert grid_difference(volume.grid, expected.grid) == ""
    _, classes = phantom((21, 34, 7))
    before = set(tmp_path.iterdir())
    for name in ("mask.nii.gz", f"mask{ending}"):
        write_mask(classes, volume, tmp_path / name, LABELS)
        found, grid = read_label(tmp_path / name, LABELS)
        np.testing.assert_array_equal(found, classes)
        np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-4)
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"mask.nii.gz", f"mask{ending}"}


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii.gz", ".Nii", ".Mgh", ".MHA", ".Mhd", ".Nrrd"])
def test_endings_may_be_in_any_case(tmp_path: Path, image: Path, ending: str) -> None:
    volume = read_volume(ImageFile(image))
    plain = tmp_path / f"plain{ending.lower()}"
    if ending == ".Mgh":
        nibabel.save(nibabel.MGHImage(volume.array, volume.affine), plain)
    else:
        write_mask(phantom((21, 34, 7))[1], volume, plain, LABELS)
    expected = read_volume(ImageFile(plain))
    found = read_volume(ImageFile(plain.rename(tmp_path / f"renamed{ending}")))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_array_equal(found.affine, expected.affine)


def test_a_mask_of_another_shape_or_ending_is_refused(tmp_path: Path, image: Path) -> None:
    volume = read_volume(ImageFile(image))
    with pytest.raises(UserError, match=r"mask has the shape \(3, 4, 5\)"):
        write_mask(np.zeros((3, 4, 5), np.uint8), volume, tmp_path / "mask.nii.gz", LABELS)
    with pytest.raises(UserError, match=r"ends in \.nii\.gz"):
        write_mask(np.zeros((21, 34, 7), np.uint8), volume, tmp_path / "mask.png", LABELS)


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "series").mkdir()
    for module, path, extra in (("SimpleITK", "a.mha", "simpleitk"), ("pydicom", "series", "dicom")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(UserError, match=rf"ssl-medseg\[{extra}\]"):
            read_volume(ImageFile(tmp_path / path))


def test_grids_are_compared_with_the_size_of_a_voxel(image: Path) -> None:
    grid = read_grid(ImageFile(image))
    moved = OBLIQUE.copy()
    for share, words in ((0.4, "40% of a voxel"), (0.02, "2% of a voxel"), (0.009, "")):
        moved[:3, 3] = grid.affine[:3, 3] + share * grid.affine[:3, 1]
        found = grid_difference(grid, Grid(grid.shape, moved))
        assert words in found
        assert bool(words) == bool(found)
    # Rounding to four decimals moves the far corner of a large image by more than that, and is accepted.
    large = Grid((512, 512, 30), affine((0.4, 0.4, 3.0), angles=(7.3, 11, 5)))
    rounded = Grid(large.shape, large.affine.round(4))
    assert np.abs(large.corners - rounded.corners).max() > 0.01 * 0.4
    assert grid_difference(large, rounded) == ""
    assert "apart" in grid_difference(large, Grid(large.shape, large.affine.round(3)))
    assert grid_difference(grid, type(grid)((21, 34, 8), OBLIQUE)) == "21 x 34 x 7 voxels against 21 x 34 x 8"
    assert grid_difference(grid, type(grid)(grid.shape, OBLIQUE)) == ""


def _state_more(file: Path, sizes: tuple[int, int, int]) -> None:
    """Let the header of a NIfTI file, compressed or not, state another shape than that of its voxels."""
    packed = file.suffix == ".gz"
    content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    content[42:48] = np.array(sizes, dtype="<i2").tobytes()
    file.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


@pytest.mark.parametrize(("name", "header"), [("x.nii", "x.nii"), ("x.nii.gz", "x.nii.gz"), ("x.img", "x.hdr")])
def test_a_header_that_states_more_than_the_file_holds_takes_no_memory(tmp_path: Path, name: str, header: str) -> None:
    kind = nibabel.Nifti1Pair if name == "x.img" else nibabel.Nifti1Image
    nibabel.save(kind(np.ones((4, 5, 6), np.int16), np.diag([-1.0, 1.0, 1.0, 1.0])), tmp_path / name)
    assert read_volume(ImageFile(tmp_path / name)).array.shape == (4, 5, 6)
    _state_more(tmp_path / header, (30_000, 30_000, 30_000))
    with pytest.raises(UserError, match=rf"{name}: .*of the 54,000,000,000,\d+ that its header states") as caught:
        read_volume(ImageFile(tmp_path / name))
    assert not isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize("axes", [17, 127, 255, 32768, 65536])
def test_a_metaimage_of_more_axes_than_itk_has_room_for_is_refused(tmp_path: Path, axes: int) -> None:
    """Such files crash ITK's reader."""
    header = f"ObjectType = Image\nNDims = {axes}\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "x.mha").write_bytes(header.encode() + bytes(240))
    with pytest.raises(UserError, match=r"x\.mha: its header is damaged \(ndims is"):
        read_volume(ImageFile(tmp_path / "x.mha"))


@pytest.mark.parametrize("damage", ["cut", "zeros", "another", "binary header", "open end"])
def test_a_compressed_metaimage_that_does_not_decompress_is_refused(tmp_path: Path, damage: str) -> None:
    """ITK returned arbitrary values for these, or wrote beyond its memory."""
    sitk = pytest.importorskip("SimpleITK")
    voxels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mha"), True)
    assert np.array_equal(read_itk(tmp_path / "a.mha")[0], voxels.T)
    content = (tmp_path / "a.mha").read_bytes()
    start = content.index(b"LOCAL\n") + len(b"LOCAL\n")
    header, stream = content[:start], content[start:]
    damaged = {
        "cut": header + stream[:-31],
        "zeros": header + bytes(len(stream)),
        "another": header + zlib.compress(bytes(100_000)),
        "binary header": content.replace(b"BinaryDataByteOrderMSB", b"Binar\x00\x01\x00\x00aByteOrderMSB"),
        "open end": header[:-1] + stream[:50] + b"\n" + stream[50:],
    }[damage]
    (tmp_path / "b.mha").write_bytes(damaged)
    with pytest.raises(UserError, match=r"b\.mha: its (compressed voxels are|header is damaged)"):
        read_itk(tmp_path / "b.mha")


def test_compressed_voxels_beside_a_metaimage_are_checked(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    voxels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"), True)
    assert np.array_equal(read_itk(tmp_path / "a.mhd")[0], voxels.T)
    (tmp_path / "a.zraw").write_bytes((tmp_path / "a.zraw").read_bytes()[:-31])
    with pytest.raises(UserError, match=r"a\.zraw: its compressed voxels are incomplete"):
        read_itk(tmp_path / "a.mhd")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"CompressedDataSize = ", b"CompressedDataSize = -", r"its header is damaged \(compresseddatasize is "),
        (b"= a.zraw", b"= b.zraw", r"the file with its voxels, 'b\.zraw', is missing"),
        (b"= a.zraw", b"= " + b"b" * 400, r"the file with its voxels, 'b+', is missing"),
        (b"4 5 6", b"40000 5 6", r"its compressed voxels are incomplete"),
    ],
)
def test_a_header_that_does_not_fit_its_voxels_is_refused_before_they_are_read(
    tmp_path: Path, old: bytes, new: bytes, said: str
) -> None:
    """ITK reserves memory by the header first."""
    sitk = pytest.importorskip("SimpleITK")
    voxels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"), True)
    header = (tmp_path / "a.mhd").read_bytes()
    assert old in header
    (tmp_path / "a.mhd").write_bytes(header.replace(old, new))
    with pytest.raises(UserError, match=said):
        read_itk(tmp_path / "a.mhd")


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".mhd"])
def test_a_truncated_image_states_how_much_is_there(tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 5, 4), np.int16)), str(path), False)
    holder = path.with_suffix(".raw") if ending == ".mhd" else path
    holder.write_bytes(holder.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be read as an image; it is truncated to 140 of the 240 bytes"):
        read_itk(path)


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), 3 + 4j)), str(tmp_path / "a.nrrd"))
    with pytest.raises(UserError, match="has complex voxels; expected one real number per voxel"):
        read_itk(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("unit", "is_read"), [("mm", True), ("millimeters", True), ("um", False), ("m", False), ("cm", False)]
)
def test_lengths_in_nrrd_and_metaimage_headers_are_in_mm(tmp_path: Path, unit: str, is_read: bool) -> None:
    pytest.importorskip("SimpleITK")
    heads = {
        "a.nrrd": "NRRD0005\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
        f'space directions: (1,0,0) (0,1,0) (0,0,2)\nspace units: "{unit}" "{unit}" "{unit}"\nendian: little\n'
        "encoding: raw\nspace origin: (0,0,0)\n\n",
        "a.mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"ElementSpacing = 1 1 2\nDistanceUnits = {unit}\nDimSize = 4 3 2\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n",
    }
    for name, head in heads.items():
        file = tmp_path / name
        file.write_bytes(head.encode() + np.arange(24, dtype="<i2").tobytes())
        if is_read:
            assert read_volume(ImageFile(file)).spacing == (1, 1, 2)
        else:
            with pytest.raises(UserError, match=f"states lengths in '{unit}'; expected mm"):
                read_volume(ImageFile(file))


@pytest.mark.parametrize(
    ("space", "is_known"),
    [
        ("space: right-anterior-superior", True),
        ("space: LPS", True),
        ("space: left-anterior-superior", True),
        ("space: scanner-xyz", False),
        ("space: 3D-right-handed", False),
        ("space dimension: 3", False),
    ],
)
def test_only_spaces_of_the_patient_are_positions(tmp_path: Path, space: str, is_known: bool) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.nrrd").write_bytes(
        f"NRRD0004\ntype: short\ndimension: 3\n{space}\nsizes: 4 3 2\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"
        "endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n".encode()
        + np.arange(24, dtype="<i2").tobytes()
    )
    grid = read_volume(ImageFile(tmp_path / "a.nrrd")).grid
    assert (grid.size_known, grid.place_known, grid.spacing) == (True, is_known, (1, 1, 2))


def test_metaimage_that_simpleitk_writes_states_its_position(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for ending in (".mha", ".mhd", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 5, 4), np.int16)), str(tmp_path / f"a{ending}"))
        assert read_volume(ImageFile(tmp_path / f"a{ending}")).grid.place_known
